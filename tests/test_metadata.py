"""What packages, the citation and the CI say of themselves."""

import re
import tomllib
from pathlib import Path

import pytest
import yaml
from tools import version
from tools.manual.papers import plugins

import defend

ROOT = Path(__file__).parents[1]
PROJECTS = [ROOT / "core/pyproject.toml", *sorted(ROOT.glob("plugins/*/pyproject.toml"))]


def test_every_file_says_the_same_version():
    said = {path: version.read(path, where) for path, where in version.places()}
    assert set(said.values()) == {defend.__version__}, "set it: python -m tools.version NUMBER"


def test_a_version_is_set_everywhere(tmp_path, monkeypatch):
    for path, _ in version.places():
        copy = tmp_path / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text(path.read_text())
    monkeypatch.setattr(version, "SOURCE", (tmp_path / version.SOURCE[0].relative_to(ROOT), version.SOURCE[1]))
    monkeypatch.setattr(version, "ROOT", tmp_path)
    version.write("1.2.3")
    assert {version.read(*place) for place in version.places()} == {"1.2.3"}
    assert '"defend-core>=1.2"' in (tmp_path / "plugins/apudae/pyproject.toml").read_text()
    with pytest.raises(ValueError, match=r"'1\.2' is none"):
        version.write("1.2")


@pytest.mark.parametrize("path", PROJECTS, ids=lambda path: path.parent.name)
def test_metadata_is_whole(path):
    document = tomllib.loads(path.read_text())
    project = document["project"]
    assert {"description", "readme", "license", "license-files", "requires-python", "authors", "keywords"} <= set(
        project
    )
    assert "Typing :: Typed" in project["classifiers"]
    assert "version" in project or project["dynamic"] == ["version"]
    assert "py.typed" in next(iter(document["tool"]["setuptools"]["package-data"].values()))
    assert all((path.parent / name).is_file() for name in (project["readme"], *project["license-files"]))
    assert (path.parent / "LICENSE").read_text() == (ROOT / "LICENSE").read_text()


def test_the_citation_names_the_paper_of_every_plugin():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors"} <= set(citation)
    cited = {reference["title"]: reference for reference in citation["references"]}
    assert all({"type", "title", "authors"} <= set(reference) for reference in cited.values())
    own = {plugin.name: {paper.title for paper in plugin.papers} for plugin in plugins() if plugin.papers}
    assert [name for name, titles in own.items() if not titles & set(cited)] == []


def test_the_workflow_runs_what_decides():
    job = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())["jobs"]["run"]
    assert job["steps"][-1]["run"] == "bash .ci/run"


@pytest.mark.parametrize("script", [".ci/run", ".ci/lowest"])
def test_no_command_of_ci_fails_unheard(script):
    # bash does not end where one before the last of such a list fails
    lists = [line for line in (ROOT / script).read_text().splitlines() if re.match(r"[a-z].* && ", line)]
    assert [line for line in lists if not line.startswith("if ")] == []


def test_the_lowest_versions_are_those_that_are_tested():
    lines = (ROOT / ".ci/lowest.txt").read_text().splitlines()
    tested = dict(line.split("==") for line in lines if not line.startswith("#"))
    for path in PROJECTS:
        for needed in tomllib.loads(path.read_text())["project"]["dependencies"]:
            name, _, least = needed.partition(">=")
            if not name.startswith("defend-"):
                assert name in tested, f"{name}, of {path}, is not in .ci/lowest.txt"
                padded = [int(part) for part in least.split(".")]
                version = [int(part) for part in tested[name].split(".")]
                assert version[: len(padded)] == padded, f"{path} allows {needed}, and {tested[name]} is what is tested"
