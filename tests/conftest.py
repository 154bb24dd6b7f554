"""Shared by the tests across packages: a cache of their own, and the command line in this process."""

import json
import sys
from types import SimpleNamespace

import pytest

from defend.cli import main
from defend.plugins import forget_installed


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
def installed(tmp_path, monkeypatch):
    """Install a plugin as pip would lay it out: `installed("toys", {"__init__.py": ..., "parts.py": ...})`."""
    names = []

    def install(name, files):
        package, info = tmp_path / "site" / name, tmp_path / "site" / f"defend_{name}-1.0.dist-info"
        for folder in (package, info):
            folder.mkdir(parents=True)
        for file, text in files.items():
            (package / file).write_text(text)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: defend-{name}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[defend]\n{name} = {name}\n")
        monkeypatch.syspath_prepend(str(tmp_path / "site"))
        names.append(name)
        forget_installed()

    yield install
    forget_installed()
    for module in [module for module in sys.modules if module.split(".")[0] in names]:
        del sys.modules[module]


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
