"""A threat is one entry: one more in `THREATS` is run, checked and shown like those that were always there."""

import io

import pytest
from rich.console import Console

from defend.evaluation.runner import run
from defend.records.reading import read_results
from defend.report.page import Section
from defend.report.page import render as write
from defend.report.terminal import render
from defend.values.report import find_caveats
from defend.values.run_config import RunConfig
from defend.values.threats import THREATS, ThreatKind, is_harmless, knows_the_defence, rank

TOYS = {"victim": "victim", "purifier": "negative", "dataset": "tiny"}


@pytest.mark.parametrize("faces", ["defence", "victim"])
def test_one_more_entry_is_a_threat_like_any_other(faces, toys, tmp_path, monkeypatch):
    curious = ThreatKind(summary="looks twice", faces=faces, attacks=("fgsm",), suits="adaptive")
    monkeypatch.setitem(THREATS, "curious", curious)
    out = tmp_path / "run"
    threats = ("curious", "oblivious")
    report = run(RunConfig(**TOYS, threats=threats, eps=0.1, sweep=(0.05,), limit=8, out=str(out)), plugins=toys)
    assert [row.key for row in report.rows if row.threat == "curious"] == ["fgsm/curious@0.05", "fgsm/curious"]
    assert report.rows[-1].threat == "curious", "rows stand in the order of THREATS"
    assert "fgsm/curious" in report.worst_case.over

    order = next(check for check in report.checks if check.name == "attack order")
    compared = {"fgsm/oblivious", "pgd/oblivious"} if faces == "defence" else set()
    assert set(order.numbers.get("rows", ())) == compared, "others are held against a white-box row, and only that"

    printed = io.StringIO()
    render(report, Console(file=printed, width=200))
    (line,) = (line for line in printed.getvalue().splitlines() if "curious" in line and " 0.1 " in line)
    undefended = line.split("│")[6].strip()
    assert (undefended == "") == (faces == "defence"), "what was made against the defence says nothing of the victim"

    section = Section(read_results(out))
    page = write([section], None, ())
    assert '<dt id="curious1">curious</dt><dd>looks twice</dd>' in page
    assert '<td><a href="#curious1">curious</a></td>' in page
    drawn = [getattr(mark, "text", "") for scene in section.curves for mark in scene.marks]
    assert "defended, curious" in drawn


def test_what_is_not_listed_stands_last_and_is_taken_for_an_attack_on_the_victim():
    assert sorted(["unheard of", *THREATS, "none"], key=rank) == ["none", *THREATS, "unheard of"]
    assert not knows_the_defence("unheard of") and not knows_the_defence("none")
    assert is_harmless("none") and not is_harmless("unheard of")


@pytest.mark.parametrize(
    ("screened", "threats", "words"),
    [
        (True, ["noise", "oblivious"], "no attacker knew of the defence: add --threat adaptive"),
        (True, ["oblivious", "query"], "no attacker took the gradient of the defence: add --threat adaptive"),
        (True, ["given"], "no attacker is known to have taken the gradient of the defence: add --threat adaptive"),
        (True, ["query", "bpda"], ""),
        (True, ["adaptive"], ""),
        (False, ["none"], "no attacker took the gradient of the victim: add --threat oblivious"),
        (False, ["transfer", "query"], "no attacker took the gradient of the victim: add --threat oblivious"),
        (False, ["oblivious"], ""),
        (False, ["adaptive"], ""),
    ],
)
def test_a_figure_that_no_gradient_stands_behind_says_so(screened, threats, words):
    """An attacker who only asks, or has another victim, may leave all of what a gradient finds at once."""
    found = find_caveats("basic", screened, threats)
    assert len(found) == bool(words) and "".join(found).startswith(words)
