"""What an attack's looks at its images come to: whether it could see, and whether it had come to its end."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from defend.records.rows import PlannedRow, RowRecord, right
from defend.values.threats import DEFENDED, THREATS, knows_the_defence

LATE_SHARE = 0.02  # of the images: what the second half of the looks may still fool of a curve that has flattened
FEW = 4  # looks: a curve of fewer has no second half to speak of
POINTS = 100  # of a curve that is kept


def gradients_of(record: RowRecord, draws: int) -> dict[str, Any] | None:
    """Return what a row's attack saw of its images, `Row.gradients`; None where nothing was written down."""
    seen = record.seen
    if seen is None or not bool(seen.looks.any()):
        return None
    looked = seen.looks[seen.looks > 0].double()
    blind_at = seen.first_blind[seen.first_blind > 0]
    counts = {name: int((getattr(seen, name) > 0).sum()) for name in ("absent", "zero", "broken", "mended")}
    return {
        "looks": {"mean": float(looked.mean()), "max": int(looked.max())},
        "draws": draws,
        **counts,
        "never": int(seen.never.sum()),
        "left_blind": int(find_left_blind(record).sum()),
        "first": int(blind_at.min()) if len(blind_at) else None,
    }


def find_draws(plan: PlannedRow, draws: int) -> int:
    """Return over how many draws each look of a row's attack is averaged, where the defence is random.

    Who does not face the defence meets none of them, who only asks gets one answer a question, and a row that tells
    what chance is worth takes one draw a step.
    """
    kind = plan.threat.kind
    return draws if not plan.chance and knows_the_defence(kind) and THREATS[kind].knows == "gradient" else 1


def find_left_blind(record: RowRecord) -> Tensor:
    """Return bool [N]: images that the defence is right on, and that the attack could hardly ever see.

    At half of its looks or more it had no usable gradient. That is enough, as a gradient at the beginning alone leads
    nowhere. An attack that only asks, and noise, take no gradient, so they miss none.
    """
    if record.seen is None or THREATS[record.plan.threat.kind].knows != "gradient":
        return torch.zeros(len(record.keys), dtype=torch.bool)
    return record.seen.mostly & right(record, DEFENDED)


def curve_of(record: RowRecord) -> dict[str, Any] | None:
    """Return the share of images that the attacked arm still had right after each step, `Row.curve`.

    A look sees what the steps before it made of the image. What the last step made, only the judge saw.

    None for an attack of few looks, and for one whose objective has logits of its own: they say nothing of the defence.
    Of an attack that looks beyond its budget (`Attack.strays`) the looks within count.
    """
    seen = record.seen
    most = 0 if seen is None else int(seen.looks.max())
    if seen is None or most < FEW or not bool(seen.judged.any()):
        return None
    n = len(seen.looks)
    counts = seen.fooled_at.clamp_max(most).long().bincount(minlength=most + 1)
    left = n - counts[1:].cumsum(0)
    if knows_the_defence(record.plan.threat.kind):  # what the judge asks is what was attacked
        end = int((right(record, DEFENDED) & (seen.fooled_at == 0)).sum())
        left = torch.cat([left, torch.tensor([end])])
    last = len(left) - 1
    late = int(left[last // 2] - left[last])
    at = torch.linspace(0, last, min(last + 1, POINTS)).round().long()
    return {
        "at": at.tolist(),
        "left": [float(one) / n for one in left[at]],
        "late": late,
        "flattened": late <= LATE_SHARE * n or not int(left[last]),  # of nothing more steps take nothing
    }
