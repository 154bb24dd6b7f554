"""Shared by the tests across packages: a cache of their own, and the command line in this process."""

import json
from types import SimpleNamespace

import pytest

from defend.cli import main


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """Nothing this user trained may decide a test."""
    monkeypatch.setenv("DEFEND_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.delenv("DEFEND_DATA_DIR", raising=False)
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def defend(capsys):
    """Run a command: `defend("list", "--json")` gives its exit code, output, error and JSON."""

    def run(*arguments):
        with pytest.raises(SystemExit) as stopped:
            main([str(argument) for argument in arguments])
        out, error = capsys.readouterr()
        parsed = json.loads(out) if "--json" in arguments and out.strip() else None
        return SimpleNamespace(code=stopped.value.code, out=out, error=error, json=parsed)

    return run


@pytest.fixture
def refused(defend):
    """Run a command that must be refused: exit code 2, one line on standard error, no traceback; return the line."""

    def run(*arguments):
        answer = defend(*arguments)
        assert answer.code == 2, (answer.code, answer.out, answer.error)
        lines = [line for line in answer.error.splitlines() if line.startswith("error:")]
        assert len(lines) == 1, answer.error
        assert "Traceback" not in answer.error
        return lines[0]

    return run
