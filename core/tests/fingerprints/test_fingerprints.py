"""Whose source counts: what somebody may be editing, not what is installed, in this environment or one that it sees."""

import importlib
import sys
from types import ModuleType

import attrs
import pytest
import torch
from torch import nn

from defend.fingerprints import code
from defend.fingerprints.code import code_of_stage
from defend.fingerprints.sources import is_edited
from defend.fingerprints.values import code_hash, use_hash


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
    assert is_edited("helpers") is edited


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


def test_of_core_a_stage_is_made_of_what_its_modules_import_of_their_folder():
    victim = code_of_stage("defend.victims.training")
    assert victim == code_of_stage("defend.victims.training") != code_of_stage("defend.finetuners.adversarial")
    own = code._own_imports(["defend.finetuners.adversarial"])
    assert {"defend.finetuners.adversarial", "defend.finetuners.rules"} <= own.keys()
    assert all(name.startswith("defend.finetuners.") for name in own), "its attacks and data sets are around it"


def test_code_that_nobody_can_read_is_like_no_other():
    assert code_of_stage("no.such_module") != code_of_stage("no.such_module")


@attrs.frozen
class Quality:
    value: int


class Holder:
    """A plain object of somebody's own."""

    def __init__(self, value):
        self.value, self.itself = value, self


class Used(nn.Module):
    def __init__(self, held=None, mean=0.0, kept=0.0):
        super().__init__()
        self.layer = nn.Linear(2, 2)
        nn.init.constant_(self.layer.weight, 1.0)
        nn.init.constant_(self.layer.bias, mean)
        self.held = held
        self.register_buffer("kept", torch.tensor(kept), persistent=False)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"mean": 1.0}, {"mean": 2.0}),
        ({"kept": 1.0}, {"kept": 2.0}),
        ({"held": 75}, {"held": 5}),
        ({"held": [{"a": (1, None)}]}, {"held": [{"a": (1, 2)}]}),
        ({"held": torch.zeros(2)}, {"held": torch.ones(2)}),
        ({"held": Quality(1)}, {"held": Quality(2)}),
        ({"held": Holder(1)}, {"held": Holder(2)}),
        ({"held": lambda x: x + 1}, {"held": lambda x: x + 2}),
    ],
)
def test_a_network_that_is_used_is_told_apart_by_all_that_it_holds(one, other):
    assert use_hash(Used(**one)) == use_hash(Used(**one)) != use_hash(Used(**other))


SCALE = 0.5


def scaled(images):
    return deeper(images)


def deeper(images):
    return SCALE * images if images is not None else scaled(images)  # in a circle


class Scaling(nn.Module):
    def forward(self, images):
        return deeper(images)


@pytest.mark.parametrize("make", [lambda: Used(held=scaled), Scaling])
def test_what_code_of_ones_own_reads_of_its_module_counts(monkeypatch, make):
    before = use_hash(make()), code_hash(make())
    assert (use_hash(make()), code_hash(make())) == before
    monkeypatch.setattr(sys.modules[__name__], "SCALE", 0.25)
    assert use_hash(make()) != before[0] and code_hash(make()) != before[1]


HELPER = """
SHIFT = 0.5


def shift(images):
    return images + SHIFT


class Base:
    def turn(self, images):
        return shift(images)
"""
VICTIM = """
import functools

import fingerprinted_helper
import torch
from fingerprinted_helper import Base, shift
from torch import nn


def by(number):
    return lambda images: images + number


class Reads(nn.Module):
    def forward(self, images):
        return fingerprinted_helper.shift(images)


class Inherits(nn.Module, Base):
    def forward(self, images):
        return self.turn(images)


class Holds(nn.Module):
    def __init__(self):
        super().__init__()
        self.before = functools.partial(shift)
        self.other = Base()


class Uses(nn.Module):
    kind = Base


class Encloses(nn.Module):
    def __init__(self):
        super().__init__()
        self.before = by(fingerprinted_helper.SHIFT)


class Hooked(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_forward_pre_hook(lambda module, given: shift(*given))
"""


@pytest.mark.parametrize("name", ["Reads", "Inherits", "Holds", "Uses", "Encloses", "Hooked"])
def test_a_helper_beside_a_file_of_ones_own_counts(tmp_path, monkeypatch, name):
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # changed within a second
    found = []
    for shift in ("0.5", "0.5", "0.25"):
        (tmp_path / "fingerprinted_helper.py").write_text(HELPER.replace("0.5", shift))
        (tmp_path / "fingerprinted.py").write_text(VICTIM)
        importlib.invalidate_caches()
        module = getattr(importlib.import_module("fingerprinted"), name)()
        found.append((use_hash(module), code_hash(module)))
        for each in ("fingerprinted_helper", "fingerprinted"):
            del sys.modules[each]
    assert found[0] == found[1]
    assert found[0][0] != found[2][0] and found[0][1] != found[2][1]


def test_the_code_of_a_network_is_not_what_it_has_learnt():
    assert code_hash(Used(mean=1.0, kept=1.0)) == code_hash(Used()) != code_hash(Used(held=1))


def test_a_network_that_is_used_may_hold_what_no_hash_can_take():
    alike = Used(held=object()), Used(held=iter(())), Used(held=object()).eval().requires_grad_(False)
    assert len({use_hash(each) for each in alike}) == 1
