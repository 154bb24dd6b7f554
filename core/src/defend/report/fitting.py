"""Tables that fit the terminal: rather a column or an interval less than a word cut, or a figure off its interval."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Console
from rich.measure import Measurement
from rich.table import Column, Table

LONGEST = 20  # of a word that is kept whole: paths and references may be of any length


def choose_fitting(console: Console, tables: Iterable[Table]) -> Table:
    """Return the first table whose words, and whose cells that must not wrap, have room; or the last.

    The fullest comes first. A column that must not wrap says so by `no_wrap`.
    """
    table = Table()
    for table in tables:
        for column in table.columns:
            column.min_width = _least(console, column)  # rich would break words, and figures, to make a table fit
        if console.measure(table, options=console.options.update(width=10_000)).minimum <= console.width:
            return table
    for column in table.columns:
        column.min_width = None
    return table


def _least(console: Console, column: Column) -> int:
    wide = console.options.update(width=10_000)
    cells = [Measurement.get(console, wide, cell) for cell in (column.header, *column.cells)]
    if column.no_wrap:
        return max(cell.maximum for cell in cells)
    return min(max(cell.minimum for cell in cells), LONGEST)
