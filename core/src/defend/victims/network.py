"""A timm model as a victim: images in [0,1] in, logits out, normalisation inside."""

from __future__ import annotations

import attrs
import timm
import torch

from defend.errors import ConfigError, WeightsError
from defend.stages import Task
from defend.victims import small
from defend.victims.plugin import TimmOptions, VictimRecipe
from defend.victims.training import NormalisedVictim, VictimTraining


def build(config: TimmOptions, task: Task) -> NormalisedVictim:
    """Build any timm model for the task's channels and classes.

    Raises:
        ConfigError: a small form was asked for a model that has none (see `defend.victims.small`), or pretrained
            weights for a task that is not ImageNet's.
        WeightsError: timm's pretrained weights could not be had.
    """
    arguments: dict[str, object] = {"in_chans": task.channels, "num_classes": task.classes}
    model = config.model if config.pretrained else config.model.partition(".")[0]  # a tag is of weights alone
    if config.pretrained:
        settings = timm.get_pretrained_cfg(model)
        if settings is None or task.classes != settings.num_classes:
            own = "no pretrained weights" if settings is None else f"{settings.num_classes} classes"
            raise ConfigError(
                f"pretrained {model} has {own} and {task.dataset} has {task.classes}: leave pretrained off"
            )
        mean, std = (_for_channels(values, task.channels) for values in (settings.mean, settings.std))
        task = attrs.evolve(task, mean=mean, std=std)
        arguments["pretrained"] = True
    default = timm.get_pretrained_cfg(model)
    if default is not None and default.fixed_input_size:
        arguments["img_size"] = (task.height, task.width)
    stem = config.stem
    if stem == "auto" and (config.pretrained or task.height > small.LARGEST_SIDE):
        stem = "standard"  # a new stem would throw pretrained weights away
    if stem != "standard" and not config.pretrained:
        arguments |= small.arguments(model)
    try:
        network = timm.create_model(model, **arguments)  # type: ignore[arg-type]
    except Exception as error:
        if not config.pretrained:
            raise ConfigError(f"timm cannot build {model} for {task.height}x{task.width} images: {error}") from error
        raise WeightsError(f"timm's weights for {model} could not be downloaded: {_line(error)}") from error
    side = 0 if stem == "standard" else small.reshape(network, model, stem, task.height, config.pretrained)
    victim = NormalisedVictim.for_task(network, task, side)
    try:
        with torch.no_grad():
            victim.eval()(torch.zeros(1, task.channels, task.height, task.width))
    except Exception as error:  # a network that was built may still not take images of this size
        raise ConfigError(f"{model} cannot take {task.height}x{task.width} images: {_line(error)}") from error
    return victim.train()


def _for_channels(values: tuple[float, ...], channels: int) -> tuple[float, ...]:
    return values if len(values) == channels else (sum(values) / len(values),) * channels


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:120]


def train(config: TimmOptions, recipe: VictimRecipe, task: Task) -> VictimTraining:
    """Describe the training of a timm victim."""
    return VictimTraining(build(config, task), recipe, task)
