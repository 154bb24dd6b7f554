"""Checks as JUnit and SARIF: what fails there is what closes the gate."""

import json
from types import SimpleNamespace
from xml.etree import ElementTree as ET

import pytest

from defend.report.verdicts import LEFT, checks_of, to_junit, to_sarif
from defend.values.floors import parse_floors
from defend.values.report import ArmResult, Check, WorstCase

CHECKS = [
    Check("eps sweep", "skip", "one budget", 1),
    Check("convergence", "warn", "more steps <find> more", 4),
    Check("gradients", "fail", "zero on 3\x07 of 8", 5),
    Check("batch", "pass", "", 13),
]


def report(left=0.4, partial=False, failed=(), rising=(), checks="basic", caveats=()):
    rows = (SimpleNamespace(attack="none", threat="none", n=25, defended=ArmResult(1.0, (0.9, 1.0)), is_loose=bool),)
    worst = None if left is None else WorstCase(left, (0.2, 0.6), 25, ("pgd/oblivious",), 0.0, rising=rising)
    return SimpleNamespace(
        checks=tuple(CHECKS),
        worst_case=worst,
        partial=partial,
        failed=failed,
        rows=rows,
        defended=False,
        config=SimpleNamespace(checks=checks),
        caveats=caveats,
    )


def test_junit_has_a_case_a_check():
    (suite,) = ET.fromstring(to_junit({"dae + resnet18": CHECKS}))
    assert (suite.get("tests"), suite.get("failures"), suite.get("skipped")) == ("4", "1", "1")
    cases = {case.get("name"): case[0] for case in suite}
    assert cases["5 gradients"].tag == "failure"
    assert cases["5 gradients"].get("message") == "zero on 3\\x07 of 8"  # no character that XML does not allow
    assert cases["4 convergence"].text == "warn: more steps <find> more"
    assert cases["1 eps sweep"].tag == "skipped"


def test_sarif_has_a_result_for_what_failed_or_warns():
    (run,) = json.loads(to_sarif({"resnet18": CHECKS}, "models/mine.py"))["runs"]
    assert [(one["ruleId"], one["level"]) for one in run["results"]] == [
        ("convergence", "warning"),
        ("gradients", "error"),
    ]
    assert {rule["id"] for rule in run["tool"]["driver"]["rules"]} == {"eps-sweep", "convergence", "gradients", "batch"}


def test_what_is_cut_off_or_leaves_too_little_fails():
    assert checks_of(report()) == CHECKS
    asked = [(report(0.4), "0.4"), (report(0.4), "0.41"), (report(None), "0")]
    ends = [checks_of(each, parse_floors([share]))[-1] for each, share in asked]
    assert [(end.name, end.status) for end in ends] == [(LEFT, "pass"), (LEFT, "fail"), (LEFT, "fail")]
    assert checks_of(report(partial=True))[-1].status == "fail"


def test_a_figure_that_is_not_to_be_trusted_is_not_enough():
    end = checks_of(report(1.0, failed=(CHECKS[2],)), parse_floors(["0.4"]))[-1]
    assert (end.name, end.status) == (LEFT, "fail")
    assert "not to be trusted, as checks failed (5 gradients)" in end.detail


@pytest.mark.parametrize(("name", "status"), [("gradients", "pass"), ("batch", "fail"), ("clean accuracy", "fail")])
def test_clean_accuracy_is_doubted_by_the_checks_that_speak_of_it(name, status):
    failed = (Check(name, "fail", "", 0),)
    assert checks_of(report(failed=failed), parse_floors(["clean=0.9"]))[-1].status == status


def test_what_was_not_checked_is_not_enough():
    end = checks_of(report(1.0, checks="none"), parse_floors(["0.4"]))[-1]
    assert end.status == "fail" and "nothing was checked" in end.detail
    assert checks_of(report(1.0, checks="none"), parse_floors(["clean=0.9"]))[-1].status == "pass"


def test_what_attackers_leave_who_knew_nothing_of_the_defence_is_enough_with_a_warning():
    end = checks_of(report(1.0, caveats=("no attacker knew of the defence",)), parse_floors(["0.4"]))[-1]
    assert end.status == "warn" and end.detail.endswith("was asked for, and no attacker knew of the defence")


def test_enough_by_a_figure_that_is_known_to_be_loose_passes_with_a_warning():
    still = report(0.4, rising=("pgd/oblivious",))
    enough, less = (checks_of(still, parse_floors([share]))[-1] for share in ("0.4", "0.5"))
    assert (enough.status, less.status) == ("warn", "fail")
    assert "leaves at most 40.0 % [20.0, 60.0], n=25; at least 40.0 % was asked for, and an attack was" in enough.detail
    assert "leaves at most 40.0 %" in less.detail
    (suite,) = ET.fromstring(to_junit({"dae": [enough]}))
    assert suite.get("failures") == "0" and suite[0][0].text.startswith("warn: the worst case leaves at most")
    (run,) = json.loads(to_sarif({"dae": [enough]}, "mine.py"))["runs"]
    assert [one["level"] for one in run["results"]] == ["warning"]
    # a figure that checks strike out is none
    assert checks_of(report(1.0, failed=(CHECKS[2],), rising=("pgd",)), parse_floors(["0.4"]))[-1].status == "fail"
