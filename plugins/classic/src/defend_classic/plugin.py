"""What this package offers to `defend`. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence

from defend import Paper, StageSpec, hookimpl
from defend_classic.config import (
    BitsOptions,
    BlurOptions,
    JpegOptions,
    MedianOptions,
    NoiseOptions,
    ResizePadOptions,
    SqueezeOptions,
    TvOptions,
)

GUO = Paper(
    title="Countering Adversarial Images using Input Transformations",
    authors="Guo, Rana, Cisse and van der Maaten",
    year=2018,
    url="https://arxiv.org/abs/1711.00117",
)
XU = Paper(
    title="Feature Squeezing: Detecting Adversarial Examples in Deep Neural Networks",
    authors="Xu, Evans and Qi",
    year=2018,
    url="https://arxiv.org/abs/1704.01155",
)
LI = Paper(
    title="Adversarial Examples Detection in Deep Networks with Convolutional Filter Statistics",
    authors="Li and Li",
    year=2017,
    url="https://arxiv.org/abs/1612.07767",
)
XIE = Paper(
    title="Mitigating Adversarial Effects Through Randomization",
    authors="Xie, Wang, Zhang, Ren and Yuille",
    year=2018,
    url="https://arxiv.org/abs/1711.01991",
)
COHEN = Paper(
    title="Certified Adversarial Robustness via Randomized Smoothing",
    authors="Cohen, Rosenfeld and Kolter",
    year=2019,
    url="https://arxiv.org/abs/1902.02918",
)


def _purifier(name: str, summary: str, config: type, paper: Paper) -> StageSpec:
    build = f"defend_classic.purifiers:build_{name}"
    return StageSpec(name=name, summary=summary, build=build, config=config, paper=paper)


@hookimpl
def defend_purifiers() -> Sequence[StageSpec]:
    """Seven purifiers without weights."""
    return [
        _purifier("jpeg", "JPEG compression, there and back", JpegOptions, GUO),
        _purifier("bits", "fewer bits a channel", BitsOptions, XU),
        _purifier("median", "the median of every small window", MedianOptions, XU),
        _purifier("blur", "the mean of every small window, or a Gaussian one", BlurOptions, LI),
        _purifier("tv", "pixels left out at random, filled in with the least total variation", TvOptions, GUO),
        _purifier("resize_pad", "a random size, at a random place on black", ResizePadOptions, XIE),
        _purifier("noise", "Gaussian noise; with --certify, randomized smoothing", NoiseOptions, COHEN),
    ]


@hookimpl
def defend_detectors() -> Sequence[StageSpec]:
    """The detector `squeeze`."""
    return [
        StageSpec(
            name="squeeze",
            summary="rejects images that the victim answers otherwise once bits or detail are taken from them",
            build="defend_classic.detector:build",
            config=SqueezeOptions,
            paper=XU,
        )
    ]
