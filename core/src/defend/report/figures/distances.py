"""Accuracy at every budget at once, from the smallest changes that fool each image."""

from __future__ import annotations

from collections.abc import Iterator

from defend.records.run import Results
from defend.report.figures.curves import Curve, line_chart
from defend.report.figures.scene import DASHES, MARKERS, SERIES, Scene, link_to
from defend.report.text import distance_in_words, percent
from defend.values.report import Row
from defend.values.threats import rank

WIDEST = 4  # budgets: further off nobody asks


def distances(results: Results, place: int = 1) -> list[Scene]:
    """Return a figure for each norm: a line for each row whose attack minimises the distance, and the run's budget."""
    norms: dict[str, list[Row]] = {}
    for row in results.ladder:
        if row.distances is not None and row.distances["found"]:
            norms.setdefault(row.norm, []).append(row)
    return [_scene(norm, rows, place) for norm, rows in norms.items()]


def _scene(norm: str, rows: list[Row], run: int) -> Scene:
    eps = next((row.eps for row in rows if row.eps), None)
    farthest = max(one for row in rows if row.distances for one in row.distances["curve"]["eps"])
    most = farthest if eps is None else min(max(1.05 * farthest, 1.5 * eps), WIDEST * eps)
    within = " (L2)" if norm == "l2" else ""
    said = "; ".join(f"{row.key}: {distance_in_words(row)}; {percent(row.defended.accuracy)} % left" for row in rows)
    return line_chart(
        [_line(row, place, most or 1.0, run) for place, row in enumerate(rows)],
        name=f"accuracy-at-any-eps{'-l2' if norm == 'l2' else ''}",
        title=f"smallest changes{within}",
        x_label=f"eps{within}",
        y_label="accuracy in %",
        says=f"Line chart of accuracy in percent against any eps{within}. {said}.",
        marked=False,
        upright=None if eps is None else (eps, f"the run's eps, {eps:.4g}"),
    )


def _line(row: Row, place: int, most: float, run: int) -> Curve:
    return Curve(
        name=f"{row.attack}, {row.threat}{f': {row.variant}' if row.variant else ''}, n={row.n}",
        role=SERIES[rank(row.threat) % len(SERIES)],
        dash=DASHES[place % len(DASHES)],
        marker=MARKERS[0],
        points=tuple(_steps(row, most)),
        link=link_to(row.threat, run),
    )


def _steps(row: Row, most: float) -> Iterator[tuple[float, float, float, float]]:
    """Yield a line that falls where an image falls, and is level between, up to the figure's edge."""
    assert row.distances is not None
    curve = row.distances["curve"]
    before: tuple[float, float, float] | None = None
    for eps, left, (low, high) in zip(curve["eps"], curve["accuracy"], curve["ci95"], strict=True):
        if eps > most:
            break
        if before is not None:
            yield eps, *before
        before = left, low, high
        yield eps, *before
    assert before is not None  # a curve begins at 0
    yield most, *before
