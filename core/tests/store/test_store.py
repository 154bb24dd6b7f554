"""The store of adversarial batches: what a key covers, what comes back, what is noticed, what goes first."""

import copy
import functools
import importlib
import json
import math
import os
import pickle
import resource
import struct
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save
from torch import nn

from defend.assembly.prepare import fold_batch_norm
from defend.cli import main
from defend.custom.build import Function
from defend.datasets.normalised import NormalisedVictim
from defend.errors import ConfigError
from defend.fingerprints import code, sources
from defend.fingerprints.code import code_version, modules_of, versions_of
from defend.fingerprints.values import batch_key, module_hash
from defend.plugins import registry
from defend.store import entry
from defend.store.store import Store, Verified, parse_size
from defend.testing.toys import TinyVictim

ROOMY = 10**9
ABOUT = {"victim": "tiny", "attack": "pgd", "dataset": "toy", "eps": 0.1, "images": 2}
TENSORS = {"images": torch.linspace(0, 1, 2 * 3 * 8 * 8).view(2, 3, 8, 8), "overshoot": torch.zeros(2)}


def key(number=0):
    return batch_key(number=number)


def path_of(store, name):
    return store.folder / name[:2] / f"{name}.safetensors"


def same_bits(one, other):
    flat = [tensor.contiguous().reshape(-1).view(torch.uint8) for tensor in (one, other)]
    return one.dtype == other.dtype and one.stride() == other.stride() and torch.equal(*flat)


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "store", ROOMY)


@pytest.fixture
def kept(store):
    """A store with one entry, and the entry's file."""
    assert store.put(key(), TENSORS, ABOUT)
    return store, path_of(store, key())


# ---- keys ----

scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary()
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3), max_leaves=6
)


def in_order(value):
    """The value with the entries of its dictionaries in an order of their own."""
    if isinstance(value, dict):
        return {name: in_order(value[name]) for name in sorted(value)}
    return [in_order(item) for item in value] if isinstance(value, list) else value


@given(st.dictionaries(st.text(min_size=1), values, min_size=1, max_size=4), st.randoms())
@settings(max_examples=50)
def test_the_order_of_parts_does_not_matter(parts, random):
    shuffled = list(parts.items())
    random.shuffle(shuffled)
    assert batch_key(**parts) == batch_key(**copy.deepcopy(dict(shuffled)))
    assert batch_key(nested=parts) == batch_key(nested=dict(shuffled))


@given(st.dictionaries(st.text(min_size=1), values, min_size=1, max_size=4), values, st.data())
@settings(max_examples=50)
def test_any_other_part_is_another_key(parts, other, data):
    name = data.draw(st.sampled_from(sorted(parts)))
    if repr(in_order(parts[name])) != repr(in_order(other)):
        assert batch_key(**parts) != batch_key(**{**parts, name: other})
    assert batch_key(**parts) != batch_key(**parts, **{max(parts) + "x": other})
    assert batch_key(**parts) != batch_key(**{key: value for key, value in parts.items() if key != name})


def test_what_looks_alike_is_told_apart():
    alike = [
        1,
        1.0,
        True,
        "1",
        b"1",
        [1],
        (1,),
        {1},
        {"1": 1},
        None,
        "None",
        0.0,
        -0.0,
        torch.tensor(1),
        math.inf,
        [[1], 2],
        [1, [2]],
        [1, 2],
        [2, 1],
    ]
    assert len({batch_key(part=value) for value in alike}) == len(alike)
    assert batch_key(part={0, 8}) == batch_key(part={8, 0})  # which Python walks in different orders


def test_tensors_enter_by_type_shape_and_bytes():
    images = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    changed = images.clone()
    changed[3, 0, 7, 7] = torch.nextafter(changed[3, 0, 7, 7], torch.tensor(2.0))
    others = [
        changed,
        images.double(),
        images.view(1, 4, 8, 8),
        images[:3],
        images.bfloat16(),
        images.flip(0),
        images.view(torch.int32),
    ]
    assert len({batch_key(images=tensor) for tensor in [images, *others]}) == 1 + len(others)
    assert batch_key(images=images) == batch_key(images=images.to(memory_format=torch.channels_last))
    assert batch_key(images=images) == batch_key(images=images.clone().requires_grad_())
    assert batch_key(images=torch.zeros(0, 3)) != batch_key(images=torch.zeros(3, 0))


def test_attacks_enter_with_their_options():
    def built(name, **values):
        found = registry().find("attack", name)
        return found.spec.resolve(found.spec.build)(found.config(values))

    assert batch_key(attack=built("pgd")) == batch_key(attack=built("pgd"))
    others = [built("pgd"), built("pgd", steps=7), built("bim"), built("apgd_ce"), built("apgd_dlr"), built("noise")]
    assert len({batch_key(attack=attack) for attack in others}) == len(others)


