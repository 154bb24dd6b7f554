"""A small fully connected network, the victim of the paper's MNIST tables.

The paper does not say what its MNIST network is, only that it gets 97.4 % of clean images right, 26.9 % under FGSM and
12.9 % under PGD with eps 0.1 (Table 2). Convolutional networks are far more robust than that at eps 0.1; one hidden
layer of 128 neurons is not [R]. The authors' code imports the model selector of a known collection, whose MNIST network
has two of 256 with dropout of 0.2 [C]: the edition `two-layers`.
"""

from __future__ import annotations

from torch import nn

from defend import Task
from defend.victims.plugin import VictimRecipe
from defend.victims.training import NormalisedVictim, VictimTraining
from defend_apudae.config import MlpOptions


def build(config: MlpOptions, task: Task) -> NormalisedVictim:
    """Build the network: hidden layers with ReLU, of 28x28x1 101,770 parameters, as `two-layers` 269,322."""
    width, parts = task.channels * task.height * task.width, list[nn.Module]([nn.Flatten()])
    for _ in range(config.layers):
        parts += [nn.Linear(width, config.hidden), nn.ReLU(), *([nn.Dropout(config.dropout)] * (config.dropout > 0))]
        width = config.hidden
    return NormalisedVictim.for_task(nn.Sequential(*parts, nn.Linear(width, task.classes)), task)


def train(config: MlpOptions, recipe: VictimRecipe, task: Task) -> VictimTraining:
    """Describe its training."""
    return VictimTraining(build(config, task), recipe, task)
