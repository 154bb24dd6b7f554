"""The row "8-bit": the strongest row's images judged again as they travel, rounded to 256 levels."""

from __future__ import annotations

from collections.abc import Sequence

import attrs
import torch

from defend.attacks.given import Replay
from defend.records.rows import Part, PlannedRow, RowRecord, right, worst_case
from defend.values.threats import DEFENDED

EIGHT_BITS = "8-bit"


def find_strongest(records: Sequence[RowRecord]) -> PlannedRow | None:
    """Return the attacked row of a defence that leaves least of the images that all such rows judged.

    Of rows that count in the worst case alone; None where there is none.
    """
    counted = [one for one in records if one.plan.attack is not None and one.plan.headline]
    common = set(worst_case(counted, DEFENDED)[0].tolist())

    def left(record: RowRecord) -> int:
        held = right(record, DEFENDED).tolist()
        return sum(ok for key, ok in zip(record.keys.tolist(), held, strict=True) if key in common)

    return min(counted, key=left).plan if counted else None


def round_row(plan: PlannedRow, parts: Sequence[Part]) -> PlannedRow | None:
    """Return a row that judges again what a row made, of parts that kept their images; None where none did."""
    kept = [(part.keys, part.attacked) for part in parts if part.attacked is not None]
    if not kept:
        return None
    keys = torch.cat([keys for keys, _ in kept])
    attack = Replay(plan.threat.norm, keys, torch.cat([images for _, images in kept]))
    variant = name_rounded(plan.variant)
    return attrs.evolve(plan, attack=attack, keys=keys, variant=variant, carry=None, identity="", chance="")


def name_rounded(variant: str) -> str:
    """Return the variant of the row that judges a row's images in 8 bits."""
    return ", ".join(part for part in (variant, EIGHT_BITS) if part)
