"""The promises of the layout: cheap discovery, one way of imports, no tool settings in plugins, no pickle."""

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = sorted([*ROOT.glob("core/src/**/*.py"), *ROOT.glob("plugins/*/src/**/*.py")])
PLUGINS = sorted(path.parent for path in ROOT.glob("plugins/*/pyproject.toml"))


@pytest.mark.parametrize(
    "arguments", [["--help"], ["list"], ["show", "apudae"], ["show", "resnet18"], ["show", "pgd"], ["recipe", "--list"]]
)
def test_discovery_never_imports_torch(arguments):
    code = (
        "import sys\nfrom defend.cli import main\n"
        f"try:\n    main({arguments!r})\nexcept SystemExit as error:\n    assert not error.code, error.code\n"
        "heavy = {'torch', 'timm', 'torchvision', 'sklearn', 'numpy', 'matplotlib', 'accelerate'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_import_defend_is_cheap():
    code = "import sys, defend; assert 'torch' not in sys.modules; assert defend.Defence; assert 'torch' in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_run_imports_what_it_needs_alone():
    """Each of these takes seconds at the start of a run that uses none of it, as with a module of one's own."""
    code = (
        "import sys, defend.evaluation.runner, defend.records.pictures\n"
        "heavy = {'timm', 'torchvision', 'sklearn', 'scipy', 'matplotlib', 'accelerate', 'torch._dynamo'}\n"
        "heavy &= set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_what_says_that_it_imports_no_torch_does_not():
    """What a module promises of itself is held, so that no list of modules has to be kept."""
    heavy, promised, broken = {"torch", "timm", "torchvision", "sklearn", "accelerate"}, 0, []
    for path in SOURCES:
        tree = ast.parse(path.read_text())
        if not re.search(r"(?i)\b(imports?|takes) (no|neither)\b[^.]*torch", ast.get_docstring(tree) or ""):
            continue
        promised += 1
        for node in tree.body:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            if heavy & {name.partition(".")[0] for name in names}:
                broken.append(path.name)
    assert promised > 20 and broken == []


def test_hooks_stand_on_one_page_without_bodies():
    tree = ast.parse((ROOT / "core/src/defend/hookspecs.py").read_text())
    hooks = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
    stages = ("attack", "purifier", "detector", "victim", "finetuner", "dataset")
    assert {hook.name for hook in hooks} == {f"defend_{name}s" for name in (*stages, "table", "recipe")}
    for hook in hooks:
        (only,) = hook.body
        assert isinstance(only, ast.Expr), f"{hook.name} has a body"
        assert hook.returns is not None, f"{hook.name} has no type"


@pytest.mark.parametrize("plugin", PLUGINS, ids=lambda path: path.name)
def test_plugins_hold_no_tool_settings(plugin):
    settings = tomllib.loads((plugin / "pyproject.toml").read_text())
    assert set(settings.get("tool", {})) <= {"setuptools"}
    assert settings["project"]["entry-points"]["defend"]
    assert settings["project"]["name"] == f"defend-{plugin.name.replace('_', '-')}"


def test_nothing_is_unpickled():
    forbidden = re.compile(r"torch\.load\(|pickle\.load|allow_pickle(?!=False)|import pickle|joblib")
    tensors_alone = 'torch.load(path, map_location="cpu", weights_only=True)'  # of files that users have, in one place
    found = [path.stem for path in SOURCES if tensors_alone in path.read_text()]
    assert found == ["foreign"]
    assert [str(path) for path in SOURCES if forbidden.search(path.read_text().replace(tensors_alone, ""))] == []


def test_core_imports_and_asks_for_no_plugin():
    names = "|".join({name for plugin in PLUGINS for name in (plugin.name, f"defend_{plugin.name}")})
    forbidden = re.compile(rf"^\s*(import|from) ({names})\b|\bname (==|in) .*({names})")
    found = [
        f"{path.name}: {line.strip()}"
        for path in ROOT.glob("core/src/defend/**/*.py")
        for line in path.read_text().splitlines()
        if forbidden.search(line)
    ]
    assert found == []


def test_shipped_weights_are_small_and_have_cards():
    from defend.weights.card import read_card

    files = [*ROOT.glob("core/src/**/*.safetensors"), *ROOT.glob("plugins/*/src/**/*.safetensors")]
    assert len(files) >= 2
    for file in files:
        assert file.stat().st_size < 25_000_000, file.name
        card = read_card(file)
        assert card.figures and card.recipe and card.licence, file.name
