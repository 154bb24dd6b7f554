"""The victim stages: the networks of `networks.py`, normalised inside, trained as core trains victims."""

from __future__ import annotations

import attrs
from torch import nn

from defend import Task
from defend.datasets.normalisation import NormalisationOptions, choose_normalisation
from defend.victims.plugin import VictimRecipe
from defend.victims.training import NormalisedVictim, VictimTraining
from defend_dae_finetune.networks import resnet20, se_preresnet56


def build_resnet20(config: NormalisationOptions, task: Task) -> NormalisedVictim:
    """Build ResNet-20 for a task: images [B,C,H,W] in [0,1] to logits [B,classes]."""
    return _normalise(resnet20(task.channels, task.classes), config, task)


def build_se_preresnet56(config: NormalisationOptions, task: Task) -> NormalisedVictim:
    """Build SE-PreResNet-56 for a task: images [B,C,H,W] in [0,1] to logits [B,classes]."""
    return _normalise(se_preresnet56(task.channels, task.classes), config, task)


def train_resnet20(config: NormalisationOptions, recipe: VictimRecipe, task: Task) -> VictimTraining:
    """Describe the training of ResNet-20."""
    return VictimTraining(build_resnet20(config, task), recipe, task)


def train_se_preresnet56(config: NormalisationOptions, recipe: VictimRecipe, task: Task) -> VictimTraining:
    """Describe the training of SE-PreResNet-56."""
    return VictimTraining(build_se_preresnet56(config, task), recipe, task)


def _normalise(network: nn.Module, config: NormalisationOptions, task: Task) -> NormalisedVictim:
    mean, std = choose_normalisation(config.mean, config.std, task)
    return NormalisedVictim.for_task(network, attrs.evolve(task, mean=mean, std=std))
