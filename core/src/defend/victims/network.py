"""A timm model as a victim: images in [0,1] in, logits out, normalisation inside."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Sequence
from typing import Any

import attrs
import timm
import timm.models
import torch
from timm.models import PretrainedCfg

from defend.datasets.normalisation import choose_normalisation
from defend.errors import ConfigError, WeightsError
from defend.stages import Task
from defend.victims import small
from defend.victims.plugin import TimmOptions, VictimRecipe
from defend.victims.training import NormalisedVictim, VictimTraining

HUB = "hf-hub:"  # as timm writes it


def build(config: TimmOptions, task: Task) -> NormalisedVictim:
    """Build any timm model for the task's channels and classes.

    Raises:
        ConfigError: a small form was asked for a model that has none (see `defend.victims.small`), or pretrained
            weights for a task of other classes than theirs.
        WeightsError: timm's pretrained weights could not be had.
    """
    arguments: dict[str, object] = {"in_chans": task.channels, "num_classes": task.classes}
    hub = config.model.startswith(HUB)
    model = config.model if config.pretrained or hub else config.model.partition(".")[0]  # a tag is of weights alone
    settings = _find_settings(model) if hub else timm.get_pretrained_cfg(model)
    published = None
    if config.pretrained:
        if settings is None:
            raise ConfigError(
                f"pretrained {model} has no pretrained weights: leave pretrained off, or name another tag of it"
            )
        check_classes(model, settings.num_classes, task)
        published = settings.mean, settings.std
        arguments["pretrained"] = True
    mean, std = choose_normalisation(config.mean, config.std, task, published=published)
    size = choose_size(config.size, task, settings.input_size[-2:] if settings is not None and published else None)
    if settings is not None and settings.fixed_input_size:
        arguments["img_size"] = size
    stem = config.stem
    if stem == "auto" and (config.pretrained or hub or size[0] > small.LARGEST_SIDE):
        stem = "standard"  # a new stem would throw pretrained weights away
    if stem != "standard" and not config.pretrained:
        arguments |= small.arguments(model)
    try:
        with hushed():
            network = timm.create_model(model, **arguments)  # type: ignore[arg-type]
    except Exception as error:
        if not config.pretrained:
            raise ConfigError(f"timm cannot build {model} for {size[0]}x{size[1]} images: {error}") from error
        raise WeightsError(say_undownloaded("timm", model, error)) from error
    side = 0 if stem == "standard" else small.reshape(network, model, stem, size[0], config.pretrained)
    victim = NormalisedVictim.for_task(network, attrs.evolve(task, mean=mean, std=std), side, size)
    return check_size(victim, model, task)


def check_size(victim: NormalisedVictim, model: str, task: Task) -> NormalisedVictim:
    """Return a victim in training mode, once it has taken an image of the task's size.

    Raises:
        ConfigError: it cannot.
    """
    try:
        with torch.no_grad():
            victim.eval()(torch.zeros(1, task.channels, task.height, task.width))
    except Exception as error:  # a network that was built may still not take images of this size
        raise ConfigError(
            f"{model} cannot take {task.height}x{task.width} images: {_line(error)} (--set victim.size=224 scales them)"
        ) from error
    return victim.train()


def check_classes(model: str, classes: int, task: Task) -> None:
    """Refuse published weights for another number of classes than the task's.

    Raises:
        ConfigError: both numbers are in it.
    """
    if task.classes != classes:
        raise ConfigError(
            f"pretrained {model} has {classes} classes and {task.dataset} has {task.classes}: leave pretrained off "
            "(--set victim.pretrained=false) and train it, or name weights of your own (--victim-weights)"
        )


def say_undownloaded(library: str, model: str, error: Exception) -> str:
    """Return the line for published weights, or their settings, that could not be had."""
    return (
        f"{library}'s weights for {model} could not be downloaded: {_line(error)} (they need a network, once; your own "
        "are named by --victim-weights)"
    )


@contextlib.contextmanager
def hushed() -> Iterator[None]:
    """Within the block, libraries that download log no retries: what became of it is said once."""
    log = logging.getLogger("huggingface_hub")
    before = log.level
    log.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        log.setLevel(before)


def _find_settings(model: str) -> PretrainedCfg:
    """Return what the hub says of a model's weights.

    Raises:
        WeightsError: the hub could not be reached, or has no such model.
    """
    try:
        with hushed():
            settings, _, _ = timm.models.load_model_config_from_hf(model.removeprefix(HUB))
    except Exception as error:
        raise WeightsError(say_undownloaded("timm", model, error)) from error
    return PretrainedCfg(**settings)


def choose_size(asked: int | None, task: Task, published: Sequence[int] | None) -> tuple[int, int]:
    """Return rows and columns that a network gets: those asked for, of published weights, or of the images."""
    if asked is None and published is not None:
        return (int(published[0]), int(published[1]))
    return (asked, asked) if asked else (task.height, task.width)


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:120]


def build_from_hub(config: TimmOptions, task: Task) -> NormalisedVictim:
    """Build a model that timm finds on Hugging Face's hub, `config.model` being ORG/NAME; see `build`."""
    own: Any = config
    return build(attrs.evolve(own, model=f"{HUB}{config.model}"), task)


def train_from_hub(config: TimmOptions, recipe: VictimRecipe, task: Task) -> VictimTraining:
    """Describe the training of a model from the hub."""
    return VictimTraining(build_from_hub(config, task), recipe, task)


def train(config: TimmOptions, recipe: VictimRecipe, task: Task) -> VictimTraining:
    """Describe the training of a timm victim."""
    return VictimTraining(build(config, task), recipe, task)
