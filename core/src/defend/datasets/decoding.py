"""Image files, or others' data sets, to batches, in worker processes that begin where a batch begins."""

from __future__ import annotations

import atexit
import functools
import signal
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate

from defend.datasets.fitting import fit
from defend.datasets.listing import Names
from defend.errors import DataError
from defend.util.cores import count_granted
from defend.util.images import read_image

T = TypeVar("T")


class Decoder(Dataset[Tensor | DataError]):
    """Gives an image, or the error that it is damaged: raised in a worker, torch would bury it in a traceback."""

    def __init__(self, names: Names, image_size: int, resize: int) -> None:
        self._names, self._image_size, self._resize = names, image_size, resize

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, place: int) -> Tensor | DataError:
        path = self._names.path(place)
        try:
            return fit(read_image(path, channels=3), self._image_size, self._image_size, self._resize)
        except DataError as error:
            return error
        except Exception as error:  # for example a strip so long that it does not fit into memory once resized
            cause = " ".join(str(error).split())[:200]
            return DataError(f"image {str(path)!r} cannot be resized: {type(error).__name__}: {cause}")


class _Plan(Sampler[list[int]]):
    """Which files the batches of the next pass are of."""

    def __init__(self) -> None:
        self.batches: Sequence[Tensor] = ()

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[int]]:
        return (batch.tolist() for batch in self.batches)


class Decoders(Generic[T]):
    """Decodes batches of files: in processes of its own, a few batches ahead of their use.

    Processes that have finished a pass wait for the next, as starting them may take seconds; a pass that is left
    early ends its processes.

    Args:
        items: an image by its place, or the error that there is none.
        workers: how many processes, no more than there are cores; 0 decodes in this one.
        collate: makes a batch of what `items` gave, or the first error.
        begin: called in each new process with its number.
        context: how processes are started, torch's own way if None.
    """

    def __init__(
        self,
        items: Dataset[Any],
        workers: int,
        collate: Callable[[list[Any]], T | DataError],
        begin: Callable[[int], None] | None = None,
        context: Any = None,
    ) -> None:
        self._items, self._collate = items, collate
        self._workers = min(workers, count_granted())
        self._begin, self._context = functools.partial(_begin, begin), context if self._workers else None
        self._waiting: dict[bool, tuple[_Plan, DataLoader[Any]]] = {}

    def end(self) -> None:
        """End the processes that wait for another pass."""
        self._waiting.clear()

    def decode(self, batches: Sequence[Tensor], pinned: bool) -> Iterator[T]:
        """Yield what `collate` makes for batches of places, int64 [B]; what workers decode may be page-locked.

        Raises:
            DataError: an image is damaged.
        """
        # not for one batch: starting processes may take seconds
        alone = self._workers == 0 or len(batches) == 1
        for made in self._here(batches) if alone else self._there(batches, pinned):
            if isinstance(made, DataError):
                raise made
            yield made

    def _here(self, batches: Sequence[Tensor]) -> Iterator[T | DataError]:
        return (self._collate([self._items[place] for place in batch.tolist()]) for batch in batches)

    def _there(self, batches: Sequence[Tensor], pinned: bool) -> Iterator[T | DataError]:
        # taken out while in use: another pass at the same time starts processes of its own
        plan, loader = self._waiting.pop(pinned) if pinned in self._waiting else self._start(pinned)
        plan.batches = batches
        try:
            yield from loader
            self._waiting[pinned] = plan, loader
        finally:
            del loader  # which ends its processes, unless they wait for the next pass

    def _start(self, pinned: bool) -> tuple[_Plan, DataLoader[Any]]:
        if not _STARTED:
            atexit.register(_end_all)
        _STARTED.add(self)
        plan = _Plan()
        loader: DataLoader[Any] = DataLoader(
            self._items,
            batch_sampler=plan,
            collate_fn=self._collate,
            num_workers=self._workers,
            persistent_workers=True,
            pin_memory=pinned,
            worker_init_fn=self._begin,
            multiprocessing_context=self._context,
            generator=torch.Generator(),  # workers draw nothing, so torch's own generator stays where it is
        )
        return plan, loader


_STARTED: weakref.WeakSet[Decoders[Any]] = weakref.WeakSet()


def _end_all() -> None:
    """End waiting processes before Python ends: it would kill them, and torch take that for an accident.

    Functions are called at exit in reverse order of registration, and those of torch and multiprocessing came first.
    """
    for each in list(_STARTED):
        each.end()


def _begin(others: Callable[[int], None] | None, number: int) -> None:
    """Ignore Ctrl-C: the main process ends its workers then. It sends them SIGTERM, which must kill them.

    Without the second line a worker may inherit what the main process does at a SIGTERM.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if others is not None:
        others(number)


def stack(parts: list[Tensor | DataError]) -> Tensor | DataError:
    """Return a batch of images uint8 [C,H,W] as [B,C,H,W], or the first error among them."""
    for part in parts:
        if isinstance(part, DataError):
            return part
    return default_collate(parts)  # type: ignore[no-any-return]