class Plain(nn.Module):
    """Has something of everything that a forward pass may depend on."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.norm = nn.BatchNorm1d(4)
        self.register_buffer("mean", torch.zeros(4), persistent=False)
        self.temperature = 1.0
        self.table = torch.zeros(3)
        self.activation = nn.functional.relu
        self.pick = functools.partial(torch.sum, dim=1)
        self.parts = nn.ModuleDict({"a": nn.Identity(), "b": nn.ReLU()})

    def forward(self, images):
        return images


class Renamed(Plain):
    pass


def turn_parts(module):
    module.parts = nn.ModuleDict(reversed(list(module.parts.items()))).eval()


def fill(tensor):
    with torch.no_grad():
        tensor.view(-1)[0] += 1


CHANGES = {
    "a parameter": lambda module: fill(module.layer.weight),
    "a buffer": lambda module: fill(module.norm.running_mean),
    "a buffer that no state_dict has": lambda module: fill(module.mean),
    "a plain tensor": lambda module: fill(module.table),
    "a number": lambda module: setattr(module, "temperature", 2.0),
    "a function": lambda module: setattr(module, "activation", nn.functional.gelu),
    "a built-in function": lambda module: setattr(module, "activation", torch.tanh),
    "an anonymous function": lambda module: setattr(module, "activation", lambda value: value + 1),
    "an argument of a function": lambda module: setattr(module, "pick", functools.partial(torch.sum, dim=0)),
    "a part's class": lambda module: setattr(module, "norm", nn.Identity()),
    "a part's option": lambda module: setattr(module.norm, "eps", 1e-3),
    "the order of parts": turn_parts,
    "training": lambda module: module.train(),
    "a hook": lambda module: module.register_forward_hook(lambda *_: None),
    "a type": lambda module: module.double(),
    "the class": lambda module: setattr(module, "__class__", Renamed),
}


def plain():
    torch.manual_seed(0)
    return Plain().eval()


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_whatever_decides_a_networks_output_decides_its_hash(change):
    module = plain()
    before = module_hash(module)
    assert before == module_hash(plain()) == module_hash(copy.deepcopy(module))
    change(module)
    assert module_hash(module) != before


def test_all_these_changes_differ_from_each_other():
    found = set()
    for change in CHANGES.values():
        module = plain()
        change(module)
        found.add(module_hash(module))
    assert len(found) == len(CHANGES)


def test_a_hash_is_no_less_of_a_network_that_was_used_or_frozen_or_folded():
    module, images = TinyVictim(), torch.rand(2, 1, 28, 28)
    before = module_hash(module)
    logits = module(images)
    assert module_hash(module.requires_grad_(False)) == before
    assert torch.equal(module(images), logits)

    def folded(seed):
        torch.manual_seed(seed)
        network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU()).eval()
        result, done = fold_batch_norm(network, images)
        assert done
        return module_hash(result), module_hash(network)

    assert folded(0) == folded(0)
    assert len({*folded(0), *folded(1)}) == 4
    turned = nn.Conv2d(3, 2, 3)
    assert module_hash(turned) != module_hash(copy.deepcopy(turned).to(memory_format=torch.channels_last))


def test_a_class_made_in_a_function_enters_with_what_it_closes_over():
    def build(sigma, twice=lambda value: value):
        class Blur(nn.Module):
            def forward(self, images):
                return twice(images) * sigma

        return Blur()

    assert module_hash(build(1)) == module_hash(build(1))
    others = [build(1), build(2), build(1, lambda value: 2 * value)]
    assert len({module_hash(module) for module in others}) == 3


@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_what_was_set_on_a_module_of_torchscript_enters_its_hash():
    def build(**attributes):
        torch.manual_seed(0)
        script = torch.jit.script(nn.Sequential(nn.Linear(2, 2)))
        for name, value in attributes.items():
            setattr(next(script.children()) if name == "within" else script, name, value)
        return script

    assert module_hash(build(random=True)) == module_hash(build(random=True))
    found = [build(), build(random=True), build(random=False), build(within=1)]
    assert len({module_hash(module) for module in found}) == 4


def test_a_network_that_refers_to_itself_has_a_hash():
    def build(value):
        module = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
        for parameter in module.parameters():
            nn.init.constant_(parameter, value)
        object.__setattr__(module[0], "whole", module)
        module.step = module.forward
        return module

    assert module_hash(build(1)) == module_hash(build(1))
    assert module_hash(build(1)) != module_hash(build(2))


def test_what_cannot_be_told_apart_is_never_found_again():
    module = TinyVictim()
    module.lock = threading.Lock()
    assert module_hash(module) != module_hash(module)
    sparse = torch.eye(3).to_sparse()
    assert batch_key(part=sparse) != batch_key(part=sparse)
    deep = []
    for _ in range(100_000):
        deep = [deep]
    assert batch_key(part=deep) != batch_key(part=deep)


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Return the folder of an importable package, and a way to forget what is cached of it."""
    folder = tmp_path / "site" / "made_up_attack"
    (folder / "inner").mkdir(parents=True)
    (folder / "__init__.py").write_text("")
    (folder / "inner" / "steps.py").write_text("STEPS = 1\n")
    monkeypatch.syspath_prepend(str(folder.parent))
    yield folder
    code._code_version.cache_clear()


