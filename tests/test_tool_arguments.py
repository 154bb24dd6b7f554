"""Tools that write into this checkout do nothing but what they were asked for."""

import pytest
from tools import denoising, restate, run_examples, version


@pytest.fixture
def untouched(monkeypatch):
    """Let whatever would work fail."""

    def work(*arguments, **_):
        raise AssertionError(f"worked on {arguments}")

    for module, name in (
        (denoising, "measure"),
        (denoising.readme, "fill"),
        (restate, "registry"),
        (restate, "write_readme"),
        (run_examples.runpy, "run_path"),
        (run_examples, "run_notebook"),
        (run_examples.os, "chdir"),
        (version, "write"),
    ):
        monkeypatch.setattr(module, name, work)


TOOLS = pytest.mark.parametrize("tool", [denoising, restate, run_examples, version], ids=lambda tool: tool.__name__)


@TOOLS
def test_help_is_help(tool, untouched, capsys):
    with pytest.raises(SystemExit) as stopped:
        tool.main(["--help"])
    assert stopped.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: python -m {tool.__name__} ")


@TOOLS
def test_unknown_flags_are_refused(tool, untouched, capsys):
    with pytest.raises(SystemExit) as stopped:
        tool.main(["--kept"])
    assert stopped.value.code == 2
    assert "unrecognized arguments: --kept" in capsys.readouterr().err


@pytest.mark.parametrize(("name", "nearest"), [("apudea", "did you mean 'apudae'?"), ("classic", "known are apudae")])
def test_plugins_without_a_purifier_of_that_name_are_refused(name, nearest, untouched, capsys):
    assert denoising.main(["unet_gan", name]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: unknown plugin that ships purifiers {name!r}: ") and nearest in error
    assert error.count("\n") == 1


def test_named_plugins_are_measured_once_and_no_others(monkeypatch, capsys):
    measured, filled = [], []
    monkeypatch.setattr(denoising, "measure", measured.append)
    monkeypatch.setattr(denoising.readme, "fill", lambda path, kind, texts: filled.append(path.parent.name))
    assert denoising.main(["vaegan", "vaegan"]) == 0
    assert measured == list(denoising.find_files("vaegan")) and filled == ["vaegan"]
    assert denoising.main(["--readme"]) == 0
    assert len(measured) == len(list(denoising.find_files("vaegan"))) and len(filled) == 6


def test_what_is_no_version_is_refused_in_a_line(capsys):
    before = version.read(*version.SOURCE)
    assert version.main(["0.6"]) == 2
    assert capsys.readouterr().err == "error: version '0.6' is none: expected NUMBER.NUMBER.NUMBER, for example 0.6.0\n"
    assert version.main([]) == 0
    assert capsys.readouterr().out == f"{before}\n"
