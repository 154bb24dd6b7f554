"""tools.ladder keeps what each purifier left, arm by arm, and the manual shows it."""

import json
import sys

import pytest
from tools import ladder
from tools.manual.ladders import ladder_of

from defend.errors import ConfigError


def figure(accuracy, n=100):
    return {"accuracy": accuracy, "ci95": [accuracy - 0.1, accuracy + 0.1], "n": n}


def row(attack, threat, accuracy, variant="", n=100):
    absent = dict.fromkeys(("norm", "eps", "steps", "queries"))
    left = {"defended": figure(accuracy), "undefended": figure(1.0)}
    return {"attack": attack, "threat": threat, "variant": variant, "n": n, "headline": True, **absent, **left}


def report(*rows, worst, credit=None, failed=(), rising=()):
    timed = [{**one, "partial": False, "seconds": {"attack": 90, "purify": 30}} for one in rows]
    checks = [{"name": name, "status": "fail"} for name in failed] + [{"name": "batch", "status": "pass"}]
    headline = {**figure(worst), "with_credit": None if credit is None else figure(credit), "rising": list(rising)}
    return {
        "rows": timed,
        "checks": checks,
        "worst_case": headline,
        "versions": {"torch": "2"},
        "plugins": {"p": "1"},
        "seed": 0,
        "partial": False,
    }


@pytest.fixture
def kept(tmp_path, monkeypatch):
    """Keep results in a folder of the test's own; return what keeps an arm's report."""
    monkeypatch.setattr(ladder, "KEPT", tmp_path / "ladder.json")

    def keep(name, told):
        folder = tmp_path / "work" / name
        folder.mkdir(parents=True)
        (folder / "report.json").write_text(json.dumps(told))
        ladder.keep(ladder.ARMS[name], folder)

    return keep


def test_a_group_without_measurements_says_so(kept):
    assert ladder_of("papers") == "Not measured yet: `none`, `apudae`, `dae`, `puvae`, `unet_gan`, `vaegan`."


def test_rungs_are_shown_weakest_first_and_arms_in_their_order(kept):
    clean = row("none", "none", 0.99)
    kept("median", report(clean, row("pgd", "adaptive", 0.1), worst=0.1))
    kept("blur", report(clean, row("pgd", "oblivious", 0.3), row("pgd", "adaptive", 0.25, n=120), worst=0.2))
    lines = [line for line in ladder_of("baselines").splitlines() if line.startswith("|")]
    assert lines[0] == "| what is left | `blur` | `median` |"
    assert lines[2:5] == ["| clean | 99.0 | 99.0 |", "| oblivious: pgd | 30.0 |  |", "| adaptive: pgd | 25.0 | 10.0 |"]
    assert lines[5].startswith("| **worst case per image** | **20.0")
    said = ladder_of("baselines")
    assert "Not measured yet: `none`, `bits`, `jpeg`, `tv`, `resize_pad`, `noise`." in said
    assert "at least 100 images in every row" in said
    assert "Minutes, beside other work: `blur` 6, `median` 4." in said  # two a row


def test_a_failed_check_and_a_detectors_credit_are_told(kept):
    kept("puvae", report(row("none", "none", 0.97), worst=0.0, credit=0.44, failed=("gradients",)))
    said = ladder_of("papers")
    assert r"| what is left | `puvae`\* |" in said
    assert r"\* A check failed, the figures are not to be trusted: `puvae` (gradients)." in said
    assert "the same, where a rejected attack counts as right | 44.0" in said
    assert "| **worst case per image** | ~~0.0" in said.replace("\N{NO-BREAK SPACE}", " ")
    assert "`puvae`: `--detector puvae --draws 10`" in said


def test_of_a_random_arm_it_is_told_what_is_left_when_it_is_asked_again(kept):
    told = report(row("none", "none", 0.96), worst=0.31)
    clean = [{"n": 1, "worst": figure(0.96), "majority": figure(0.96)}]
    clean += [{"n": 20, "worst": figure(0.87), "majority": figure(0.97)}]
    told["worst_case"]["passes"] = {"n": 20, "worst": figure(0.25), "majority": figure(0.5), "clean": clean}
    kept("noise", told)
    kept("blur", report(row("none", "none", 0.9), worst=0.2))
    said = ladder_of("baselines").replace("\N{NO-BREAK SPACE}", " ")
    assert "| the same, right in every one of 20 passes |  | 25.0 [15.0, 35.0] (clean 87.0) |" in said
    assert "| the same, by the majority of 20 passes |  | 50.0 [40.0, 60.0] (clean 97.0) |" in said


def test_figures_that_more_steps_would_lower_are_marked_as_bounds(kept):
    clean, unaware = row("none", "none", 0.98), row("pgd", "oblivious", 0.25)
    aware = row("pgd", "adaptive", 0.23, variant="draws known"), row("apgd_t", "adaptive", 0.2)
    rising = ("pgd/oblivious", "pgd/adaptive:draws known")
    kept("noise", report(clean, unaware, *aware, worst=0.2, rising=rising))
    kept("none", report(clean, unaware, worst=0.2, rising=rising[:1]))
    kept("blur", report(clean, unaware, *aware, worst=0.1))
    said = ladder_of("baselines").replace("\N{NO-BREAK SPACE}", " ")
    # who does not know the defence took its steps against the bare victim
    assert "| oblivious: pgd | ≤ 25.0 | 25.0 | 25.0 |" in said
    assert "| adaptive: draws known: pgd |  | 23.0 | ≤ 23.0 |" in said
    assert "| adaptive: apgd_t |  | 20.0 | 20.0 |" in said
    assert "| **worst case per image** | **≤ 20.0 [10.0, 30.0]** | **10.0" in said
    assert "≤: an attack was still fooling images when its steps ended" in said