def version(*modules):
    code._code_version.cache_clear()
    return code_version(*modules)


def test_the_version_changes_with_any_source_file_of_a_plugin(package):
    bare, first = version(), version("made_up_attack:build")
    assert bare == version() == version("defend.attacks.iterated:pgd")
    assert bare != first == version("made_up_attack.inner:build")
    (package / "inner" / "steps.py").write_text("STEPS = 2\n")
    second = version("made_up_attack:build")
    (package / "more.py").touch()
    third = version("made_up_attack:build")
    assert len({first, second, third}) == 3
    assert version() == bare


@pytest.mark.parametrize("library", ["defend-core", "torch", "timm"])
def test_the_version_changes_with_that_of_a_library(library, monkeypatch):
    before = version()
    true = code.importlib.metadata.version
    monkeypatch.setattr("importlib.metadata.version", lambda name: "0.0" if name == library else true(name))
    changed = version()
    monkeypatch.undo()
    assert changed != before == version()


def test_a_module_without_a_file_has_a_version_of_its_own(monkeypatch):
    monkeypatch.setitem(sys.modules, "typed_in", type(sys)("typed_in"))
    assert version("typed_in:build") != version("typed_in:build")


# ---- what comes back ----

dtypes = st.sampled_from(
    [torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.uint8, torch.bool]
)


@st.composite
def tensors(draw):
    shape = draw(st.lists(st.integers(0, 3), max_size=4))
    dtype = draw(dtypes)
    count = math.prod(shape) * torch.empty(0, dtype=dtype).element_size()
    data = torch.tensor(list(draw(st.binary(min_size=count, max_size=count))), dtype=torch.uint8)
    if dtype == torch.bool:
        data = data % 2
    tensor = data.view(dtype).view(shape)  # every pattern of bits: NaNs with their payloads too
    return tensor.permute(draw(st.permutations(range(len(shape)))))


@given(st.dictionaries(st.text("abcxyz_", min_size=1), tensors(), min_size=1, max_size=3), values)
@settings(max_examples=50)
def test_what_was_put_comes_back_to_the_bit(put, part):
    with tempfile.TemporaryDirectory() as folder:
        store = Store(Path(folder), ROOMY)
        name = batch_key(part=part)
        assert store.put(name, put, {})
        found = store.get(name)
        assert set(found) == set(put)
        assert all(same_bits(found[each], put[each].clone()) for each in put)
        assert store.get(batch_key(part=[part])) is None
        assert store.damaged == 0


@pytest.mark.parametrize("channels", [1, 3])
def test_the_layout_comes_back_too(store, channels):
    images = torch.rand(2, channels, 4, 4).to(memory_format=torch.channels_last)
    store.put(key(), {"images": images, "view": images[:1]}, ABOUT)
    found = store.get(key())
    assert found["images"].stride() == images.stride()
    assert torch.equal(found["view"], images[:1])
    found["images"].add_(1)  # what comes back is the caller's own
    assert torch.equal(store.get(key())["images"], images)


def test_entries_tell_what_is_kept_last_used_first(store):
    for number in range(3):
        assert store.put(key(number), TENSORS, {**ABOUT, "images": number})
    store.get(key(1))
    entries = store.entries()
    assert [entry.about["images"] for entry in entries] == [1, 2, 0]
    assert entries[0].key == key(1)
    assert entries[0].bytes == path_of(store, key(1)).stat().st_size
    assert entries[0].used >= entries[1].used >= entries[2].used


def test_putting_again_replaces(kept):
    store, _ = kept
    assert store.put(key(), {"images": torch.ones(1)}, {"images": 9})
    assert torch.equal(store.get(key())["images"], torch.ones(1))
    assert [entry.about for entry in store.entries()] == [{"images": 9}]


@pytest.mark.parametrize("name", ["", "../../outside", "A" * 64, "a" * 63, "a" * 64 + "\n"])
def test_only_hashes_are_keys(store, name):
    for use in (store.get, lambda name: store.put(name, TENSORS, {})):
        with pytest.raises(ValueError, match="SHA-256"):
            use(name)
    assert not store.folder.exists()


# ---- damage ----


