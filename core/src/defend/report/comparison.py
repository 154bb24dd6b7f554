"""A comparison as tables in the terminal, and as plain data."""

from __future__ import annotations

import itertools
import string
from collections.abc import Iterator, Sequence
from typing import Any

import attrs
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from defend.records.compare import ComparedRow, ComparedWorstCase, Comparison, Difference, RunAccuracy
from defend.records.run import RowKey
from defend.report.text import BESIDE, BOUND, beside, bound, interval, percent, row_title, with_interval

SCHEMA = 1
ALPHA = 0.05
WILSON = " with Wilson 95 % intervals"
WALD = " with Bonett and Price 95 % intervals"
METHODS = {
    "accuracy": "share of images right and accepted; Wilson 95 % interval",
    "difference": "accuracy of the second less that of the first on the images that both judged; Bonett and Price "
    "2012's 95 % interval",
    "p": "McNemar's test, exact, two-sided",
    "p_holm": "p adjusted over all tests of the comparison (Holm 1979)",
}


def to_dict(comparison: Comparison) -> dict[str, Any]:
    """Return the comparison as plain data: fractions, every pair of runs, p values as they are and adjusted."""
    labels = comparison.labels
    return {
        "schema": SCHEMA,
        "dataset": dict(comparison.runs[0].report["dataset"]),
        "runs": [
            {
                "label": label,
                "folder": None if run.folder is None else str(run.folder),
                "partial": run.partial,
                "failed": list(run.failed),
                "warned": list(run.warned),
                "left_out": dict(run.left_out),
                "warnings": list(run.warnings),
            }
            for label, run in zip(labels, comparison.runs, strict=True)
        ],
        "rows": [{**attrs.asdict(row.key), **_figures(row, labels)} for row in comparison.rows],
        "worst_case": _worst_case(comparison.worst_case, labels),
        "tests": comparison.tests,
        "methods": dict(METHODS),
        "notes": list(comparison.notes),
    }


def _worst_case(worst: ComparedWorstCase | None, labels: Sequence[str]) -> dict[str, Any] | None:
    if worst is None:
        return None
    over, left_out = ([attrs.asdict(key) for key in keys] for keys in (worst.over, worst.left_out))
    return {"over": over, "left_out": left_out, **_figures(worst, labels)}


def _figures(row: ComparedRow | ComparedWorstCase, labels: Sequence[str]) -> dict[str, Any]:
    pairs = []
    for difference in row.differences:
        names = {"first": labels[difference.first], "second": labels[difference.second]}
        pairs.append({**_plain(difference), **names})
    cells = {label: None if cell is None else _plain(cell) for label, cell in zip(labels, row.cells, strict=True)}
    return {"runs": cells, "pairs": pairs}


def _plain(value: RunAccuracy | Difference) -> dict[str, Any]:
    return {key: list(each) if isinstance(each, tuple) else each for key, each in attrs.asdict(value).items()}


def render(comparison: Comparison, console: Console) -> None:
    """Print every run's accuracies, what the others differ by from the first, and the notes.

    Where the console is too narrow, letters with a legend take the labels' places first, then its intervals go.
    """
    labels = comparison.labels
    letters = tuple(string.ascii_uppercase[: len(labels)]) if len(labels) <= len(string.ascii_uppercase) else labels

    def fits(table: Table) -> bool:
        # with room for everything: measured at the console's width, a table that wraps fits any
        return console.measure(table, options=console.options.update(width=10_000)).maximum <= console.width

    choices = itertools.product((True, False), (labels, letters))
    wilson, names = next(
        (choice for choice in choices if fits(_accuracies(comparison, choice[1], choice[0]))), (False, letters)
    )
    wald = fits(_differences(comparison, names, intervals=True))
    lines: list[Text | Table] = []
    if names != labels:
        lines += [Text(f"{name}  {label}") for name, label in zip(names, labels, strict=True)]
    lines.append(_accuracies(comparison, names, wilson))
    lines.append(Text(f"accuracy in %{WILSON if wilson else ''}; a rejected image counts as wrong", "dim"))
    if _has_loose(comparison):
        lines.append(Text(BOUND, "dim"))
    if comparison.worst_case and any(cell.undercut_by for cell in comparison.worst_case.cells):
        lines.append(Text(BESIDE, "dim"))
    if comparison.tests:
        lines += [Text(), _differences(comparison, names, wald), Text(_explain(comparison, names, wald), "dim")]
    lines += [Text(f"Note: {note}", "yellow") for note in comparison.notes]
    console.print(Group(*lines))


