"""Checks of a detector: whether its scores tell attacked images from clean ones."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from defend.checks.common import Case, Findings, percent, title
from defend.checks.outcomes import TAIL, rejections
from defend.checks.records import has_scores
from defend.records.rows import RowRecord
from defend.util.metrics import auroc
from defend.values.threats import DEFENDED


def separation(case: Case, found: Findings) -> None:
    """Check 11: scores vary, are higher on oblivious rows than chance explains, and the false-positive rate holds."""
    clean = case.clean
    detector = case.subject.defence.detector is not None if case.subject is not None else has_scores(case.records)
    if not detector:
        found.add("skip", "no detector")
        return
    if clean is None:
        found.add("skip", "no clean row")
        return
    scores = clean.arms[DEFENDED].score
    everything = torch.cat([record.arms[DEFENDED].score for record in case.records])
    if float(everything.max()) == float(everything.min()):
        found.add("fail", f"the detector gives every image of every row the score {float(scores[0]):.4g}")
        return
    for row in case.of(lambda threat: threat.faces == "victim"):
        attacked = row.arms[DEFENDED].score
        area, z = auroc(scores, attacked), rank_deviate(scores, attacked)
        found.numbers[title(row)] = {"auroc": area, "z": z}
        said = f"{title(row)}: AUROC {area:.3f} on {len(scores)} clean and {len(attacked)} attacked images"
        if z > 2:
            found.add("pass", said)
        else:
            found.add("warn", f"{said}, no better than chance: the detector does not see even this attack")
    _hold_to_rate(case, clean, found)


def _hold_to_rate(case: Case, clean: RowRecord, found: Findings) -> None:
    """Compare the clean images rejected with the rate that the threshold was set for, in this run or before.

    A rate that is not kept is a warning, as the clean row shows what it costs. It fails where the threshold was also
    set behind other purifiers, which explains it.
    """
    set_on = case.subject.calibration if case.subject is not None else None
    if case.subject is None or set_on is None:
        return
    n, rejected = len(clean.labels), int((~clean.arms[DEFENDED].accepted).sum())
    found.numbers |= {"clean_rejected": rejected / n, "fpr": set_on.fpr}
    text = f"{rejected} of {n} clean images rejected, set for {percent(set_on.fpr)}"
    text += f" on {set_on.n}" if set_on.n else ""
    text += f" of {set_on.dataset}" if set_on.kept and set_on.dataset else ""
    # old weights do not say how many it was set on: at least as many as can show such a rate
    held_out = set_on.n or (math.ceil(1 / set_on.fpr) if set_on.fpr > 0 else 0)
    # nothing follows from a rate of none
    off = held_out > 0 and min(rejections(rejected, n, set_on.fpr, held_out)) < TAIL
    if off:
        text += ": more or fewer than chance explains"
    if elsewhere := set_on.say_elsewhere(case.subject.behind, case.subject.parts):
        found.add("fail" if off else "warn", f"{text}; {elsewhere}: calibrate it there")
    elif set_on.blunt:
        found.add("warn", f"{text}; the threshold rejects none of these: their highest scores are alike")
    elif off:
        found.add("warn", f"{text}; calibrate on images like these")
    else:
        found.add("pass", text)


def rank_deviate(clean: Tensor, attacked: Tensor) -> float:
    """Return the standard normal deviate of the AUROC under no difference, ties corrected (Mann and Whitney 1947)."""
    n, m = len(clean), len(attacked)
    _, counts = torch.cat([clean, attacked]).unique(return_counts=True)
    ties = float((counts.double() ** 3 - counts.double()).sum())
    total = n + m
    variance = n * m / 12 * (total + 1 - ties / (total * (total - 1)))
    return (auroc(clean, attacked) - 0.5) * n * m / math.sqrt(variance) if variance > 0 else 0.0
