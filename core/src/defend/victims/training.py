"""What every victim shares: normalisation inside the module, and the training. Imports no timm."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from defend.datasets.base import Batch, ImageDataset
from defend.stages import Task
from defend.train import Loss, Optimiser, Training
from defend.victims.plugin import VictimRecipe

GREY, HALF, SMALLEST_STD = 0.5, 0.5, 1e-3


class NormalisedVictim(nn.Module):
    """Normalise, then classify.

    Args:
        network: takes normalised images [B,C,H,W], returns logits [B,classes].
        mean, std: one number a channel, in [0,1] units; a std under 1e-3 (a constant channel) is raised to it.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std).clamp_min(SMALLEST_STD).view(1, -1, 1, 1))

    @classmethod
    def for_task(cls, network: nn.Module, task: Task) -> NormalisedVictim:
        """Normalise by the training images' statistics, or around grey where they are unknown."""
        return cls(network, task.mean or (GREY,) * task.channels, task.std or (HALF,) * task.channels)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits [B,classes] of images [B,C,H,W] in [0,1]."""
        logits: Tensor = self.network((images - self.mean) / self.std)
        return logits


class VictimTraining(Training):
    """Cross-entropy on shifted (and flipped) training images."""

    def __init__(self, victim: nn.Module, recipe: VictimRecipe, task: Task) -> None:
        super().__init__(victim, {"victim": victim}, epochs=recipe.epochs, batch_size=recipe.batch_size)
        self._recipe, self._flips = recipe, task.flips

    def optimisers(self, steps: int) -> dict[str, Optimiser]:
        parameters = self.modules["victim"].parameters()
        adamw = torch.optim.AdamW(parameters, lr=self._recipe.lr, weight_decay=self._recipe.weight_decay)
        cycle = torch.optim.lr_scheduler.OneCycleLR(adamw, self._recipe.lr, total_steps=steps)
        return {"victim": Optimiser(adamw, cycle)}

    def losses(self, batch: Batch) -> Iterator[Loss]:
        images = augment(batch.images, self._recipe.shift, self._flips)
        logits = self.modules["victim"](images)
        right = (logits.detach().argmax(1) == batch.labels).float().mean()
        yield Loss("victim", F.cross_entropy(logits, batch.labels), {"accuracy": right})

    @torch.no_grad()
    def finish(self, dataset: ImageDataset, device: torch.device) -> dict[str, float]:
        """Measure the accuracy on the validation and test splits."""
        victim, figures = self.modules["victim"], {}
        for split in ("val", "test"):
            right = torch.zeros((), device=device)
            for batch in dataset.batches(split, dataset.keys(split), 128, device):
                right += (victim(batch.images).argmax(1) == batch.labels).sum()
            figures[f"{split}_accuracy"] = float(right) / len(dataset.labels(split))
        return figures


def augment(images: Tensor, shift: int, flips: bool) -> Tensor:
    """Shift every image by its own random offset of up to `shift` pixels, and flip half of them: [B,C,H,W]."""
    count, channels, height, width = images.shape
    padded = F.pad(images, (shift,) * 4)
    top, left = torch.randint(0, 2 * shift + 1, (2, count, 1), device=images.device)
    rows = top + torch.arange(height, device=images.device)
    columns = left + torch.arange(width, device=images.device)
    if flips:
        mirrored = torch.rand(count, 1, device=images.device) < 0.5
        columns = torch.where(mirrored, columns.flip(1), columns)
    batch = torch.arange(count, device=images.device).view(-1, 1, 1, 1)
    channel = torch.arange(channels, device=images.device).view(1, -1, 1, 1)
    return padded[batch, channel, rows[:, None, :, None], columns[:, None, None, :]]
