"""One quick injection of each kind: `pytest -m faults`; `python -m tests.faults` injects all of them and counts."""

import pytest
from tests.faults import groups

QUICK = [each for group in groups.names() for each in groups.injections(group) if each.quick]
ONE_OF_A_KIND = {each.kind: each for each in reversed(QUICK)}  # the first of each


@pytest.mark.faults
@pytest.mark.parametrize("injection", ONE_OF_A_KIND.values(), ids=lambda each: f"{each.kind}: {each.name}")
def test_nothing_is_lost_and_one_line_says_why(injection, tmp_path):
    folder = tmp_path / "here"
    folder.mkdir()
    assert injection.inject(folder) == ""