def assert_noticed(store, path):
    """The damaged entry is not used, is deleted, counted, and can be made anew."""
    before = store.damaged
    assert store.get(key()) is None
    assert store.damaged == before + 1
    assert not path.exists()
    assert store.put(key(), TENSORS, ABOUT)
    assert same_bits(store.get(key())["images"], TENSORS["images"])
    assert store.damaged == before + 1


def with_another_format(data):
    return data.replace(b'"defend.store":"1"', b'"defend.store":"2"')


DAMAGE = {
    "empty": lambda data: b"",
    "a few bytes": lambda data: data[:5],
    "cut in the header": lambda data: data[:100],
    "cut in the data": lambda data: data[:-1],
    "longer": lambda data: data + b"\0",
    "a pickle": lambda data: pickle.dumps({"images": [1, 2]}),
    "another format": with_another_format,
    "another program's": lambda data: save(TENSORS),
    "an endless header": lambda data: struct.pack("<Q", 2**63) + data[8:],
    "nested without end": lambda data: struct.pack("<Q", 10**5) + b"[" * 10**5,
    "zeros": lambda data: bytes(len(data)),
    "text": lambda data: b"<html>404</html>" * 20,
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_damage_is_noticed(kept, damage):
    store, path = kept
    data = damage(path.read_bytes())
    assert data != path.read_bytes()
    path.write_bytes(data)
    assert len(store.entries()) == 1
    assert_noticed(store, path)
    path.write_bytes(data)
    assert store.verify() == Verified(checked=1, damaged=1, freed=len(data))
    assert store.entries() == []


@given(st.data())
@settings(max_examples=60)
def test_one_flipped_bit_anywhere_is_noticed(data):
    with tempfile.TemporaryDirectory() as folder:
        store = Store(Path(folder), ROOMY)
        store.put(key(), TENSORS, ABOUT)
        path = path_of(store, key())
        whole = bytearray(path.read_bytes())
        (header,) = struct.unpack("<Q", whole[:8])
        place = data.draw(st.integers(0, 8 + header) | st.integers(0, len(whole) - 1))
        whole[place] ^= 1 << data.draw(st.integers(0, 7))
        path.write_bytes(whole)
        store.entries()  # damage or not, the list can be made
        assert_noticed(store, path)


@given(st.integers(0, 10**6))
@settings(max_examples=30)
def test_a_file_cut_anywhere_is_noticed(length):
    with tempfile.TemporaryDirectory() as folder:
        store = Store(Path(folder), ROOMY)
        store.put(key(), TENSORS, ABOUT)
        path = path_of(store, key())
        os.truncate(path, length % path.stat().st_size)
        assert_noticed(store, path)


def test_an_entry_under_anothers_key_is_noticed(kept):
    store, path = kept
    other = path_of(store, key(1))
    for check in (lambda: store.get(key(1)) is None, lambda: store.verify().damaged == 1):
        other.parent.mkdir(exist_ok=True)
        other.write_bytes(path.read_bytes())
        assert check()
        assert not other.exists()
    assert store.damaged == 1
    assert store.get(key()) is not None


def test_an_entry_of_another_format_is_made_anew(store, monkeypatch):
    with monkeypatch.context() as later:
        later.setattr(entry, "FORMAT", "2")
        store.put(key(), TENSORS, ABOUT)
    assert [entry.about for entry in store.entries()] == [{}]
    assert_noticed(store, path_of(store, key()))


def test_verify_leaves_what_is_sound(store):
    for number in range(5):
        store.put(key(number), TENSORS, ABOUT)
    path = path_of(store, key(3))
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[:-4] + b"....")
    told = []
    assert store.verify(told.append) == Verified(checked=5, damaged=1, freed=size)
    assert told == [1] * 5
    assert {entry.key for entry in store.entries()} == {key(number) for number in (0, 1, 2, 4)}


# ---- room ----


def size_of_one(tmp_path):
    scratch = Store(tmp_path / "scratch", ROOMY)
    scratch.put(key(), TENSORS, ABOUT)
    return scratch.entries()[0].bytes


def test_the_least_recently_used_goes_first(tmp_path):
    one = size_of_one(tmp_path)
    store = Store(tmp_path / "store", one * 4)
    for number in range(4):
        assert store.put(key(number), TENSORS, ABOUT)
    assert len(store.entries()) == 4
    assert store.get(key(0)) is not None
    assert store.put(key(4), TENSORS, ABOUT)
    left = {entry.key for entry in store.entries()}
    assert {key(0), key(4)} <= left
    assert key(1) not in left
    assert store.get(key(1)) is None
    assert store.damaged == 0


