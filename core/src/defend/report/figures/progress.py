"""How many images were left after each step of an attack: whether it had come to its end."""

from __future__ import annotations

from defend.records.run import Results
from defend.report.figures.curves import Curve, line_chart
from defend.report.figures.scene import DASHES, MARKERS, SERIES, Scene, link_to
from defend.report.text import percent
from defend.values.report import Row
from defend.values.threats import knows_the_defence

MOST = 6  # lines in one figure


def progress(results: Results, place: int = 1) -> Scene | None:
    """Return the share of images left against the steps taken, a line an attack on the defence; None without one.

    Steps are counted as a share of the attack's own, so that attacks of any length stand side by side.
    """
    rows = [row for row in results.ladder if row.curve is not None and _faces_it(results, row)]
    rows = sorted(rows, key=lambda row: row.defended.accuracy)[:MOST]
    if not rows:
        return None
    said = "; ".join(
        f"{row.key}: {percent(row.curve['left'][-1])} left after {row.curve['at'][-1]} steps, "
        f"{row.curve['late']} images fooled in the second half"
        for row in rows
        if row.curve is not None
    )
    return line_chart(
        [_line(row, colour, place) for colour, row in enumerate(rows)],
        name="left-after-each-step",
        title="images left, step by step",
        x_label="steps in % of the attack's own",
        y_label="left in %",
        says=f"Line chart of the images left after each step of the attacks on the defence. {said}.",
        marked=False,
    )


def _faces_it(results: Results, row: Row) -> bool:
    return knows_the_defence(row.threat) or not results.defended


def _line(row: Row, colour: int, place: int) -> Curve:
    curve = row.curve
    assert curve is not None
    most = max(curve["at"][-1], 1)
    points = tuple((100 * at / most, left, left, left) for at, left in zip(curve["at"], curve["left"], strict=True))
    name = f"{row.key}, {most} steps{', still falling' if row.rising else ''}"
    return Curve(
        name=name,
        role=SERIES[colour % len(SERIES)],
        dash=DASHES[colour // len(SERIES) % len(DASHES)],
        marker=MARKERS[0],
        points=points,
        link=link_to(row.threat, place),
    )
