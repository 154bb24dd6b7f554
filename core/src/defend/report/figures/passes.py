"""What more passes of a random defence leave: of attacked images, and of clean ones, which are the control."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from defend.records.run import Results
from defend.report.figures.curves import Curve, line_chart, slug
from defend.report.figures.scene import DASHES, MARKERS, Plot, Scene
from defend.report.text import percent
from defend.values.report import Row

SMALL_WIDTH, SMALL_HEIGHT = 92.0, 30.0
ATTACKED, CLEAN = "s6", "bare"
WAYS = {"worst": "right in every pass", "majority": "by majority"}


def passes(results: Results) -> Scene | None:
    """Return the accuracy against the number of passes, over all rows; None where nothing was asked more than once."""
    worst = results.report.worst_case
    found = worst.passes if worst is not None else None
    name = "all attacks"
    if found is None and results.least is not None:
        found, name = results.least.passes, results.least.key
    if not _curved(found):
        return None
    assert found is not None
    lines = [
        Curve(name=f"{what}, {way}", role=role, dash=dash, marker=marker, points=_points(points, kind))
        for what, role, marker, points in (
            (name, ATTACKED, MARKERS[0], found["curve"]),
            ("clean", CLEAN, MARKERS[1], found.get("clean", ())),
        )
        for (kind, way), dash in zip(WAYS.items(), DASHES, strict=False)
        if points
    ]
    return line_chart(
        lines,
        name="accuracy-against-passes",
        title="accuracy over several passes",
        x_label="passes N",
        y_label="accuracy in %",
        says=f"Line chart of accuracy in percent against the number of passes. {_say(name, found)}.",
    )


def spark(row: Row) -> Scene:
    """Return a row's curve as large as a word: in every pass (line) and by majority (dashes), clean ones in grey."""
    found, clean = row.passes, row.threat == "none"
    assert found is not None
    plot = Plot(left=2, top=2, width=SMALL_WIDTH - 4, height=SMALL_HEIGHT - 4, x=(1, max(found["n"], 2)))
    marks = [
        plot.line([point[:2] for point in _points(points, kind)], stroke=role, width=1.5, dash=dash)
        for points, role in ((found.get("clean", ()), CLEAN), (found["curve"], ATTACKED))[: 1 if clean else 2]
        for kind, dash in zip(WAYS, DASHES, strict=False)
        if points
    ]
    edge = plot.line([(1, 0), (max(found["n"], 2), 0)], stroke="rule")
    return Scene(
        name=slug(f"passes-{row.key}"),
        says=_say(row.key, found),
        width=SMALL_WIDTH,
        height=SMALL_HEIGHT,
        marks=(edge, *marks),
    )


def _curved(found: Mapping[str, Any] | None) -> bool:
    return found is not None and len(found.get("curve", ())) > 1


def _points(points: Any, kind: str) -> tuple[tuple[float, float, float, float], ...]:
    return tuple((point["n"], point[kind]["accuracy"], *point[kind]["ci95"]) for point in points)


def _say(name: str, found: Mapping[str, Any]) -> str:
    parts = ((name, found["curve"]), ("clean", found.get("clean", ())))
    return "; ".join(
        f"{what}, {way}: " + ", ".join(f"{percent(point[kind]['accuracy'])} of {point['n']}" for point in points)
        for what, points in parts
        for kind, way in WAYS.items()
        if points
    )
