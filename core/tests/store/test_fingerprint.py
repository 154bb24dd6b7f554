"""Whose source counts: what somebody may be editing, not what is installed, in this environment or one that it sees."""

import importlib
import sys
from types import ModuleType

import pytest

from defend.store.fingerprint import _is_edited, code_of_stage


@pytest.mark.parametrize(
    ("file", "edited"),
    [
        ("/home/me/work/helpers/__init__.py", True),
        ("/usr/lib/python3/dist-packages/helpers/__init__.py", False),
        ("/opt/other/lib/python3.11/site-packages/helpers/__init__.py", False),
    ],
)
def test_what_is_installed_elsewhere_is_not_edited(file, edited, monkeypatch):
    module = ModuleType("helpers")
    module.__file__ = file
    monkeypatch.setitem(sys.modules, "helpers", module)
    assert _is_edited("helpers") is edited


PACKAGE = {
    "__init__": "",
    "stage": "from made_up import model\nfrom made_up.losses import loss\n\ndef train():\n    from . import lazily\n",
    "model": "from defend.train import Loss\n",
    "losses": "from . import __init__\nfrom .deeper import weight\nloss = 1\n",
    "deeper": "weight = 1.0\n",
    "lazily": "",
    "tables": "from made_up import stage\n",
}


@pytest.mark.parametrize(
    ("changed", "counts"),
    [("stage", True), ("model", True), ("losses", True), ("deeper", True), ("lazily", True), ("tables", False)],
)
def test_a_stage_is_made_of_what_its_modules_import_of_their_package(tmp_path, monkeypatch, changed, counts):
    folder = tmp_path / "made_up"
    folder.mkdir()
    for name, source in PACKAGE.items():
        (folder / f"{name}.py").write_text(source)
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()
    before = code_of_stage("made_up.stage", "defend.train")
    assert code_of_stage("defend.train", "made_up.stage") == before
    (folder / f"{changed}.py").write_text(f"# changed\n{PACKAGE[changed]}")
    assert (code_of_stage("made_up.stage", "defend.train") != before) is counts
    for name in [name for name in sys.modules if name.partition(".")[0] == "made_up"]:
        del sys.modules[name]


def test_of_core_a_stage_is_made_of_the_modules_that_are_named_alone():
    victim = code_of_stage("defend.victims.training")
    assert victim == code_of_stage("defend.victims.training") != code_of_stage("defend.finetuners.adversarial")


def test_code_that_nobody_can_read_is_like_no_other():
    assert code_of_stage("no.such_module") != code_of_stage("no.such_module")
