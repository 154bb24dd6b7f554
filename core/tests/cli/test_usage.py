"""What `--help` says: summaries whole, every option in one group, in lines that a terminal holds."""

import re

import click
import pytest

from defend.cli import main
from defend.cli.entry import cli
from defend.cli.usage import OUTPUT


@pytest.fixture
def usage(capsys, monkeypatch):
    """Return what `defend [COMMAND] --help` prints on 80 columns."""
    monkeypatch.setenv("COLUMNS", "80")

    def run(*arguments):
        with pytest.raises(SystemExit) as stopped:
            main([*arguments, "--help"])
        assert stopped.value.code == 0
        return capsys.readouterr().out

    return run


def test_no_summary_is_cut(usage):
    text = usage()
    assert max(map(len, text.splitlines())) <= 80
    words = " ".join(text.split())
    for name, command in cli.commands.items():
        summary = re.match(r".*?[.](?=\s|$)", command.help, re.DOTALL).group()
        assert f"{name} {' '.join(summary.split())}" in words


@pytest.mark.parametrize("name", cli.commands)
def test_every_option_stands_in_one_named_group(name, usage):
    command = cli.commands[name]
    grouped = [option for group in command.groups.values() for option in group]
    assert sorted(map(id, grouped)) == sorted(
        id(parameter) for parameter in command.params if isinstance(parameter, click.Option)
    )
    assert all(command.groups.values()), "no title stands alone"
    text = usage(name)
    assert max(map(len, text.splitlines())) <= 80
    assert re.findall(r"^(\S.*):$", text, re.MULTILINE) == list(command.groups), "no option stands outside"
    listed = text[text.index(f"\n{next(iter(command.groups))}:\n") :]
    for option in grouped:
        assert len(re.findall(rf"^  {re.escape(option.opts[0])}\b(?!-)", listed, re.MULTILINE)) == 1
    assert "--help" in text.split(f"\n{OUTPUT}:\n")[1].split("\n\n")[0]


def test_a_run_is_grouped_by_what_a_person_thinks_of():
    titles = ["What is defended", "Who attacks", "How much", "Settings", "Output", "Machine"]
    assert list(cli.commands["run"].groups) == titles
