"""records.csv: what every arm said of every image under every attack."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

from defend.evaluate import RowRecord

COLUMNS = (
    "attack", "threat", "eps", "image", "label", "linf", "l2",
    "arm", "predicted", "confidence", "accepted", "score",
)  # fmt: skip


def to_csv(records: Sequence[RowRecord]) -> str:
    """Return one line for every row, image and arm; `image` is the place in the test split."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for record in records:
        plan = record.plan
        for arm, said in record.arms.items():
            columns = zip(
                record.keys.tolist(), record.labels.tolist(), record.linf.tolist(), record.l2.tolist(),
                said.predicted.tolist(), said.confidence.tolist(), said.accepted.int().tolist(), said.score.tolist(),
                strict=True,
            )  # fmt: skip
            for image, label, linf, l2, predicted, confidence, accepted, score in columns:
                writer.writerow(
                    [plan.name, plan.threat.kind, plan.threat.eps, image, label, f"{linf:.6g}", f"{l2:.6g}",
                     arm, predicted, f"{confidence:.6g}", accepted, f"{score:.6g}"]
                )  # fmt: skip
    return text.getvalue()
