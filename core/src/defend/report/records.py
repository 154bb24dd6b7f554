"""records.csv: what every arm said of every image under every attack."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

from defend.rows import REJECTED, ArmRecord, RowRecord

COLUMNS = (
    "attack", "threat", "variant", "eps", "image", "label", "linf", "l2", "queries",
    "arm", "predicted", "confidence", "accepted", "score", "passes", "looks", "blind", "fooled_at",
)  # fmt: skip


def to_csv(records: Sequence[RowRecord]) -> str:
    """Return one line for every row, image and arm; `image` is the place in the test split.

    `queries` is empty for attacks that do not count them; `passes` is what a random arm predicted in each of several
    passes, "7 7 3 -", where - is a rejection. `looks`, `blind` and `fooled_at` are what the attack saw of the image
    (`defend.attacks.sight.Seen`), empty where nothing was written down.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for record in records:
        plan = record.plan
        queries = [""] * len(record.keys) if record.queries is None else record.queries.tolist()
        none = [""] * len(record.keys)
        seen = (none, none, none) if record.seen is None else (
            record.seen.looks.tolist(), record.seen.blind.tolist(), record.seen.fooled_at.tolist(),
        )  # fmt: skip
        for arm, said in record.arms.items():
            columns = zip(
                record.keys.tolist(), record.labels.tolist(), record.linf.tolist(), record.l2.tolist(),
                queries, said.predicted.tolist(), said.confidence.tolist(), said.accepted.int().tolist(),
                said.score.tolist(), _passes(said), *seen, strict=True,
            )  # fmt: skip
            for image, label, linf, l2, asked, predicted, confidence, accepted, score, passes, *looks in columns:
                writer.writerow(
                    [plan.name, plan.threat.kind, plan.variant, plan.threat.eps, image, label, f"{linf:.6g}",
                     f"{l2:.6g}", asked, arm, predicted, f"{confidence:.6g}", accepted, f"{score:.6g}", passes, *looks]
                )  # fmt: skip
    return text.getvalue()


def _passes(said: ArmRecord) -> list[str]:
    if said.passes is None:
        return [""] * len(said.predicted)
    return [" ".join("-" if one == REJECTED else str(one) for one in row) for row in said.passes.tolist()]
