"""`defend.scaffold.create` writes packages that work as they are, in the shape of the plugins that ship."""

import fnmatch
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from defend import __version__
from defend.errors import ConfigError, DefendError, UnknownNameError
from defend.scaffold import create as scaffold
from defend.stages import STAGES

ROOT = Path(__file__).parents[1]
PLUGINS = sorted(path.parent for path in ROOT.glob("plugins/*/pyproject.toml"))
TRAINED = {"purifier", "victim", "finetuner"}


def python(*arguments, site, cwd):
    """Run a Python module with the packages in `site` installed."""
    path = os.pathsep.join(filter(None, [str(site), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=cwd, env=environment)


def install(package, site):
    """Lay a package out as pip would, from what its own pyproject.toml says."""
    settings = tomllib.loads((package / "pyproject.toml").read_text())
    project, kept = settings["project"], settings["tool"]["setuptools"]["package-data"]
    for file in (path for path in (package / "src").rglob("*") if path.is_file()):
        inner = file.relative_to(package / "src")
        (owner,) = kept
        patterns = ["*.py", *kept[owner]]
        if any(fnmatch.fnmatch(str(inner.relative_to(owner)), pattern) for pattern in patterns):
            (site / inner).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, site / inner)
    name, version = project["name"], project["version"]
    info = site / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    points = project["entry-points"]["defend"]
    (info / "entry_points.txt").write_text("[defend]\n" + "".join(f"{k} = {v}\n" for k, v in points.items()))


def new_workspace(root, name):
    """Make a checkout with the repository's settings and one new plugin a stage; return the files by stage."""
    (root / "plugins").mkdir()
    shutil.copy(ROOT / "pyproject.toml", root)
    return {stage: scaffold.create(name(stage), stage, root / "plugins") for stage in STAGES}


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    """A checkout with one new plugin a stage, my_STAGE, and a folder `site` where all are installed."""
    root = tmp_path_factory.mktemp("workspace")
    new_workspace(root, "my_{}".format)
    for stage in STAGES:
        install(root / "plugins" / f"my_{stage}", root / "site")
    return root


@pytest.mark.parametrize("stage", STAGES)
def test_every_file_is_returned_and_in_its_place(stage, tmp_path):
    files = scaffold.create("haze", stage, tmp_path)
    package = tmp_path / "haze"
    assert files == sorted(path for path in package.rglob("*") if path.is_file())
    assert [path.name for path in tmp_path.iterdir()] == ["haze"], "something was left beside the package"
    source = {"__init__.py", "config.py", "plugin.py", "py.typed", f"{stage}.py"}
    expected = {"LICENSE", "README.md", "pyproject.toml", "tests/test_contract.py"}
    expected |= {f"src/defend_haze/{name}" for name in source}
    if stage in TRAINED:
        expected.add("src/defend_haze/weights/__init__.py")
    if stage == "purifier":
        expected.add("src/defend_haze/training.py")
    assert {path.relative_to(package).as_posix() for path in files} == expected
    for path in files:
        text = path.read_text()
        assert "$" not in text and "NAME" not in text, f"{path.name} was not filled in"
        if path.suffix == ".py":
            compile(text, path.name, "exec")


@pytest.mark.parametrize("stage", STAGES)
def test_the_distribution_is_named_and_ships_its_weights(stage, tmp_path):
    scaffold.create("two_words", stage, tmp_path)
    settings = tomllib.loads((tmp_path / "two_words/pyproject.toml").read_text())
    assert f"defend-core>={'.'.join(__version__.split('.')[:2])}" in settings["project"]["dependencies"]
    assert settings["project"]["name"] == "defend-two-words"
    assert settings["project"]["entry-points"]["defend"] == {"two_words": "defend_two_words.plugin"}
    data = settings["tool"]["setuptools"]["package-data"]["defend_two_words"]
    assert ("weights/*.safetensors" in data) == (stage in TRAINED)
    assert set(settings["tool"]) == {"setuptools"}


@pytest.mark.parametrize("plugin", PLUGINS, ids=lambda path: path.name)
def test_shipped_plugins_have_the_shape_that_new_ones_get(plugin, tmp_path):
    of_all = set.intersection(*(set(scaffold.package_files("NAME", stage)) for stage in STAGES))
    assert {"pyproject.toml", "README.md", "src/defend_NAME/plugin.py", "tests/test_contract.py"} <= of_all
    missing = [path for path in of_all if not (plugin / path.replace("NAME", plugin.name)).is_file()]
    assert missing == []


def test_new_plugins_are_listed(workspace):
    done = python("defend", "list", "--json", site=workspace / "site", cwd=workspace)
    assert done.returncode == 0, done.stderr
    listing = json.loads(done.stdout)
    assert listing["failures"] == []
    found = {(row["stage"], row["name"], row["plugin"]) for row in listing["stages"]}
    assert {(stage, f"my_{stage}", f"defend-my-{stage}") for stage in STAGES} <= found


def test_their_own_tests_pass(workspace):
    report = workspace / "report.xml"
    done = python(
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "-c",
        workspace / "pyproject.toml",
        "--rootdir",
        workspace,
        f"--junitxml={report}",
        workspace / "plugins",
        site=workspace / "site",
        cwd=workspace,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"^\d+ passed in", done.stdout.splitlines()[-1]), done.stdout
    assert set(re.findall(r'classname="plugins\.(\w+)\.', report.read_text())) == {f"my_{stage}" for stage in STAGES}


def test_they_are_clean_by_the_repositorys_rules_however_long_their_name(tmp_path):
    def longest(stage):
        return f"{stage}{'_and_on' * 9}"[: scaffold.LONGEST_NAME].rstrip("_")

    for name in ("my_{}".format, lambda stage: f"x{STAGES.index(stage)}", longest):
        root = tmp_path / name("attack")
        root.mkdir()
        new_workspace(root, name)
        for command in (["check"], ["format", "--check"]):
            done = python("ruff", *command, "--no-cache", ".", site="", cwd=root)
            assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("stage", STAGES)
def test_commands_of_their_readme_are_commands(stage, tmp_path, defend):
    scaffold.create("haze", stage, tmp_path)
    text = (tmp_path / "haze/README.md").read_text()
    titles = ("From the paper to the files", "Recipe of the shipped weights", "Figures", "Deviations and decisions")
    assert re.findall(r"^## (.*)", text, re.MULTILINE) == list(titles)
    shown = re.findall(r"^    defend (\w+) (.*)", text, re.MULTILINE)
    assert {"show"} < {command for command, _ in shown}
    assert "pip install -e . pytest && pytest tests" in text  # which comes with no package of ours
    for command, words in shown:
        usage = defend(command, "--help").out
        for flag in re.findall(r"--[a-z-]+", words):
            assert re.search(rf"{flag}\b", usage), f"defend {command} has no {flag}"


def test_every_template_is_in_the_wheel():
    patterns = tomllib.loads((ROOT / "core/pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["defend"]
    package = scaffold.TEMPLATES.parents[1]
    shipped = {path for pattern in patterns for path in package.glob(pattern)}
    templates = [path for path in scaffold.TEMPLATES.rglob("*") if path.is_file()]
    assert templates and [str(path) for path in templates if path not in shipped] == []


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("Haze", "did you mean 'haze'"),
        ("my-haze", "did you mean 'my_haze'"),
        ("3d haze!", "did you mean 'd_haze'"),
        ("defend_haze", "did you mean 'haze'"),
        ("a__b", "did you mean 'a_b'"),
        ("haze_", "did you mean 'haze'"),
        ("x" * 41, f"did you mean '{'x' * 40}'"),
        ("", "expected a lower-case letter"),
        ("../haze", "did you mean 'haze'"),
        ("class", "reserved"),
        ("match", "reserved"),
        ("purifier", "reserved"),
        ("core", "reserved"),
        ("none", "reserved"),
        ("pgd", "attack 'pgd' is offered by defend-core already"),
        ("apudae", "purifier 'apudae' is offered by defend-apudae already"),
        ("resnet18", "victim 'resnet18' is offered by defend-core already"),
    ],
)
def test_names_that_cannot_be_used_are_refused(name, expected, tmp_path):
    with pytest.raises(ConfigError, match=re.escape(expected)) as refused:
        scaffold.create(name, "purifier", tmp_path)
    assert "\n" not in str(refused.value)
    assert list(tmp_path.iterdir()) == []


def test_a_package_that_is_installed_but_offers_nothing_is_not_shadowed(tmp_path, monkeypatch):
    (tmp_path / "defend_broken.py").write_text("raise ImportError")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ConfigError, match=r"defend_broken is installed already: .* 'my_broken'"):
        scaffold.create("broken", "attack", tmp_path)


