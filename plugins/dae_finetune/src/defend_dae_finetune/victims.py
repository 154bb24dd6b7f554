"""The victim stages: the networks of `networks.py`, normalised inside, trained as core trains victims."""

from __future__ import annotations

from defend import Task
from defend.options import NoOptions
from defend.victims.plugin import VictimRecipe
from defend.victims.training import NormalisedVictim, VictimTraining
from defend_dae_finetune.networks import resnet20, se_preresnet56


def build_resnet20(_: NoOptions, task: Task) -> NormalisedVictim:
    """Build ResNet-20 for a task: images [B,C,H,W] in [0,1] to logits [B,classes]."""
    return NormalisedVictim.for_task(resnet20(task.channels, task.classes), task)


def build_se_preresnet56(_: NoOptions, task: Task) -> NormalisedVictim:
    """Build SE-PreResNet-56 for a task: images [B,C,H,W] in [0,1] to logits [B,classes]."""
    return NormalisedVictim.for_task(se_preresnet56(task.channels, task.classes), task)


def train_resnet20(config: NoOptions, recipe: VictimRecipe, task: Task) -> VictimTraining:
    """Describe the training of ResNet-20."""
    return VictimTraining(build_resnet20(config, task), recipe, task)


def train_se_preresnet56(config: NoOptions, recipe: VictimRecipe, task: Task) -> VictimTraining:
    """Describe the training of SE-PreResNet-56."""
    return VictimTraining(build_se_preresnet56(config, task), recipe, task)
