"""Where the images of what a user hands over come from: arrays, somebody's data set, a split of one of ours.

A data set is read image by image: memory holds its labels and, once it was read as a whole, a hash of each image.
"""

from __future__ import annotations

import abc
import hashlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import attrs
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    ConcatDataset,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
)

from defend.boundary.calls import say_cause
from defend.datasets.base import ImageDataset, Split
from defend.datasets.bounded import ensure_bounded
from defend.datasets.decoding import Decoders
from defend.datasets.digests import SIZE, remember
from defend.datasets.pairs import to_images, to_labels, to_pair
from defend.datasets.twins import pixel_digests
from defend.errors import DataError

CPU = torch.device("cpu")
SAMPLE = 8  # images that are looked at first, twice each
CHUNK = 256  # images at a time where all are read
INSTEAD = (
    "pass (images, labels) as tensors or arrays, a Dataset that yields (image, label), a DataLoader of one, an "
    "ImageDataset, or a name or path"
)


class Source(abc.ABC):
    """Labelled images by place.

    Attributes:
        labels: int64 [N], as they came.
        shape: (channels, height, width) of every image.
        classes: the class names that came with them, if any did.
    """

    labels: Tensor
    shape: tuple[int, int, int]
    classes: tuple[str, ...] = ()

    @abc.abstractmethod
    def read(self, places: Tensor, batch_size: int, pinned: bool) -> Iterator[Tensor]:
        """Yield the images at `places`, uint8 or floats in [0,1], [B,C,H,W]."""

    def digests(self) -> bytes | None:
        """Return the SHA-256 of each image, 32 bytes each, in order; None where that is not known."""
        return None

    def contents(self) -> bytes | None:
        """Return a SHA-256 of each image as `twins.pixel_digests` makes it; None where that would take too long."""
        return None

    def files(self) -> bytes | None:
        """Return the SHA-256 of each image's file; None where there are none, or they are not read for it."""
        return None

    def sha256(self, places: Tensor) -> str:
        """Return the hash of the images and labels at `places`."""
        known = self.digests() or b""
        digest = hashlib.sha256()
        for place, label in zip(places.tolist(), self.labels[places].tolist(), strict=True):
            digest.update(known[SIZE * place : SIZE * place + SIZE] + b"\0%d\n" % label)
        return digest.hexdigest()


class Arrays(Source):
    """Images in memory, left where and as they are."""

    def __init__(self, images: Tensor | np.ndarray, labels: Any, who: str) -> None:
        self._images, self._who = images, who
        self._digests: bytes | None = None
        self._contents: bytes | None = None
        if images.ndim == 0 or not len(images):
            raise DataError(f"{who} has no images: {INSTEAD}")
        self.labels = to_labels(labels, who)
        if images.ndim in (2, 3) and (isinstance(labels, int) or getattr(labels, "ndim", 1) == 0):
            raise DataError(
                f"{who} is one image of shape {list(images.shape)} with its label, expected several: a batch of one is "
                "images[0][None], labels[0][None]"
            )
        if len(self.labels) != len(images):
            raise DataError(f"{who} has {len(images)} images and {len(self.labels)} labels: pass one label an image")
        for part in self.read(torch.arange(len(images)), CHUNK, False):  # each is looked at before any is attacked
            self.shape = _shape(part)

    def read(self, places: Tensor, batch_size: int, pinned: bool) -> Iterator[Tensor]:
        for part in places.split(batch_size):
            index = part.to(self._images.device) if isinstance(self._images, Tensor) else part.numpy()
            yield to_images(self._images[index], self._who)

    def digests(self) -> bytes:
        if self._digests is None:
            batches = self.read(torch.arange(len(self.labels)), CHUNK, False)
            self._digests = b"".join(map(_hash, batches))
        return self._digests

    def contents(self) -> bytes:
        if self._contents is None:
            batches = self.read(torch.arange(len(self.labels)), CHUNK, False)
            self._contents = b"".join(map(pixel_digests, batches))
        return self._contents


