"""Several runs, ranked by what their strongest attackers leave."""

from __future__ import annotations

from collections.abc import Sequence

import attrs

from defend.records.compare import Comparison, Difference, RunAccuracy
from defend.records.run import Results
from defend.values.report import WorstCase


@attrs.frozen(kw_only=True)
class Place:
    """One run's place.

    Attributes:
        run: its place among the runs as they were given.
        rank: from 1; None where a check blocks its headline.
        label: as `defend.records.compare` tells the runs apart.
        worst: its worst case over what all runs have in common, or over its own rows where that is too little;
            None where it has neither.
        loose: whether more steps of an attack would plainly lower that.
        difference: the best run as the first, this one as the second; None for the best, and where nothing is shared.
    """

    run: int
    rank: int | None
    label: str
    worst: RunAccuracy | WorstCase | None
    loose: bool
    difference: Difference | None


def leaderboard(results: Sequence[Results], compared: Comparison) -> list[Place]:
    """Rank runs by worst case, those that a check blocks last."""
    shared = compared.worst_case
    worst: list[RunAccuracy | WorstCase | None] = (
        [each.report.worst_case for each in results] if shared is None else list(shared.cells)
    )

    def merit(run: int) -> tuple[bool, float]:
        found = worst[run]
        # 1.0 stands after every accuracy, which is negative here so that the highest comes first
        return bool(results[run].report.failed), 1.0 if found is None else -found.accuracy

    order = sorted(range(len(results)), key=merit)
    pairs = {} if shared is None else {(pair.first, pair.second): pair for pair in shared.differences}
    best = order[0]
    return [
        Place(
            run=run,
            rank=None if results[run].report.failed else rank,
            label=compared.labels[run],
            worst=found,
            loose=found is not None and bool(found.rising if isinstance(found, WorstCase) else found.loose),
            difference=pairs.get((best, run)) or _turn(pairs.get((run, best))),
        )
        for rank, run in enumerate(order, start=1)
        for found in (worst[run],)
    ]


def _turn(pair: Difference | None) -> Difference | None:
    """Return the same difference seen from the other run."""
    if pair is None:
        return None
    low, high = pair.ci95
    return attrs.evolve(
        pair,
        first=pair.second,
        second=pair.first,
        only_first=pair.only_second,
        only_second=pair.only_first,
        difference=-pair.difference,
        ci95=(-high, -low),
    )
