"""What the documents show works as shown."""

import importlib.metadata
import json
import re
import shlex
import sys
from pathlib import Path

import click
import pytest
from tools.manual import papers, parts, reference
from tools.manual.bars import bars
from tools.manual.parts import PLACE

import defend as package
from defend.cli.entry import cli
from defend.plugins import Registry, forget_installed

ROOT = Path(__file__).parents[1]
PLUGINS = sorted(ROOT.glob("plugins/*/pyproject.toml"))


def blocks(document, language):
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / document).read_text(), re.DOTALL)


@pytest.fixture
def haze(tmp_path, monkeypatch):
    """Install the manual's plugin as pip would lay it out, from its own text."""
    import tomllib

    project = tomllib.loads(blocks("docs/extend/plugin.md", "toml")[0])
    site = tmp_path / "site"
    info = site / "defend_haze-0.1.0.dist-info"
    info.mkdir(parents=True)
    (site / "defend_haze.py").write_text(blocks("docs/extend/plugin.md", "python")[0])
    (site / "test_haze.py").write_text(blocks("docs/extend/plugin.md", "python")[1])
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


def test_the_plugin_of_the_manual_runs(haze, defend):
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


def test_the_plugin_of_the_manual_passes_its_contract(haze):
    import subprocess

    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", str(haze), str(haze)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=haze)
    assert done.returncode == 0, done.stdout
    assert re.search(r"\b1[0-9] passed", done.stdout), done.stdout


MANUAL = sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("docs/**/*.md"))
DOCUMENTS = ["README.md", "CONTRIBUTING.md", *(f"plugins/{path.parent.name}/README.md" for path in PLUGINS), *MANUAL]
QUICK = {"list", "show", "recipe", "reproduce", "cache"}  # that answer at once, unless told to measure or to write
SLOW_FLAGS = {"--run", "--readme", "--keep", "--toml", "--data-dir", "--limit", "--clear", "--forget"}


def commands_of(document):
    """Return the arguments of every `defend COMMAND ...` in a document's code, as a shell would split them."""
    text = (ROOT / document).read_text().replace("\\\n", " ")
    code = [line for line in text.splitlines() if re.match(r"(    |\t)", line)]
    code += "\n".join(re.findall(r"```(?!python)\w*\n(.*?)```", text, re.DOTALL)).splitlines()
    code += re.findall(r"`(defend [^`\n]+)`", text)
    found = [match[1] for line in code for match in re.finditer(r"(?:^|&& |-m )\s*defend\s+([a-z][^&]*)", line)]
    return [shlex.split(each, comments=True) for each in found]


@pytest.mark.parametrize("document", DOCUMENTS)
def test_commands_shown_are_commands(document):
    """Each is one, and takes every option that it is shown with, with a value or without."""
    for name, *arguments in commands_of(document):
        assert name in cli.commands, f"{document}: defend {name} is no command"
        command = cli.commands[name]
        try:
            command.make_parser(click.Context(command)).parse_args(list(arguments))
        except click.UsageError as error:
            pytest.fail(f"{document}: defend {name} {shlex.join(arguments)}: {error.format_message()}")


def quick_commands():
    shown = {tuple(each) for document in ["README.md", *MANUAL] for each in commands_of(document)}
    placeholders = re.compile(r"[A-Z]{2,}$|runs/")
    for words in sorted(shown):
        flags = {word.split("=")[0] for word in words if word.startswith("--")}
        measures = words[0] == "reproduce" and not flags & {"--list", "--kept"}
        if words[0] in QUICK and not flags & SLOW_FLAGS and not measures and not any(map(placeholders.match, words)):
            yield words


@pytest.mark.parametrize("words", list(quick_commands()), ids=" ".join)
def test_commands_that_answer_at_once_do(words, defend):
    answer = defend(*words)
    assert answer.code == 0, answer.error
    assert answer.out.strip()


def test_the_readme_starts_with_the_two_commands():
    text = (ROOT / "README.md").read_text()
    assert "pip install ./core ./plugins/apudae && defend run --purifier apudae --victim resnet18" in text
    assert "pip install -r requirements-dev.txt && pytest" in text


def test_the_readme_is_short_and_names_every_plugin():
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 120
    assert all(f"](plugins/{path.parent.name}/README.md)" in text for path in PLUGINS)


def test_the_table_of_the_readme_is_what_was_measured():
    assert parts.first_run() in (ROOT / "README.md").read_text(), "write it: python -m tools.manual"


@pytest.mark.parametrize("document", ["README.md", "CONTRIBUTING.md"])
def test_links_lead_to_files(document):
    aims = re.findall(r"\]\((?!https?:|#)([^)#]+)", (ROOT / document).read_text())
    assert aims
    assert [aim for aim in aims if not (ROOT / aim).exists()] == []


