"""A paper's figures and ours, joined by a line: how far apart they are, arm by arm."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from defend.report.figures.ladder import NARROW, WIDE
from defend.report.figures.scene import (
    SMALL,
    LegendLine,
    Mark,
    Plot,
    Scene,
    Shape,
    Text,
    fit_text,
    legend,
    marker,
    percent_ticks,
    text_width,
)
from defend.report.text import beside, bound, percent
from defend.reproduce.results import AdaptiveResult, Cell, Standing, TableResult

ROLES: Mapping[Standing, str] = {
    "same": "right",
    "better": "right",
    "stronger": "s5",
    "explained": "aside",
    "guessed": "s7",
    "off": "wrong",
    "beside": "defended",
    "open": "muted",
    "unmeasured": "muted",
}
ADAPTIVE = "s4"
PITCH, GAP = 16.0, 8.0
VALUES = {False: 124.0, True: 82.0}  # the column of figures at the right, by whether it is narrow
LABELS = {False: (90.0, 230.0), True: (60.0, 104.0)}  # the column of names at the left: at least and at most


def dumbbell(result: TableResult, arms: Sequence[str], name: str, narrow: bool = False) -> Scene | None:
    """Return the chart, an arm after the other; `narrow` for a phone. None where nothing was measured."""
    groups = {arm: [cell for cell in result.cells if cell.arm == arm and cell.ours is not None] for arm in arms}
    groups = {arm: cells for arm, cells in groups.items() if cells}
    if not groups:
        return None
    width = NARROW if narrow else WIDE
    named = ["adaptive", *(cell.attack for cells in groups.values() for cell in cells)]
    least, most = LABELS[narrow]
    labels = min(max(max(text_width(each, SMALL) for each in named) + 12, least), most)
    left, right = labels + 4, width - VALUES[narrow]
    entries = [
        LegendLine(text="the paper's", role="bare", marker="circle"),
        LegendLine(text="ours, as the paper's, or better on clean images", role="right", marker="square"),
        *_entries(result),
    ]
    marks, y = legend(entries, 0, 0, width)
    top = y = y + 4
    drawn: list[Mark] = []
    for arm, cells in groups.items():
        y += GAP
        drawn.append(Text(x=0, y=y, text=fit_text(arm, SMALL, width), bold=True))
        drawn.append(Shape(points=((0, y + 9), (width, y + 9)), stroke="rule"))
        y += 20
        plot = Plot(left=left, top=y, width=right - left, height=PITCH)
        for cell in cells:
            drawn.append(Text(x=labels - 6, y=y, text=fit_text(cell.attack, SMALL, labels - 6), anchor="end"))
            drawn += _line(plot, cell, y, width)
            y += PITCH
        adaptive = result.against(arm)
        if adaptive is not None:
            drawn.append(Text(x=labels - 6, y=y, text="adaptive", anchor="end", bold=True))
            drawn += _adaptive(plot, adaptive, y, width)
            y += PITCH
    grid = Plot(left=left, top=top, width=right - left, height=y - top - 2)
    for value, text in percent_ticks().items():
        x, bottom = grid.at(value, 0)
        marks.append(Shape(points=((x, top), (x, bottom)), stroke="rule"))
        marks.append(Text(x=x, y=bottom + 11, text=text, role="muted", anchor="middle"))
    marks.append(Text(x=left + grid.width / 2, y=y + 25, text="accuracy in %", anchor="middle"))
    return Scene(name=name, says=_said(groups, result), width=width, height=y + 36, marks=(*marks, *drawn))


def _entries(result: TableResult) -> Iterator[LegendLine]:
    there = {cell.standing for cell in result.cells if cell.ours is not None}
    texts: dict[Standing, str] = {
        "stronger": "ours, a stronger baseline",
        "explained": "ours, explained by a measurement",
        "guessed": "ours, explained by a guess",
        "off": "ours, off",
        "beside": "ours, not in the paper",
    }
    for standing, text in texts.items():
        if standing in there:
            yield LegendLine(text=text, role=ROLES[standing], marker="square")
    if result.adaptive:
        yield LegendLine(text="ours, the attacker knows the defence", role=ADAPTIVE, marker="diamond")


def _line(plot: Plot, cell: Cell, y: float, width: float) -> Iterator[Mark]:
    assert cell.ours is not None
    role = ROLES[cell.standing]
    ours = plot.left + plot.width * cell.ours
    said = percent(cell.ours)
    if cell.ci95 is not None:
        low, high = (plot.left + plot.width * end for end in cell.ci95)
        yield Shape(points=((low, y), (high, y)), stroke="ink", width=1)
    if cell.paper is not None:
        paper = plot.left + plot.width * cell.paper
        yield Shape(points=((paper, y), (ours, y)), stroke=role, width=2.5)
        yield marker(paper, y, "circle", "bare", 4.5)
        said += f" ({percent(cell.paper)})"
    yield marker(ours, y, "square", role, 4)
    yield Text(x=width, y=y, text=said, anchor="end")


def _adaptive(plot: Plot, one: AdaptiveResult, y: float, width: float) -> Iterator[Mark]:
    low, high = (plot.left + plot.width * end for end in one.ci95)
    yield Shape(points=((low, y), (high, y)), stroke="ink", width=1)
    yield marker(plot.left + plot.width * one.accuracy, y, "diamond", ADAPTIVE, 4)
    yield Text(
        x=width,
        y=y,
        text=f"{bound(one.rising)}{percent(one.accuracy)}{beside(one.undercut_by)}{' ✗' * bool(one.failed)}",
        anchor="end",
        bold=True,
    )


def _said(groups: Mapping[str, Sequence[Cell]], result: TableResult) -> str:
    lines = []
    for arm, cells in groups.items():
        said = [
            f"{cell.attack} {percent(cell.ours or 0)}"
            + ("" if cell.paper is None else f" where the paper has {percent(cell.paper)}")
            for cell in cells
        ]
        adaptive = result.against(arm)
        if adaptive is not None:
            doubt = ", not to be trusted: a check failed" if adaptive.failed else ""
            said.append(
                f"adaptive {bound(adaptive.rising)}{percent(adaptive.accuracy)}{beside(adaptive.undercut_by)}{doubt}"
            )
        lines.append(f"{arm}: {', '.join(said)}")
    return f"Chart of accuracy in percent, ours and the paper's. {'; '.join(lines)}."