class SplitOf(Source):
    """A split of one of our own data sets."""

    def __init__(self, dataset: ImageDataset, split: Split) -> None:
        self.dataset, self.split = dataset, split
        self.labels, self.shape, self.classes = dataset.labels(split), dataset.shape, dataset.classes

    def read(self, places: Tensor, batch_size: int, pinned: bool) -> Iterator[Tensor]:
        for batch in self.dataset.batches(self.split, places, batch_size, CPU):
            yield batch.images

    def contents(self) -> bytes | None:
        return self.dataset.contents(self.split)

    def files(self) -> bytes | None:
        return self.dataset.files(self.split)

    def sha256(self, places: Tensor) -> str:
        whole = self.dataset.sha256(self.split)
        if torch.equal(places, torch.arange(len(self.labels))):
            return whole
        return hashlib.sha256(whole.encode() + places.numpy().tobytes()).hexdigest()


class Items(Source):
    """A map-style data set of (image, label), and how a `DataLoader` of it makes batches.

    Labels are those that the data set says (`targets`, `labels`), where its first images have these; else all images
    are read once for them.

    Args:
        dataset: read by index.
        who: what an error calls it.
        indices: which of its images, all if None.
        collate: the loader's `collate_fn`.
        workers, begin, context: the loader's processes.
        known_as: a SHA-256, in hexadecimal, of all that decides the images, by which their digests are remembered from
            run to run; "" where nothing says it.

    Raises:
        DataError: it is empty, yields something else than images of one shape and labels, or another image each time.
    """

    def __init__(
        self,
        dataset: Any,
        who: str,
        *,
        indices: Tensor | None = None,
        collate: Callable[[list[Any]], Any] | None = None,
        workers: int = 0,
        begin: Callable[[int], None] | None = None,
        context: Any = None,
        known_as: str = "",
    ) -> None:
        count = _length(dataset, who) if indices is None else len(indices)
        if not count:
            raise DataError(f"{who} has no images: {INSTEAD}")
        self._who, self._digests, self.classes, self._known_as = who, None, said_classes(dataset), known_as
        numbered = Numbered(dataset, indices, who)
        sample = torch.linspace(0, count - 1, min(count, SAMPLE)).long().unique()
        images, labels, channels = self._look(numbered, collate, sample)
        self.shape, self._type = _shape(images), images.dtype
        self._decoders = Decoders(numbered, workers, _Batcher(who, collate, channels), begin, context)
        said = said_labels(dataset)
        said = said if said is None or indices is None else said[indices]
        if said is not None and len(said) == count and torch.equal(said[sample], labels):
            self.labels = said
        else:
            self.labels = self._read_all(count)

    def _look(
        self, numbered: Numbered, collate: Callable[[list[Any]], Any] | None, sample: Tensor
    ) -> tuple[Tensor, Tensor, int | None]:
        """Read a few images twice; colour among grey PIL images makes all of them colour."""
        items = [numbered[place] for place in sample.tolist()]
        made = _Batcher(self._who, collate, None)(items)
        if isinstance(made, DataError) and collate is None:  # grey and colour do not go together
            made = _Batcher(self._who, collate, 3)(items)
        if isinstance(made, DataError):
            raise made
        images, labels = made
        channels = 3 if images.shape[1] == 3 else None
        again = _Batcher(self._who, collate, channels)([numbered[place] for place in sample.tolist()])
        if isinstance(again, DataError) or not all(map(torch.equal, made, again)):
            raise self._changed("an image")
        return images, labels, channels

    def _changed(self, what: str) -> DataError:
        return DataError(
            f"{self._who}: {what} is another each time it is asked for, so that nothing measured on it could be "
            "trusted: pass the data set without random transforms"
        )

    def _batches(self, places: Tensor, batch_size: int, pinned: bool) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Yield (places, images, labels), checked to be of the first images' shape and type."""
        parts = places.split(batch_size) if len(places) else ()
        for part, (images, labels) in zip(parts, self._decoders.decode(parts, pinned), strict=True):
            if _shape(images) != self.shape or images.dtype != self._type:
                raise DataError(
                    f"{self._who}: images {part.tolist()[:2]}... are {images.dtype} {list(images.shape[1:])}, "
                    f"expected {self._type} {list(self.shape)}, as the first ones are"
                )
            yield part, images, labels

    def read(self, places: Tensor, batch_size: int, pinned: bool) -> Iterator[Tensor]:
        for part, images, labels in self._batches(places, batch_size, pinned):
            if not torch.equal(labels, self.labels[part]):
                place = int(part[(labels != self.labels[part]).nonzero()[0, 0]])
                raise self._changed(f"the label of image {place}")
            if self._digests is not None:
                for place, digest in zip(part.tolist(), _split(_hash(images)), strict=True):
                    if self._digests[SIZE * place : SIZE * place + SIZE] != digest:
                        raise self._changed(f"image {place}")
            yield images

    def _read_all(self, count: int) -> Tensor:
        found, digests, contents = [], bytearray(), bytearray()
        for _, images, labels in self._batches(torch.arange(count), CHUNK, False):
            found.append(labels)
            digests += _hash(images)
            contents += pixel_digests(images)
        self._digests, self._contents = bytes(digests), bytes(contents)
        return torch.cat(found)

    def digests(self) -> bytes:
        self._read_digests()
        assert self._digests is not None
        return self._digests

    def contents(self) -> bytes:
        self._read_digests()
        return self._contents

    def _read_digests(self) -> None:
        """Read all images once, for both kinds of hash."""
        if self._digests is not None:
            return
        count = len(self.labels)

        def make() -> bytes:
            found = [(_hash(images), pixel_digests(images)) for images in self.read(torch.arange(count), CHUNK, False)]
            return b"".join(exact for exact, _ in found) + b"".join(pixels for _, pixels in found)

        both = remember(self._known_as, 2 * count, make) if self._known_as else make()
        self._digests, self._contents = both[: SIZE * count], both[SIZE * count :]

    _digests: bytes | None
    _contents: bytes


