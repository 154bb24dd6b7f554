"""A report opened again: its victim's clean accuracy against the card, its libraries against those that are here."""

import importlib.util
import json
import platform
from pathlib import Path

import pytest
from click.testing import CliRunner
from scipy.stats import beta

from defend.cli.compare import compare_command
from defend.cli.report import report_command
from defend.records.standing import find_doubts
from defend.report import page
from defend.util.distributions import version_of


def report(accuracy=0.99, n=100, figures=None, versions=None, plugins=None, seen="no"):
    here = {"defend-core": version_of("defend-core"), "python": platform.python_version()}
    return {
        "rows": [{"threat": "none", "n": n, "undefended": {"accuracy": accuracy}}],
        "weights": {"victim": {"figures": {"test_accuracy": 0.996} if figures is None else figures}},
        "dataset": {"seen": {"victim": seen}},
        "versions": here if versions is None else versions,
        "plugins": plugins or {},
    }


@pytest.mark.parametrize(
    ("accuracy", "n", "figures", "doubted"),
    [
        (0.99, 100, None, False),
        (1.0, 100, None, False),
        (0.95, 1000, None, True),
        (0.8, 100, None, True),
        (0.8, 5, None, False),  # four of five tell nothing
        (0.8, 5, {"test_accuracy": 0.1}, True),  # better than the card: other weights, or a leak
        (0.5, 100, {"val_accuracy": 0.9}, True),
        (0.5, 100, {"val_accuracy": 0.1, "test_accuracy": 0.5}, False),
        (0.5, 100, {}, False),
    ],
)
def test_the_clean_accuracy_of_the_victim_is_held_against_its_card(accuracy, n, figures, doubted):
    found = find_doubts(report(accuracy, n, figures))
    assert bool(found) == doubted
    if doubted:
        assert f"right on {100 * accuracy:.1f} % of {n} clean images" in found[0] and "exact 99 % interval" in found[0]
        assert "may be of other images" not in found[0]
        assert "may be of other images" in find_doubts(report(accuracy, n, figures, seen="unknown"))[0]


def test_the_interval_is_the_binomials():
    (said,) = find_doubts(report(0.8, 100))
    low, high = (beta.ppf(chance, *shape) for chance, shape in ((0.005, (80, 21)), (0.995, (81, 20))))
    assert f"{100 * low:.1f} to {100 * high:.1f} %" in said


def test_versions_that_differ_are_named_and_builds_of_one_version_do_not():
    versions = {"torch": f"{version_of('torch')}+cu999", "timm": "0.1", "python": "2.7", "defend-core": "unknown"}
    (said,) = find_doubts(report(versions=versions, plugins={"defend-apudae": "9.9", "no-such-plugin": "1"}))
    assert f"timm 0.1, here {version_of('timm')}" in said and f"python 2.7, here {platform.python_version()}" in said
    assert "no-such-plugin 1, here none" in said and "torch" not in said and "defend-core" not in said


def test_an_older_report_that_says_nothing_of_it_is_not_doubted():
    assert find_doubts({"rows": [], "dataset": {}}) == ()


def test_report_and_compare_say_so_of_each_run(tmp_path, monkeypatch):
    spec = importlib.util.spec_from_file_location("made_up_run", Path(__file__).parents[1] / "made_up_run.py")
    made_up_run = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made_up_run)
    runs = [str(made_up_run.write(tmp_path / name, name=name, threats=("bpda",))) for name in ("dae", "vaegan")]
    compared = CliRunner().invoke(compare_command, [*runs, "--json"], catch_exceptions=False)
    notes = [note for note in json.loads(compared.stdout)["notes"] if "other versions" in note]
    assert [note.split(":")[0] for note in notes] == ["dae+dae", "vaegan+vaegan"] and "torch 2, here" in notes[0]
    monkeypatch.setattr(page, "_draw", lambda *_: [])  # the figures, which take seconds
    shown = CliRunner().invoke(report_command, [runs[0]], catch_exceptions=False)
    said = "the run was made with other versions than are here"
    assert f"Note: {said}" in shown.stderr and "Written to" in shown.stdout
    assert f"Since then: {said}" in (Path(runs[0]) / "report.html").read_text(encoding="utf-8")
