"""What every victim shares: normalisation inside the module, and the training. Imports no timm."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _NormBase

from defend.boundary.answers import unwrap
from defend.datasets.base import Batch, ImageDataset, Split
from defend.datasets.normalised import NormalisedVictim as NormalisedVictim  # where plugins look for it
from defend.errors import ConfigError
from defend.stages import Task
from defend.train import Loss, Optimiser, Training
from defend.victims.plugin import VictimRecipe

MOMENTUM = 0.9
NORMS = (_NormBase, nn.GroupNorm, nn.LayerNorm)
MEASURED: tuple[Split, ...] = ("val", "test")


class VictimTraining(Training):
    """Cross-entropy on shifted (and flipped, and partly covered) training images, the first of them made smaller.

    Smaller images first, larger ones later: Howard, fast.ai's entry in DAWNBench (2018).

    Raises:
        ConfigError: the recipe's cutout is larger than the images, or its small images are no smaller, or all it has.
    """

    def __init__(self, victim: nn.Module, recipe: VictimRecipe, task: Task) -> None:
        super().__init__(victim, {"victim": victim}, epochs=recipe.epochs, batch_size=recipe.batch_size)
        if recipe.cutout > min(task.height, task.width):
            raise ConfigError(
                f"cutout={recipe.cutout} is larger than the images of {task.dataset}: expected at most "
                f"{min(task.height, task.width)}"
            )
        if recipe.small_epochs and recipe.small_size >= task.height:
            raise ConfigError(
                f"small_size={recipe.small_size} is no smaller than the images of {task.dataset}: expected at most "
                f"{task.height - 1}, or small_epochs=0"
            )
        if recipe.small_epochs >= recipe.epochs:
            raise ConfigError(
                f"small_epochs={recipe.small_epochs} leaves no epoch of whole images: expected at most "
                f"{recipe.epochs - 1}, one less than epochs"
            )
        if not recipe.zero_residuals:
            fill_zero_norms(victim)
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
        if self.epoch < self._recipe.small_epochs:
            images = shrink(images, self._recipe.small_size)
        logits = unwrap(self.modules["victim"](images))  # some answer more while they train: Inception's auxiliary head
        right = (logits.detach().argmax(1) == batch.labels).float().mean()
        loss = F.cross_entropy(logits, batch.labels, label_smoothing=self._recipe.label_smoothing)
        yield Loss("victim", loss, {"accuracy": right})

    @torch.no_grad()
    def finish(self, dataset: ImageDataset, device: torch.device) -> dict[str, float]:
        """Measure the accuracy on the validation split, and on the test split where there is one."""
        victim, figures = self.modules["victim"], dict[str, float]()
        for split in filter(dataset.has, MEASURED):
            right = torch.zeros((), device=device)
            for batch in dataset.batches(split, dataset.keys(split), 128, device):
                right += (victim(batch.images).argmax(1) == batch.labels).sum()
            figures[f"{split}_accuracy"] = float(right) / len(dataset.labels(split))
        return figures


def fill_zero_norms(network: nn.Module) -> None:
    """Have every normalisation whose scale is zero throughout begin at 1, so that what it ends takes part at once.

    Source: the zeros are Goyal et al., Accurate, Large Minibatch SGD (2017), section 5.1, for batches of 8,192.
    """
    for part in network.modules():
        scale = getattr(part, "weight", None) if isinstance(part, NORMS) else None
        if scale is not None and not scale.any():
            nn.init.ones_(scale)


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


def shrink(images: Tensor, height: int) -> Tensor:
    """Scale images [B,C,H,W] in [0,1] down to a height, and their width alike; antialiased."""
    width = max(round(images.shape[3] * height / images.shape[2]), 1)
    return F.interpolate(images, (height, width), mode="bilinear", antialias=True, align_corners=False)


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
