"""What a person at a terminal of 80 columns meets: a greeting, tables that fit, what to type next, completion."""

import importlib.util
import io
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree as ET

import click
import numpy as np
import pytest
from rich.console import Console

from defend.cli.entry import cli
from defend.plugins import registry
from defend.records.reading import read_report
from defend.report import catalogue, recipe, reproduction, terminal
from defend.reproduce import ladders, results

ROOT = Path(__file__).parents[1]
FIGURE = re.compile(r"\d\.\d \[\d")


@pytest.fixture
def console():
    return Console(file=io.StringIO(), width=80, markup=False, emoji=False, highlight=False)


def printed(console):
    lines = console.file.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    return lines


def test_defend_alone_greets_with_three_commands(defend):
    answer = defend()
    assert answer.code == 0
    lines = answer.out.splitlines()
    assert max(map(len, lines)) <= 80
    assert len([line for line in lines if line.startswith("  defend ")]) == 3


def test_the_list_fits_a_screen(console):
    catalogue.print_listing(console, registry())
    assert len(printed(console)) <= 24


@pytest.mark.parametrize("name", ["dae", "puvae", "resnet20", "pgd", "digits"])
def test_show_ends_with_a_command_that_exists(name, defend):
    (shown,) = re.findall(r"^  defend run (.*)$", defend("show", name).out, re.MULTILINE)[-1:]
    words = shown.split()
    command = cli.commands["run"]
    parser = command.make_parser(click.Context(command))
    values, rest, _ = parser.parse_args(words)
    assert values["victim"]
    assert rest == []


def test_no_interval_is_broken_from_its_figure(console):
    """At 80 columns columns and intervals are left out, and names stay whole."""
    for one in registry().tables.values():
        if (kept := results.find_kept(one)) is not None:
            reproduction.render(one, kept, console)
    listed = [(one, ladders.find_kept(one)) for one in registry().recipes.values()]
    recipe.print_listing(console, listed)
    for one, ladder in listed:
        recipe.render(one, ladder, console)
    lines = printed(console)
    assert any(FIGURE.search(line) for line in lines)
    tables = [line for line in lines if line.startswith("│")]
    assert [line for line in tables if line.count("[") != line.count("]")] == []
    assert any("│ apgd_dlr_l2 │" in line for line in tables)


def test_bash_completes_commands_options_and_names(tmp_path):
    """The script that bash evaluates, with what it then asks the program."""

    def ask(**variables):
        return subprocess.run(
            [sys.executable, "-m", "defend"],
            env={**os.environ, **variables},
            capture_output=True,
            text=True,
            check=True,
        ).stdout

    script = tmp_path / "complete.sh"
    script.write_text(ask(_DEFEND_COMPLETE="bash_source"))
    program = tmp_path / "defend"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m defend "$@"\n')
    program.chmod(0o755)
    typed = 'COMP_WORDS=(defend run --purifier dae,ap); COMP_CWORD=3; _defend_completion defend; echo "${COMPREPLY[*]}"'
    done = subprocess.run(
        ["bash", "-c", f". {script}; {typed}"],
        env={**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "dae,apudae"
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("ru", {"run"}),
        ("run --at", {"--attack", "--at-least"}),
        ("run --threat ad", {"adaptive"}),
        ("show vae", {"vaegan", "vaegan_straight"}),
    ],
)
def test_completion_of(typed, expected, defend, monkeypatch):
    for shell in ("zsh", "fish"):
        words = f"defend {typed}"
        monkeypatch.setenv("_DEFEND_COMPLETE", f"{shell}_complete")
        monkeypatch.setenv("COMP_WORDS", words if shell == "zsh" else f"defend {typed}")
        monkeypatch.setenv("COMP_CWORD", str(len(words.split()) - 1) if shell == "zsh" else typed.split()[-1])
        answer = defend()
        assert answer.code == 0
        assert answer.error == ""
        offered = set(re.findall(r"[\w-]+", answer.out)) if shell == "fish" else set(answer.out.splitlines())
        assert expected <= offered


def test_the_completion_scripts_of_zsh_and_fish_are_written(defend, monkeypatch):
    for shell, word in (("zsh", "#compdef defend"), ("fish", "function _defend_completion")):
        monkeypatch.setenv("_DEFEND_COMPLETE", f"{shell}_source")
        answer = defend()
        assert (answer.code, answer.error) == (0, "")
        assert word in answer.out


@pytest.mark.skipif(shutil.which("zsh") is None, reason="no zsh")
def test_zsh_takes_the_script(defend, monkeypatch, tmp_path):
    monkeypatch.setenv("_DEFEND_COMPLETE", "zsh_source")
    (tmp_path / "script").write_text(defend().out)
    subprocess.run(["zsh", "-n", str(tmp_path / "script")], check=True)


MODEL = """
import torch
def load():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(784, 10))
"""


