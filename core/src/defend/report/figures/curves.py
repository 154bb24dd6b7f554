"""Accuracy against the budget, where an attack was run at several."""

from __future__ import annotations

import re
from collections.abc import Iterator

import attrs

from defend.records.run import Results
from defend.report.figures.scene import (
    DASHES,
    MARKERS,
    SERIES,
    SMALL,
    LegendLine,
    Mark,
    Plot,
    Scene,
    Text,
    fit_text,
    legend,
    link_to,
    marker,
    percent_ticks,
    round_ticks,
)
from defend.report.text import percent
from defend.values.report import Row
from defend.values.threats import THREATS, is_harmless, knows_the_defence, rank

WIDTH, HEIGHT = 344.0, 210.0
LEFT, RIGHT, BELOW = 46.0, 12.0, 44.0


@attrs.frozen(kw_only=True)
class Curve:
    """One line: (eps, accuracy, low, high) in rising eps; its name leads to `link`, see `scene.Text`."""

    name: str
    role: str
    dash: tuple[float, ...]
    marker: str
    points: tuple[tuple[float, float, float, float], ...]
    link: str = ""


def slug(text: str) -> str:
    """Return a file name of letters, digits, dots and dashes."""
    return re.sub(r"[^A-Za-z0-9.]+", "-", text).strip("-.") or "figure"


def curves(results: Results, place: int = 1) -> list[Scene]:
    """Return a figure for each attack, and norm, that has rows at two budgets or more; those with most lines first."""
    families: dict[tuple[str, str], list[Row]] = {}
    for row in results.rows:
        if not is_harmless(row.threat) and row.eps is not None:
            families.setdefault((row.attack, row.norm), []).append(row)
    found = {family: _curves(results, rows, place) for family, rows in families.items()}
    ordered = sorted(found, key=lambda family: -len(found[family]))
    return [_scene(*family, found[family]) for family in ordered if found[family]]


def _curves(results: Results, rows: list[Row], place: int) -> list[Curve]:
    """Return a line for the undefended victim, of an attacker who faces it if there is one, and all defended ones."""
    ways: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        ways.setdefault((row.threat, row.variant), []).append(row)
    ways = {way: found for way, found in ways.items() if len({row.eps for row in found}) > 1}
    bare = [way for way in ways if not knows_the_defence(way[0])]
    lines = []
    for threat, variant in sorted(bare, key=lambda way: way[0] not in THREATS or THREATS[way[0]].faces != "victim")[:1]:
        lines.append(
            Curve(
                name=f"undefended, {threat}",
                role="bare",
                dash=DASHES[1],
                marker="circle",
                points=_points(results, ways[threat, variant], "undefended"),
                link=link_to(threat, place),
            )
        )
    variants: dict[str, int] = {}
    for (threat, variant), found in ways.items() if results.defended else ():
        # a threat keeps its colour from one figure to the next; its variants differ in their dashes
        colour = rank(threat)
        dash = variants[threat] = variants.get(threat, -1) + 1
        lines.append(
            Curve(
                name=f"defended, {threat}{f': {variant}' if variant else ''}",
                role=SERIES[colour % len(SERIES)],
                dash=DASHES[dash % len(DASHES)],
                marker=MARKERS[colour % len(MARKERS)],
                points=_points(results, found, "defended"),
                link=link_to(threat, place),
            )
        )
    return lines


def _points(results: Results, rows: list[Row], arm: str) -> tuple[tuple[float, float, float, float], ...]:
    """Return a line's points; it begins at the clean row."""
    # every attack with a budget of 0 leaves the clean image
    clean = [results.clean] if results.clean is not None else []
    found = {}
    for row in (*clean, *rows):
        said = getattr(row, arm)
        eps = 0.0 if row.threat == "none" else row.eps or 0.0
        found[eps] = (eps, said.accuracy, *said.ci95)
    return tuple(found[eps] for eps in sorted(found))


def _scene(attack: str, norm: str, found: list[Curve]) -> Scene:
    said = "; ".join(
        f"{curve.name}: " + ", ".join(f"{percent(share)} at {eps:.4g}" for eps, share, *_ in curve.points)
        for curve in found
    )
    within = " (L2)" if norm == "l2" else ""
    return line_chart(
        found,
        name=f"accuracy-against-eps-{attack}{'-l2' if norm == 'l2' else ''}",
        title=f"{attack}{within}",
        x_label=f"eps{within}",
        y_label="accuracy in %",
        says=f"Line chart of accuracy in percent against eps for {attack}. {said}.",
    )


def line_chart(
    found: list[Curve],
    *,
    name: str,
    title: str,
    x_label: str,
    y_label: str,
    says: str,
    marked: bool = True,
    upright: tuple[float, str] | None = None,
) -> Scene:
    """Draw lines of fractions, with their intervals and a legend above; `marked` also marks their points.

    `upright` is a value to mark by a line from top to bottom, and what it is.
    """
    marks: list[Mark] = [Text(x=0, y=8, text=fit_text(title, SMALL, WIDTH), bold=True)]
    keys, top = legend(
        [
            *(
                LegendLine(
                    text=one.name,
                    role=one.role,
                    dash=one.dash,
                    marker=one.marker if marked else None,
                    link=one.link,
                )
                for one in found
            ),
            *([] if upright is None else [LegendLine(text=upright[1], role="ink", dash=DASHES[2])]),
        ],
        0,
        18,
        WIDTH,
    )
    marks += keys
    most = max(point[0] for curve in found for point in curve.points)
    plot = Plot(left=LEFT, top=top + 6, width=WIDTH - LEFT - RIGHT, height=HEIGHT, x=(0, most))
    marks += plot.axes(round_ticks(0, most), percent_ticks(), x_label, y_label)
    if upright is not None:
        marks.append(plot.line([(upright[0], 0), (upright[0], 1)], stroke="ink", dash=DASHES[2]))
    for curve in found:
        marks += _draw(plot, curve, marked)
    return Scene(name=slug(name), says=says, width=WIDTH, height=plot.top + HEIGHT + BELOW, marks=tuple(marks))


def _draw(plot: Plot, curve: Curve, marked: bool) -> Iterator[Mark]:
    if any(low < high for _, _, low, high in curve.points):
        band = [(eps, high) for eps, _, _, high in curve.points] + [(eps, low) for eps, _, low, _ in curve.points[::-1]]
        yield plot.line(band, fill=curve.role, opacity=0.14, closed=True)
    points = [point[:2] for point in curve.points]
    yield plot.line(points, stroke=curve.role, width=2, dash=curve.dash)
    for point in points if marked else ():
        yield marker(*plot.at(*point), curve.marker, curve.role)
