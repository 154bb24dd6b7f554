"""Texts as cells of a CSV file, and back: what a spreadsheet would run is marked as text."""

from __future__ import annotations

FORMULAS = ("=", "+", "-", "@", "\t", "\r")  # a cell that begins with one is run by spreadsheets (OWASP, CSV injection)
MARK = "'"  # spreadsheets take what follows for text


def to_cell(text: str) -> str:
    """Return a text as it is written: behind a mark where it begins like a formula, or like what is marked."""
    return MARK + text if text.startswith((*FORMULAS, MARK)) else text


def from_cell(cell: str) -> str:
    """Return the text that `to_cell` wrote."""
    return cell[1:] if cell.startswith(MARK) and cell[1:].startswith((*FORMULAS, MARK)) else cell