def test_the_command_of_an_arm_is_kept_with_it(kept):
    kept("noise", report(row("none", "none", 1.0), worst=0.5))
    command = ladder.read()["noise"]["command"]
    assert command.startswith("defend run --purifier noise --victim classifier_a --source resnet20")
    assert command.endswith("--draws 10")


def test_an_arm_measured_again_takes_its_own_place(kept, tmp_path):
    kept("blur", report(row("none", "none", 1.0), worst=0.5))
    told = report(row("none", "none", 0.9), worst=0.4)
    (tmp_path / "work/blur/report.json").write_text(json.dumps(told))
    ladder.keep(ladder.ARMS["blur"], tmp_path / "work/blur")
    assert ladder.read()["blur"]["worst_case"]["accuracy"] == 0.4


def test_a_run_that_is_not_complete_is_not_kept(kept):
    told = report({**row("none", "none", 1.0)}, worst=0.5)
    told["rows"][0]["partial"] = True
    with pytest.raises(ConfigError, match=r"the run of blur in .* is not complete: go on with the same command"):
        kept("blur", told)
    # all of its rows are whole, and others are still to come: those that leave least
    with pytest.raises(ConfigError, match=r"the run of jpeg in .* is not complete: go on with the same command"):
        kept("jpeg", {**report(row("none", "none", 1.0), worst=0.5), "partial": True})
    assert ladder.read() == {}


def test_an_unknown_arm_is_refused_before_anything_runs(capsys):
    assert ladder.main(["--only", "blurr"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: --only 'blurr' is no arm: expected one of none, apudae,") and said.count("\n") == 1


def test_a_run_that_was_cut_off_is_gone_on_with(monkeypatch, tmp_path):
    called = []
    monkeypatch.setattr(
        ladder.subprocess, "run", lambda words, check: called.append(words) or type("", (), {"returncode": 0})
    )
    arm = ladder.ARMS["jpeg"]
    ladder.measure(arm, tmp_path)
    # the first row is done: there is a report, and a journal of what is finished
    (tmp_path / "jpeg/unfinished").mkdir(parents=True)
    (tmp_path / "jpeg/unfinished/run.json").write_text("{}")
    (tmp_path / "jpeg/report.json").write_text("{}")
    ladder.measure(arm, tmp_path)
    (tmp_path / "jpeg/unfinished/run.json").unlink()
    assert ladder.measure(arm, tmp_path) == tmp_path / "jpeg"
    begun, resumed = called  # what is complete is not run again
    assert begun == [sys.executable, "-m", "defend", *arm.arguments, "--out", str(tmp_path / "jpeg")]
    assert resumed == [sys.executable, "-m", "defend", "run", "--resume", str(tmp_path / "jpeg")]


def test_a_folder_of_other_settings_is_not_taken_for_this_command(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(ladder.subprocess, "run", lambda words, check: type("", (), {"returncode": 0}))
    ladder.measure(ladder.ARMS["jpeg"], tmp_path)
    (tmp_path / "jpeg").mkdir()
    ladder.measure(ladder.ARMS["jpeg"], tmp_path)
    monkeypatch.setitem(ladder.ARMS, "jpeg", ladder.Arm("jpeg", ("--draws", "3")))
    assert ladder.main(["--only", "jpeg", "--work", str(tmp_path)]) == 2
    assert "begun with other settings (defend run --purifier jpeg " in capsys.readouterr().err
    (tmp_path / "jpeg.command").unlink()
    with pytest.raises(ConfigError, match=r"begun with other settings \(unknown\): remove it, or give another --work"):
        ladder.measure(ladder.ARMS["jpeg"], tmp_path)


def test_every_arm_is_installed_and_its_settings_are_taken():
    from defend.cli.run import run_command
    from defend.plugins import registry

    purifiers = {entry.spec.name for entry in registry().entries("purifier")}
    assert {arm.name for arm in ladder.ARMS.values()} <= {ladder.NONE, *purifiers}
    for arm in ladder.ARMS.values():
        command, *flags = arm.arguments
        given = run_command.make_context(command, list(flags)).params
        assert given["purifiers"] == (() if arm.name == ladder.NONE else (arm.name,))
        assert given["limit"] == given["adaptive_limit"] == ladder.IMAGES


def test_the_command_fits_the_page_and_keeps_flags_with_their_values(kept):
    kept("blur", report(row("none", "none", 1.0), worst=0.5))
    command = [line for line in ladder_of("baselines").splitlines() if line.startswith("    ")]
    assert max(map(len, command)) <= 100
    assert " ".join(line.strip(" \\") for line in command) == " ".join(("defend run --purifier NAME", *ladder.SETTINGS))
    assert all(line.strip().startswith(("defend", "--")) for line in command)


def test_the_victim_alone_stands_beside_what_knows_the_whole_defence(kept):
    clean, pgd = row("none", "none", 0.98), row("pgd", "oblivious", 0.25)
    kept("none", report(clean, row("fgsm", "oblivious", 0.56), pgd, row("apgd_t", "oblivious", 0.19), worst=0.18))
    known = row("pgd", "adaptive", 0.23), row("apgd_t", "adaptive", 0.2)
    kept("blur", report(clean, row("pgd", "oblivious", 0.27), *known, worst=0.2))
    lines = [line for line in ladder_of("baselines").splitlines() if line.startswith("|")]
    assert lines[3:7] == [
        "| oblivious: fgsm | 56.0 |  |",
        "| oblivious: pgd | 25.0 | 27.0 |",
        "| adaptive: pgd | 25.0 | 23.0 |",
        "| adaptive: apgd_t | 19.0 | 20.0 |",
    ]
    assert "`none` is the victim alone" in ladder_of("baselines")
