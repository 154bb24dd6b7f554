"""Shares in percent: 0 and 100 are said of nothing else, and what is below looks below."""

import pytest

from defend.values.shares import in_percent, tell_apart


@pytest.mark.parametrize(
    ("share", "said"),
    [
        (0.612, "61.2"),
        (0.0, "0.0"),
        (1.0, "100.0"),
        (0.9996, "99.96"),
        (0.99996, "99.996"),
        (4 / 10_000, "0.04"),
        (1 / 60_000, "0.002"),
        (0.1 + 0.2 - 0.3, "0.0"),
        (1 - 0.9 - 0.1, "0.0"),
    ],
)
def test_0_and_100_are_said_of_nothing_else(share, said):
    assert in_percent(share) == said


def test_a_small_difference_is_no_zero():
    assert in_percent(0.0004, sign="+") == "+0.04"
    assert in_percent(-0.0004, sign="+") == "-0.04"
    assert in_percent(0.996, 0) == "99.6"


def test_what_is_below_looks_below():
    assert tell_apart(0.29996, 0.3) == ("29.996", "30.000")
    assert tell_apart(0.3, 0.3) == ("30.0", "30.0")
    assert tell_apart(0.25, 0.3) == ("25.0", "30.0")
