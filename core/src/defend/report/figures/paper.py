"""A scene as files for a paper: PNG and SVG by matplotlib, on white, the same bytes for the same scene."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Polygon

from defend.report.figures.scene import LIGHT, Picture, Scene, Shape, Text
from defend.util.files import atomic, sweep

PIXELS_PER_INCH = 96
POINTS = 72 / PIXELS_PER_INCH  # a CSS pixel in points
MARGIN = 6  # pixels around everything
RESOLUTION = 200  # of the PNG, per inch
# text stays text in the SVG; identifiers come from the content alone
STYLE: Any = {"svg.fonttype": "none", "svg.hashsalt": "defend", "font.family": "DejaVu Sans"}
METADATA: dict[str, dict[str, None]] = {"png": {"Software": None}, "svg": {"Date": None, "Creator": None}}


def write(scene: Scene, folder: Path) -> list[Path]:
    """Write NAME.png and NAME.svg into the folder; return their paths.

    Raises:
        WriteError: one cannot be written.
    """
    paths = []
    with mpl.rc_context(STYLE):
        figure = _draw(scene)
        for kind, metadata in METADATA.items():
            path = folder / f"{scene.name}.{kind}"
            sweep(folder, of=path.name)
            with atomic(path, "figure") as temporary:
                figure.savefig(temporary, format=kind, dpi=RESOLUTION, metadata=metadata)
            paths.append(path)
    return paths


def _draw(scene: Scene) -> Figure:
    size = [(side + 2 * MARGIN) / PIXELS_PER_INCH for side in (scene.width, scene.height)]
    figure = Figure(figsize=(size[0], size[1]), facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(-MARGIN, scene.width + MARGIN), ylim=(scene.height + MARGIN, -MARGIN))
    axes.set_axis_off()
    for order, mark in enumerate(scene.marks):
        if isinstance(mark, Shape):
            _shape(axes, mark, order)
        elif isinstance(mark, Text):
            _text(axes, mark, order)
        else:
            _picture(axes, mark, order)
    return figure


def _shape(axes: Any, shape: Shape, order: int) -> None:
    style: dict[str, Any] = {"linewidth": shape.width * POINTS, "zorder": order}
    if shape.dash:
        # matplotlib counts dashes in line widths
        style["linestyle"] = (0, tuple(length / shape.width for length in shape.dash))
    if shape.closed:
        fill = mpl.colors.to_rgba(LIGHT[shape.fill], shape.opacity) if shape.fill else "none"
        edge = LIGHT[shape.stroke] if shape.stroke else "none"
        axes.add_patch(Polygon(shape.points, closed=True, facecolor=fill, edgecolor=edge, **style))
    else:
        across, down = zip(*shape.points, strict=True)
        axes.add_line(Line2D(across, down, color=LIGHT[shape.stroke or "ink"], solid_capstyle="butt", **style))


def _text(axes: Any, text: Text, order: int) -> None:
    axes.text(
        text.x,
        text.y,
        text.text,
        color=LIGHT[text.role],
        fontsize=text.size * POINTS,
        ha={"start": "left", "middle": "center", "end": "right"}[text.anchor],
        va="center_baseline" if not text.turned else "center",
        fontweight="bold" if text.bold else "normal",
        rotation=90 if text.turned else 0,
        zorder=order,
        # a dollar sign in a label is no formula
        parse_math=False,
    )


def _picture(axes: Any, picture: Picture, order: int) -> None:
    pixels = picture.pixels
    axes.imshow(
        pixels,
        cmap="gray",
        vmin=0,
        vmax=255,
        interpolation="nearest",
        aspect="auto",
        zorder=order,
        extent=(picture.x, picture.x + picture.width, picture.y + picture.height, picture.y),
    )
