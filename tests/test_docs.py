"""What the documents show works as shown."""

import importlib.metadata
import re
import sys
from pathlib import Path

import pytest

from defend.plugins import Registry, forget_installed

ROOT = Path(__file__).parents[1]
PLUGINS = sorted(ROOT.glob("plugins/*/pyproject.toml"))


def blocks(document, language):
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / document).read_text(), re.DOTALL)


@pytest.fixture
def haze(tmp_path, monkeypatch):
    """Install CONTRIBUTING.md's plugin as pip would lay it out, from its own text."""
    import tomllib

    project = tomllib.loads(blocks("CONTRIBUTING.md", "toml")[0])
    site = tmp_path / "site"
    info = site / "defend_haze-0.1.0.dist-info"
    info.mkdir(parents=True)
    (site / "defend_haze.py").write_text(blocks("CONTRIBUTING.md", "python")[0])
    (site / "test_haze.py").write_text(blocks("CONTRIBUTING.md", "python")[1])
    name, version = project["project"]["name"], project["project"]["version"]
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    points = project["project"]["entry-points"]["defend"]
    (info / "entry_points.txt").write_text("[defend]\n" + "".join(f"{k} = {v}\n" for k, v in points.items()))
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.setenv("PYTHONPATH", str(site))
    forget_installed()
    yield site
    forget_installed()
    sys.modules.pop("defend_haze", None)


def test_the_plugin_of_contributing_runs(haze, defend):
    assert importlib.metadata.version("defend-haze") == "0.1.0"
    assert "haze" in {entry.spec.name for entry in Registry().entries("purifier")}
    answer = defend(
        "run",
        "--purifier",
        "haze",
        "--victim",
        "resnet18",
        "--limit",
        "4",
        "--set",
        "pgd.steps=2",
        "--set",
        "purifier.sigma=0.8",
        "--json",
        "--quiet",
    )
    assert answer.code == 0, answer.error
    assert answer.json["plugins"]["defend-haze"] == "0.1.0"
    assert {row["threat"] for row in answer.json["rows"]} == {"none", "noise", "oblivious", "adaptive"}


def test_the_plugin_of_contributing_passes_its_contract(haze):
    import subprocess

    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", str(haze), str(haze)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=haze)
    assert done.returncode == 0, done.stdout
    assert re.search(r"\b1[0-9] passed", done.stdout), done.stdout


DOCUMENTS = ["README.md", "CONTRIBUTING.md", *(f"plugins/{path.parent.name}/README.md" for path in PLUGINS)]
COMMANDS = "run|list|show|train|predict|export|cache|compare|report|calibrate|new-plugin|reproduce|recipe"


@pytest.mark.parametrize("document", DOCUMENTS)
def test_commands_shown_are_commands(document, defend):
    """Every `defend COMMAND --flag` in the documents exists."""
    shown = re.findall(rf"\bdefend ((?:{COMMANDS})\b[^`\n]*)", (ROOT / document).read_text())
    assert shown
    for line in shown:
        command, *words = line.split("#")[0].split()
        usage = defend(command, "--help").out
        for flag in (word.split("=")[0] for word in words if word.startswith("--")):
            assert re.search(rf"{flag}\b", usage), f"{document}: defend {command} has no {flag}"


def test_the_readme_starts_with_the_two_commands():
    text = (ROOT / "README.md").read_text()
    assert "pip install ./core ./plugins/apudae && defend run --purifier apudae --victim resnet18" in text
    assert "pip install -r requirements-dev.txt && pytest" in text


def test_python_of_the_readme_runs(haze):
    for block in blocks("README.md", "python"):
        exec(compile(block, "README.md", "exec"), {})
