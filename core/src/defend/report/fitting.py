"""Tables that fit the terminal: rather a column or an interval less than a word cut, or a figure off its interval."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.measure import Measurement
from rich.table import Column, Table

LONGEST = 20  # of a word that is kept whole: paths and references may be of any length


def choose_fitting(console: Console, tables: Iterable[Table]) -> Table:
    """Return the first table whose words, and whose cells that must not wrap, have room; or the last.

    The fullest comes first. A column that must not wrap says so by `no_wrap`.
    """
    table, wide = Table(), console.options.update(width=10_000)
    for table in tables:
        widths = [_widths(console, column) for column in table.columns]
        for column, (least, _) in zip(table.columns, widths, strict=True):
            column.min_width = least
        room = console.width - console.measure(table, options=wide).minimum
        if room >= 0:
            _share(table.columns, widths, room)
            return table
    for column in table.columns:
        column.min_width = None
    return table


def _widths(console: Console, column: Column) -> tuple[int, int]:
    """Return how many characters a column needs at the least, and to wrap nothing."""
    wide = console.options.update(width=10_000)
    cells = [Measurement.get(console, wide, cell) for cell in (column.header, *column.cells)]
    most = max(cell.maximum for cell in cells)
    return (most if column.no_wrap else min(max(cell.minimum for cell in cells), LONGEST)), most


def _share(columns: Sequence[Column], widths: Sequence[tuple[int, int]], room: int) -> None:
    """Give columns their least width and the room that is left, the first first; rich would break words elsewhere."""
    for column, (least, most) in zip(columns, widths, strict=True):
        more = min(room, most - least)
        column.width = least + more
        room -= more
