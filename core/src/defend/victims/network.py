"""A timm model as a victim: images in [0,1] in, logits out, normalisation inside."""

from __future__ import annotations

from typing import cast

import attrs
import timm
import torch
from torch import nn

from defend.errors import ConfigError, WeightsError
from defend.stages import Task
from defend.victims.plugin import TimmOptions, VictimRecipe
from defend.victims.training import NormalisedVictim, VictimTraining

SMALL_SIDES = range(32, 65)
STRIDES = {"small": 1, "strided": 2}


def build(config: TimmOptions, task: Task) -> NormalisedVictim:
    """Build any timm model for the task's channels and classes.

    Raises:
        ConfigError: the small stem was asked for a model that has no ResNet stem, or pretrained
            weights for a task that is not ImageNet's.
        WeightsError: timm's pretrained weights could not be had.
    """
    arguments: dict[str, object] = {"in_chans": task.channels, "num_classes": task.classes}
    if config.pretrained:
        settings = timm.get_pretrained_cfg(config.model)
        if settings is None or task.classes != settings.num_classes:
            own = "no pretrained weights" if settings is None else f"{settings.num_classes} classes"
            raise ConfigError(
                f"pretrained {config.model} has {own} and {task.dataset} has {task.classes}: leave pretrained off"
            )
        mean, std = (_for_channels(values, task.channels) for values in (settings.mean, settings.std))
        task = attrs.evolve(task, mean=mean, std=std)
        arguments["pretrained"] = True
    default = timm.get_pretrained_cfg(config.model)
    if default is not None and default.fixed_input_size:
        arguments["img_size"] = (task.height, task.width)
    try:
        network = timm.create_model(config.model, **arguments)  # type: ignore[arg-type]
    except Exception as error:
        if not config.pretrained:
            raise ConfigError(
                f"timm cannot build {config.model} for {task.height}x{task.width} images: {error}"
            ) from error
        raise WeightsError(f"timm's weights for {config.model} could not be downloaded: {_line(error)}") from error
    stem = config.stem
    if stem == "auto":  # a new stem would throw pretrained weights away
        stem = "standard" if config.pretrained else _auto_stem(task.height, network)
    if stem in STRIDES:
        _replace_stem(network, config.model, stem)
    victim = NormalisedVictim.for_task(network, task)
    try:
        with torch.no_grad():
            victim.eval()(torch.zeros(1, task.channels, task.height, task.width))
    except Exception as error:  # a network that was built may still not take images of this size
        raise ConfigError(f"{config.model} cannot take {task.height}x{task.width} images: {_line(error)}") from error
    return victim.train()


def _for_channels(values: tuple[float, ...], channels: int) -> tuple[float, ...]:
    return values if len(values) == channels else (sum(values) / len(values),) * channels


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:120]


def _has_stem(network: nn.Module) -> bool:
    first = getattr(network, "conv1", None)
    return isinstance(first, nn.Conv2d) and hasattr(network, "maxpool") and first.kernel_size == (7, 7)


def _auto_stem(side: int, network: nn.Module) -> str:
    if not _has_stem(network) or side > SMALL_SIDES.stop - 1:
        return "standard"
    return "small" if side in SMALL_SIDES else "strided"


def _replace_stem(network: nn.Module, model: str, stem: str) -> None:
    if not _has_stem(network):
        raise ConfigError(f"stem={stem!r} needs a ResNet with a 7x7 stem, and {model} has none: use stem=standard")
    old = cast(nn.Conv2d, network.conv1)
    network.conv1 = nn.Conv2d(old.in_channels, old.out_channels, 3, stride=STRIDES[stem], padding=1, bias=False)
    network.maxpool = nn.Identity()


def train(config: TimmOptions, recipe: VictimRecipe, task: Task) -> VictimTraining:
    """Describe the training of a timm victim."""
    return VictimTraining(build(config, task), recipe, task)
