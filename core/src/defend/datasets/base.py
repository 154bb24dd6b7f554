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

from defend.datasets.twins import Duplicates, find_twins, pixel_digests
from defend.errors import ConfigError, DataError
from defend.randomness import permutation
from defend.stages import Task

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")
SPLIT_SEED = 0  # of every run, whatever its own seed: weights are judged on images that they were not trained on


@attrs.frozen
class Batch:
    """Images float32 [B,C,H,W] in [0,1], labels int64 [B], and keys int64 [B]: each image's place in its split."""

    images: Tensor
    labels: Tensor
    keys: Tensor

    def split(self, size: int) -> list[Batch]:
        """Return batches of at most so many images, in order."""
        columns = (column.split(size) for column in (self.images, self.labels, self.keys))
        return [Batch(*part) for part in zip(*columns, strict=True)]


@attrs.frozen
class Origin:
    """Where the images of a split come from.

    Attributes:
        folder: the folder that they lie in, below the root; "" is the root itself, or no folder.
        n: how many they are.
        of: how many there were before a part of them was held out.
        seed: by which they were cut off from others; None where they are a whole of their own, or what a part was
            held out of.
        stands_in: whether they are those of another split, which the folder does not have: val's for test.
        given: whether they were handed over as they are, as objects or as the images to judge.
    """

    folder: str
    n: int
    of: int
    seed: int | None = None
    stands_in: bool = False
    given: bool = False


