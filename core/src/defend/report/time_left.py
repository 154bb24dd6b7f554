"""How long a run will still take, from what it has done so far. Imports no torch."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from defend.records.rows import PlannedRow, RowRecord

PASSES_OF_A_GRADIENT = 3  # forward passes that a gradient takes as long as: one forwards, about two back


class TimeLeft:
    """Tells how long a run will still take.

    An attack's time is taken to grow with its images and steps. What a step against an arm takes is measured in rows
    that attack it; until there is one, it is taken from what judging an image took, which the clean row tells.

    Args:
        rows: of the run.
        clock: seconds.
    """

    def __init__(self, rows: Sequence[PlannedRow], clock: Callable[[], float] = time.perf_counter) -> None:
        self._rows, self._clock = list(rows), clock
        self._place, self._done, self._begun = -1, 0, clock()
        self._step: dict[str, float] = {}  # seconds of a step on an image, by the arm that is attacked
        self._judge: dict[str, float] = {}  # seconds of judging an image, by arm

    def row(self) -> None:
        """The next row begins."""
        self._place, self._done, self._begun = self._place + 1, 0, self._clock()

    def images(self, count: int) -> None:
        """So many more images of the row are done."""
        self._done += count

    def finished(self, record: RowRecord) -> None:
        """A row is finished."""
        count = max(len(record.keys), 1)
        self._judge |= {arm: took / count for arm, took in record.judge_seconds.items()}
        made = count - record.reused
        if record.plan.attack is not None and made > 0:
            self._step[record.plan.attacked] = record.attack_seconds / (made * _steps(record.plan))

    def seconds(self) -> float | None:
        """Return the seconds left; None before anything is known."""
        if not self._judge and not self._done:
            return None
        at_hand = self._rows[self._place]
        total = len(at_hand.keys)
        gone = self._clock() - self._begun
        own = gone / self._done * (total - self._done) if self._done else max(self._expect(at_hand) - gone, 0.0)
        return own + sum(self._expect(row) for row in self._rows[self._place + 1 :])

    def _expect(self, row: PlannedRow) -> float:
        judging = sum(self._judge.get(arm, 0.0) for arm in row.judges)
        if row.attack is None:
            return judging * len(row.keys)
        pass_of = self._judge.get(row.attacked, max(self._judge.values(), default=0.0))
        step = self._step.get(row.attacked, PASSES_OF_A_GRADIENT * pass_of)
        return (judging + step * _steps(row)) * len(row.keys)


def _steps(row: PlannedRow) -> int:
    return max(row.steps or 1, 1)
