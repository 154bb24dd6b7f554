"""A slice of the loss around images, along the gradient's sign and along random signs."""

from __future__ import annotations

from collections.abc import Iterator

import matplotlib as mpl
import numpy as np
from numpy.typing import NDArray

from defend.records.run import Surface
from defend.report.figures.scene import MINUS, TIMES, Mark, Picture, Plot, Scene, Text, round_ticks

SIDE = 220.0
LEFT, TOP, BELOW, SCALE = 58.0, 10.0, 44.0, 70.0
MAP = "cividis"  # even in lightness, and the same to readers with colour-vision deficiencies
NO_NUMBER = (200, 200, 200)


def surface(found: Surface) -> Scene:
    """Return the heat map: upwards along the gradient's sign, across along random signs, in units of eps."""
    finite = found.loss[np.isfinite(found.loss)]
    low, high = (float(finite.min()), float(finite.max())) if len(finite) else (0.0, 1.0)
    plot = Plot(left=LEFT, top=TOP, width=SIDE, height=SIDE, x=_span(found.axis), y=_span(found.axis))
    # the picture is drawn last, over the grid lines
    ticks = round_ticks(float(found.axis.min()), float(found.axis.max()), 4)
    marks: list[Mark] = [
        *plot.axes(ticks, ticks, f"random signs, {TIMES} eps", f"gradient's sign, {TIMES} eps"),
        # a picture's first row is its upper one, and the axis rises upwards
        Picture(x=LEFT, y=TOP, width=SIDE, height=SIDE, pixels=_colour(found.loss[::-1], low, high)),
        *_scale(low, high),
    ]
    says = f"Heat map of the loss, from {low:.3g} to {high:.3g}."
    return Scene(
        name="loss-surface", says=says, width=LEFT + SIDE + SCALE, height=TOP + SIDE + BELOW, marks=tuple(marks)
    )


def _span(axis: NDArray[np.float64]) -> tuple[float, float]:
    """Return the axis's range with half a cell on either side."""
    half = float(axis[-1] - axis[0]) / (len(axis) - 1) / 2
    return float(axis[0]) - half, float(axis[-1]) + half


def _colour(values: NDArray[np.float64], low: float, high: float) -> NDArray[np.uint8]:
    scaled = (values - low) / ((high - low) or 1.0)
    colours = mpl.colormaps[MAP](np.nan_to_num(scaled), bytes=True)[..., :3]
    pixels: NDArray[np.uint8] = np.where(np.isfinite(values)[..., None], colours, NO_NUMBER).astype(np.uint8)
    return pixels


def _scale(low: float, high: float) -> Iterator[Mark]:
    x, bottom = LEFT + SIDE + 12, TOP + SIDE
    yield Picture(x=x, y=TOP, width=10, height=SIDE, pixels=_colour(np.linspace(1, 0, 64)[:, None], 0, 1))
    for value, y in ((high, TOP + 5), (low, bottom - 5)):
        yield Text(x=x + 14, y=y, text=f"{value:.3g}".replace("-", MINUS), role="muted")
    yield Text(x=x + 18, y=TOP + SIDE / 2, text="loss", role="muted")
