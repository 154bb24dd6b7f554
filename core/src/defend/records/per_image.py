"""records.csv: what every arm said of every image under every attack."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

from torch import Tensor

from defend.records.rows import REJECTED, ArmRecord, RowRecord
from defend.util.cells import to_cell

COLUMNS = (
    "attack",
    "threat",
    "variant",
    "eps",
    "image",
    "label",
    "linf",
    "l2",
    "queries",
    "arm",
    "predicted",
    "confidence",
    "accepted",
    "score",
    "passes",
    "looks",
    "blind",
    "fooled_at",
    "distance",
)


def to_csv(records: Sequence[RowRecord]) -> str:
    """Return one line for every row, image and arm; `image` is the place in the test split.

    `queries` is empty for attacks that do not count them; `passes` is what a random arm predicted in each of several
    passes, "7 7 3 -", where - is a rejection. `looks`, `blind` and `fooled_at` are what the attack saw of the image
    (`defend.records.seen.Seen`), empty where nothing was written down; `distance` is an `ArmRecord`'s, empty of attacks
    that minimise none. A variant is a plugin's own words: one that a
    spreadsheet would run stands behind a mark (`defend.util.cells`).
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for record in records:
        plan, seen, none = record.plan, record.seen, [""] * len(record.keys)
        row = plan.name, plan.threat.kind, to_cell(plan.variant), plan.threat.eps
        queries = none if record.queries is None else record.queries.tolist()
        images = [record.keys.tolist(), record.labels.tolist(), _short(record.linf), _short(record.l2), queries]
        looks = [none if seen is None else getattr(seen, name).tolist() for name in ("looks", "blind", "fooled_at")]
        for arm, said in record.arms.items():
            answers = [said.predicted.tolist(), _short(said.confidence), said.accepted.int().tolist()]
            distance = none if said.distance is None else _short(said.distance)
            columns = [*images, [arm] * len(none), *answers, _short(said.score), _passes(said), *looks, distance]
            writer.writerows((*row, *values) for values in zip(*columns, strict=True))
    return text.getvalue()


def _short(column: Tensor) -> list[str]:
    return [f"{value:.6g}" for value in column.tolist()]


def _passes(said: ArmRecord) -> list[str]:
    if said.passes is None:
        return [""] * len(said.predicted)
    return [" ".join("-" if one == REJECTED else str(one) for one in row) for row in said.passes.tolist()]
