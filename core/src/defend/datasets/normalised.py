"""A victim whose network wants scaled or normalised images: it does so itself, so that gradients pass."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from defend.datasets.normalisation import SMALLEST_STD, choose_normalisation
from defend.stages import Task


class NormalisedVictim(nn.Module):
    """Scale and normalise, then classify.

    Args:
        network: takes normalised images [B,C,H,W], returns logits [B,classes]. A user's own weights are loaded into it.
        mean, std: one number a channel of the network, in [0,1] units; a std under 1e-3 (a constant channel) is raised
            to it. Grey images before a network of three channels are its three.
        margin: black (zero) pixels to add left, right, above and below, before normalisation.
        size: rows and columns to scale images to first (bilinear, and without aliasing where they shrink); None as they
            come.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        network: nn.Module,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        margin: tuple[int, int, int, int] = (0, 0, 0, 0),
        size: tuple[int, int] | None = None,
    ) -> None:
        super().__init__()
        self.network, self._margin, self._size = network, margin, size
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std).clamp_min(SMALLEST_STD).view(1, -1, 1, 1))

    @classmethod
    def for_task(
        cls, network: nn.Module, task: Task, side: int = 0, size: tuple[int, int] | None = None
    ) -> NormalisedVictim:
        """Normalise by the task's statistics, or around grey where they are unknown.

        Images are scaled to `size` where they have another. Those of fewer rows or columns than `side` get a margin up
        to it, an odd pixel at the right or below.
        """
        own = (task.height, task.width)
        rows, columns = (max(side - each, 0) for each in size or own)
        margin = (columns // 2, columns - columns // 2, rows // 2, rows - rows // 2)
        mean, std = choose_normalisation(task.mean, task.std, task, channels=len(task.mean) or None)
        return cls(network, mean, std, margin, None if size == own else size)

    @property
    def random(self) -> bool:
        """Whether the network says that it draws."""
        return bool(getattr(self.network, "random", False))

    def forward(self, images: Tensor) -> Tensor:
        """Return logits [B,classes] of images [B,C,H,W] in [0,1]."""
        if self._size is not None:
            shrinks = min(self._size) < max(images.shape[-2:])
            images = F.interpolate(images, self._size, mode="bilinear", align_corners=False, antialias=shrinks)
        if any(self._margin):
            images = F.pad(images, self._margin)
        logits: Tensor = self.network((images - self.mean) / self.std)
        return logits
