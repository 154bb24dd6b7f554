"""Pictures of single images: clean, attacked, purified, and their differences."""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

from defend.records.rows import RowRecord
from defend.util.files import atomic
from defend.values.threats import DEFENDED, UNDEFENDED

CELL = 1.25  # inches
GAP = 0.3  # of a cell, above each strip, for what was said
AMPLIFY = 4


def draw_examples(record: RowRecord, path: Path) -> None:
    """Draw some images of a row, one a column, with what each arm predicted; write a PNG.

    Rows: clean, attacked, purified; then attacked - clean and purified - clean, amplified 4 times
    around grey. Green is right, red is wrong; where the defence failed comes first.
    """
    example = record.example
    purified = example.purified[DEFENDED]
    strips: list[tuple[str, Tensor, Tensor | None]] = [
        ("clean", example.clean, None),
        ("attacked", example.attacked, example.predicted[UNDEFENDED]),
        ("purified", purified, example.predicted[DEFENDED]),
        (f"attack x{AMPLIFY}", 0.5 + AMPLIFY * (example.attacked - example.clean), None),
        (f"left over x{AMPLIFY}", 0.5 + AMPLIFY * (purified - example.clean), None),
    ]
    count, labels = len(example.labels), example.labels.tolist()
    # a name from outside is no formula
    with mpl.rc_context({"font.size": 8, "text.parse_math": False}):
        figure = Figure(figsize=(CELL * (count + 1), CELL * (1 + GAP) * len(strips) + 0.4))
        FigureCanvasAgg(figure)
        axis = figure.add_axes((0.0, 0.0, 1.0, 1.0))  # one for everything: an axis an image would take a second
        axis.set_axis_off()
        axis.set_xlim(-1, count)
        axis.set_ylim(len(strips) * (1 + GAP) + 0.05, -0.4 / CELL)
        for row, (name, images, predicted) in enumerate(strips):
            top = row * (1 + GAP) + GAP
            axis.text(-0.1, top + 0.5, name, ha="right", va="center")
            for column in range(count):
                pixels = images[column].float().clamp(0, 1).permute(1, 2, 0).numpy()
                shown = pixels if pixels.shape[2] == 3 else np.repeat(pixels[:, :, :1], 3, 2)
                axis.imshow(shown, extent=(column + 0.03, column + 0.97, top + 1, top), interpolation="nearest")
                if predicted is not None:
                    said = int(predicted[column])
                    colour = "tab:green" if said == labels[column] else "tab:red"
                    axis.text(column + 0.5, top - 0.05, f"says {said}", ha="center", color=colour)
                elif row == 0:
                    axis.text(column + 0.5, top - 0.05, f"label {labels[column]}", ha="center")
        axis.set_aspect("auto")
        plan = record.plan
        budget = "" if plan.threat.eps is None else f", eps {plan.threat.eps:.4g}"
        kind = f"{plan.threat.kind}: {plan.variant}" if plan.variant else plan.threat.kind
        figure.suptitle(f"{plan.name} ({kind}{budget}): undefended above, defended below", y=0.995, va="top")
        with atomic(path, "picture") as temporary:
            figure.savefig(temporary, dpi=110, format="png")
