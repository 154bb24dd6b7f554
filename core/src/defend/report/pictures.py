"""Pictures of single images: clean, attacked, purified, and their differences."""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

from defend.evaluate import RowRecord
from defend.files import atomic
from defend.threats import DEFENDED, UNDEFENDED

CELL = 1.25  # inches
AMPLIFY = 4


def draw_examples(record: RowRecord, path: Path) -> None:
    """Draw the first images of a row, one a column, with what each arm predicted; write a PNG.

    Rows: clean, attacked, purified; then attacked - clean and purified - clean, amplified 4 times
    around grey. Green is right, red is wrong.
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
    count = len(example.labels)
    with mpl.rc_context({"font.size": 8}):
        figure = Figure(figsize=(CELL * (count + 0.8), CELL * len(strips) * 1.12 + 0.5), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots(len(strips), count, squeeze=False)
        for row, (name, images, predicted) in enumerate(strips):
            for column in range(count):
                axis = axes[row][column]
                pixels = images[column].clamp(0, 1).permute(1, 2, 0)
                axis.imshow(pixels.squeeze(-1).numpy(), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
                axis.set_xticks([])
                axis.set_yticks([])
                label = int(example.labels[column])
                if predicted is not None:
                    said = int(predicted[column])
                    axis.set_title(f"says {said}", color="tab:green" if said == label else "tab:red", pad=2)
                elif row == 0:
                    axis.set_title(f"label {label}", pad=2)
            axes[row][0].set_ylabel(name)
        plan = record.plan
        budget = "" if plan.threat.eps is None else f", eps {plan.threat.eps:.4g}"
        figure.suptitle(f"{plan.name} ({plan.threat.kind}{budget}): undefended above, defended below")
        with atomic(path) as temporary:
            figure.savefig(temporary, dpi=110, format="png")
