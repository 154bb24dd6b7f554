"""Pictures of single images: clean, attacked, purified, and their differences.

Drawn by Pillow, which is there already: importing matplotlib for it takes a second at the end of every run.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from defend.records.rows import RowRecord
from defend.util.files import atomic
from defend.values.threats import DEFENDED, UNDEFENDED

CELL = 132  # pixels of an image's longer side; the next ones are in pixels too
EDGE = 6  # around every image
LINE = 22  # above each strip, for what was said
MARGIN = 110  # on the left, for the names of the strips
TITLE = 40
SMALL, LARGE = 12, 15  # of letters
WHITE, BLACK, RIGHT, WRONG = "white", "black", "#2ca02c", "#d62728"
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
    labels = example.labels.tolist()
    width, height = _fit(example.clean)
    across, down = width + 2 * EDGE, height + 2 * EDGE + LINE
    sheet = Image.new("RGB", (MARGIN + across * len(labels) + EDGE, TITLE + down * len(strips)), WHITE)
    draw, small = ImageDraw.Draw(sheet), ImageFont.load_default(SMALL)
    draw.text((sheet.width / 2, TITLE / 2), _title(record), BLACK, ImageFont.load_default(LARGE), anchor="mm")
    for row, (name, images, predicted) in enumerate(strips):
        top = TITLE + row * down + LINE
        draw.text((MARGIN - EDGE, top + EDGE + height / 2), name, BLACK, small, anchor="rm")
        for column, label in enumerate(labels):
            left = MARGIN + column * across
            sheet.paste(_scale(images[column], width, height), (left + EDGE, top + EDGE))
            said, colour = "", BLACK
            if predicted is not None:
                said, colour = f"says {int(predicted[column])}", RIGHT if predicted[column] == label else WRONG
            elif row == 0:
                said = f"label {label}"
            draw.text((left + across / 2, top - EDGE // 2), said, colour, small, anchor="mm")
    with atomic(path, "picture") as temporary:
        sheet.save(temporary, format="png")


def _fit(images: Tensor) -> tuple[int, int]:
    """Return the width and height that images [N,C,H,W] are drawn in: the longer is `CELL`."""
    height, width = images.shape[-2:]
    longer = max(height, width)
    return max(round(CELL * width / longer), 1), max(round(CELL * height / longer), 1)


def _scale(image: Tensor, width: int, height: int) -> Image.Image:
    """Return an image [C,H,W] in [0,1], cut off there, in so many pixels; anything but three channels is grey."""
    pixels = (image.float().clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
    shown = pixels if pixels.shape[2] == 3 else np.repeat(pixels[:, :, :1], 3, 2)
    drawn = Image.fromarray(np.ascontiguousarray(shown))
    # a pixel stays a square; of images that are larger the mean is shown
    how = Image.Resampling.BOX if drawn.width > width else Image.Resampling.NEAREST
    return drawn.resize((width, height), how)


def _title(record: RowRecord) -> str:
    plan = record.plan
    budget = "" if plan.threat.eps is None else f", eps {plan.threat.eps:.4g}"
    kind = f"{plan.threat.kind}: {plan.variant}" if plan.variant else plan.threat.kind
    return f"{plan.name} ({kind}{budget}): undefended above, defended below"
