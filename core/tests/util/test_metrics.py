"""Figures computed from records: intervals, accuracies with and without credit, the worst case."""

from types import SimpleNamespace

import attrs
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest

from defend.evaluation.assemble import _mark_rounded, _worst_case, arm
from defend.records.rows import ArmRecord, Example, PlannedRow, RowRecord, worst_case
from defend.report.text import of_norms
from defend.util.metrics import round_up
from defend.util.statistics import wilson
from defend.values.report import ArmResult, LeastRow, Row, undercut_of_norm
from defend.values.threats import DEFENDED, UNDEFENDED, Threat


@given(n=st.integers(1, 20_000), data=st.data())
@settings(deadline=None)
def test_wilson_is_scipys(n, data):
    successes = data.draw(st.integers(0, n))
    theirs = binomtest(successes, n).proportion_ci(0.95, method="wilson")
    assert wilson(successes, n) == pytest.approx((theirs.low, theirs.high), abs=1e-9)


@given(n=st.integers(0, 500), data=st.data())
@settings(deadline=None)
def test_wilson_holds_the_share_within_the_unit_interval(n, data):
    successes = data.draw(st.integers(0, n))
    low, high = wilson(successes, n)
    assert 0 <= low < high <= 1
    assert n == 0 or low <= successes / n <= high


def test_wilson_at_the_ends():
    assert wilson(0, 0) == (0, 1)
    assert wilson(0, 50)[0] == 0 and wilson(50, 50)[1] == 1
    assert wilson(0, 500)[1] == pytest.approx(0.0076, abs=5e-5)


def test_wilson_at_another_level_is_scipys():
    theirs = binomtest(30, 70).proportion_ci(0.99, method="wilson")
    assert wilson(30, 70, z=2.5758293035489004) == pytest.approx((theirs.low, theirs.high), abs=1e-9)


#                         right, right but rejected, wrong, wrong but rejected, right
PREDICTED = torch.tensor([0, 1, 5, 5, 4])
LABELS = torch.tensor([0, 1, 2, 3, 4])
ACCEPTED = torch.tensor([True, False, True, False, True])


def test_a_rejected_attack_is_right_only_with_credit():
    figures = arm(PREDICTED, LABELS, ACCEPTED, attacked=True)
    assert figures.accuracy == pytest.approx(2 / 5)
    assert figures.accuracy_with_credit == pytest.approx(4 / 5)
    assert figures.rejected == pytest.approx(2 / 5)
    assert figures.ci95 == wilson(2, 5)


def test_a_rejected_clean_image_earns_no_credit():
    figures = arm(PREDICTED, LABELS, ACCEPTED, attacked=False)
    assert figures.accuracy == figures.accuracy_with_credit == pytest.approx(2 / 5)
    assert figures.rejected == pytest.approx(2 / 5)


@given(
    answers=st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2), st.booleans()), min_size=1, max_size=40),
    attacked=st.booleans(),
)
@settings(deadline=None)
def test_credit_is_what_was_rejected(answers, attacked):
    predicted, labels, accepted = (torch.tensor(column) for column in zip(*answers, strict=True))
    figures = arm(predicted, labels, accepted, attacked)
    gained = figures.rejected if attacked else 0
    assert figures.accuracy_with_credit == pytest.approx(figures.accuracy + gained)
    assert figures.ci95[0] <= figures.accuracy <= figures.ci95[1]


def test_an_arm_without_images_knows_nothing():
    none = torch.empty(0, dtype=torch.int64)
    figures = arm(none, none, none.bool(), attacked=True)
    assert (figures.accuracy, figures.ci95, figures.rejected) == (0, (0, 1), 0)


# The worst case


def record(keys, right, accepted=None):
    """A row that judged the images at `keys` and was right about some; label 7 everywhere."""
    keys, right = torch.tensor(keys, dtype=torch.int64), torch.tensor(right, dtype=torch.bool)
    labels = torch.full_like(keys, 7)
    accepted = torch.ones_like(right) if accepted is None else torch.tensor(accepted)
    zeros, nothing = torch.zeros(len(keys)), torch.empty(0)
    return RowRecord(
        plan=PlannedRow("pgd", Threat("oblivious", "linf", 0.1), None, keys, None, UNDEFENDED, (UNDEFENDED, DEFENDED)),
        keys=keys,
        labels=labels,
        arms={
            DEFENDED: ArmRecord(torch.where(right, labels, 3), zeros, accepted, zeros),
            UNDEFENDED: ArmRecord(torch.full_like(labels, 3), zeros, torch.ones_like(right), zeros),
        },
        linf=zeros,
        l2=zeros,
        attack_seconds=0.0,
        judge_seconds={},
        judge_ms={},
        example=Example(nothing, nothing, nothing, nothing, {}, {}, {}),
        partial=False,
        overshoot=zeros,
    )


def attacked(row):
    """The same row, of an attack."""
    return attrs.evolve(row, plan=attrs.evolve(row.plan, attack=object()))


def worst(*records, arm=DEFENDED):
    keys, alive = worst_case(list(records), arm)
    return dict(zip(keys.tolist(), alive.tolist(), strict=True))


def test_an_image_survives_if_every_row_was_right():
    first = record([1, 2, 3, 4], [True, True, False, False])
    second = record([1, 2, 3, 4], [True, False, True, False])
    assert worst(first, second) == {1: True, 2: False, 3: False, 4: False}
    assert worst(first) == {1: True, 2: True, 3: False, 4: False}


