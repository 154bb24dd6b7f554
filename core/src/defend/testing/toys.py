"""A small task, images, a victim and a data set for tests that should take no time."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from defend.datasets.base import SPLITS, MemoryDataset
from defend.stages import Task

TASK = Task("digits", 1, 28, 28, 10, (0.3,), (0.38,))
SEED = 3


def images(task: Task, count: int, seed: int = 0) -> Tensor:
    """Return smooth random images [count,C,H,W] in [0,1], a few pixels at exactly 0 and 1."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, task.channels, 7, 7, generator=generator)
    fine = F.interpolate(coarse, size=(task.height, task.width), mode="bilinear", align_corners=False)
    return ((fine - 0.5) * 2 + 0.5).clamp(0, 1)


class TinyVictim(nn.Module):
    """A small fixed classifier for contracts and tests: pooling, one hidden layer, smooth everywhere."""

    def __init__(self, task: Task = TASK, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.pool = nn.AdaptiveAvgPool2d(7)
        self.hidden = nn.Linear(49 * task.channels, 32)
        self.head = nn.Linear(32, task.classes)
        for layer in (self.hidden, self.head):
            with torch.no_grad():
                layer.weight.copy_(torch.randn(layer.weight.shape, generator=generator) * 0.4)
                layer.bias.zero_()

    def forward(self, batch: Tensor) -> Tensor:
        """Return logits [B,classes]."""
        logits: Tensor = self.head(torch.tanh(self.hidden(self.pool(batch - 0.5).flatten(1))))
        return logits


class UnusualVictim(TinyVictim):
    """A tiny victim whose logits come in another form, or that writes into what it is shown: whatever is taken.

    Args:
        form: "tuple", "dict", "map" ([B,classes,1,1]) or "in place".
    """

    def __init__(self, form: str, task: Task = TASK) -> None:
        super().__init__(task)
        self.form = form

    def forward(self, batch: Tensor) -> Any:
        """Return logits [B,classes] in that form."""
        if self.form == "in place":
            batch.sub_(0.5).add_(0.5)
        logits = super().forward(batch)
        forms = {"tuple": (logits, None), "dict": {"logits": logits}, "map": logits[:, :, None, None]}
        return forms.get(self.form, logits)


class Multiplied(nn.Module):
    """A victim whose logits are multiplied: of 1e4 a softmax says 0 and 1, and a literal loss has no gradient."""

    def __init__(self, victim: nn.Module, factor: float) -> None:
        super().__init__()
        self.victim, self.factor = victim, factor

    def forward(self, batch: Tensor) -> Tensor:
        """Return logits [B,classes]."""
        logits: Tensor = self.factor * self.victim(batch)
        return logits


class Negative(nn.Module):
    """A purifier that turns every image into its negative."""

    random = False

    def forward(self, batch: Tensor) -> Tensor:
        return 1 - batch


def tiny_dataset(task: Task) -> MemoryDataset:
    """Return 32 smooth random images a split, with labels by turns, for a training that should take a second."""
    pixels = (images(task, 32) * 255).byte()
    labels = torch.arange(32) % task.classes
    classes = [str(number) for number in range(task.classes)]
    return MemoryDataset("tiny", classes, dict.fromkeys(SPLITS, pixels), dict.fromkeys(SPLITS, labels))
