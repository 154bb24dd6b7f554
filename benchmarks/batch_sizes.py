"""What another batch size changes in a run's records: nothing but rounding, which sign steps amplify.

python -m benchmarks batch_sizes
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import attrs
import torch

from benchmarks.contest import Result, Scale
from defend import RunConfig
from defend.evaluation.runner import run_arms
from defend.records.rows import RowRecord
from defend.values.threats import DEFENDED

WORKLOAD = "8 batch_sizes"
SIZES = (1, 16, 64)
VICTIM = "resnet20"
STEPS: dict[str, dict[str, Any]] = {
    "fgsm": {},
    "pgd": {"steps": 10},
    "apgd_ce": {"steps": 10},
    "apgd_dlr": {"steps": 10},
}
THROUGH = ("fgsm", "pgd", "apgd_ce", "apgd_dlr")


@attrs.frozen
class Case:
    """One defence to run at every batch size: on how many images, attacked how and by whom."""

    purifier: str | None
    images: int
    quick: int
    threats: tuple[str, ...]
    attacks: tuple[str, ...]


CASES = (
    Case(None, 200, 8, ("oblivious",), THROUGH),
    Case("dae", 100, 8, ("adaptive",), THROUGH),
    Case("apudae", 12, 2, ("adaptive",), ("pgd",)),
)


def run(scale: Scale) -> Iterator[Result]:
    """Yield for every defence how many records differ between batch sizes, of each attack."""
    for case in CASES:
        images = case.quick if scale.quick else case.images
        found = {size: records(case, images, size, scale.device) for size in SIZES}
        figures: dict[str, Any] = {"images": images}
        for place, one in enumerate(found[SIZES[0]]):
            for size in SIZES[1:]:
                name = f"{one.plan.name}/{one.plan.threat.kind}, batch {SIZES[0]} and {size}"
                figures[name] = differences(one, found[size][place])
        yield Result(WORKLOAD, f"{case.purifier or 'no purifier'} before {VICTIM}, digits", "records", (), (), figures)


def records(case: Case, images: int, size: int, device: torch.device) -> Sequence[RowRecord]:
    """Return the records of one run, made as a user makes them, without store and checks."""
    config = RunConfig(
        victim=VICTIM,
        purifier=case.purifier,
        limit=images,
        adaptive_limit=images,
        threats=case.threats,
        attacks=case.attacks,
        options={name: STEPS[name] for name in case.attacks if STEPS[name]},
        batch_size=size,
        checks="none",
        precision="fp32",
        device=device.type,
        store=False,
    )
    return run_arms([config])[0].records


def differences(one: RowRecord, other: RowRecord) -> dict[str, float]:
    """Return how many predictions differ, how many confidences by more than 1e-4, and both accuracies."""
    mine, theirs = one.arms[DEFENDED], other.arms[DEFENDED]
    assert torch.equal(one.keys, other.keys)
    return {
        "predictions": int((mine.predicted != theirs.predicted).sum()),
        "confidences": int(((mine.confidence - theirs.confidence).abs() > 1e-4).sum()),
        "accuracy": float((mine.predicted == one.labels).double().mean()),
        "and": float((theirs.predicted == other.labels).double().mean()),
    }
