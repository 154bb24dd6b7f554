"""What chance is worth to a random defence: how right it is over several passes, attacked and clean."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from defend.records.rows import RowRecord, right, worst_case
from defend.util.metrics import proportion
from defend.util.statistics import paired_interval
from defend.values.run_config import NUMBERS_OF_PASSES
from defend.values.threats import DEFENDED, KNOWN_DRAWS, ONE_DRAW

Judged = Callable[[RowRecord, str], Tensor]
"""(record, arm) to which images are right, bool [N]."""


def in_every_pass(first: int | None = None) -> Judged:
    """Return what tells the images that are right in each of the `first` passes; in all, if None."""

    def judged(record: RowRecord, arm: str) -> Tensor:
        passes = record.arms[arm].passes
        return right(record, arm) if passes is None else (passes[:, :first] == record.labels[:, None]).all(1)

    return judged


def by_majority(first: int | None = None) -> Judged:
    """Return what tells the images whose most frequent answer in the `first` passes is right; in all, if None.

    A rejection is an answer too. Of equally frequent answers the smallest wins, so a rejection (-1) wins every tie.
    """

    def judged(record: RowRecord, arm: str) -> Tensor:
        passes = record.arms[arm].passes
        return right(record, arm) if passes is None else passes[:, :first].mode(1).values == record.labels

    return judged


OVER_PASSES: Mapping[str, Callable[..., Judged]] = {"worst": in_every_pass, "majority": by_majority}
"""What a random defence that was asked several times is credited with."""


def sum_passes(rows: Sequence[RowRecord], clean: RowRecord | None) -> dict[str, Any] | None:
    """Return what several passes leave of images that all rows judged: `Row.passes`, `WorstCase.passes`.

    An image is right if it is so in every row. The control are the clean images, of the same and under as many passes.

    Args:
        rows: one, or those of a worst case.
        clean: the row of unattacked images, None where there is none.

    Returns:
        None of a defence that was asked once.
    """
    asked = [passes for row in rows if (passes := row.arms[DEFENDED].passes) is not None]
    if not asked:
        return None
    n = asked[0].shape[1]
    keys, held = worst_case(rows, DEFENDED)
    counts = sorted({*(count for count in NUMBERS_OF_PASSES if count < n), n})
    found: dict[str, Any] = {"n": n, "one_shot": proportion(held)}
    found |= {name: _proportion(rows, keys, judged()) for name, judged in OVER_PASSES.items()}
    found["curve"] = [_point(rows, keys, count) for count in counts]
    if clean is not None:
        found["clean"] = [_point([clean], keys, count) for count in counts]
    return found


def compare_chance(records: Sequence[RowRecord], draws: int) -> dict[str, Any] | None:
    """Return what the draws of a random defence are worth, `Report.chance`; None where no rows tell."""
    for one in records:
        if one.plan.chance != ONE_DRAW:
            continue
        # of rows that were cut off, images may be missing
        same = [each for each in records if _alike(each, one) and len(each.keys) == len(one.keys)]
        found = {each.plan.chance: right(each, DEFENDED) for each in same}
        if "" not in found:
            continue
        said: dict[str, Any] = {"attack": one.plan.name, "threat": one.plan.threat.kind, "eps": one.plan.threat.eps}
        said |= {"draws": draws, "n": len(one.keys), "averaged": proportion(found[""])}
        said |= {"one_draw": proportion(found[ONE_DRAW]), "bought": _compare(found[ONE_DRAW], found[""])}
        if KNOWN_DRAWS in found:
            known = found[KNOWN_DRAWS]
            said |= {"known_draws": proportion(known), "hidden": _compare(found[""], known)}
        return said
    return None


def _alike(one: RowRecord, other: RowRecord) -> bool:
    variants = {"", KNOWN_DRAWS, ONE_DRAW}
    return (one.plan.name, one.plan.threat) == (other.plan.name, other.plan.threat) and one.plan.variant in variants


def _compare(more: Tensor, fewer: Tensor) -> dict[str, Any]:
    """Return how many more images are right in the one row than in the other, and the interval of the pairs."""
    lost, won, n = int((fewer & ~more).sum()), int((more & ~fewer).sum()), len(more)
    return {"difference": (won - lost) / n, "ci95": paired_interval(lost, won, n)}


def _point(rows: Sequence[RowRecord], keys: Tensor, count: int) -> dict[str, Any]:
    return {"n": count, **{name: _proportion(rows, keys, judged(count)) for name, judged in OVER_PASSES.items()}}


def _proportion(rows: Sequence[RowRecord], keys: Tensor, judged: Judged) -> dict[str, Any]:
    """Return the share of the images at `keys` that are right in all rows; those that a row lacks are left out."""
    common, held = worst_case(rows, DEFENDED, judged)
    return proportion(held[torch.isin(common, keys)])
