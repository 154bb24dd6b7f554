"""What images are normalised by before a network sees them: the usual triplets by name, and which a victim takes.

In [0,1] units, one number a channel. Imports no torch.

- `imagenet`: of ImageNet's training images, as torchvision's and most of timm's weights have it
  (docs.pytorch.org/vision/stable/models.html).
- `cifar10`: of CIFAR-10's 50,000 training images, over all pixels. Many scripts divide by (0.2023, 0.1994, 0.2010)
  instead, the mean of the images' own deviations: such numbers are given as numbers.
- `half`: to [-1,1], as Inception and many vision transformers have it (timm's IMAGENET_INCEPTION_MEAN).
- `none`: images as they are, in [0,1].
- `dataset`: the statistics of the data set's own training images, which is the default.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from defend.errors import ConfigError
from defend.options import option, options
from defend.stages import Task

MEANS: dict[str, tuple[float, ...]] = {
    "dataset": (),
    "imagenet": (0.485, 0.456, 0.406),
    "cifar10": (0.4914, 0.4822, 0.4465),
    "half": (0.5,),
    "none": (0.0,),
}
STDS: dict[str, tuple[float, ...]] = {
    "dataset": (),
    "imagenet": (0.229, 0.224, 0.225),
    "cifar10": (0.2470, 0.2435, 0.2616),
    "half": (0.5,),
    "none": (1.0,),
}
SMALLEST_STD = 1e-3
STD_HELP = "what it divides by after that; see mean"
MEAN_HELP = (
    "what the victim subtracts from images in [0,1] before its network sees them: a name, or one number a channel; "
    "give std too. () or dataset: the data set's own, or that of published weights"
)
OWN_MEAN_HELP = (
    "what is subtracted from images in [0,1] before the victim sees them: a name, or one number a channel; give std "
    "too. () leaves them as they are"
)
UNKNOWN = (0.5,)  # grey, and to [-1,1], where a data set tells no statistics


def _option(names: Mapping[str, tuple[float, ...]], about: str, at_least: float) -> Any:
    return option((), help=about, names=names, at_least=at_least, at_most=1, architecture=True, levels=True)


def _without_dataset(names: Mapping[str, tuple[float, ...]]) -> dict[str, tuple[float, ...]]:
    return {name: value for name, value in names.items() if value}


@options
class NormalisationOptions:
    """The options of every victim that normalises as it is asked to; without a default of their own, ()."""

    mean: tuple[float, ...] = _option(MEANS, MEAN_HELP, at_least=0)
    std: tuple[float, ...] = _option(STDS, STD_HELP, at_least=SMALLEST_STD)


@options
class OwnNormalisationOptions:
    """The options of a user's own victim: it is normalised for only where that is asked, and so not by `dataset`."""

    mean: tuple[float, ...] = _option(_without_dataset(MEANS), OWN_MEAN_HELP, at_least=0)
    std: tuple[float, ...] = _option(_without_dataset(STDS), STD_HELP, at_least=SMALLEST_STD)


def choose_normalisation(
    mean: tuple[float, ...],
    std: tuple[float, ...],
    task: Task,
    *,
    published: tuple[tuple[float, ...], tuple[float, ...]] | None = None,
    channels: int | None = None,
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return the mean and std that a victim normalises by.

    Args:
        mean, std: those that were asked for, empty where none were.
        task: whose statistics stand where nothing else is said.
        published: of the weights that the victim takes; they come before the task's.
        channels: of the network's input; the task's if None.

    Raises:
        ConfigError: one of the two was given without the other, or for another number of channels.
    """
    if bool(mean) != bool(std):
        given, lacks = ("mean", "std") if mean else ("std", "mean")
        raise ConfigError(
            f"{given} was given and {lacks} was not: give both, for example --mean imagenet --std imagenet"
        )
    wanted = channels or task.channels
    if not mean:
        mean, std = published or (task.mean or UNKNOWN, task.std or UNKNOWN)
    return _spread("mean", mean, wanted), _spread("std", std, wanted)


def _spread(name: str, values: tuple[float, ...], channels: int) -> tuple[float, ...]:
    """Return one number a channel; of grey images the mean of several."""
    if len(values) == channels:
        return values
    if len(values) != 1 and channels != 1:
        raise ConfigError(f"{name} has {len(values)} numbers, and the images have {channels} channels: give as many")
    return (sum(values) / len(values),) * channels
