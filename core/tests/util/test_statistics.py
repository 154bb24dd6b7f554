"""The statistics of paired comparisons: McNemar's test, the interval of a difference, Holm's adjustment."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest, multinomial

from defend.util.statistics import holm, mcnemar, paired_interval

# McNemar's test


@pytest.mark.parametrize(
    ("only_first", "only_second", "p"),
    [
        (0, 0, 1),
        (0, 1, 1),
        (0, 5, 2 / 2**5),
        (5, 0, 2 / 2**5),
        (1, 5, 2 * (1 + 6) / 2**6),
        (2, 8, 2 * (1 + 10 + 45) / 2**10),
        (7, 7, 1),
    ],
)
def test_mcnemar_by_hand(only_first, only_second, p):
    assert mcnemar(only_first, only_second) == pytest.approx(p, rel=1e-12)


@given(st.integers(0, 400), st.integers(0, 400))
def test_mcnemar_is_twice_the_exact_tail(only_first, only_second):
    total = only_first + only_second
    tail = sum(math.comb(total, k) for k in range(min(only_first, only_second) + 1))
    assert mcnemar(only_first, only_second) == pytest.approx(min(1, 2 * tail / 2**total), rel=1e-9)
    assert mcnemar(only_first, only_second) == pytest.approx(mcnemar(only_second, only_first), rel=1e-12)


# The interval of a paired difference


def test_the_interval_is_bonett_and_prices():
    """The example in the manual of the R package statpsych, ci.prop.ps(.05, 12, 4, 26, 6)."""
    assert paired_interval(4, 26, 48) == pytest.approx((0.2548067, 0.6251933), abs=1e-7)


def test_the_interval_by_hand():
    half = 1.959964 * math.sqrt((2 / 22) / 22)  # nothing differs among 20: one image added on either side
    assert paired_interval(0, 0, 20) == pytest.approx((-half, half), abs=1e-6)


@given(st.data(), st.integers(1, 3000))
def test_the_interval_holds_the_difference_and_turns_with_it(data, n):
    first = data.draw(st.integers(0, n))
    second = data.draw(st.integers(0, n - first))
    low, high = paired_interval(first, second, n)
    assert -1 <= low < high <= 1
    assert low <= (second - first) / n <= high
    assert paired_interval(second, first, n) == pytest.approx((-high, -low), abs=1e-12)


@pytest.mark.parametrize("n", [20, 60])
@pytest.mark.parametrize(("first", "second"), [(0.01, 0.01), (0.02, 0.1), (0.1, 0.15), (0.02, 0.4), (0.3, 0.3)])
def test_the_interval_covers_the_truth_as_often_as_it_says(n, first, second):
    """Exactly, over every outcome of n images of which these shares are right in one run only."""
    outcomes = [(b, c) for b in range(n + 1) for c in range(n + 1 - b)]
    chances = multinomial.pmf([(b, c, n - b - c) for b, c in outcomes], n, [first, second, 1 - first - second])
    covers = [low <= second - first <= high for low, high in (paired_interval(b, c, n) for b, c in outcomes)]
    assert chances.sum() == pytest.approx(1)
    assert 0.935 < chances @ np.array(covers) <= 1


# Holm's adjustment


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.01, 0.02, 0.03, 0.04]) == pytest.approx([0.04, 0.06, 0.06, 0.06])
    assert holm([0.4, 0.9]) == pytest.approx([0.8, 0.9])
    assert holm([0.6, 0.9]) == [1, 1]
    assert holm([0.03]) == [0.03]
    assert holm([]) == []


P_VALUES = st.lists(st.floats(0, 1), min_size=1, max_size=12)


@given(P_VALUES, st.floats(0.001, 0.2))
def test_holm_rejects_what_the_step_down_procedure_rejects(p_values, alpha):
    """Holm 1979: from the smallest up, reject while p <= alpha / (how many are left), then stop."""
    rejected, left = set(), len(p_values)
    for index in sorted(range(len(p_values)), key=p_values.__getitem__):
        if p_values[index] * left > alpha:
            break
        rejected.add(index)
        left -= 1
    assert {index for index, p in enumerate(holm(p_values)) if p <= alpha} == rejected


@given(P_VALUES)
def test_holm_is_between_no_adjustment_and_bonferronis(p_values):
    adjusted = holm(p_values)
    for p, after in zip(p_values, adjusted, strict=True):
        assert p <= after <= min(1, len(p_values) * p) or after == pytest.approx(p)
    assert holm(p_values[::-1])[::-1] == pytest.approx(adjusted)
    assert [adjusted[place] for place in np.argsort(p_values, kind="stable")] == sorted(adjusted)


# Against scipy's


@pytest.mark.parametrize(
    ("only_first", "only_second"), [(0, 1), (3, 3), (3, 4), (12, 31), (31, 12), (0, 2000), (24800, 25200)]
)
def test_mcnemar_is_the_binomial_test(only_first, only_second):
    expected = binomtest(only_first, only_first + only_second, 0.5).pvalue
    assert mcnemar(only_first, only_second) == pytest.approx(expected, rel=1e-6, abs=1e-300)