WIDTH = 100  # characters that a page of the manual has room for beside its two columns (docs/stylesheets/manual.css)


@pytest.mark.parametrize("document", [*DOCUMENTS, "benchmarks/README.md"])
def test_code_fits_the_page(document):
    text = (ROOT / document).read_text()
    lines = "\n".join(re.findall(r"^```\w*\n(.*?)^```", text, re.DOTALL | re.MULTILINE)).splitlines()
    lines += re.findall(r"^    (.*)", re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE), re.MULTILINE)
    assert [line for line in lines if len(line) > WIDTH] == []


def test_every_page_is_in_the_navigation():
    named = (ROOT / "mkdocs.yml").read_text()
    assert [page for page in MANUAL if f"{page.removeprefix('docs/')}" not in named] == []


def test_every_key_of_the_reference_is_explained():
    pages = reference.pages()
    rows = "\n".join(pages[f"reference/{page}.md"] for page in ("report", "run-config", "options"))
    assert [row for row in re.findall(r"^\| `.*", rows, re.MULTILINE) if re.search(r"\| *\|$", row)] == []


def test_every_part_that_a_page_asks_for_is_generated():
    asked = [found.groups() for page in MANUAL for found in PLACE.finditer((ROOT / page).read_text())]
    assert asked
    for name, argument in asked:
        assert parts.PARTS[name](*(argument or "").split()).count("\n| ") > 1


def test_a_bar_that_is_missed_says_so_and_results_without_bars_are_left_out(tmp_path):
    kept = [
        {"what": "ours / theirs", "figure": 1.23456, "bound": 1.0, "kind": "at most", "met": False},
        {"what": "images apart", "figure": 0, "bound": 0, "kind": "at most", "met": True},
    ]
    kept.append({"what": "memory", "figure": None, "bound": 2, "kind": "at least", "met": False})
    results = [
        {"workload": "2 cw", "title": "an | iteration", "bars": kept},
        {"workload": "2 cw", "title": "another", "bars": [], "notes": ["it gave up"]},
    ]
    about = {"device": "a machine", "threads": 1, "versions": {"torch": "2.0"}, "names": ["cw"], "left_out": ["ART"]}
    about |= {"complete": False}
    (tmp_path / "a.json").write_text(json.dumps({**about, "results": results}))
    (tmp_path / "b.json").write_text(json.dumps({"about": "a search", "rows": []}))
    lines = [line for line in bars(tmp_path).replace("\N{NO-BREAK SPACE}", " ").splitlines() if line]
    assert lines[0] == "`python -m benchmarks cw`, a machine, 1 thread, torch 2.0, without ART:"
    assert lines[3:-1] == [
        r"| an \| iteration | ours / theirs | 1.23 | at most 1 | **missed** |",
        "|  | images apart | 0 | at most 0 | met |",
        "|  | memory | no figure | at least 2 | **missed** |",
        "Not all of this workload was measured: the other parts have no figure.",
        "it gave up",
    ]
    assert lines[-1].startswith("Without a kept figure: `pgd`, `square`") and "`cw`" not in lines[-1]
    (tmp_path / "a.json").write_text(json.dumps({**about, "scale": "quick", "results": results}))
    with pytest.raises(RuntimeError, match=r"a\.json is of `--quick`"):
        bars(tmp_path)


def test_the_generated_pages_know_every_plugin_command_and_option():
    assert set(papers.pages()) == {f"papers/{path.parent.name}.md" for path in PLUGINS}
    pages = reference.pages()
    assert all(f"## defend {name}\n" in pages["reference/commands.md"] for name in cli.commands)
    assert all(f"`--{word}" in pages["reference/commands.md"] for word in ("purifier", "eps", "junit", "gate"))
    assert all(
        f"{{#purifier-{entry.spec.name}}}" in pages["reference/options.md"] for entry in Registry().entries("purifier")
    )
    assert all(f"heading: defend.{name}\n" in pages["reference/python.md"] for name in package.__all__)


def python_blocks():
    """Yield each document with the Python that runs at once; what takes longer stands behind a comment that says so."""
    for document in ["README.md", *MANUAL]:
        text = (ROOT / document).read_text()
        parts_ = re.findall(r"(<!-- takes [^\n]*-->\n\n)?```python\n(.*?)```", text, re.DOTALL)
        if quick := [block for slow, block in parts_ if not slow]:
            yield pytest.param(document, quick, id=document)


@pytest.mark.parametrize(("document", "quick"), list(python_blocks()))
def test_python_of_the_documents_runs(document, quick):
    names = {}
    for block in quick:
        exec(compile(block, document, "exec"), names)