def test_a_run_writes_its_checks_for_a_ci_server(defend, tmp_path):
    (tmp_path / "mine.py").write_text(MODEL)
    few = ("--victim", "mine.py:load", "--limit", "20", "--attack", "fgsm", "--threat", "oblivious", "--quiet")
    files = ("--junit", "out/junit.xml", "--sarif", "out/checks.sarif", "--at-least", "0.9")
    answer = defend("run", *few, *files)
    assert answer.code == 3, answer.error
    (suite,) = ET.parse(tmp_path / "out/junit.xml").getroot()
    assert suite.get("name") == "mine.py:load"
    failed = {
        case.get("name"): case.find("failure").get("message") for case in suite if case.find("failure") is not None
    }
    assert int(suite.get("failures")) == len(failed)
    assert "at least 90.0 % was asked for" in failed["at least"]
    (run,) = json.loads((tmp_path / "out/checks.sarif").read_text())["runs"]
    errors = {result["ruleId"] for result in run["results"] if result["level"] == "error"}
    assert "at-least" in errors
    assert errors <= {rule["id"] for rule in run["tool"]["driver"]["rules"]}
    places = {result["locations"][0]["physicalLocation"]["artifactLocation"]["uri"] for result in run["results"]}
    assert places == {"mine.py"}


def test_an_old_verdict_does_not_outlive_a_run_that_fails(defend, tmp_path):
    (tmp_path / "junit.xml").write_text("all is well")
    answer = defend("run", "--victim", "no_such_model", "--junit", "junit.xml")
    assert answer.code == 2
    assert not (tmp_path / "junit.xml").exists()


def test_a_pipe_in_the_place_of_a_verdict_is_left_there(refused, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    assert "a device or pipe stands there" in refused("check", "resnet18", "--sarif", "pipe")
    assert (tmp_path / "pipe").is_fifo()


def test_check_writes_its_findings(defend, tmp_path):
    (tmp_path / "mine.py").write_text(MODEL.replace("Linear(784, 10))", "Linear(784, 10), torch.nn.Softmax(1))"))
    answer = defend("check", "mine.py:load", "--quiet", "--junit", "junit.xml")
    (suite,) = ET.parse(tmp_path / "junit.xml").getroot()
    assert answer.code == (3 if int(suite.get("failures")) else 0)
    assert int(suite.get("tests")) == len(list(suite)) > 2


@pytest.mark.parametrize("width", [80, 100, 120])
def test_no_figure_of_a_run_is_cut(width, tmp_path):
    """The widest table there is: a detector, credit, passes. A narrow terminal goes without columns, not digits."""
    spec = importlib.util.spec_from_file_location("made_up_run", ROOT / "core/tests/made_up_run.py")
    made_up = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made_up)
    console = Console(file=io.StringIO(), width=width, markup=False, emoji=False, highlight=False)
    terminal.render(read_report(made_up.write(tmp_path / "run")), console)
    lines = console.file.getvalue().splitlines()
    table = [line for line in lines if line.startswith(("│", "┃"))]
    assert max(map(len, lines)) <= width
    assert not any("…" in line for line in table)
    assert all(line.rstrip()[-1] in "│┃" for line in table)
    assert any("│ detector-aware │" in line and "27.5" in line for line in table)


def test_check_takes_the_number_of_classes_that_a_run_takes(defend, tmp_path):
    (tmp_path / "mine.py").write_text(MODEL)
    np.savez(tmp_path / "few.npz", images=np.zeros((20, 28, 28), np.uint8), labels=np.arange(20) % 2)
    found = defend("check", "mine.py:load", "--dataset", "few.npz", "--classes", "10", "--json").json
    assert {row["name"]: row["status"] for row in found}["answer"] == "pass"


@pytest.mark.parametrize("command", ["check", "run"])
def test_json_is_all_that_comes_out_whatever_a_victim_prints(defend, tmp_path, command):
    (tmp_path / "mine.py").write_text(f"print('loading')\n{MODEL}\n\nprint('loaded')\n")
    few = ("--limit", "4", "--attack", "fgsm", "--threat", "oblivious", "--checks", "none", "--quiet", "--json")
    answer = (
        defend("check", "mine.py:load", "--json")
        if command == "check"
        else defend("run", "--victim", "mine.py:load", *few)
    )
    assert answer.json and "loading" in answer.error and "loaded" in answer.error


def test_the_bare_victim_has_a_figure_in_every_row(defend, tmp_path):
    (tmp_path / "mine.py").write_text(MODEL)
    few = ("--limit", "4", "--attack", "square", "--set", "square.queries=5", "--checks", "none", "--quiet")
    answer = defend("run", "--victim", "mine.py:load", "--threat", "ladder", *few)
    (line,) = [line for line in answer.out.splitlines() if "square" in line and "query" in line and "4" in line][:1]
    assert re.search(r"\d+\.\d \[", line), answer.out
    assert "--threat ladder" not in answer.out  # no advice to do what was done


def test_a_gate_on_a_run_that_is_complete_is_not_kept_to_unseen(defend, tmp_path):
    (tmp_path / "mine.py").write_text(MODEL)
    few = ("--limit", "4", "--attack", "fgsm", "--threat", "oblivious", "--checks", "none", "--quiet", "--out", "r")
    assert defend("run", "--victim", "mine.py:load", *few).code == 0
    assert defend("run", "--resume", "r").code == 0
    answer = defend("run", "--resume", "r", "--at-least", "0.99")
    assert answer.code == 2 and "is complete" in answer.error
    for flag in (("--junit", "j.xml"), ("--sarif", "s.sarif"), ("--log", "csv"), ("--json",)):
        answer = defend("run", "--resume", "r", *flag)
        assert answer.code == 2 and flag[0] in answer.error and "report.json" in answer.error
        assert not any((tmp_path / name).exists() for name in flag[1:])
