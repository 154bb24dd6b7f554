"""Markdown's tables, from cells of any text."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from defend.report import readme
from defend.report.text import beside, interval, percent
from defend.values.report import LeastRow, undercut


def cell(value: object) -> str:
    """Return a value as a cell: a bar would end it, a line break the row."""
    return " ".join(str(value).split()).replace("|", "\\|").replace("<", "&lt;")


def code(value: object) -> str:
    """Return a value as code in a cell; nothing of an empty one."""
    text = " ".join(str(value).split()).replace("|", "\\|")
    return f"`{text}`" if text else ""


def figure(one: Mapping[str, Any]) -> str:
    """Return an accuracy and its interval, which stay on one line."""
    return f"{percent(one['accuracy'])} {interval(one['ci95'])}".replace(" ", "\N{NO-BREAK SPACE}")


def undercut_of(worst: Mapping[str, Any], name: str = "least_row") -> str:
    """Return what stands behind a kept worst case that a row undercuts; older ones do not say."""
    least = worst.get(name)
    return beside(undercut(worst["accuracy"], LeastRow(**least))) if least else ""


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table with an empty line on either side; nothing where it has no rows."""
    body = list(rows)
    return "\n" + "\n".join(readme.grid(head, body)) + "\n" if body else ""
