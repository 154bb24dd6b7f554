"""What a run will take, from two small batches a row; and how many images and steps fit a budget of time."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import attrs
import torch

from defend.errors import ConfigError
from defend.evaluation.evaluate import Evaluator
from defend.records.rows import PlannedRow
from defend.util.memory import peak_memory, restart_peak
from defend.values.durations import say_duration
from defend.values.run_config import QUICK_ADAPTIVE_LIMIT, QUICK_STEPS

ON_CPU = (1, 4)  # images of the two batches: where a batch's time grows with its images
FEWEST = 8  # images an adaptive row is worth having for
LADDER = (10, 20, 40, 100, 200)  # steps that are tried for a budget
RESERVE = 0.1  # of a budget, for checks and for what a forecast is wrong by


@attrs.frozen
class RowForecast:
    """What a row will take.

    Attributes:
        row: as it is planned.
        per_batch, per_image: seconds; a batch takes its own and those of its images.
        base: bytes of memory that a batch takes whatever its size, with all that is there already; None: unknown.
        each: bytes more an image of the batch.
    """

    row: PlannedRow
    per_batch: float
    per_image: float
    base: int | None = None
    each: int = 0

    def seconds(self, batch_size: int, images: int | None = None, world: int = 1) -> float:
        """Return what the row takes, or would with so many images, where `world` processes share its batches."""
        count = len(self.row.keys) if images is None else images
        turns = -(-count // (batch_size * world))
        return self.per_batch * turns + self.per_image * min(count, turns * batch_size)

    def memory(self, batch_size: int) -> int | None:
        """Return the bytes that the process, or the GPU, holds at most in the row; None where nothing tells."""
        return None if self.base is None else self.base + self.each * min(batch_size, len(self.row.keys))


@attrs.frozen
class Forecast:
    """What a run will take.

    Attributes:
        rows: in the order of the run.
        batch_size: images at a time.
        ready: seconds until the first row.
        world: processes that share the batches of a row.
    """

    rows: Sequence[RowForecast]
    batch_size: int
    ready: float
    world: int = 1

    def of(self, each: RowForecast, images: int | None = None) -> float:
        """Return the seconds of one of its rows, or of so many of that row's images."""
        return each.seconds(self.batch_size, images, self.world)

    @property
    def seconds(self) -> float:
        """From the start of the run to the last row's end; checks, pictures and certificates come on top."""
        return self.ready + sum(map(self.of, self.rows))

    @property
    def memory(self) -> int | None:
        """Bytes at most, of all rows."""
        known = [found for each in self.rows if (found := each.memory(self.batch_size)) is not None]
        return max(known, default=None)

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain data."""
        return {
            "seconds": self.seconds,
            "seconds_until_the_first_row": self.ready,
            "memory_bytes": self.memory,
            "batch_size": self.batch_size,
            "rows": [
                {
                    "attack": each.row.name,
                    "threat": each.row.threat.kind,
                    "variant": each.row.variant,
                    "eps": each.row.threat.eps,
                    "images": len(each.row.keys),
                    "steps": each.row.steps,
                    "seconds": self.of(each),
                    "memory_bytes": each.memory(self.batch_size),
                }
                for each in self.rows
            ],
        }


def forecast(
    evaluator: Evaluator,
    rows: Sequence[PlannedRow],
    *,
    batch_size: int,
    device: torch.device,
    ready: float,
    world: int = 1,
    clock: Callable[[], float] = time.perf_counter,
    told: Callable[[PlannedRow], None] = lambda row: None,
) -> Forecast:
    """Time two small batches of every row, of different sizes: so a batch's cost is told from an image's.

    Args:
        evaluator: without a journal and a store: nothing of this is kept, and nothing is taken from earlier runs.
        rows: the run's.
        batch_size: the run's.
        device: where it computes.
        ready: seconds until the first row.
        world: processes that will share the batches.
        clock: seconds.
        told: called before each row is timed.
    """
    sizes = ON_CPU if device.type == "cpu" else (max(batch_size // 4, 1), batch_size)
    if rows:
        evaluator.row(_some(rows[0], range(1)))  # pays for what is paid once
    found = []
    for row in rows:
        told(row)
        seen: list[tuple[int, float, int | None]] = []
        start = 0
        for size in sizes:
            # other images each time: what a smaller budget fooled is not attacked again
            places = range(start, min(start + size, len(row.keys)))
            start += size
            if not places:
                continue
            restart_peak(device)
            before = clock()
            evaluator.row(_some(row, places))
            seen.append((len(places), clock() - before, peak_memory(device)))
        if seen:
            found.append(_fit(row, seen))
    return Forecast(found, batch_size, ready, world)


def _some(row: PlannedRow, places: range) -> PlannedRow:
    return attrs.evolve(row, keys=row.keys[list(places)])


def _fit(row: PlannedRow, seen: Sequence[tuple[int, float, int | None]]) -> RowForecast:
    """Draw the line through two batches; where it would fall, or there is but one, an image costs its share."""
    (count, took, held), more = seen[-1], seen[0]
    grown = (took - more[1]) / (count - more[0]) if count > more[0] else 0.0
    per_image = grown if 0 < grown <= took / count else took / count
    each = 0
    if held is not None and more[2] is not None and count > more[0]:
        each = max(held - more[2], 0) // (count - more[0])
    base = None if held is None else held - each * count
    return RowForecast(row, max(took - per_image * count, 0.0), per_image, base, each)


@attrs.frozen
class Choice:
    """What fits a budget: images and steps of the adaptive rows, and what the run will take with them, in seconds."""

    images: int
    steps: int
    seconds: float


def choose_for(
    budget: float,
    found: Forecast,
    own_steps: Mapping[int, int | None],
    *,
    spent: float,
    most: int,
    images: int | None = None,
    steps: int | None = None,
) -> Choice:
    """Return how many images and steps the adaptive rows can have.

    Steps come first: an attack that stops too early leaves an accuracy that is too high, fewer images only a wider
    interval. So `QUICK_ADAPTIVE_LIMIT` images get as many steps as fit, up to the attacks' own, and then as many images
    as fit are taken; where ten steps of those do not fit, fewer images, and `FEWEST` at least.

    Args:
        budget: seconds, of which `RESERVE` is left over.
        found: the run's forecast.
        own_steps: of the adaptive rows, by their place in the forecast: the steps that their attack takes if nothing
            holds it back; None where it has none.
        spent: seconds gone already.
        most: images of the other rows.
        images, steps: where one of the two is given.

    Raises:
        ConfigError: the least is too much.
    """
    others = sum(found.of(each) for place, each in enumerate(found.rows) if place not in own_steps)

    def takes(count: int, steps: int) -> float:
        return sum(
            found.of(found.rows[place], count)
            * (min(steps, own) / (found.rows[place].row.steps or own) if own else 1.0)
            for place, own in own_steps.items()
        )

    left = budget * (1 - RESERVE) - spent - others
    longest = max((own for own in own_steps.values() if own), default=QUICK_STEPS)
    every_step = [steps] if steps else sorted({min(each, longest) for each in LADDER} | {longest})
    least = min(FEWEST, most) if images is None else images
    usual = min(QUICK_ADAPTIVE_LIMIT, most) if images is None else images
    if takes(least, every_step[0]) > left:
        needed = (spent + others + takes(least, every_step[0])) / (1 - RESERVE)
        fewest = f"{least} images with {every_step[0]} steps in the adaptive rows"
        what = f"{fewest} take {say_duration(needed)} with all others"
        if not own_steps:
            what = (
                f"its rows take {say_duration(needed)}, and none of them is an adaptive one, whose steps can be chosen"
            )
        raise ConfigError(f"a budget of {say_duration(budget)} is too short: {what}; give more, or a smaller --limit")
    chosen = max((each for each in every_step if takes(usual, each) <= left), default=every_step[0])
    fits = [count for count in range(least, (most if images is None else images) + 1) if takes(count, chosen) <= left]
    count = max(fits, default=least)
    return Choice(count, chosen, spent + others + takes(count, chosen))
