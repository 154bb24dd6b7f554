"""A torchvision classifier as a victim: images in [0,1] in, logits out, normalisation inside."""

from __future__ import annotations

import re
import warnings
from typing import Any

import attrs
from torch import Tensor
from torchvision import models

from defend.datasets.normalisation import choose_normalisation
from defend.errors import ConfigError, WeightsError
from defend.stages import Task
from defend.victims.network import check_classes, check_size, choose_size, say_undownloaded
from defend.victims.plugin import TorchvisionOptions, VictimRecipe
from defend.victims.training import NormalisedVictim, VictimTraining

CHANNELS = 3  # of all of them; grey images are their three
OLD_NAMES = re.compile(r"(denselayer\d+\.(?:norm|relu|conv))\.([12]\.)")  # in DenseNet's files, older than its code


def build(config: TorchvisionOptions, task: Task) -> NormalisedVictim:
    """Build a model for the task's classes, with torchvision's default weights or untrained.

    Raises:
        ConfigError: published weights for other classes than the task's, or images that the model cannot take.
        WeightsError: they could not be had.
    """
    name = f"torchvision:{config.model}"
    if task.channels not in (1, CHANNELS):
        raise ConfigError(f"{name} takes images of 3 channels, or grey ones, and {task.dataset} has {task.channels}")
    every: Any = models.get_model_weights(config.model)
    published = every.DEFAULT if config.pretrained else None
    if published is not None:
        check_classes(name, len(published.meta["categories"]), task)
    with warnings.catch_warnings():  # of how some will be initialised in another version
        warnings.simplefilter("ignore", FutureWarning)
        network = models.get_model(config.model, weights=None, num_classes=task.classes)
    normalised, side = None, None
    if published is not None:
        network.load_state_dict(_download(name, published))
        if hasattr(network, "transform_input"):  # Inception's and GoogLeNet's were trained with another normalisation
            setattr(network, "transform_input", True)  # noqa: B010 - mypy takes it for a tensor
        preset = published.transforms()
        normalised, side = (tuple(preset.mean), tuple(preset.std)), (preset.crop_size * 2)[:2]
    mean, std = choose_normalisation(config.mean, config.std, task, published=normalised, channels=CHANNELS)
    victim = NormalisedVictim.for_task(
        network, attrs.evolve(task, mean=mean, std=std), size=choose_size(config.size, task, side)
    )
    return check_size(victim, name, task)


def _download(name: str, published: models.WeightsEnum) -> dict[str, Tensor]:
    """Return published weights from torch's cache or the network: tensors alone, nothing is unpickled."""
    try:
        state = published.get_state_dict(progress=False, check_hash=True, weights_only=True)
    except Exception as error:
        raise WeightsError(say_undownloaded("torchvision", name, error)) from error
    return {OLD_NAMES.sub(r"\1\2", key): value for key, value in state.items()}


def train(config: TorchvisionOptions, recipe: VictimRecipe, task: Task) -> VictimTraining:
    """Describe the training of a torchvision victim."""
    return VictimTraining(build(config, task), recipe, task)