def test_an_unknown_stage_is_refused(tmp_path):
    with pytest.raises(UnknownNameError, match="unknown stage 'purifer': did you mean 'purifier'"):
        scaffold.create("haze", "purifer", tmp_path)


def test_what_exists_is_not_overwritten(tmp_path):
    (tmp_path / "haze").mkdir()
    (tmp_path / "haze/mine.txt").write_text("mine")
    (tmp_path / "mist").write_text("mine")
    for name in ("haze", "mist"):
        with pytest.raises(ConfigError, match="not an empty folder"):
            scaffold.create(name, "attack", tmp_path)
    assert [path.name for path in sorted(tmp_path.rglob("*"))] == ["haze", "mine.txt", "mist"]
    with pytest.raises(ConfigError, match="does not exist"):
        scaffold.create("haze", "attack", tmp_path / "nowhere")


def test_an_empty_folder_is_filled(tmp_path):
    (tmp_path / "haze").mkdir()
    assert tmp_path / "haze/README.md" in scaffold.create("haze", "attack", tmp_path)


def test_a_full_disk_leaves_nothing_behind(tmp_path, monkeypatch):
    write, written = Path.write_text, []

    def until_full(path, *arguments, **named):
        if len(written) == 3:
            raise OSError(28, "No space left on device")
        written.append(path)
        return write(path, *arguments, **named)

    monkeypatch.setattr(Path, "write_text", until_full)
    with pytest.raises(DefendError, match="cannot be written: No space left on device"):
        scaffold.create("haze", "attack", tmp_path)
    assert len(written) == 3
    assert list(tmp_path.iterdir()) == []


def test_no_torch_is_imported(tmp_path):
    code = (
        "import sys\nfrom pathlib import Path\nfrom defend.scaffold.create import create\n"
        f"create('haze', 'purifier', Path({str(tmp_path)!r}))\n"
        "assert not {'torch', 'timm', 'numpy'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