class Numbered(Dataset[Any]):
    """Gives an item with its place, or the error that there is none: raised in a worker, torch would bury it."""

    def __init__(self, dataset: Any, indices: Tensor | None, who: str) -> None:
        self._dataset, self._indices, self._who = dataset, indices, who

    def __getitem__(self, place: int) -> tuple[int, Any] | DataError:
        try:
            return place, self._dataset[place if self._indices is None else int(self._indices[place])]
        except Exception as error:
            return DataError(f"{self._who}: image {place} cannot be read: {say_cause(error)}")


@attrs.frozen
class _Batcher:
    """Makes (images, labels) of numbered items, by the loader's own `collate_fn` where there is one."""

    who: str
    collate: Callable[[list[Any]], Any] | None
    channels: int | None

    def __call__(self, parts: list[tuple[int, Any] | DataError]) -> tuple[Tensor, Tensor] | DataError:
        items = []
        for part in parts:
            if isinstance(part, DataError):
                return part
            items.append(part)
        try:
            return self._make(items)
        except DataError as error:
            return error

    def _make(self, items: list[tuple[int, Any]]) -> tuple[Tensor, Tensor]:
        if self.collate is None:
            pairs = [to_pair(item, self.who) for _, item in items]
            images = to_images([image for image, _ in pairs], self.who, self.channels)
            labels = to_labels([label for _, label in pairs], self.who)
        else:
            try:
                made = self.collate([item for _, item in items])
            except Exception as error:
                what = "the DataLoader's collate_fn failed"
                raise DataError(f"{self.who}: {what}: {say_cause(error)}") from None
            given_images, given_labels = to_pair(made, self.who)
            images, labels = to_images(given_images, self.who).cpu(), to_labels(given_labels, self.who)
        if not len(images) == len(labels) == len(items):
            raise DataError(
                f"{self.who}: of {len(items)} items came {len(images)} images and {len(labels)} labels: expected all"
            )
        return images.cpu(), labels


def find_source(given: Any, split: Split, who: str) -> Source:
    """Return where the images of what was given come from.

    Raises:
        DataError: it is nothing that images could come from; what to pass.
    """
    if isinstance(given, ImageDataset):
        given = ensure_bounded(given)
        return SplitOf(given, split if given.has(split) else "test")
    if isinstance(given, DataLoader):
        return _of_loader(given, who)
    if isinstance(given, (Tensor, np.ndarray)):
        raise DataError(f"{who} has images without labels: pass (images, labels)")
    if isinstance(given, dict):
        raise DataError(f"{who} is a dictionary (keys {', '.join(map(str, given))[:100]}): {INSTEAD}")
    pair = isinstance(given, (tuple, list)) and len(given) == 2
    if pair and isinstance(given[0], (Tensor, np.ndarray)):
        return Arrays(given[0], given[1], who)
    if pair and isinstance(given, tuple) and not isinstance(given[0], tuple):
        images, labels = given
        if not isinstance(images, (list, tuple)):
            raise DataError(f"{who} has images of type {type(images).__name__}: {INSTEAD}")
        count = len(to_labels(labels, who))
        if count != len(images):
            raise DataError(f"{who} has {len(images)} images and {count} labels: pass one label an image")
        return Items(list(zip(images, labels, strict=True)), who)
    _check_map(given, who)
    return Items(given, who)


