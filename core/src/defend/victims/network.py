"""A timm model as a victim: images in [0,1] in, logits out, normalisation inside."""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from defend.datasets.base import Batch, ImageDataset
from defend.errors import ConfigError, WeightsError
from defend.stages import Task
from defend.train import Loss, Optimiser, Training
from defend.victims.plugin import TimmOptions, VictimRecipe

SMALL_SIDES = range(32, 65)
STRIDES = {"small": 1, "strided": 2}
GREY, HALF = 0.5, 0.5


class TimmVictim(nn.Module):
    """Normalise, then classify.

    Args:
        network: takes normalised images [B,C,H,W], returns logits [B,classes].
        mean, std: one number a channel, in [0,1] units.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        """Return logits [B,classes] of images [B,C,H,W] in [0,1]."""
        logits: Tensor = self.network((images - self.mean) / self.std)
        return logits


def build(config: TimmOptions, task: Task) -> TimmVictim:
    """Build any timm model for the task's channels and classes.

    Raises:
        ConfigError: the small stem was asked for a model that has no ResNet stem, or pretrained
            weights for a task that is not ImageNet's.
        WeightsError: timm's pretrained weights could not be had.
    """
    mean = task.mean or (GREY,) * task.channels
    std = task.std or (HALF,) * task.channels
    arguments: dict[str, object] = {"in_chans": task.channels, "num_classes": task.classes}
    if config.pretrained:
        settings = timm.get_pretrained_cfg(config.model)
        if settings is None or task.classes != settings.num_classes:
            own = "no pretrained weights" if settings is None else f"{settings.num_classes} classes"
            raise ConfigError(
                f"pretrained {config.model} has {own} and {task.dataset} has {task.classes}: leave pretrained off"
            )
        mean, std = (_for_channels(values, task.channels) for values in (settings.mean, settings.std))
        arguments["pretrained"] = True
    default = timm.get_pretrained_cfg(config.model)
    if default is not None and default.fixed_input_size:
        arguments["img_size"] = (task.height, task.width)
    try:
        network = timm.create_model(config.model, **arguments)  # type: ignore[arg-type]
    except Exception as error:
        if not config.pretrained:
            raise ConfigError(
                f"timm cannot build {config.model} for {task.height}x{task.width} images: {error}"
            ) from error
        raise WeightsError(f"timm's weights for {config.model} could not be downloaded: {_line(error)}") from error
    stem = config.stem
    if stem == "auto":  # a new stem would throw pretrained weights away
        stem = "standard" if config.pretrained else _auto_stem(task.height, network)
    if stem in STRIDES:
        _replace_stem(network, config.model, stem)
    victim = TimmVictim(network, mean, tuple(max(value, 1e-3) for value in std))
    try:
        with torch.no_grad():
            victim.eval()(torch.zeros(1, task.channels, task.height, task.width))
    except Exception as error:  # a network that was built may still not take images of this size
        raise ConfigError(f"{config.model} cannot take {task.height}x{task.width} images: {_line(error)}") from error
    return victim.train()


def _for_channels(values: tuple[float, ...], channels: int) -> tuple[float, ...]:
    return values if len(values) == channels else (sum(values) / len(values),) * channels


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:120]


def _has_stem(network: nn.Module) -> bool:
    first = getattr(network, "conv1", None)
    return isinstance(first, nn.Conv2d) and hasattr(network, "maxpool") and first.kernel_size == (7, 7)


def _auto_stem(side: int, network: nn.Module) -> str:
    if not _has_stem(network) or side > SMALL_SIDES.stop - 1:
        return "standard"
    return "small" if side in SMALL_SIDES else "strided"


def _replace_stem(network: nn.Module, model: str, stem: str) -> None:
    if not _has_stem(network):
        raise ConfigError(f"stem={stem!r} needs a ResNet with a 7x7 stem, and {model} has none: use stem=standard")
    old = cast(nn.Conv2d, network.conv1)
    network.conv1 = nn.Conv2d(old.in_channels, old.out_channels, 3, stride=STRIDES[stem], padding=1, bias=False)
    network.maxpool = nn.Identity()


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


def train(config: TimmOptions, recipe: VictimRecipe, task: Task) -> VictimTraining:
    """Describe the training of a timm victim."""
    return VictimTraining(build(config, task), recipe, task)


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