@given(st.lists(st.integers(0, 12), max_size=30), st.integers(1, 6))
@settings(max_examples=25)
def test_the_limit_holds_and_the_newest_stays(numbers, room):
    with tempfile.TemporaryDirectory() as folder:
        limit = room * size_of_one(Path(folder))
        store = Store(Path(folder) / "store", limit)
        for number in numbers:
            assert store.put(key(number), TENSORS, ABOUT)
            assert sum(entry.bytes for entry in store.entries()) <= limit
            assert store.get(key(number)) is not None


def test_what_others_keep_counts(tmp_path):
    one = size_of_one(tmp_path)
    stores = [Store(tmp_path / "store", 32 * one) for _ in range(2)]
    for number in range(100):
        assert stores[number % 2].put(key(number), TENSORS, ABOUT)
        assert len(stores[0].entries()) <= 32 + 2 * 2  # a sixteenth each, until it is counted again


def test_an_entry_over_the_limit_alone_is_not_kept(tmp_path, kept):
    store, path = kept
    small = Store(store.folder, path.stat().st_size - 1)
    assert not small.put(key(1), TENSORS, ABOUT)
    assert small.get(key()) is not None  # and it pushed nothing else out


def test_a_limit_of_zero_touches_nothing(tmp_path, kept):
    off = Store(tmp_path / "off", 0)
    assert not off.put(key(), TENSORS, ABOUT)
    assert off.get(key()) is None
    assert off.entries() == []
    assert off.clear() == 0
    assert off.verify() == Verified(0, 0, 0)
    assert not off.folder.exists()
    store, path = kept
    path.write_bytes(b"damaged")
    assert Store(store.folder, 0).get(key()) is None
    assert path.exists()


def test_what_a_killed_process_left_behind_goes(store):
    store.put(key(), TENSORS, ABOUT)
    folder = path_of(store, key()).parent
    old, new = (folder / f".{key()}.safetensors.{name}.part" for name in ("old", "new"))
    for file in (old, new):
        file.write_bytes(b"half")
    os.utime(old, (1, 1))
    other = folder / "notes.txt"
    other.touch()
    assert len(store.entries()) == 1
    fresh = Store(store.folder, ROOMY)
    fresh.put(key(1), TENSORS, ABOUT)
    assert [file.exists() for file in (old, new)] == [False, True]
    freed = sum(entry.bytes for entry in store.entries()) + 4
    assert store.clear() == freed
    assert [path for path in store.folder.rglob("*") if path.is_file()] == [other]  # nothing that is not its own


def test_clear_frees_everything(store):
    for number in range(3):
        store.put(key(number), TENSORS, ABOUT)
    size = sum(entry.bytes for entry in store.entries())
    assert store.clear() == size > 0
    assert store.entries() == []
    assert list(store.folder.iterdir()) == []
    assert store.put(key(), TENSORS, ABOUT)


def test_an_entry_may_vanish_at_any_time(kept):
    store, path = kept
    assert store.verify(lambda count: path.unlink()) == Verified(0, 0, 0)
    assert store.get(key()) is None
    assert store.damaged == 0


# ---- disks ----


def test_a_folder_that_cannot_be_made_is_no_error(tmp_path):
    (tmp_path / "file").touch()
    store = Store(tmp_path / "file" / "store", ROOMY)
    with pytest.warns(UserWarning, match="are not kept for other runs"):
        assert not store.put(key(), TENSORS, ABOUT)
    assert store.get(key()) is None
    assert store.entries() == []


def test_a_read_only_store_serves(kept, monkeypatch):
    store, _ = kept

    def refused(*args, **kwargs):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(os, "utime", refused)
    monkeypatch.setattr(tempfile, "mkstemp", refused)
    assert same_bits(store.get(key())["images"], TENSORS["images"])
    with pytest.warns(UserWarning, match="are not kept for other runs: .* Read-only file system"):
        assert not store.put(key(1), TENSORS, ABOUT)
    assert store.damaged == 0


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes to read-only folders")
def test_a_read_only_folder_is_no_error(kept):
    store, path = kept
    for folder in (store.folder, path.parent):
        folder.chmod(0o555)
    try:
        with pytest.warns(UserWarning, match="are not kept for other runs"):
            assert not store.put(key(1), TENSORS, ABOUT)
        assert store.get(key()) is not None
        assert store.clear() == 0
    finally:
        for folder in (store.folder, path.parent):
            folder.chmod(0o755)


def test_a_full_disk_is_no_error_and_leaves_nothing(store):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))  # Python ignores the signal: writing fails
    try:
        with pytest.warns(UserWarning, match="are not kept for other runs: .* File too large"):
            done = store.put(key(), TENSORS, ABOUT)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not done
    assert [path for path in store.folder.rglob("*") if path.is_file()] == []
    assert store.put(key(), TENSORS, ABOUT)


# ---- several processes ----

