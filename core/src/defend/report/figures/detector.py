"""The detector: ROC curves, and the scores of clean and of attacked images."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from defend.records.run import Results, row_name
from defend.report.figures.curves import slug
from defend.report.figures.scene import (
    DASHES,
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
    round_ticks,
)
from defend.values.report import Row
from defend.values.threats import is_harmless

WIDTH = 344.0
LEFT, RIGHT, BELOW = 46.0, 12.0, 44.0
ROC_HEIGHT, HISTOGRAM_HEIGHT = 286.0, 130.0
BINS = 30
ORDER = ("s3", "s6", "s2", "s4", "s5", "s7", "s1")  # of colours: the first are furthest apart
Scores = NDArray[np.float64]


def scored_rows(results: Results) -> list[Row]:
    """Return the attacked rows at the run's own budgets whose scores were recorded."""
    clean = results.clean
    if clean is None or row_name(clean) not in results.scores:
        return []
    return [row for row in results.ladder if not is_harmless(row.threat) and row_name(row) in results.scores]


def roc(results: Results) -> Scene | None:
    """Return the ROC curves of the attacked rows against the clean one; None without scores."""
    rows = scored_rows(results)
    if not rows:
        return None
    from sklearn.metrics import roc_curve  # its import takes a second

    clean = _scores(results, results.clean)
    styles = [(ORDER[place % len(ORDER)], DASHES[place // len(ORDER) % len(DASHES)]) for place in range(len(rows))]
    entries = [LegendLine(text=row.key, role=role, dash=dash) for row, (role, dash) in zip(rows, styles, strict=True)]
    marks, top = legend(entries, 0, 0, WIDTH)
    plot = Plot(left=LEFT, top=top + 6, width=WIDTH - LEFT - RIGHT, height=ROC_HEIGHT)
    marks += plot.axes(percent_ticks(), percent_ticks(), "clean images rejected, %", "attacked images found, %")
    marks.append(plot.line([(0, 0), (1, 1)], stroke="muted", dash=DASHES[2]))
    rejected = None if results.clean is None else results.clean.defended.rejected
    for row, (role, dash) in zip(rows, styles, strict=True):
        attacked = _scores(results, row)
        truth = np.repeat([0, 1], [len(clean), len(attacked)])
        false, true, _ = roc_curve(truth, np.concatenate([clean, attacked]))
        marks.append(plot.line(zip(false.tolist(), true.tolist(), strict=True), stroke=role, width=2, dash=dash))
        if rejected is not None:
            marks.append(marker(*plot.at(rejected, row.defended.rejected), "circle", role, 4.5))
    found = (results.report.detector or {}).get("rows", {})
    areas = [f"{row.key} AUROC {found[row.key]['auroc']:.3f}" for row in rows if _has_area(found, row)]
    says = f"ROC curves of the detector. {'; '.join(areas) or 'No areas were recorded'}."
    return Scene(name="roc", says=says, width=WIDTH, height=plot.top + ROC_HEIGHT + BELOW, marks=tuple(marks))


def _has_area(found: dict[str, dict[str, float | None]], row: Row) -> bool:
    return found.get(row.key, {}).get("auroc") is not None


def histograms(results: Results) -> list[Scene]:
    """Return for each attacked row the scores of its images beside those of the clean ones."""
    return [_histogram(results, row) for row in scored_rows(results)]


def _histogram(results: Results, row: Row) -> Scene:
    clean, attacked = _scores(results, results.clean), _scores(results, row)
    threshold = (results.report.detector or {}).get("threshold")
    low, high = _range(np.concatenate([clean, attacked]), threshold)
    edges = np.linspace(low, high, BINS + 1)
    # what lies beyond the range stands in the last bin
    shares = [np.histogram(values.clip(low, high), edges)[0] / len(values) for values in (clean, attacked)]
    most = max(float(share.max()) for share in shares) or 1.0
    drawn = [("clean", "s3", shares[0]), ("attacked", "s6", shares[1])]
    entries = [LegendLine(text=text, role=role, box=0.3) for text, role, _ in drawn]
    if threshold is not None:
        entries.append(LegendLine(text=f"threshold {threshold:.4g}", role="ink", dash=DASHES[1]))
    marks: list[Mark] = [Text(x=0, y=8, text=fit_text(row.key, SMALL, WIDTH), bold=True)]
    keys, top = legend(entries, 0, 18, WIDTH)
    marks += keys
    plot = Plot(left=LEFT, top=top + 4, width=WIDTH - LEFT - RIGHT, height=HISTOGRAM_HEIGHT, x=(low, high), y=(0, most))
    ticks = {value: f"{100 * value:.3g}" for value in round_ticks(0, most, 3)}
    marks += plot.axes(round_ticks(low, high), ticks, "detector score", "images, %")
    for _, role, share in drawn:
        marks += _steps(plot, edges, share, role)
    if threshold is not None and low <= threshold <= high:
        marks.append(plot.line([(threshold, 0), (threshold, most)], stroke="ink", width=1.5, dash=DASHES[1]))
    says = (
        f"Histogram of the detector's scores for {row.key}: clean images have the median {np.median(clean):.4g}, "
        f"attacked ones {np.median(attacked):.4g}."
    )
    height = plot.top + HISTOGRAM_HEIGHT + BELOW
    return Scene(name=slug(f"scores-{row.key}"), says=says, width=WIDTH, height=height, marks=tuple(marks))


def _scores(results: Results, row: Row | None) -> Scores:
    assert row is not None
    scores = results.scores[row_name(row)]
    limit = float(np.finfo(np.float32).max)
    return np.nan_to_num(scores, nan=limit, posinf=limit, neginf=-limit)  # NaN counts as an attack's score


def _range(scores: Scores, threshold: float | None) -> tuple[float, float]:
    """Return what the histogram spans: nearly all scores, and the threshold where it is near."""
    low, high = (float(np.quantile(scores, share, method="nearest")) for share in (0, 0.98))
    if threshold is not None and math.isfinite(threshold):
        low, high = min(low, threshold), max(high, threshold)
    pad = (high - low) * 0.04 or abs(high) * 0.1 or 1.0
    return (0.0 if 0 <= low < 3 * pad else low - pad), high + pad


def _steps(plot: Plot, edges: Scores, share: Scores, role: str) -> Iterator[Shape]:
    points = [(float(edges[0]), 0.0)]
    for place, value in enumerate(share.tolist()):
        points += [(float(edges[place]), value), (float(edges[place + 1]), value)]
    points.append((float(edges[-1]), 0.0))
    yield plot.line(points, fill=role, opacity=0.3, closed=True)
    yield plot.line(points, stroke=role, width=1.5)
