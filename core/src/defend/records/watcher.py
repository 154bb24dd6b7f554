"""What a run tells while it goes on. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from defend.records.rows import PlannedRow, RowRecord


class TrainingWatcher:
    """What a training tells while it goes on; this one shows nothing. A context, which calls `end`."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.end()

    def making(self, done: int, total: int) -> None:
        """So many of the images to train on are made, before the first step."""

    def step(self, done: int, total: int, losses: Mapping[str, float]) -> None:
        """A step is done; at the end of an epoch with its mean losses."""

    def measuring(self) -> None:
        """All steps are done; what stands in the card is measured."""

    def end(self) -> None:
        """All is done, or something went wrong."""


class Watcher:
    """What a run tells while it goes on; this one shows nothing, the command line's shows progress bars."""

    def preparing(self, what: str) -> None:
        """Something that may take seconds begins, before the first row."""

    def begin(self, rows: Sequence[PlannedRow]) -> None:
        """The rows that will be evaluated."""

    def row(self, plan: PlannedRow) -> None:
        """A row begins."""

    def images(self, count: int) -> None:
        """So many more images of the row are finished."""

    def finished(self, record: RowRecord) -> None:
        """A row is finished, or cut short: what was recorded of it."""

    def end(self) -> None:
        """Nothing more will come."""

    def training(self, title: str) -> TrainingWatcher:
        """Missing weights are about to be trained; return what is to be told of it."""
        return TrainingWatcher()


class Relay(Watcher):
    """Tells another watcher all; for those that look at some of it."""

    def __init__(self, watcher: Watcher) -> None:
        self._watcher = watcher

    def preparing(self, what: str) -> None:
        self._watcher.preparing(what)

    def begin(self, rows: Sequence[PlannedRow]) -> None:
        self._watcher.begin(rows)

    def row(self, plan: PlannedRow) -> None:
        self._watcher.row(plan)

    def images(self, count: int) -> None:
        self._watcher.images(count)

    def finished(self, record: RowRecord) -> None:
        self._watcher.finished(record)

    def end(self) -> None:
        self._watcher.end()

    def training(self, title: str) -> TrainingWatcher:
        return self._watcher.training(title)
