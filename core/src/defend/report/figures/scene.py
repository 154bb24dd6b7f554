"""A figure as a list of marks in pixels, y downwards: what the page's SVG and the paper's matplotlib both draw.

Colours are roles. The page binds them to its light or dark palette, the paper to the light one. They are near Okabe and
Ito's (2008), which readers with colour-vision deficiencies tell apart; on dark they are lighter.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

import attrs
import numpy as np
from numpy.typing import NDArray

from defend.values.threats import THREATS

LIGHT: Mapping[str, str] = {
    "ink": "#1a1a1a",
    "muted": "#595959",
    "rule": "#d9d9d6",
    "paper": "#ffffff",
    "bare": "#8a8a8a",
    "defended": "#0072b2",
    "s1": "#2a9dc4",
    "s2": "#009e73",
    "s3": "#0072b2",
    "s4": "#aa4499",
    "s5": "#b8860b",
    "s6": "#d55e00",
    "s7": "#4b4b9b",
    "right": "#00704f",
    "wrong": "#b64400",
    "aside": "#7a5a00",
}
DARK: Mapping[str, str] = {
    "ink": "#e8e6e1",
    "muted": "#a8a69f",
    "rule": "#3a3a38",
    "paper": "#161715",
    "bare": "#9a9a96",
    "defended": "#5fb3e6",
    "s1": "#8fdcf5",
    "s2": "#3ccb9c",
    "s3": "#5fb3e6",
    "s4": "#e39bc4",
    "s5": "#f0c64a",
    "s6": "#ff8a4c",
    "s7": "#a9a9f5",
    "right": "#4fd3a6",
    "wrong": "#ff9a66",
    "aside": "#f0c64a",
}
# by a threat's place in `defend.values.threats`: oblivious is blue, adaptive vermillion
SERIES = ("s1", "s2", "s3", "s4", "s5", "s6", "s7")
MARKERS = ("circle", "square", "triangle", "diamond")
DASHES: tuple[tuple[float, ...], ...] = ((), (6, 3), (2, 2), (8, 3, 2, 3))
SMALL = 11.0  # the size of all text, in pixels
TIMES, MINUS = "\N{MULTIPLICATION SIGN}", "\N{MINUS SIGN}"
NOTHING, ELLIPSIS = "\N{EN DASH}", "\N{HORIZONTAL ELLIPSIS}"
WIDTH_OF_A_LETTER = 0.63  # of the font's size, in the widest of common sans-serif fonts

Anchor = Literal["start", "middle", "end"]
Point = tuple[float, float]


@attrs.frozen(kw_only=True)
class Shape:
    """A line, or an area where `fill` names a role. `width` and `dash` in pixels."""

    points: Sequence[Point]
    fill: str | None = None
    stroke: str | None = None
    width: float = 1.0
    dash: tuple[float, ...] = ()
    opacity: float = 1.0
    closed: bool = False


@attrs.frozen(kw_only=True)
class Text:
    """A line of text; `y` is its middle. `turned`: reads upwards. `link`: the id on the page that it leads to."""

    x: float
    y: float
    text: str
    role: str = "ink"
    size: float = SMALL
    anchor: Anchor = "start"
    bold: bool = False
    turned: bool = False
    link: str = ""


@attrs.frozen(kw_only=True)
class Picture:
    """Pixels, uint8 [H,W] or [H,W,3], in a rectangle, enlarged without smoothing."""

    x: float
    y: float
    width: float
    height: float
    pixels: NDArray[np.uint8]


Mark = Shape | Text | Picture


@attrs.frozen(kw_only=True)
class Scene:
    """A figure: `name` is its file's, `says` what a reader who cannot see it is told."""

    name: str
    says: str
    width: float
    height: float
    marks: tuple[Mark, ...]


def rectangle(x: float, y: float, width: float, height: float, **style: Any) -> Shape:
    """Return a rectangle from its upper left corner."""
    corners = ((x, y), (x + width, y), (x + width, y + height), (x, y + height))
    return Shape(points=corners, closed=True, **style)


def marker(x: float, y: float, kind: str, role: str, size: float = 3.5) -> Shape:
    """Return a marker: "circle", "square", "triangle" or "diamond"; `size` is its radius."""
    # a circle is drawn with 16 corners, so that both drawers know no other shape than a polygon
    corners, start = {"circle": (16, 0.0), "square": (4, 0.25), "triangle": (3, 1.0), "diamond": (4, 0.0)}[kind]
    turns = [2 * math.pi * (corner / corners + start / 2) for corner in range(corners)]
    radius = size * (1.0 if kind == "circle" else 1.25)
    points = tuple((x + radius * math.sin(turn), y + radius * math.cos(turn)) for turn in turns)
    return Shape(points=points, fill=role, stroke="paper", width=0.8, closed=True)


