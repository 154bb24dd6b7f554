"""What every data set offers, and the one that lives in memory."""

from __future__ import annotations

import abc
import functools
import hashlib
from collections.abc import Iterator, Sequence
from typing import Literal

import attrs
import numpy as np
import torch
from torch import Tensor

from defend.errors import ConfigError
from defend.randomness import permutation
from defend.stages import Task

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")
SPLIT_SEED = 0


@attrs.frozen
class Batch:
    """Images float32 [B,C,H,W] in [0,1], labels int64 [B], and keys int64 [B]: each image's place in its split."""

    images: Tensor
    labels: Tensor
    keys: Tensor


class ImageDataset(abc.ABC):
    """Labelled images in three splits: train, val (held out of train) and test (the official one).

    Attributes:
        name: what the user types.
        classes: class names, by label.
        shape: (channels, height, width).
        flips: whether a mirrored image is still of its class (training augmentation).
    """

    name: str
    classes: tuple[str, ...]
    shape: tuple[int, int, int]
    flips: bool = False

    @abc.abstractmethod
    def labels(self, split: Split) -> Tensor:
        """Return all labels of a split, int64 [N], without decoding images."""

    @abc.abstractmethod
    def batches(self, split: Split, keys: Tensor, batch_size: int, device: torch.device) -> Iterator[Batch]:
        """Yield the images at `keys` (int64, places in the split), in that order, on `device`."""

    @abc.abstractmethod
    def sha256(self, split: Split) -> str:
        """Return the hash of a split: its images and labels, or of its file list for a streamed folder."""

    @abc.abstractmethod
    def statistics(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Return mean and standard deviation of each channel over train, in [0,1] units."""

    def task(self) -> Task:
        """Return what a network is built for."""
        mean, std = self.statistics()
        return Task(self.name, *self.shape, len(self.classes), mean, std, self.flips)

    def keys(self, split: Split, limit: int | None = None, seed: int = 0) -> Tensor:
        """Return which images a limited evaluation uses: a seeded, stratified sample, int64 [n].

        A smaller limit is always a prefix of a larger one, so rows of different n share images.
        """
        order = stratified_order(self.labels(split), seed)
        return order if limit is None else order[:limit]

    def tensors(self, split: Split, limit: int | None = None, seed: int = 0) -> tuple[Tensor, Tensor]:
        """Return (images float32 [n,C,H,W] in [0,1], labels int64 [n]) on the CPU, see `keys`.

        Raises:
            ConfigError: `split` is not train, val or test.
        """
        if split not in SPLITS:
            raise ConfigError(f"unknown split {split!r}: expected one of {', '.join(SPLITS)}")
        parts = list(self.batches(split, self.keys(split, limit, seed), 256, torch.device("cpu")))
        return torch.cat([part.images for part in parts]), torch.cat([part.labels for part in parts])


class MemoryDataset(ImageDataset):
    """A data set held as uint8, on the device that asks for it.

    Args:
        name: what the user types.
        classes: class names, by label.
        images: split name to uint8 [N,C,H,W].
        labels: split name to int64 [N].
        flips: whether a mirrored image is still of its class.
    """

    def __init__(
        self,
        name: str,
        classes: Sequence[str],
        images: dict[Split, Tensor],
        labels: dict[Split, Tensor],
        flips: bool = False,
    ) -> None:
        self.name, self.classes, self.flips = name, tuple(classes), flips
        _, channels, height, width = images["train"].shape
        self.shape = (channels, height, width)
        self._images, self._labels = images, labels
        self._resident: dict[tuple[Split, torch.device], Tensor] = {}

    def labels(self, split: Split) -> Tensor:
        return self._labels[split]

    def pixels(self, split: Split, device: torch.device) -> Tensor:
        """Return a whole split as uint8 [N,C,H,W] on `device`; moved there once."""
        place = (split, device)
        if place not in self._resident:
            self._resident[place] = self._images[split].to(device)
        return self._resident[place]

    def batches(self, split: Split, keys: Tensor, batch_size: int, device: torch.device) -> Iterator[Batch]:
        pixels, labels = self.pixels(split, device), self._labels[split].to(device)
        for part in keys.to(device).split(batch_size):
            yield Batch(pixels[part].float().div_(255), labels[part], part)

    @functools.cache  # noqa: B019 - a data set lives as long as the process
    def sha256(self, split: Split) -> str:
        digest = hashlib.sha256(self._images[split].numpy().tobytes())
        digest.update(self._labels[split].numpy().tobytes())
        return digest.hexdigest()

    @functools.cache  # noqa: B019
    def statistics(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        return channel_statistics([self._images["train"]])


def channel_statistics(parts: Sequence[Tensor]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel of uint8 [N,C,H,W] parts, in [0,1] units, exact sums."""
    channels = parts[0].shape[1]
    counts = sum(
        torch.stack([torch.bincount(part[:, c].flatten(), minlength=256) for c in range(channels)]) for part in parts
    )
    assert isinstance(counts, Tensor)
    values = torch.arange(256, dtype=torch.float64) / 255
    weights = counts.double() / counts.sum(1, keepdim=True)
    mean = (weights * values).sum(1)
    std = ((weights * values**2).sum(1) - mean**2).clamp_min(0).sqrt()
    return tuple(round(float(m), 4) for m in mean), tuple(round(float(s), 4) for s in std)


def stratified_order(labels: Tensor, seed: int) -> Tensor:
    """Return all indices in a seeded order whose every prefix has the classes in proportion: int64 [N].

    Image i of a class with n members gets the place (rank + u) / n, with its rank in a seeded shuffle
    of the class and one random u a class; sorting by place interleaves the classes.
    """
    shuffled = permutation(len(labels), seed=seed, stream="stratified_order")
    by_class = labels[shuffled]
    counts = torch.bincount(by_class)
    offsets = permutation(len(counts), seed=seed, stream="class_offsets").double().add(0.5).div(max(len(counts), 1))
    order = torch.argsort(by_class, stable=True)
    starts = torch.cumsum(counts, 0) - counts
    sorted_labels = by_class[order]
    rank = torch.arange(len(labels)) - starts[sorted_labels]
    place = (rank + offsets[sorted_labels]) / counts[sorted_labels]
    return shuffled[order[torch.argsort(place, stable=True)]]


def hold_out(labels: Tensor, size: int, seed: int = SPLIT_SEED) -> tuple[Tensor, Tensor]:
    """Split indices into (kept, held out) with `size` held out, stratified; both in ascending order."""
    order = stratified_order(labels, seed)
    return order[size:].sort().values, order[:size].sort().values


def from_numpy(images: np.ndarray, labels: np.ndarray) -> tuple[Tensor, Tensor]:
    """Turn uint8 [N,H,W] or [N,H,W,C] and labels into uint8 [N,C,H,W] and int64 [N]."""
    pixels = torch.from_numpy(np.ascontiguousarray(images))
    pixels = pixels[:, None] if pixels.ndim == 3 else pixels.permute(0, 3, 1, 2).contiguous()
    return pixels, torch.from_numpy(labels.astype(np.int64))
