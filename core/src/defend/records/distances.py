"""What an attack that minimises the distance says of every budget at once: the smallest changes that it found."""

from __future__ import annotations

from typing import Any

import torch

from defend.records.rows import RowRecord
from defend.util.statistics import wilson
from defend.values.threats import DEFENDED

POINTS = 100  # of a curve that is kept, the row's own budget beside them


def distances_of(record: RowRecord) -> dict[str, Any] | None:
    """Return `Row.distances`; None for an attack that keeps to a budget.

    Accuracy at eps is the share of images whose smallest change is longer: at the row's own eps it is the row's.
    """
    far = record.arms[DEFENDED].distance
    if far is None:
        return None
    found, _ = far[far.isfinite()].sort()
    eps = found[torch.linspace(0, len(found) - 1, min(len(found), POINTS)).round().long()] if len(found) else found
    own = [] if record.plan.threat.eps is None else [record.plan.threat.eps]
    at = torch.tensor([0.0, *eps.tolist(), *own], dtype=torch.float64).unique()
    # in the type in which a row is held to its budget: in doubles what lies at it would lie beyond
    left = (far[None] > at.to(far.dtype)[:, None]).sum(1).tolist()
    # of an even number the larger of the two in the middle: one of them may be infinite
    median = far.sort().values[len(far) // 2]
    return {
        "median": float(median) if bool(median.isfinite()) else None,
        "found": len(found),
        "curve": {
            "eps": at.tolist(),
            "accuracy": [held / len(far) for held in left],
            "ci95": [wilson(held, len(far)) for held in left],
        },
        "images": [one if one < torch.inf else None for one in far.tolist()],
    }
