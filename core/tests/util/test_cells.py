"""Cells of a CSV file: what a spreadsheet would run is marked, and every text comes back."""

import hypothesis.strategies as st
import pytest
from hypothesis import example, given

from defend.util.cells import from_cell, to_cell


@pytest.mark.parametrize("text", ["=HYPERLINK(0)", "+1", "-1", "@x", "\tx", "\rx"])
def test_formulas_are_marked(text):
    assert to_cell(text) == f"'{text}"


@given(st.text())
@example("'")
@example("'=x")
@example("''")
@example("it's")
def test_every_text_comes_back(text):
    cell = to_cell(text)
    assert from_cell(cell) == text
    assert not cell.startswith(("=", "+", "-", "@"))


def test_plain_texts_stay_as_they_are():
    assert [to_cell(text) for text in ("", "identity", "median 3", "[/b]")] == ["", "identity", "median 3", "[/b]"]
