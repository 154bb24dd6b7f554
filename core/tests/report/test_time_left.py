"""How long a run will still take: known from the clean row on, and right once an arm was attacked."""

from types import SimpleNamespace

import pytest

from defend.attacks.options import GRADIENT
from defend.report.time_left import TimeLeft


def row(images, attacked, steps=1, attack=True):
    work = GRADIENT * steps
    return SimpleNamespace(
        keys=range(images),
        attacked=attacked,
        forward_passes=work,
        attack=attack or None,
        judges=("undefended", "defended"),
    )


def record(plan, attack=0.0, reused=0):
    judged = {"undefended": 0.01 * len(plan.keys), "defended": 0.1 * len(plan.keys)}
    return SimpleNamespace(plan=plan, keys=plan.keys, judge_seconds=judged, attack_seconds=attack, reused=reused)


def test_time_left():
    rows = [
        row(10, "undefended", attack=False),
        row(10, "undefended", 5),
        row(4, "defended", 5),
        row(4, "defended", 10),
    ]
    now = [0.0]
    left = TimeLeft(rows, lambda: now[0])
    left.row(rows[0])
    assert left.seconds() is None, "nothing is known yet"
    now[0] = 1.1
    left.images(10)
    left.finished(record(rows[0]))
    left.row(rows[1])
    judging = 0.11
    # until an arm was attacked, a step is three passes of judging
    expected = 10 * (judging + 5 * 0.03) + 4 * (judging + 5 * 0.3) + 4 * (judging + 10 * 0.3)
    assert left.seconds() == pytest.approx(expected)
    now[0] += 2.0
    left.images(5)
    assert left.seconds() == pytest.approx(2.0 + expected - 10 * (judging + 5 * 0.03)), "half of the row took two"
    now[0] += 2.0
    left.finished(record(rows[1], attack=3.0))
    left.row(rows[2])
    left.finished(record(rows[2], attack=10.0))
    left.row(rows[3])
    assert left.seconds() == pytest.approx(4 * (judging + 10 * 0.5)), "as the row before measured it"


def test_images_of_another_run_tell_nothing_of_a_step():
    rows = [row(10, "undefended", 5), row(10, "undefended", 5)]
    left = TimeLeft(rows, lambda: 0.0)
    left.row(rows[0])
    left.finished(record(rows[0], attack=0.0, reused=10))
    left.row(rows[1])
    assert left.seconds() == pytest.approx(10 * (0.11 + 5 * 0.03))


def test_a_row_that_rests_on_the_others_and_one_that_is_left_out():
    rows = [row(10, "undefended", attack=False), row(10, "undefended", 5), row(4, "undefended", 5)]
    left = TimeLeft(rows[:2], lambda: 0.0)
    left.row(rows[0])
    left.finished(record(rows[0]))
    left.row(rows[2])
    assert left.seconds() == pytest.approx(4 * (0.11 + 5 * 0.03)), "the second was left out, the third is its own"
