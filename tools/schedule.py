"""Carries a plan out: several items at once, the most urgent first, no training that would not end in the budget."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Literal, Protocol

import attrs

from tools.plan import Item, Train

Status = Literal["waiting", "running", "done", "failed", "cut off"]
POLL = 0.25  # seconds between two looks
SAID_EVERY = 30.0  # seconds between two lines on what is running
TRIES = 2
TELLING = 3  # finished trainings, from which the estimates are corrected


class Running(Protocol):
    """An item that was started."""

    def poll(self) -> tuple[bool, str] | None:
        """Return (whether it went well, its figure or what went wrong); None while it runs."""
        ...

    def interrupt(self) -> None:
        """Ask it to end; what it keeps lets it go on later."""
        ...

    def stop(self) -> None:
        """End it, whether it wants to or not."""
        ...

    def progress(self) -> str:
        """Return how far it is, in a word."""
        ...


@attrs.define
class Record:
    """What became of an item."""

    item: Item
    status: Status = "waiting"
    seconds: float = 0.0
    said: str = ""
    tries: int = 0
    began: float = 0.0


class Schedule:
    """Decides what starts next.

    Args:
        plan: the items, of any order.
        budget: seconds; no training is started that would not end within them.
        jobs: how many items at once.
        done: the figures of those that were finished before, by name.
        available: whether a data set is there.
        start: begins an item.
        say: called with a line when something happens.
        clock, pause: time, and how to let it pass.
    """

    def __init__(
        self,
        plan: Sequence[Item],
        *,
        budget: float,
        jobs: int,
        done: dict[str, str],
        available: Callable[[str], bool],
        start: Callable[[Item], Running],
        say: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        self.records = {item.name: Record(item) for item in sorted(plan, key=lambda item: item.rank)}
        for name, figure in done.items():
            if name in self.records:
                self.records[name].status, self.records[name].said = "done", figure
        self._deadline = clock() + budget
        self._jobs, self._available, self._start, self._say = jobs, available, start, say
        self._clock, self._pause = clock, pause
        self._running: dict[str, Running] = {}

    def run(self) -> None:
        """Carry the plan out, until nothing more fits; what then runs, or at Ctrl-C, is cut off.

        Raises:
            KeyboardInterrupt: after everything that ran was stopped.
        """
        said = self._clock()
        try:
            while True:
                self._reap()
                if self._clock() >= self._deadline:
                    break
                while len(self._running) < self._jobs and (record := self._next()) is not None:
                    self._begin_item(record)
                if not self._running and not any(self._could(record) for record in self._find_waiting()):
                    break
                if self._clock() - said >= SAID_EVERY:
                    said = self._clock()
                    self._say_running()
                self._pause(POLL)
        finally:
            self._cut()

    def slowness(self) -> float:
        """Return how much longer than estimated finished trainings took, in the median; 1 before there are a few."""
        ratios = [
            record.seconds / record.item.seconds
            for record in self.records.values()
            if isinstance(record.item, Train) and record.status == "done" and record.seconds > 0
        ]
        return statistics.median(ratios) if len(ratios) >= TELLING else 1.0

    def fits(self, item: Item) -> bool:
        """Whether an item that starts now would end within the budget, or a table get far enough."""
        return self._clock() + item.least * self.slowness() <= self._deadline

    def _find_waiting(self) -> list[Record]:
        waiting = [record for record in self.records.values() if record.status == "waiting"]
        return sorted(waiting, key=lambda record: (record.tries, record.item.rank))

    def _could(self, record: Record) -> bool:
        """Whether a waiting item may still come to be done: it fits, and so does what it needs."""
        return self.fits(record.item) and all(
            other.status in ("done", "running") or (other.status == "waiting" and self._could(other))
            for other in (self.records.get(name) for name in record.item.needs)
            if other is not None
        )

    def _ready(self, record: Record) -> bool:
        """Whether an item may start: what it needs is done, and nothing that it waits for is to come.

        What is not part of this plan is taken for there; where it is not, the item says so itself.
        """
        needs = [self.records[name] for name in record.item.needs if name in self.records]
        after = [self.records[name] for name in record.item.after if name in self.records]
        return (
            self.fits(record.item)
            and all(other.status == "done" for other in needs)
            and not any(
                other.status == "running" or (other.status == "waiting" and self._could(other)) for other in after
            )
            and self._available(record.item.dataset)
        )

    def _next(self) -> Record | None:
        return next((record for record in self._find_waiting() if self._ready(record)), None)

    def _begin_item(self, record: Record) -> None:
        record.status, record.began = "running", self._clock()
        record.tries += 1
        self._say(f"start    {record.item.name}  (about {record.item.seconds * self.slowness() / 60:.1f} min)")
        try:
            self._running[record.item.name] = self._start(record.item)
        except OSError as error:  # a full disk, no more processes: the others may go on
            self._end_item(record, False, f"it did not begin: {error}")

    def _end_item(self, record: Record, well: bool, said: str) -> None:
        record.said, record.seconds = said, self._clock() - record.began
        again = not well and record.tries < TRIES
        record.status = "done" if well else "waiting" if again else "failed"
        word = "again" if again else record.status
        self._say(f"{word:8} {record.item.name}  {record.seconds / 60:.1f} min  {said}")

    def _reap(self) -> None:
        for name, running in list(self._running.items()):
            outcome = running.poll()
            if outcome is None:
                continue
            del self._running[name]
            self._end_item(self.records[name], *outcome)

    def _cut(self) -> None:
        for running in self._running.values():
            running.interrupt()
        for name, running in self._running.items():
            record = self.records[name]
            record.said = f"{running.progress()}, the same command goes on"
            running.stop()
            record.status, record.seconds = "cut off", self._clock() - record.began
            self._say(f"cut off  {name}  {record.said}")
        self._running.clear()

    def _say_left(self) -> str:
        left = self._deadline - self._clock()
        return f"; {left:.0f} s left" if math.isfinite(left) else ""

    def _say_running(self) -> None:
        what = ", ".join(f"{name} {running.progress()}" for name, running in self._running.items())
        self._say(f"running  {what or 'nothing: waiting for data'}{self._say_left()}")