class ImageDataset(abc.ABC):
    """Labelled images in three splits: train, val (held out of train) and test (the official one).

    What a user gives may have no train, and its val is then held out of what was given (`has`).

    Attributes:
        name: what the user types.
        classes: class names, by label.
        shape: (channels, height, width).
        flips: whether a mirrored image is still of its class (training augmentation).
        typed: the words by which a command names it; none where its name does, None where no command can.
        published_apart: whether its publisher keeps the test images out of train in every copy, so that weights of its
            name have not seen them. Without it the hash of the training images must say so, which reads them all.
    """

    name: str
    classes: tuple[str, ...]
    shape: tuple[int, int, int]
    flips: bool = False
    typed: tuple[str, ...] | None = ()
    published_apart: bool = False

    @abc.abstractmethod
    def labels(self, split: Split) -> Tensor:
        """Return all labels of a split, int64 [N], without decoding images."""

    @abc.abstractmethod
    def batches(self, split: Split, keys: Tensor, batch_size: int, device: torch.device) -> Iterator[Batch]:
        """Yield the images at `keys` (int64, places in the split), in that order, on `device`."""

    @abc.abstractmethod
    def sha256(self, split: Split) -> str:
        """Return the hash of a split: its images and labels, or of its files' names, contents and labels."""

    @abc.abstractmethod
    def statistics(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Return mean and standard deviation of each channel over train, in [0,1] units; over val without one."""

    def has(self, split: Split) -> bool:
        """Whether it has images of a split; all three, if not said otherwise."""
        return True

    def fitted_on(self) -> Split:
        """Return the split that statistics and the name of weights come from: train, or the next that there is."""
        return next((split for split in SPLITS if self.has(split)), "test")

    @property
    def filed_as(self) -> str:
        """What weights trained on it are filed under: its name, or more where that does not say which images it has."""
        return self.name

    @property
    def prepared(self) -> str:
        """How stored images become what `batches` yields: their shape, and more where that does not say it all."""
        return f"{tuple(self.shape)}"

    def task(self) -> Task:
        """Return what a network is built for."""
        mean, std = self.statistics()
        filed_as = "" if self.filed_as == self.name else self.filed_as
        return Task(
            self.name, *self.shape, len(self.classes), mean, std, self.flips, self.classes, filed_as, self.typed
        )

    def origin(self, split: Split) -> Origin | None:
        """Return where a split's images come from, None where they are the data set's own official ones."""
        return None

    def contents(self, split: Split) -> bytes | None:
        """Return a SHA-256 of each image of a split, see `twins.pixel_digests`; None where that would take too long."""
        return None

    def files(self, split: Split) -> bytes | None:
        """Return the SHA-256 of the file of each image of a split, 32 bytes each; None where there are none to read."""
        return None

    def duplicates(self) -> Duplicates | None:
        """Return the test and val images that training may have seen under another name; None where nobody looked."""
        return None

    def keys(self, split: Split, limit: int | None = None, seed: int = 0) -> Tensor:
        """Return which images a limited evaluation uses: a seeded, stratified sample, int64 [n].

        A smaller limit is always a prefix of a larger one, so rows of different n share images.

        Raises:
            ConfigError: `limit` is below 1.
        """
        if limit is not None and limit < 1:
            raise ConfigError(f"limit is {limit}: expected at least 1")
        order = stratified_order(self.labels(split), seed)
        return order if limit is None else order[:limit]

    def tensors(self, split: Split, limit: int | None = None, seed: int = 0) -> tuple[Tensor, Tensor]:
        """Return (images float32 [n,C,H,W] in [0,1], labels int64 [n]) on the CPU, see `keys`.

        Raises:
            ConfigError: `split` is not train, val or test, or `limit` is below 1.
        """
        if split not in SPLITS:
            raise ConfigError(f"unknown split {split!r}: expected one of {', '.join(SPLITS)}")
        parts = list(self.batches(split, self.keys(split, limit, seed), 256, torch.device("cpu")))
        return torch.cat([part.images for part in parts]), torch.cat([part.labels for part in parts])


class MemoryDataset(ImageDataset):
    """A data set held in memory, on the device that asks for it.

    Args:
        name: what the user types.
        classes: class names, by label.
        images: split name to uint8 [N,C,H,W], or floats in [0,1].
        labels: split name to int64 [N].
        flips: whether a mirrored image is still of its class.
        cut: the splits that were cut off from one whole by `hold_out`.

    Raises:
        DataError: no images at all; images and labels of different number; images of another shape than the first
            split's, not finite, or outside [0,1]; or a label that no class name stands for.
    """

    def __init__(
        self,
        name: str,
        classes: Sequence[str],
        images: dict[Split, Tensor],
        labels: dict[Split, Tensor],
        flips: bool = False,
        cut: Sequence[Split] = (),
    ) -> None:
        self.name, self.classes, self.flips = name, tuple(classes), flips
        if not any(map(len, images.values())):
            raise DataError(f"data set {name} has no images: expected uint8 [N,C,H,W] for 'train' or 'test'")
        if differing := sorted(set(images) ^ set(labels)):
            raise DataError(f"data set {name} has images or labels alone of {', '.join(differing)}: expected both")
        first: Split = "train" if "train" in images else next(iter(images))
        shape = images[first].shape
        for split in images:
            _check(f"data set {name}, {split}", images[split], labels[split], (first, shape), len(self.classes))
        _, channels, height, width = shape
        self.shape = (channels, height, width)
        self._images = {split: each if each.dtype == torch.uint8 else each.float() for split, each in images.items()}
        self._labels = {split: each.long() for split, each in labels.items()}
        self._cut = tuple(cut)
        self._resident: dict[tuple[Split, torch.device], Tensor] = {}

    def has(self, split: Split) -> bool:
        return bool(len(self._labels.get(split, ())))

    def labels(self, split: Split) -> Tensor:
        """Return all labels of a split, int64 [N].

        Raises:
            DataError: it has no such split.
        """
        return self._labels[self._need(split)]

    def _need(self, split: Split) -> Split:
        if split not in self._labels:
            raise DataError(f"data set {self.name} has no {split} images: it has {', '.join(self._labels)}")
        return split

    def pixels(self, split: Split, device: torch.device) -> Tensor:
        """Return a whole split as it is held (uint8, or floats in [0,1]), [N,C,H,W], on `device`; moved there once."""
        place = (split, device)
        if place not in self._resident:
            self._resident[place] = self._images[self._need(split)].to(device)
        return self._resident[place]

    def batches(self, split: Split, keys: Tensor, batch_size: int, device: torch.device) -> Iterator[Batch]:
        pixels, labels = self.pixels(split, device), self._labels[split].to(device)
        for part in keys.to(device).split(batch_size):
            images = pixels[part]
            yield Batch(images.float().div_(255) if images.dtype == torch.uint8 else images, labels[part], part)

    def origin(self, split: Split) -> Origin | None:
        if split not in self._cut:
            return None
        return Origin("", len(self._labels[split]), sum(map(len, self._labels.values())), SPLIT_SEED)

    def contents(self, split: Split) -> bytes:
        """Return a SHA-256 of each image of a split, see `twins.pixel_digests`."""
        return pixel_digests(self._images[self._need(split)])

    @functools.cache  # noqa: B019 - a data set lives as long as the process
    def duplicates(self) -> Duplicates:
        return find_twins({split: self.contents(split) for split in SPLITS if self.has(split)}, "{} image {}".format)

    @functools.cache  # noqa: B019 - a data set lives as long as the process
    def sha256(self, split: Split) -> str:
        digest = hashlib.sha256(self._images[self._need(split)].cpu().numpy().tobytes())
        digest.update(self._labels[split].cpu().numpy().tobytes())
        return digest.hexdigest()

    @functools.cache  # noqa: B019
    def statistics(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        images = self._images[self.fitted_on()]
        if images.dtype == torch.uint8:
            return channel_statistics([images])
        std, mean = torch.std_mean(images.double(), (0, 2, 3), correction=0)
        return tuple(round(float(m), 4) for m in mean), tuple(round(float(s), 4) for s in std)


def _check(what: str, images: Tensor, labels: Tensor, like: tuple[Split, torch.Size], classes: int) -> None:
    """Refuse images and labels of a split that no evaluation could mean."""
    first, shape = like
    if images.ndim != 4 or images.shape[1:] != shape[1:]:
        raise DataError(
            f"{what}: images of shape {list(images.shape)}, expected [N,C,H,W], in every split as in "
            f"{first} {list(shape)}"
        )
    if len(labels) != len(images) or labels.ndim != 1:
        raise DataError(f"{what}: {len(images)} images and labels of shape {list(labels.shape)}, expected one an image")
    if images.is_floating_point():
        if not bool(torch.isfinite(images).all()):
            raise DataError(f"{what}: images hold values that are not finite (NaN or infinity)")
        if len(images) and (float(images.min()) < 0 or float(images.max()) > 1):
            low, high = float(images.min()), float(images.max())
            raise DataError(f"{what}: images from {low:.4g} to {high:.4g}, expected [0,1], or uint8 from 0 to 255")
    elif images.dtype != torch.uint8:
        raise DataError(f"{what}: images of type {images.dtype}, expected uint8, or floats in [0,1]")
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise DataError(f"{what}: labels of type {labels.dtype}, expected whole numbers (int64)")
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < classes:
        raise DataError(
            f"{what}: labels from {int(labels.min())} to {int(labels.max())}, and there are {classes} class names: "
            f"expected labels from 0 to {classes - 1}"
        )


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
    # of images of one colour, rounding may leave a variance just below zero
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
