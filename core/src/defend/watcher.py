"""What a run tells while it goes on. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from defend.rows import PlannedRow

Progress = Callable[[int, int, Mapping[str, float] | None], None]
"""Told of a training, (done, in all, losses): images made ready for it, losses None; then steps."""


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

    def end(self) -> None:
        """Nothing more will come."""

    def training(self, title: str) -> Progress | None:
        """Missing weights are about to be trained; return what is to be told of it."""
        return None