OTHER = textwrap.dedent("""
    import sys, torch
    from pathlib import Path
    from defend.fingerprints.values import batch_key, module_hash
    from defend.store.store import Store

    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.BatchNorm2d(2), torch.nn.ReLU())
    store = Store(Path(sys.argv[1]), int(sys.argv[2]))
    assert store.put(module_hash(network), {"images": torch.ones(4)}, {"images": 64})
    print("go", flush=True)
    for number in range(200):
        name, images = batch_key(number=number % 40), torch.full((64, 16), float(number % 40))
        known = store.get(name)
        assert known is None or torch.equal(known["images"], images)
        assert store.put(name, {"images": images}, {"images": 64})
    assert store.damaged == 0
""")


def test_two_processes_write_at_once(tmp_path):
    folder, limit = tmp_path / "store", 30 * 5000
    command = [sys.executable, "-c", OTHER, str(folder), str(limit)]
    store = Store(folder, limit)
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as other:
        torch.manual_seed(0)
        network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU())
        assert other.stdout.readline() == "go\n"  # from now on both write
        assert store.get(module_hash(network)) is not None  # found, as a hash is the same in every process
        number = 0
        while other.poll() is None:
            number += 1
            name, images = key(number % 40), torch.full((64, 16), float(number % 40))
            known = store.get(name)
            assert known is None or torch.equal(known["images"], images)
            assert store.put(name, {"images": images}, {"images": 64})
        assert other.returncode == 0, other.stderr.read()
    assert store.damaged == 0
    checked = store.verify()
    assert checked.damaged == 0
    assert 10 < checked.checked <= 40
    assert sum(entry.bytes for entry in store.entries()) <= limit * (1 + 2 / 16)
    assert list(folder.rglob("*.part")) == []


# ---- the user's store, and the command ----


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("2GB", 2 * 10**9),
        ("0", 0),
        ("0GB", 0),
        ("500 MB", 5 * 10**8),
        ("1.5gib", 3 * 2**29),
        ("1000", 1000),
        ("10b", 10),
        (" 3kB ", 3000),
        ("2TiB", 2**41),
    ],
)
def test_sizes(text, size, monkeypatch):
    assert parse_size(text) == size
    monkeypatch.setenv("DEFEND_CACHE_LIMIT", text)
    assert Store.users().limit == size


@pytest.mark.parametrize("text", ["2 gigs", "-1GB", "GB", "1e9", "nan", "inf", "1,5GB", "٢GB", "9" * 20, "0x10", " "])
def test_other_sizes_are_refused(text, monkeypatch):
    monkeypatch.setenv("DEFEND_CACHE_LIMIT", text)
    with pytest.raises(ConfigError, match=r"DEFEND_CACHE_LIMIT=.* expected for example 2GB") as refused:
        Store.users()
    assert "\n" not in str(refused.value)


def test_the_users_store_is_in_the_users_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("DEFEND_CACHE_DIR", str(tmp_path / "mine"))
    for unset in ("", None):
        monkeypatch.setenv("DEFEND_CACHE_LIMIT", "") if unset == "" else monkeypatch.delenv("DEFEND_CACHE_LIMIT")
        store = Store.users()
        assert (store.folder, store.limit) == (tmp_path / "mine" / "adversarial", 2 * 10**9)
    assert not (tmp_path / "mine").exists()


@pytest.fixture
def defend(capsys):
    def run(*arguments):
        with pytest.raises(SystemExit) as stopped:
            main(["cache", *arguments])
        out, error = capsys.readouterr()
        return stopped.value.code, out, error

    return run


@pytest.fixture
def users(monkeypatch):
    monkeypatch.delenv("DEFEND_CACHE_LIMIT", raising=False)
    store = Store.users()
    for number in range(5):
        about = {**ABOUT, "attack": "fgsm" if number == 4 else "pgd", "eps": math.inf if number == 4 else 0.1}
        assert store.put(key(number), TENSORS, about)
    return store


def test_the_command_lists_what_is_kept(defend, users):
    code, out, _ = defend()
    assert code == 0
    lines = out.splitlines()
    assert lines[0].split() == ["victim", "attack", "data", "set", "eps", "images", "batches", "size", "last", "used"]
    assert lines[1].split()[:6] == ["tiny", "fgsm", "toy", "-", "2", "1"]
    assert lines[2].split()[:6] == ["tiny", "pgd", "toy", "0.1", "8", "4"]
    assert lines[3].startswith("5 batches, ")
    assert lines[3].endswith(f"of at most 2.0 GB, in {users.folder}")
    code, out, _ = defend("--json")
    said = json.loads(out)
    assert said["bytes"] == sum(entry.bytes for entry in users.entries()) == sum(row["bytes"] for row in said["kept"])
    assert (said["limit"], said["folder"]) == (2 * 10**9, str(users.folder))
    first, second = said["kept"]
    assert (first["attack"], first["eps"], first["images"], first["batches"]) == ("fgsm", None, 2, 1)
    assert (second["attack"], second["eps"], second["images"], second["batches"]) == ("pgd", 0.1, 8, 4)
    assert first["used"] >= second["used"]


