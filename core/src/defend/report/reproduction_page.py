"""A table measured again as a page: one HTML file that needs nothing else. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from defend import __version__
from defend.report.figures.dumbbell import dumbbell
from defend.report.figures.scene import DARK, LIGHT
from defend.report.html import check_page, environment
from defend.report.reproduction import SAID, STYLES, explanations
from defend.reproduce.results import Standing, TableResult, count_standings
from defend.tables import Table
from defend.util.files import write_text

SIGNS: Mapping[Standing, str] = {
    "same": "✓",
    "better": "▲",
    "stronger": "▽",
    "explained": "†",
    "guessed": "?",
    "off": "✗",
    "open": "",
    "beside": "",
    "unmeasured": "",
}
HOUR = 3600


def page_name(table: Table) -> str:
    """Return the name of a table's page: PLUGIN-TABLE.html."""
    return f"{table.name.replace('/', '-')}.html"


def write_page(table: Table, result: TableResult, path: Path) -> None:
    """Write the page, atomically.

    Raises:
        ConfigError: it cannot be written there.
    """
    check_page(path, "--page", page_name(table))
    write_text(path, render_page(table, result), "page")


def render_page(table: Table, result: TableResult) -> str:
    """Return the page: the table as in the paper, a chart, why figures differ, adaptive figures, how it was made."""
    made = environment()
    made.filters["lasted"] = lambda seconds: f"{seconds / HOUR:.1f} h" if seconds >= HOUR else f"{seconds / 60:.1f} min"
    arms = [arm.name for arm in table.arms]
    return made.get_template("reproduction.html.j2").render(
        table=table,
        result=result,
        arms=arms,
        counts=count_standings(table, result),
        explanations=explanations(result),
        chart=dumbbell(result, arms, "table"),
        narrow_chart=dumbbell(result, arms, "table", narrow=True),
        sizes={
            attack.name: max((cell.n for cell in result.cells if cell.attack == attack.name), default=0)
            for attack in table.attacks
        },
        said=SAID,
        signs=SIGNS,
        standings=tuple(STYLES),
        light=LIGHT,
        dark=DARK,
        version=__version__,
    )