def _has_loose(comparison: Comparison) -> bool:
    worst = comparison.worst_case
    rows: list[Sequence[RunAccuracy | None]] = [row.cells for row in comparison.rows]
    return any(cell is not None and cell.loose for cells in (*rows, worst.cells if worst else ()) for cell in cells)


def _explain(comparison: Comparison, names: Sequence[str], intervals: bool) -> str:
    tests = f"Holm-adjusted over {comparison.tests} test{'s' * (comparison.tests > 1)}"
    rest = "; --json has the other pairs" if len(names) > 2 else ""
    return (
        f"won, lost: images that only the other run, or only {names[0]}, got right; points: won - lost in %"
        f"{WALD if intervals else ''}; p: McNemar's exact test, {tests}{rest}"
    )


def _accuracies(comparison: Comparison, names: Sequence[str], intervals: bool) -> Table:
    dataset = comparison.runs[0].report["dataset"]
    table = _table(f"{len(names)} runs on {dataset['name']} ({dataset['split']})", "steps", "n", *names)
    for named, row in _lines(comparison, table):
        cells = [cell for cell in row.cells if cell is not None]
        best = max(cell.accuracy for cell in cells)
        differ = any(cell.accuracy != best for cell in cells)
        said = [_accuracy(cell, intervals, differ and cell.accuracy == best) if cell else Text() for cell in row.cells]
        if isinstance(row, ComparedWorstCase):  # the headline
            said = [
                Text.assemble("✗ ", (cell.plain, "strike")) if run.failed else cell
                for cell, run in zip(said, comparison.runs, strict=True)
            ]
        table.add_row(
            *named,
            _span([cell.steps for cell in cells if cell.steps is not None]),
            _span([cell.n for cell in cells]),
            *said,
        )
    return table


def _differences(comparison: Comparison, names: Sequence[str], intervals: bool) -> Table:
    several = len(names) > 2
    first, *others = names
    title = f"{'The others' if several else others[0]} against {first}, on the images that both judged"
    table = _table(title, *["run"] * several, "n", "won", "lost", "points", "p")
    for named, row in _lines(comparison, table):
        for place, found in enumerate(difference for difference in row.differences if difference.first == 0):
            table.add_row(
                *(named if place == 0 else [Text()] * len(named)),
                *[Text(names[found.second])] * several,
                Text(str(found.n)),
                Text(str(found.only_second)),
                Text(str(found.only_first)),
                Text(with_interval(found.difference, found.ci95 if intervals else None, "+")),
                _p(found.p_holm),
            )
    return table


def _table(title: str, *columns: str) -> Table:
    table = Table(title=Text(title), title_justify="left")
    for name in ("attack", "threat"):
        table.add_column(name)
    for name in ("eps", *columns):
        table.add_column(Text(name), justify="right")
    return table


def _lines(comparison: Comparison, table: Table) -> Iterator[tuple[list[Text], ComparedRow | ComparedWorstCase]]:
    """Yield each row with its first three cells, the worst case last, and begin a section of the table per threat."""
    previous = ""
    for row in comparison.rows:
        if row.key.threat != previous:
            table.add_section()
        previous = row.key.threat
        yield _name_row(row.key), row
    if comparison.worst_case is not None:
        table.add_section()
        count = len(comparison.worst_case.over)
        yield [Text("worst case"), Text(f"of {count} rows"), Text()], comparison.worst_case


def _name_row(key: RowKey) -> list[Text]:
    name = f"{key.attack} (L2)" if key.norm == "l2" else key.attack
    return [Text(cell) for cell in row_title(name, key.threat, key.variant, key.eps)]


def _span(values: Sequence[int]) -> Text:
    low, high = min(values, default=0), max(values, default=0)
    return Text("" if not values else str(low) if low == high else f"{low}-{high}")


def _accuracy(cell: RunAccuracy, intervals: bool, best: bool) -> Text:
    star = "*" if cell.partial else ""
    said = f" {interval(cell.ci95)}" if intervals else ""
    return Text.assemble(
        bound(cell.loose), (f"{percent(cell.accuracy)}{star}", "bold" if best else ""), said, beside(cell.undercut_by)
    )


def _p(p: float) -> Text:
    return Text("<0.001" if p < 0.001 else f"{p:.3f}", "bold" if p < ALPHA else "")