def test_the_command_lists_damaged_entries_too(defend, users):
    path = path_of(users, key(0))
    path.write_bytes(path.read_bytes().replace(b'\\"images\\": 2', b'\\"images\\":"2'))
    path_of(users, key(1)).write_bytes(b"")
    code, out, _ = defend("--json")
    assert code == 0
    assert sorted(row["batches"] for row in json.loads(out)["kept"]) == [1, 2, 2]
    assert defend()[0] == 0
    code, out, _ = defend("--verify")
    assert code == 0
    assert out.startswith(f"Checked 5 batches in {users.folder}: 2 damaged, deleted (")
    assert json.loads(defend("--verify", "--json")[1]) == {"checked": 3, "damaged": 0, "freed": 0}
    assert "Checked 3 batches" in defend("--verify")[1]


def test_the_command_clears(defend, users):
    size = sum(entry.bytes for entry in users.entries())
    code, out, _ = defend("--clear", "--json")
    assert code == 0
    assert json.loads(out) == {"freed": size}
    assert defend("--clear")[1].startswith("Freed 0 bytes in ")
    assert defend()[1].startswith("0 batches, 0 bytes of at most 2.0 GB, in ")


def test_the_command_says_that_the_store_is_off(defend, users, monkeypatch):
    monkeypatch.setenv("DEFEND_CACHE_LIMIT", "0")
    assert "of at most 0 bytes (the store is off)" in defend()[1]


def test_the_command_refuses_in_one_line(defend, users, monkeypatch):
    code, _, error = defend("--clear", "--verify")
    assert code == 2
    assert "--clear and --verify were both given" in error
    assert len(users.entries()) == 5
    monkeypatch.setenv("DEFEND_CACHE_LIMIT", "plenty")
    code, _, error = defend()
    assert code == 2
    assert error.splitlines() == [
        "error: DEFEND_CACHE_LIMIT='plenty' is not a size: expected for example 2GB, 500MB, or 0 for no store"
    ]


