"""A small fully connected network, the victim of the paper's MNIST tables.

The paper does not say what its MNIST network is, only that it gets 97.4 % of clean images right, 26.9 % under FGSM and
12.9 % under PGD with eps 0.1 (Table 2). Convolutional networks are far more robust than that at eps 0.1; one hidden
layer of 128 neurons is not [R].
"""

from __future__ import annotations

from torch import nn

from defend import Task
from defend.victims.plugin import VictimRecipe
from defend.victims.training import NormalisedVictim, VictimTraining
from defend_apudae.config import MlpOptions


def build(config: MlpOptions, task: Task) -> NormalisedVictim:
    """Build the network: one hidden layer with ReLU. 101,770 parameters for 28x28x1."""
    inputs = task.channels * task.height * task.width
    network = nn.Sequential(
        nn.Flatten(), nn.Linear(inputs, config.hidden), nn.ReLU(), nn.Linear(config.hidden, task.classes)
    )
    return NormalisedVictim.for_task(network, task)


def train(config: MlpOptions, recipe: VictimRecipe, task: Task) -> VictimTraining:
    """Describe its training."""
    return VictimTraining(build(config, task), recipe, task)
