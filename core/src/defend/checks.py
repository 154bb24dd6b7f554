"""Sanity checks of an evaluation: what in its own records should make a reader suspicious."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from defend.compare import mcnemar
from defend.evaluate import RowRecord
from defend.threats import DEFENDED
from defend.values import Check

HARMLESS = ("none", "noise")


def label_leak(records: Sequence[RowRecord]) -> Check:
    """Warn where the defended accuracy under attack exceeds the clean accuracy on the same images.

    No honest defence gets better by being attacked; a purifier that read the true label out of the attack's
    noise does (paper 000 recovers 98.5 % from 93.1 % clean; label leaking, Kurakin et al. 2017).
    """
    name = "label leak"
    clean = next((record for record in records if record.plan.threat.kind == "none"), None)
    attacked = [record for record in records if record.plan.threat.kind not in HARMLESS]
    if clean is None or not attacked:
        return Check(name, "skip", "no clean row, or no attacked one")
    said = clean.arms[DEFENDED]
    right = dict(zip(clean.keys.tolist(), ((said.predicted == clean.labels) & said.accepted).tolist(), strict=True))
    found = []
    for record in attacked:
        here = record.arms[DEFENDED]
        after = ((here.predicted == record.labels) & here.accepted).bool()
        before = torch.tensor([right.get(key, False) for key in record.keys.tolist()])
        gained, lost = int((after & ~before).sum()), int((before & ~after).sum())
        if gained > lost:
            n = len(after)
            found.append(
                f"{record.plan.name}/{record.plan.threat.kind}: {100 * float(after.double().mean()):.1f} % attacked, "
                f"{100 * float(before.double().mean()):.1f} % clean on the same {n} images (p = "
                f"{mcnemar(gained, lost):.2g})"
            )
    if found:
        how = "repeat with predicted labels (--set ATTACK.labels=predicted)"
        return Check(name, "warn", f"more accurate under attack than clean: {'; '.join(found)}; {how}")
    return Check(name, "pass", f"no attacked row of {len(attacked)} exceeds the clean accuracy on its images")


def check_records(records: Sequence[RowRecord]) -> tuple[Check, ...]:
    """Run every check whose input the records hold."""
    return (label_leak(records),)