def test_the_command_imports_no_torch(users):
    code = (
        "import sys\nfrom defend.cli import main\n"
        "for arguments in ([], ['--json'], ['--verify'], ['--clear']):\n"
        "    try:\n        main(['cache', *arguments])\n"
        "    except SystemExit as error:\n        assert not error.code\n"
        "heavy = {'torch', 'timm', 'safetensors', 'numpy'} & set(sys.modules)\nassert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Checked 5 batches" in done.stdout
    assert users.entries() == []


@pytest.fixture
def edited(tmp_path, monkeypatch):
    """A victim in a script's folder, with a function and a number that lie in files of their own."""
    (tmp_path / "ops_of_mine.py").write_text("def harden(images):\n    return images\n")
    (tmp_path / "settings_of_mine.py").write_text("LEVELS = 4\n")
    (tmp_path / "victim_of_mine.py").write_text(
        "from torch import nn\n"
        "from ops_of_mine import harden\n"
        "from settings_of_mine import LEVELS\n\n\n"
        "class Victim(nn.Module):\n"
        "    def forward(self, images):\n"
        "        return harden(images).flatten(1)[:, :LEVELS]\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path, importlib.import_module("victim_of_mine").Victim
    for name in ("ops_of_mine", "settings_of_mine", "victim_of_mine"):
        sys.modules.pop(name)


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("file", ["ops_of_mine.py", "settings_of_mine.py", "victim_of_mine.py"])
def test_a_change_of_whatever_a_wrapped_victim_calls_or_reads_is_another_code(edited, wrapped, file):
    folder, kind = edited
    victim = NormalisedVictim(kind(), (0.5,), (0.5,)) if wrapped else kind()
    before = code_version(*sorted(modules_of(victim)))
    assert code_version(*sorted(modules_of(victim))) == before
    (folder / file).write_text((folder / file).read_text() + "\n# changed\n")
    os.utime(folder / file, ns=(1, 1))
    assert code_version(*sorted(modules_of(victim))) != before


def test_the_module_of_a_function_that_a_part_holds_counts():
    part = torch.nn.Sequential(Function(json.dumps))
    assert {"json", "defend.custom.build", "torch.nn.modules.container"} <= modules_of(part)
    assert modules_of(TinyVictim) == {TinyVictim.__module__}  # a class makes a part, and is none


def test_code_that_was_edited_after_its_import_has_another_key_than_what_is_imported_later(edited):
    folder, kind = edited
    ops = folder / "ops_of_mine.py"
    ops.write_text(ops.read_text().replace("return images", "return images.round()"))
    running = module_hash(kind())
    sys.modules.pop("ops_of_mine"), sys.modules.pop("victim_of_mine")
    later = importlib.import_module("victim_of_mine").Victim
    assert module_hash(later()) == module_hash(later()) != running


@pytest.mark.parametrize("place", ["a global", "of a module", "a default", "of a base class"])
def test_what_running_code_reads_counts_wherever_it_was_set(edited, place, monkeypatch):
    folder, _ = edited
    (folder / "base_of_mine.py").write_text(
        "import settings_of_mine\n"
        "from torch import nn\n\nSCALE = 1.0\n\n\n"
        "class Base(nn.Module):\n"
        "    shift = 0.0\n\n"
        "    def forward(self, images, power=1):\n"
        "        return images[:, : settings_of_mine.LEVELS] ** power * SCALE + self.shift\n"
    )
    base = importlib.import_module("base_of_mine")
    victim = type("Victim", (base.Base,), {"__module__": "base_of_mine"})()
    before = module_hash(victim)
    assert module_hash(victim) == before
    thing, name, value = {
        "a global": (base, "SCALE", 0.0),
        "of a module": (base.settings_of_mine, "LEVELS", 1),
        "a default": (base.Base.forward, "__defaults__", (2,)),
        "of a base class": (base.Base, "shift", 1.0),
    }[place]
    monkeypatch.setattr(thing, name, value)
    assert module_hash(victim) != before
    monkeypatch.undo()
    assert module_hash(victim) == before
    sys.modules.pop("base_of_mine")


def test_modules_that_read_each_other_are_looked_at_once(edited):
    folder, _ = edited
    (folder / "one_of_mine.py").write_text("import two_of_mine\n\n\ndef f():\n    return two_of_mine.one_of_mine.f\n")
    (folder / "two_of_mine.py").write_text("import one_of_mine\n")
    one = importlib.import_module("one_of_mine")
    assert batch_key(f=one.f) == batch_key(f=one.f)
    sys.modules.pop("one_of_mine"), sys.modules.pop("two_of_mine")


CIRCLES = """
import functools
from torch import nn

RATE = 1.0


def start(module):
    if isinstance(module, Block):
        module.rate = RATE


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.apply(start)

    def forward(self, images):
        return last(images) * scale() + f150(images)


@functools.cache
def scale():
    return 2.0


def f0(images):
    return Block.forward


last = lambda images: images  # noqa: E731
""" + "".join(f"\n\ndef f{number}(images):\n    return f{number - 1}(images)\n" for number in range(1, 400))


def hash_elsewhere(folder, seed, edit=None):
    """Return the hash of the block in a process of its own, after an edit of the file that it has imported."""
    path = folder / "circles_of_mine.py"
    text = f"""
import sys; sys.path.insert(0, {str(folder)!r}); sys.dont_write_bytecode = True
import circles_of_mine
from pathlib import Path
if {edit!r}:
    path = Path({str(path)!r}); path.write_text(path.read_text().replace(*{edit!r}))
from defend.fingerprints.values import module_hash
print(module_hash(circles_of_mine.Block()))
"""
    environment = {**os.environ, "PYTHONHASHSEED": str(seed)}
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, env=environment, check=True)
    return done.stdout.strip()


def test_code_that_calls_in_circles_and_long_chains_has_one_hash_in_every_process(tmp_path):
    (tmp_path / "circles_of_mine.py").write_text(CIRCLES)
    assert len({hash_elsewhere(tmp_path, seed) for seed in (0, 1, 2)}) == 1


@pytest.mark.parametrize(
    "edit", [("return 2.0", "return 3.0"), ("RATE = 1.0", "RATE = 2.0"), ("images: images", "images: 0 * images")]
)
def test_what_runs_behind_a_decorator_or_a_name_is_told_from_what_is_imported_later(tmp_path, edit):
    (tmp_path / "circles_of_mine.py").write_text(CIRCLES)
    old, new = hash_elsewhere(tmp_path, 0, edit), hash_elsewhere(tmp_path, 0)
    assert old != new


def test_an_installed_file_that_was_written_since_the_start_is_like_no_other(package, monkeypatch):
    monkeypatch.setattr(sources, "is_installed", lambda file: True)
    first = version("made_up_attack:build")
    assert version("made_up_attack:build") != first, "written after defend was imported: what runs may be older"
    monkeypatch.setattr("defend.IMPORTED_AT", time.time() + 1)
    first = version("made_up_attack:build")
    assert version("made_up_attack:build") == first


def test_of_cores_optional_libraries_those_count_that_an_attack_holds():
    held = SimpleNamespace(library=ModuleType("pyautoattack"))
    assert "pyautoattack" in versions_of(*modules_of(held))
    others = versions_of("defend.attacks.plugin")
    assert "torch" in others and "pyautoattack" not in others
