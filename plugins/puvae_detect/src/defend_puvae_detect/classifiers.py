"""Classifiers A and B (Table 6), and their training. They take images in [0,1] as they are."""

from __future__ import annotations

from torch import nn

from defend import Task
from defend.errors import ConfigError
from defend.options import NoOptions
from defend.train import Optimiser
from defend.victims.training import VictimTraining
from defend_puvae_detect.config import ClassifierRecipe
from defend_puvae_detect.layers import SameConv2d, keras_initial_values

SMALLEST_A = 9
WIDTH = 64


def build_a(_: NoOptions, task: Task) -> nn.Sequential:
    """Build A: conv 64 5x5, conv 64 5x5 s2, no padding; FC 128; logits. 924,746 parameters for 28x28x1.

    Raises:
        ConfigError: the images are smaller than 9x9, so nothing is left after the convolutions.
    """
    if min(task.height, task.width) < SMALLEST_A:
        raise ConfigError(
            f"classifier_a takes images of at least {SMALLEST_A}x{SMALLEST_A}, {task.dataset} has "
            f"{task.height}x{task.width}: use classifier_b"
        )
    rows, columns = ((size - SMALLEST_A) // 2 + 1 for size in (task.height, task.width))
    network = nn.Sequential(
        nn.Conv2d(task.channels, WIDTH, 5),
        nn.ReLU(),
        nn.Conv2d(WIDTH, WIDTH, 5, stride=2),
        nn.ReLU(),
        nn.Dropout(0.25),
        nn.Flatten(),
        nn.Linear(WIDTH * rows * columns, 128),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Linear(128, task.classes),
    )
    keras_initial_values(network)
    return network


def build_b(_: NoOptions, task: Task) -> nn.Sequential:
    """Build B: conv 64, 128, and 256 s2, 3x3 `same`; FC 512, FC 256; logits. 34,059,658 parameters for 32x32x3."""
    rows, columns = ((size + 1) // 2 for size in (task.height, task.width))
    network = nn.Sequential(
        SameConv2d(task.channels, WIDTH, 3),
        nn.ReLU(),
        SameConv2d(WIDTH, 2 * WIDTH, 3),
        nn.ReLU(),
        SameConv2d(2 * WIDTH, 4 * WIDTH, 3, stride=2),
        nn.ReLU(),
        nn.Dropout(0.25),
        nn.Flatten(),
        nn.Linear(4 * WIDTH * rows * columns, 512),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Linear(512, 256),
        nn.ReLU(),
        nn.Linear(256, task.classes),
    )
    keras_initial_values(network)
    return network


class ClassifierTraining(VictimTraining):
    """Cross-entropy with Adam, at a constant rate or one cycle; images as they are, unless the recipe shifts them."""

    _recipe: ClassifierRecipe

    def __init__(self, network: nn.Module, recipe: ClassifierRecipe, task: Task) -> None:
        super().__init__(network, recipe, task)
        self._flips = task.flips and recipe.shift > 0

    def optimisers(self, steps: int) -> dict[str, Optimiser]:
        return (
            {"victim": Optimiser(self.optimiser())}
            if self._recipe.schedule == "constant"
            else super().optimisers(steps)
        )


def train_a(config: NoOptions, recipe: ClassifierRecipe, task: Task) -> ClassifierTraining:
    """Describe the training of classifier A."""
    return ClassifierTraining(build_a(config, task), recipe, task)


def train_b(config: NoOptions, recipe: ClassifierRecipe, task: Task) -> ClassifierTraining:
    """Describe the training of classifier B."""
    return ClassifierTraining(build_b(config, task), recipe, task)
