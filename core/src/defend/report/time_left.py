"""How long a run will still take, from what it has done so far. Imports no torch."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from defend.records.rows import PlannedRow, RowRecord


class TimeLeft:
    """Tells how long a run will still take.

    An attack's time is taken to grow with its images and the forward passes that it asks of each. What a pass of an
    attack on an arm takes is measured in rows that attack it; until there is one, it is taken from what judging an
    image took, which the clean row tells.

    Args:
        rows: of the run.
        clock: seconds.
    """

    def __init__(self, rows: Sequence[PlannedRow], clock: Callable[[], float] = time.perf_counter) -> None:
        self._rows, self._clock = list(rows), clock
        self._place, self._done, self._begun = -1, 0, clock()
        self._pass: dict[str, float] = {}  # seconds of an attack's pass on an image, by the arm that is attacked
        self._judge: dict[str, float] = {}  # seconds of judging an image, by arm

    def row(self, plan: PlannedRow) -> None:
        """A row begins; one that rests on the others was not planned with them."""
        place = next((place for place, row in enumerate(self._rows) if row is plan), len(self._rows))
        self._rows[place:] = self._rows[place:] or [plan]
        self._place, self._done, self._begun = place, 0, self._clock()

    def images(self, count: int) -> None:
        """So many more images of the row are done."""
        self._done += count

    def finished(self, record: RowRecord) -> None:
        """A row is finished."""
        count = max(len(record.keys), 1)
        self._judge |= {arm: took / count for arm, took in record.judge_seconds.items()}
        made = count - record.reused
        if record.plan.attack is not None and made > 0:
            self._pass[record.plan.attacked] = record.attack_seconds / (made * record.plan.forward_passes)

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
        of_judging = self._judge.get(row.attacked, max(self._judge.values(), default=0.0))
        return (judging + self._pass.get(row.attacked, of_judging) * row.forward_passes) * len(row.keys)
