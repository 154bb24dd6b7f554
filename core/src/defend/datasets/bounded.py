"""A data set that a plugin offers, held to what `ImageDataset` promises: nothing else may reach an attack."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from defend.boundary.calls import Calling
from defend.boundary.given import as_images
from defend.datasets.base import Batch, ImageDataset, Origin, Split
from defend.datasets.twins import Duplicates
from defend.errors import ContractError, DataError
from defend.stages import Task


def ensure_bounded(dataset: ImageDataset) -> ImageDataset:
    """Return a data set that keeps to its contract: core's own as they are, others behind `BoundedDataset`."""
    own = type(dataset).__module__.partition(".")[0] == __name__.partition(".")[0]
    return dataset if own else BoundedDataset(dataset)


class BoundedDataset(ImageDataset):
    """A data set whose every answer is checked; what it raises names it. Attributes that this lacks are its own.

    Raises:
        ContractError: its name, classes or shape are not what they should be.
    """

    def __init__(self, dataset: ImageDataset) -> None:
        self._who, self._dataset = f"data set {type(dataset).__name__}", dataset
        with self._calling("its attributes"):
            name, classes, shape, flips = dataset.name, dataset.classes, dataset.shape, dataset.flips
            self.typed, self.published_apart = dataset.typed, bool(dataset.published_apart)
        if not isinstance(name, str) or not name:
            raise ContractError(f"{self._who} has the name {name!r}, expected a text")
        self._who = f"data set {name}"
        if not isinstance(classes, (tuple, list)) or not classes or not all(isinstance(each, str) for each in classes):
            raise ContractError(f"{self._who} has classes {str(classes)[:80]!r}, expected a tuple of class names")
        sizes = tuple(shape) if isinstance(shape, (tuple, list, torch.Size)) else ()
        if len(sizes) != 3 or not all(isinstance(size, int) and size > 0 for size in sizes):
            raise ContractError(f"{self._who} has shape {shape!r}, expected (channels, height, width)")
        self.name, self.classes, self.shape, self.flips = name, tuple(classes), (sizes[0], sizes[1], sizes[2]), flips
        self._labels: dict[Split, Tensor] = {}

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or "_dataset" not in vars(self):
            raise AttributeError(name)
        return getattr(self._dataset, name)

    def labels(self, split: Split) -> Tensor:
        """Return all labels of a split, int64 [N].

        Raises:
            ContractError: they are no whole numbers [N], or name no class.
        """
        if split not in self._labels:
            with self._calling(f"labels of {split}"):
                said: Any = self._dataset.labels(split)
            if not isinstance(said, Tensor) or said.ndim != 1 or said.is_floating_point() or said.is_complex():
                got = f"{said.dtype} {list(said.shape)}" if isinstance(said, Tensor) else type(said).__name__
                raise ContractError(f"{self._who}: labels of {split} are {got}, expected whole numbers [N]")
            last = len(self.classes) - 1
            if len(said) and not 0 <= int(said.min()) <= int(said.max()) <= last:
                raise ContractError(
                    f"{self._who}: labels of {split} reach from {int(said.min())} to {int(said.max())}, expected 0 to "
                    f"{last}, as it has {last + 1} class names"
                )
            self._labels[split] = said.long()
        return self._labels[split]

    def keys(self, split: Split, limit: int | None = None, seed: int = 0) -> Tensor:
        """Return which images a limited evaluation uses, int64 [n], see `ImageDataset.keys`.

        Raises:
            ContractError: they are no places in the split, or one is there twice.
        """
        with self._calling(f"keys of {split}"):
            said: Any = self._dataset.keys(split, limit, seed)
        count = len(self.labels(split))
        whole = isinstance(said, Tensor) and said.ndim == 1 and said.dtype == torch.int64
        if not whole or (len(said) and not 0 <= int(said.min()) <= int(said.max()) < count):
            raise ContractError(f"{self._who}: keys of {split} are no places in it, 0 to {count - 1}, int64 [n]")
        if len(said.unique()) < len(said):
            raise ContractError(f"{self._who}: keys of {split} hold a place twice")
        return said  # type: ignore[no-any-return]

    def batches(self, split: Split, keys: Tensor, batch_size: int, device: torch.device) -> Iterator[Batch]:
        """Yield the images at `keys`, in that order, see `ImageDataset.batches`.

        Raises:
            DataError: images that are not floats in [0,1].
            ContractError: too few or too many images, of another shape, in another order, or with other labels.
        """
        done = 0
        with self._calling(f"batches of {split}"):
            made = iter(self._dataset.batches(split, keys, batch_size, device))
        while True:
            with self._calling(f"batches of {split}"):
                batch = next(made, None)
            if batch is None:
                break
            wanted = keys[done : done + batch_size]
            yield self._check(batch, split, wanted.to(device), device)
            done += len(wanted)
        if done < len(keys):
            raise ContractError(f"{self._who} delivered {done} of the {len(keys)} images of {split} that it was asked")

    def _check(self, batch: Any, split: Split, keys: Tensor, device: torch.device) -> Batch:
        what = f"{self._who}, {split}"
        if not isinstance(batch, Batch) or not all(isinstance(each, Tensor) for each in _columns(batch)):
            raise ContractError(f"{what}: batches yields {type(batch).__name__}, expected defend.datasets.base.Batch")
        try:
            images = as_images(batch.images).to(device, torch.float32)
        except DataError as error:
            raise DataError(f"{what}: {error}") from None
        shape = [len(keys), *self.shape]
        if list(images.shape) != shape:
            raise ContractError(f"{what}: a batch has images {list(images.shape)}, expected {shape}")
        whose, labels = (each.to(device, torch.int64) for each in (batch.keys, batch.labels))
        if not torch.equal(whose, keys):
            raise ContractError(f"{what}: a batch has other keys than it was asked for, or in another order")
        if not torch.equal(labels, self.labels(split).to(device)[keys]):
            raise ContractError(f"{what}: a batch has other labels than `labels` says of its images")
        return Batch(images, labels, whose)

    def sha256(self, split: Split) -> str:
        with self._calling(f"sha256 of {split}"):
            return str(self._dataset.sha256(split))

    def statistics(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Return mean and standard deviation of each channel over train, in [0,1] units.

        Raises:
            ContractError: they are not one finite number a channel.
        """
        with self._calling("statistics"):
            mean, std = (tuple(map(float, each)) for each in self._dataset.statistics())
        self._check_statistics(mean, std)
        return mean, std

    def _check_statistics(self, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        finite = bool(torch.isfinite(torch.tensor([*mean, *std])).all())
        if not len(mean) == len(std) == self.shape[0] or not finite:
            raise ContractError(f"{self._who}: statistics are {mean}, {std}: expected finite numbers, one a channel")

    @property
    def filed_as(self) -> str:
        """What weights trained on it are filed under."""
        with self._calling("filed_as"):
            return str(self._dataset.filed_as)

    @property
    def prepared(self) -> str:
        """How stored images become what `batches` yields."""
        with self._calling("prepared"):
            return str(self._dataset.prepared)

    def task(self) -> Task:
        """Return what a network is built for.

        Raises:
            ContractError: it is for other images or classes than the data set has.
        """
        with self._calling("task"):
            said: Any = self._dataset.task()
        wanted = (*self.shape, len(self.classes))
        if not isinstance(said, Task) or (said.channels, said.height, said.width, said.classes) != wanted:
            raise ContractError(f"{self._who}: task is {str(said)[:120]}, expected one of {wanted}")
        self._check_statistics(said.mean, said.std)
        return said

    def has(self, split: Split) -> bool:
        with self._calling(f"has {split}"):
            return bool(self._dataset.has(split))

    def origin(self, split: Split) -> Origin | None:
        with self._calling(f"origin of {split}"):
            return self._dataset.origin(split)

    def contents(self, split: Split) -> bytes | None:
        """Return a SHA-256 of each image of a split, see `ImageDataset.contents`; it is held to 32 bytes an image."""
        return self._digests("contents", self._dataset.contents, split)

    def files(self, split: Split) -> bytes | None:
        """Return the SHA-256 of the file of each image, see `ImageDataset.files`; it is held to 32 bytes an image."""
        return self._digests("files", self._dataset.files, split)

    def _digests(self, what: str, ask: Callable[[Split], Any], split: Split) -> bytes | None:
        with self._calling(f"{what} of {split}"):
            said: Any = ask(split)
        size = 32 * len(self.labels(split))
        if said is not None and not (isinstance(said, bytes) and len(said) == size):
            got = f"{len(said)} bytes" if isinstance(said, bytes) else type(said).__name__
            raise ContractError(f"{self._who}: {what} of {split} is {got}, expected None or {size} bytes, 32 an image")
        return said

    def duplicates(self) -> Duplicates | None:
        with self._calling("duplicates"):
            return self._dataset.duplicates()

    def _calling(self, what: str) -> Calling:
        return Calling(self._who, what)


def _columns(batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    return batch.images, batch.labels, batch.keys
