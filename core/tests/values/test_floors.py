"""The least that a run must leave: what is read, what is below it."""

from types import SimpleNamespace

import pytest

from defend.errors import ConfigError, NoRowError
from defend.report.verdicts import checks_of
from defend.values.floors import Floor, check_planned, parse_floors, share_out
from defend.values.report import ArmResult, LeastRow, WorstCase


def row(attack, threat, accuracy, loose=False):
    arm = ArmResult(accuracy, (0.0, 1.0))
    return SimpleNamespace(
        attack=attack, threat=threat, n=10, defended=arm, is_loose=lambda has_defence: loose and has_defence
    )


REPORT = SimpleNamespace(
    failed=(),
    rows=(row("none", "none", 0.9), row("pgd", "oblivious", 0.6), row("pgd", "adaptive", 0.2)),
    worst_case=WorstCase(0.15, (0.0, 1.0), 5, ("none/none", "pgd/adaptive"), 0.0),
    checks=(),
    partial=False,
    defended=True,
    config=SimpleNamespace(checks="basic"),
    caveats=(),
)


def test_a_share_is_of_the_worst_case_and_a_row_is_named():
    assert parse_floors(["0.3", "pgd/adaptive=0.25", "clean=1"]) == (
        Floor("worst_case", 0.3),
        Floor("pgd/adaptive", 0.25),
        Floor("clean", 1.0),
    )


def test_a_floor_is_written_as_it_is_read():
    floors = parse_floors(["0.3", "pgd/adaptive=0.25", "clean=1"])
    assert parse_floors(map(str, floors)) == floors


@pytest.mark.parametrize("text", ["30%", "1.5", "-1", "pgd=", "nan", "pgd/everyone=0.1"])
def test_what_is_no_floor_is_refused(text):
    with pytest.raises(ConfigError):
        parse_floors([text])


@pytest.mark.parametrize(
    ("text", "below"),
    [
        ("0.15", 0),
        ("0.16", 1),
        ("clean=0.9", 0),
        ("clean=0.91", 1),
        ("pgd/oblivious=0.6", 0),
        ("pgd/adaptive=0.3", 1),
        ("pgd=0.3", 1),  # all its rows must keep to it
    ],
)
def test_what_is_below_is_told(text, below):
    checks = checks_of(REPORT, parse_floors([text]))
    assert [check.status for check in checks] == [("pass", "fail")[below]]


@pytest.mark.parametrize(("text", "status"), [("pgd=0.2", "warn"), ("pgd/adaptive=0.2", "pass"), ("clean=0.9", "pass")])
def test_a_row_among_those_of_a_name_that_is_a_loose_bound_is_told(text, status):
    rows = (REPORT.rows[0], row("pgd", "transfer", 0.6, loose=True), REPORT.rows[2])
    report = SimpleNamespace(**{**vars(REPORT), "rows": rows})
    (check,) = checks_of(report, parse_floors([text]))
    assert check.status == status and ("at most" in check.detail) == (status == "warn")


def test_a_row_that_leaves_less_of_all_its_images_than_the_worst_case_of_fewer_decides():
    worst = WorstCase(0.68, (0.5, 0.8), 25, (), 0.0, least_row=LeastRow("fgsm/oblivious", 0.63, (0.53, 0.72), 100))
    report = SimpleNamespace(**{**vars(REPORT), "worst_case": worst})
    enough, less = (checks_of(report, parse_floors([text]))[-1] for text in ("0.63", "0.65"))
    assert (enough.status, less.status) == ("pass", "fail")
    assert "leaves at most 63.0 % [53.0, 72.0], n=100 (fgsm/oblivious alone, of all its images)" in less.detail


def test_what_closes_a_gate_never_looks_like_what_was_asked_for():
    worst = WorstCase(0.29996, (0.29, 0.31), 10_000, (), 0.0)
    (check,) = checks_of(SimpleNamespace(**{**vars(REPORT), "worst_case": worst}), parse_floors(["0.3"]))
    assert check.status == "fail"
    assert check.detail.endswith("leaves 29.996 % [29.0, 31.0], n=10000; at least 30.000 % was asked for")


def test_a_run_without_a_worst_case_keeps_to_no_floor():
    nothing = SimpleNamespace(**{**vars(REPORT), "rows": (), "worst_case": None})
    (check,) = checks_of(nothing, parse_floors(["0"]))
    assert check.status == "fail" and "no attack was run that counts" in check.detail


def test_a_row_that_is_not_there_is_an_error_and_never_kept_to():
    with pytest.raises(ConfigError, match="known are clean, pgd/oblivious, pgd/adaptive"):
        checks_of(REPORT, parse_floors(["square=0.1"]))


def test_a_row_that_one_arm_lacks_is_a_matter_of_the_others():
    bare = SimpleNamespace(**{**vars(REPORT), "rows": REPORT.rows[:2], "defended": False})
    floors = parse_floors(["0.1", "pgd/adaptive=0.2", "square=0.1"])
    assert share_out(floors, [bare, REPORT]) == [[floors[0], floors[2]], list(floors)]


def test_a_row_that_an_interrupted_run_has_not_reached_is_not_kept_to():
    begun = SimpleNamespace(**{**vars(REPORT), "rows": REPORT.rows[:1], "worst_case": None, "partial": True})
    assert [check.status for check in checks_of(begun, parse_floors(["pgd/adaptive=0.2"]))] == ["fail", "fail"]


def test_a_floor_of_a_row_that_will_not_be_is_refused_before_the_run():
    rows = [("none", "none"), ("fgsm", "oblivious"), ("pgd", "adaptive")]
    check_planned(parse_floors(["0.3", "clean=0.9", "fgsm=0.1", "pgd/adaptive=0.1"]), rows)
    for row in ("pgd/oblivious", "apgd_ce", "fgsm/adaptive"):
        with pytest.raises(NoRowError, match=rf"--at-least '{row}': this run will have no such row: .*pgd/adaptive"):
            check_planned(parse_floors([f"{row}=0.1"]), rows)