def _check_map(given: Any, who: str) -> None:
    """Refuse what cannot be asked for one image again."""
    kind = type(given).__name__
    if isinstance(given, IterableDataset) or not hasattr(given, "__getitem__"):
        again = "which cannot be asked for one image again" if hasattr(given, "__iter__") else "which holds no images"
        raise DataError(f"{who} is {kind}, {again}: {INSTEAD}")


def _length(dataset: Any, who: str) -> int:
    try:
        return len(dataset)
    except Exception as error:  # somebody else's code
        raise DataError(
            f"{who} does not say how many images it has ({say_cause(error)}): give {type(dataset).__name__} a __len__"
        ) from None


def _of_loader(loader: DataLoader[Any], who: str) -> Items:
    """Return a loader's images by index: which they are, its sampler says, if it says that at all."""
    _check_map(loader.dataset, who)
    if loader.batch_sampler is None:
        raise DataError(
            f"{who} is a DataLoader with batch_size=None: pass its dataset, or one that makes batches itself"
        )
    batches: Any = loader.batch_sampler
    sampler: Any = batches.sampler if type(batches) is BatchSampler else batches
    count = _length(loader.dataset, who)
    once = type(sampler) is SequentialSampler or (type(sampler) is RandomSampler and not sampler.replacement)
    whole = once and len(sampler) == count
    if not whole and type(sampler) is not SubsetRandomSampler:
        raise DataError(
            f"{who} is a DataLoader with a {type(sampler).__name__}, which says no fixed set of images: pass its "
            "dataset, or a Subset of it"
        )
    return Items(
        loader.dataset,
        who,
        indices=None if whole else to_labels(list(sampler.indices), f"{who}, its sampler's indices").unique(),
        collate=loader.collate_fn,
        workers=loader.num_workers,
        begin=loader.worker_init_fn,
        context=loader.multiprocessing_context,
    )


def said_labels(dataset: Any) -> Tensor | None:
    """Return the labels that a data set says without its images being read, int64 [N]; None where it does not."""
    try:
        if isinstance(dataset, Subset):
            known = said_labels(dataset.dataset)
            return None if known is None else known[torch.as_tensor(dataset.indices)]
        if isinstance(dataset, ConcatDataset):
            parts = [said_labels(each) for each in dataset.datasets]
            return (
                None if any(part is None for part in parts) else torch.cat([part for part in parts if part is not None])
            )
        if isinstance(dataset, TensorDataset):
            return to_labels(dataset.tensors[1], "") if len(dataset.tensors) == 2 else None
        if getattr(dataset, "target_transform", None) is not None:
            return None
        for name in ("targets", "labels"):
            if (said := getattr(dataset, name, None)) is not None and len(said) == len(dataset):
                return to_labels(said, "")
    except Exception:  # they may be of any shape and kind, and are then read one by one
        return None
    return None


def said_classes(dataset: Any) -> tuple[str, ...]:
    """Return the class names that a data set says, none where it does not."""
    if isinstance(dataset, Subset):
        return said_classes(dataset.dataset)
    if isinstance(dataset, ConcatDataset):
        every = {said_classes(each) for each in dataset.datasets}
        return every.pop() if len(every) == 1 else ()
    try:
        said = getattr(dataset, "classes", None)
    except Exception:  # somebody else's code
        return ()
    if not isinstance(said, (list, tuple)) or not all(isinstance(each, str) for each in said):
        return ()
    return tuple(said)


def _shape(images: Tensor) -> tuple[int, int, int]:
    _, channels, height, width = images.shape
    return channels, height, width


def _hash(images: Tensor) -> bytes:
    """Return the SHA-256 of each image, 32 bytes each."""
    return b"".join(hashlib.sha256(image.tobytes()).digest() for image in images.cpu().numpy())


def _split(digests: bytes) -> Sequence[bytes]:
    return [digests[start : start + SIZE] for start in range(0, len(digests), SIZE)]
