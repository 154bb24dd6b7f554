"""The papers' settings, and our decisions where they give none, each with its reason. Imports no torch.

[P] stands in the stage's paper, [C] in its authors' code, [R] is our decision.
"""

from __future__ import annotations

from defend import option, options


@options
class JpegOptions:
    """Options of `jpeg`."""

    quality: int = option(
        75, help="1 coarsest, 100 finest, as libjpeg counts [P: Guo et al., 75]", at_least=1, at_most=100
    )
    subsampling: str = option(
        "4:2:0",
        help="of the two colour channels; grey images have none [R: what libjpeg does unless told otherwise]",
        choices=("4:2:0", "4:4:4"),
    )


@options
class BitsOptions:
    """Options of `bits`."""

    depth: int | None = option(
        None,
        help="bits a channel keeps; None: 1 on mnist, else 4 [P: CIFAR-10 and ImageNet]",
        at_least=1,
        at_most=8,
    )


@options
class MedianOptions:
    """Options of `median`."""

    size: int = option(2, help="side of the window in pixels [P: 2 on MNIST and CIFAR-10]", at_least=2, at_most=15)


@options
class BlurOptions:
    """Options of `blur`."""

    kernel: str = option(
        "mean",
        help="mean: all weights alike [P]; gaussian: by distance [R: the other usual kernel]",
        choices=("mean", "gaussian"),
    )
    size: int = option(3, help="side of the window in pixels, odd [P]", at_least=3, at_most=31)
    sigma: float = option(
        1.0,
        help="width of the Gaussian, in pixels [R: a usual one for windows of 3; not compared]",
        at_least=0.1,
        at_most=10,
    )


@options
class TvOptions:
    """Options of `tv`."""

    drop: float = option(0.5, help="share of pixels left out at random [P]", at_least=0, at_most=0.95)
    weight: float = option(0.03, help="of total variation against half the squared error [P]", at_least=0)
    steps: int = option(
        50, help="of the primal-dual solver [R: within 1 % of the minimum on digits]", at_least=1, at_most=10_000
    )


@options
class ResizePadOptions:
    """Options of `resize_pad`."""

    smallest: float = option(
        299 / 331,
        help="side of the smallest image, as a share of the whole [P: 299 to 330 of 331]",
        at_least=0.1,
        at_most=1,
    )


@options
class NoiseOptions:
    """Options of `noise`."""

    sigma: float = option(
        0.25, help="standard deviation of the noise [P: 0.25, beside 0.12, 0.5 and 1]", at_least=0, at_most=10
    )


@options
class SqueezeOptions:
    """Options of the detector `squeeze`."""

    depth: int | None = option(
        None,
        help="bits of the first squeezer; None: 1 on mnist, else 5 [P: CIFAR-10 and ImageNet]",
        at_least=1,
        at_most=8,
    )
    median: int = option(2, help="window of the second, in pixels [P]", at_least=2, at_most=15)
