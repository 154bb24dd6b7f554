"""Several runs, ranked by what their strongest attackers leave."""

from __future__ import annotations

from collections.abc import Sequence

import attrs

from defend.records.compare import Comparison, Difference, RunAccuracy, compare
from defend.records.run import Results
from defend.values.report import WorstCase


@attrs.frozen(kw_only=True)
class Place:
    """One run's place.

    Attributes:
        run: its place among the runs as they were given.
        rank: from 1; None where it has none: a check blocks its headline, nothing was checked, it was interrupted, or
            there are no rows that all runs have.
        blocked: why it has no rank, in a word or two; "" where it has one.
        label: as `defend.records.compare` tells the runs apart.
        worst: its worst case over what all runs have in common, or over its own rows where that is too little;
            None where it has neither.
        loose: whether more steps of an attack would plainly lower that.
        difference: the best run as the first, this one as the second; None for the best, and where nothing is shared.
        over, tests: how many rows the ranking is over, 0 without one, and how many tests its p values are adjusted for.
    """

    run: int
    rank: int | None
    blocked: str
    label: str
    worst: RunAccuracy | WorstCase | None
    loose: bool
    difference: Difference | None
    over: int = 0
    tests: int = 0


def leaderboard(results: Sequence[Results], compared: Comparison) -> list[Place]:
    """Rank runs by worst case over what all have in common; those without a rank stand last.

    A run that can have no rank, as one that was interrupted, lacks rows and images: the others are held against each
    other without it. Equal figures have the same rank.
    """

    def find_unranked(run: int) -> str:
        report = results[run].report
        if report.failed:
            return "blocked"
        if report.config.checks == "none":
            return "unchecked"
        return "interrupted" if results[run].run.partial else ""

    whole = [run for run in range(len(results)) if not find_unranked(run)]
    if len(whole) < 2:
        whole = list(range(len(results)))
    basis = compared if len(whole) == len(results) else compare([results[run].run for run in whole])
    shared = basis.worst_case
    worst: list[RunAccuracy | WorstCase | None] = [each.report.worst_case for each in results]
    if shared is not None:
        for run, cell in zip(whole, shared.cells, strict=True):
            worst[run] = cell

    def find_blocked(run: int) -> str:
        return find_unranked(run) or ("" if shared is not None else "not comparable")

    def merit(run: int) -> tuple[bool, float]:
        found = worst[run]
        # without common rows the order would compare one attacker with another
        return bool(find_blocked(run)), 0.0 if found is None or shared is None else -found.accuracy

    order = sorted(range(len(results)), key=merit)
    pairs = {} if shared is None else {(whole[pair.first], whole[pair.second]): pair for pair in shared.differences}
    best = order[0]
    merits = [merit(run) for run in order]
    return [
        Place(
            run=run,
            rank=None if find_blocked(run) else 1 + merits.index(merit(run)),
            blocked=find_blocked(run),
            label=compared.labels[run],
            worst=found,
            loose=found is not None and bool(found.rising if isinstance(found, WorstCase) else found.loose),
            difference=pairs.get((best, run)) or _turn(pairs.get((run, best))),
            over=0 if shared is None else len(shared.over),
            tests=basis.tests,
        )
        for run in order
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