def text_width(text: str, size: float) -> float:
    """Estimate a text's width in pixels, rather too wide than too narrow."""
    return len(text) * size * WIDTH_OF_A_LETTER


def fit_text(text: str, size: float, width: float) -> str:
    """Cut a text that would be wider than `width` pixels, and end it in an ellipsis."""
    if text_width(text, size) <= width:
        return text
    return text[: max(int(width / (size * WIDTH_OF_A_LETTER)) - 1, 1)] + ELLIPSIS


@attrs.frozen(kw_only=True)
class Plot:
    """A rectangle of the scene with a scale on either side."""

    left: float
    top: float
    width: float
    height: float
    x: tuple[float, float] = (0.0, 1.0)
    y: tuple[float, float] = (0.0, 1.0)

    def at(self, x: float, y: float) -> Point:
        """Return where a value lies, in pixels."""
        across = (x - self.x[0]) / (self.x[1] - self.x[0])
        up = (y - self.y[0]) / (self.y[1] - self.y[0])
        return self.left + self.width * across, self.top + self.height * (1 - up)

    def line(self, points: Iterable[Point], **style: Any) -> Shape:
        """Return a line, or an area, through values."""
        return Shape(points=tuple(self.at(*point) for point in points), **style)

    def axes(
        self, x_ticks: Mapping[float, str], y_ticks: Mapping[float, str], x_label: str = "", y_label: str = ""
    ) -> Iterator[Mark]:
        """Yield grid lines, ticks and labels; ticks map values to their text."""
        bottom = self.top + self.height
        for value, text in y_ticks.items():
            _, y = self.at(self.x[0], value)
            yield Shape(points=((self.left, y), (self.left + self.width, y)), stroke="rule")
            yield Text(x=self.left - 6, y=y, text=text, role="muted", anchor="end")
        for value, text in x_ticks.items():
            x, _ = self.at(value, self.y[0])
            yield Shape(points=((x, bottom), (x, bottom + 4)), stroke="muted")
            yield Text(x=x, y=bottom + 13, text=text, role="muted", anchor="middle")
        yield Shape(points=((self.left, bottom), (self.left + self.width, bottom)), stroke="muted")
        if x_label:
            middle = self.left + self.width / 2
            yield Text(x=middle, y=bottom + 31, text=x_label, anchor="middle")
        if y_label:
            yield Text(x=11, y=self.top + self.height / 2, text=y_label, anchor="middle", turned=True)


@attrs.frozen(kw_only=True)
class LegendLine:
    """One line of a legend: a box (`box`, with its fill's opacity), or a line with its marker; `link` as of a text."""

    text: str
    role: str
    box: float | None = None
    dash: tuple[float, ...] = ()
    marker: str | None = None
    link: str = ""


def legend(entries: Sequence[LegendLine], left: float, top: float, width: float) -> tuple[list[Mark], float]:
    """Lay a legend out in lines no wider than `width`; return its marks and the y below it."""
    marks: list[Mark] = []
    x, y = left, top + 9
    for entry in entries:
        text = fit_text(entry.text, SMALL, width - 30)
        taken = 30 + text_width(text, SMALL)
        if x > left and x + taken > left + width:
            x, y = left, y + 18
        if entry.box is not None:
            marks.append(rectangle(x + 2, y - 5, 18, 10, fill=entry.role, stroke=entry.role, opacity=entry.box))
        else:
            marks.append(Shape(points=((x, y), (x + 22, y)), stroke=entry.role, width=2, dash=entry.dash))
            if entry.marker:
                marks.append(marker(x + 11, y, entry.marker, entry.role))
        marks.append(Text(x=x + 27, y=y, text=text, link=entry.link))
        x += taken + 14
    return marks, y + 13 if entries else top


def link_to(threat: str, place: int) -> str:
    """Return the id of what a threat means, in the page's run number `place`; "" where there is no such threat."""
    return f"{threat}{place}" if threat in THREATS else ""


def percent_ticks(step: int = 25) -> dict[float, str]:
    """Return ticks from 0 to 100 %."""
    return {value / 100: str(value) for value in range(0, 101, step)}


def round_ticks(low: float, high: float, about: int = 5) -> dict[float, str]:
    """Return ticks at round values between `low` and `high`, some `about` of them."""
    if not high > low:
        return {low: f"{low:.3g}"}
    raw = (high - low) / about
    size = 10.0 ** math.floor(math.log10(raw))
    # the small shares keep rounding from skipping a tick that is hit exactly
    step = next(size * factor for factor in (1, 2, 2.5, 5, 10) if size * factor >= raw * (1 - 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return {place * step: f"{place * step:.6g}".replace("-", MINUS) for place in range(first, last + 1)}
