"""What every victim shares: normalisation inside the module, and the training. Imports no timm."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from defend.boundary.answers import unwrap
from defend.datasets.base import Batch, ImageDataset
from defend.errors import ConfigError
from defend.stages import Task
from defend.train import Loss, Optimiser, Training
from defend.victims.normalisation import SMALLEST_STD, choose_normalisation
from defend.victims.plugin import VictimRecipe

MOMENTUM = 0.9


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

    def forward(self, images: Tensor) -> Tensor:
        """Return logits [B,classes] of images [B,C,H,W] in [0,1]."""
        if self._size is not None:
            shrinks = min(self._size) < max(images.shape[-2:])
            images = F.interpolate(images, self._size, mode="bilinear", align_corners=False, antialias=shrinks)
        if any(self._margin):
            images = F.pad(images, self._margin)
        logits: Tensor = self.network((images - self.mean) / self.std)
        return logits


class VictimTraining(Training):
    """Cross-entropy on shifted (and flipped, and partly covered) training images.

    Raises:
        ConfigError: the recipe's cutout is larger than the images.
    """

    def __init__(self, victim: nn.Module, recipe: VictimRecipe, task: Task) -> None:
        super().__init__(victim, {"victim": victim}, epochs=recipe.epochs, batch_size=recipe.batch_size)
        if recipe.cutout > min(task.height, task.width):
            raise ConfigError(
                f"cutout={recipe.cutout} is larger than the images of {task.dataset}: expected at most "
                f"{min(task.height, task.width)}"
            )
        self._recipe, self._flips = recipe, task.flips

    def optimiser(self) -> torch.optim.Optimizer:
        """Return the recipe's optimiser at its `lr`, before any schedule.

        AdamW decays every parameter. SGD (Nesterov momentum 0.9) leaves out what has one dimension: biases, and the
        scales of normalisation layers.
        """
        recipe, parameters = self._recipe, list(self.modules["victim"].parameters())
        if recipe.optimiser == "adamw":
            return torch.optim.AdamW(parameters, lr=recipe.lr, weight_decay=recipe.weight_decay)
        groups = [
            {"params": [p for p in parameters if p.ndim > 1], "weight_decay": recipe.weight_decay},
            {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
        ]
        return torch.optim.SGD(groups, lr=recipe.lr, momentum=MOMENTUM, nesterov=True)

    def optimisers(self, steps: int) -> dict[str, Optimiser]:
        chosen = self.optimiser()
        # the cycle would move SGD's momentum too, which the recipe says is 0.9
        cycle = torch.optim.lr_scheduler.OneCycleLR(
            chosen, self._recipe.lr, total_steps=steps, cycle_momentum=self._recipe.optimiser == "adamw"
        )
        return {"victim": Optimiser(chosen, cycle)}

    def losses(self, batch: Batch) -> Iterator[Loss]:
        images = cut_out(augment(batch.images, self._recipe.shift, self._flips), self._recipe.cutout)
        logits = unwrap(self.modules["victim"](images))  # some answer more while they train: Inception's auxiliary head
        right = (logits.detach().argmax(1) == batch.labels).float().mean()
        loss = F.cross_entropy(logits, batch.labels, label_smoothing=self._recipe.label_smoothing)
        yield Loss("victim", loss, {"accuracy": right})

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


def cut_out(images: Tensor, side: int) -> Tensor:
    """Paint a black square of `side` pixels, at its own random place inside each image [B,C,H,W].

    Source: DeVries & Taylor, Improved Regularization of Convolutional Neural Networks with Cutout (2017); here the
    square never sticks out. Draws nothing for 0.
    """
    if side == 0:
        return images
    count, _, height, width = images.shape
    rows, columns = (_window(count, size, side, images.device) for size in (height, width))
    return images.masked_fill((rows[:, :, None] & columns[:, None, :])[:, None], 0)


def _window(count: int, size: int, side: int, device: torch.device) -> Tensor:
    """Return bool [count,size]: `side` neighbours, placed at random."""
    start = torch.randint(0, size - side + 1, (count, 1), device=device)
    place = torch.arange(size, device=device)
    return (place >= start) & (place < start + side)