def test_a_rejected_image_does_not_survive():
    assert worst(record([1, 2], [True, True], accepted=[True, False])) == {1: True, 2: False}


def test_rows_are_matched_by_key_not_by_place():
    first = record([30, 10, 20], [True, True, False])
    second = record([10, 20, 30], [False, True, True])
    assert worst(first, second) == {10: False, 20: False, 30: True}


def test_only_images_that_every_row_judged_count():
    everything = record([1, 2, 3, 4], [True, True, True, False])
    some = record([4, 2], [True, True])
    assert worst(everything, some) == {2: True, 4: False}


def of_rows(records, screened=False, rising=()):
    """What a report says of the worst case of these rows, by name."""
    rows = [
        SimpleNamespace(key=key, threat="oblivious", steps=None, gradients=None, rising=key in rising)
        for key in records
    ]
    return _worst_case(records, rows, screened)


def test_a_row_that_leaves_less_of_more_images_is_told_beside_the_worst_case():
    many = record([1, 2, 3, 4], [True, True, False, False])
    few = record([1, 2], [True, True])
    told = of_rows({"many": many, "few": few})
    assert (told.accuracy, told.n, told.weakest_accuracy) == (1.0, 2, 1.0)
    assert told.least_row == told.undercut_by == LeastRow("many", 0.5, wilson(2, 4), 4)
    assert told.least_row_with_credit is None
    same = of_rows({"many": few, "few": record([1, 2], [True, False])})
    assert (same.least_row.row, same.least_row.accuracy, same.undercut_by) == ("few", 0.5, None)
    assert (same.weakest, same.weakest_accuracy) == ("few", 0.5)


def test_so_is_one_that_leaves_less_with_credit():
    many = attacked(record([1, 2, 3, 4], [True, True, False, False], [True, True, True, False]))
    told = of_rows({"many": many, "few": attacked(record([1, 2], [True, True]))}, screened=True)
    assert told.with_credit["accuracy"] == 1.0
    assert told.undercut_with_credit == LeastRow("many", 0.75, wilson(3, 4), 4)


def test_so_is_one_that_leaves_less_of_the_attacks_of_its_norm():
    def by(norm, row):
        return attrs.evolve(row, plan=attrs.evolve(row.plan, attack=object(), threat=Threat("oblivious", norm, 0.1)))

    rows = {
        "many": by("linf", record([1, 2, 3, 4], [True, True, False, False])),
        "few": by("linf", record([1, 2], [True, True])),
        "far": by("l2", record([1, 2, 3, 4], [True, True, True, True])),
    }
    found = of_rows(rows, rising=("far",)).norms
    assert (found["linf"]["accuracy"], found["l2"]["accuracy"]) == (1.0, 1.0)
    assert undercut_of_norm(found["linf"]) == LeastRow("many", 0.5, wilson(2, 4), 4)
    assert undercut_of_norm(found["l2"]) is None
    assert (found["linf"]["rising"], found["l2"]["rising"]) == ([], ["far"])
    said = of_norms(found, loose=True)
    assert "alone leave: L-inf 100.0 % " in said and "(≤ 50.0 % [15.0, 85.0], n=4: what many alone leaves" in said
    assert "; L2 ≤ 100.0 % " in said and said.count("n=4") == 1
    old = {norm: {"accuracy": 1.0, "ci95": (0.5, 1.0)} for norm in found}  # before this was recorded
    assert of_norms(old, loose=("far",)).count("≤ 100.0 %") == 2


def test_a_row_in_8_bits_is_as_loose_as_the_row_that_made_its_images():
    arms = {name: ArmResult(0.5, (0.4, 0.6), 0.0, 0.5) for name in ("undefended", "defended")}
    made = Row("pgd", "adaptive", "linf", 0.1, 4, 20, 0, mean_linf=0.1, mean_l2=1.0, seconds={}, partial=False, **arms)
    curve = {"at": [0, 20], "left": [1.0, 0.5], "late": 2, "flattened": False}
    rising, other = attrs.evolve(made, variant="soft", curve=curve), attrs.evolve(made, variant="soft, 8-bit")
    assert [row.rising for row in _mark_rounded([rising, other, attrs.evolve(made, variant="8-bit")])] == [
        True,
        True,
        False,
    ]
    settled = attrs.evolve(rising, curve={**curve, "flattened": True})
    assert [row.rising for row in _mark_rounded([settled, other])] == [False, False]


def test_each_arm_has_its_own_worst_case():
    assert worst(record([1, 2], [True, True]), arm=UNDEFENDED) == {1: False, 2: False}


def test_no_rows_have_no_worst_case():
    keys, alive = worst_case([], DEFENDED)
    assert keys.shape == alive.shape == (0,) and keys.dtype == torch.int64 and alive.dtype == torch.bool


@given(st.floats(-1e4, 1e4), st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64]))
def test_a_number_is_rounded_up_to_the_next_of_a_type(value, dtype):
    up = round_up(value, dtype)
    assert up.dtype == dtype and float(up) >= value
    down = torch.nextafter(up, torch.tensor(-torch.inf, dtype=dtype))
    assert float(down) < value or value == 0


def test_a_number_above_a_types_range_is_infinite():
    assert float(round_up(1e6, torch.float16)) == float("inf")
    assert float(round_up(1e-30, torch.float16)) == 2**-24  # the smallest above zero
