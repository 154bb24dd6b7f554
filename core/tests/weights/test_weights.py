"""Weights files: what is stored, what is refused, where they are looked for, and what their card decides."""

import json
import os
import pickle
import subprocess
import sys
import types
from importlib.metadata import EntryPoint
from pathlib import Path

import attrs
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from defend.assembly.stage import build_stage
from defend.errors import DefendError, WeightsError
from defend.hookspecs import hookimpl
from defend.options import option, options
from defend.plugins import Registry
from defend.stages import StageSpec, Task
from defend.util.files import atomic, cache_dir, write_text
from defend.util.tensors import content_hash
from defend.weights import files, find
from defend.weights.card import Card, read_card

TASK = Task("digits", 1, 28, 28, 10, (0.3,), (0.38,))
DATASET = {
    "name": "digits",
    "sha256": "0" * 64,
    "shape": [1, 28, 28],
    "classes": [str(digit) for digit in range(10)],
    "mean": [0.3],
    "std": [0.38],
    "flips": False,
}
CALIBRATION = {"dataset": "mnist", "sha256": "1" * 64, "n": 200, "fpr": 0.1, "measured": 0.1, "behind": None}


@options
class SmoothOptions:
    width: int = option(8, help="channels", at_least=1, architecture=True)
    depth: tuple[int, ...] = option((1, 2), help="blocks", architecture=True)
    steps: int = option(5, help="steps", at_least=1)


class Smooth(nn.Module):
    random = False

    def __init__(self, width=8):
        super().__init__()
        self.first = nn.Conv2d(1, width, 3, padding=1)
        self.norm = nn.BatchNorm2d(width)
        self.last = nn.Conv2d(width, 1, 3, padding=1)

    def forward(self, images):
        return self.last(self.norm(self.first(images))).sigmoid()


def train(config, recipe, task):
    raise NotImplementedError


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DEFEND_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache" / "weights"


@pytest.fixture
def shipped(tmp_path, monkeypatch):
    """Return the folder of a plugin's package of weights."""
    package = tmp_path / "site" / "smooth_plugin_weights"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    monkeypatch.setattr(sys, "path", [str(package.parent), *sys.path])
    yield package
    sys.modules.pop("smooth_plugin_weights", None)


@pytest.fixture
def registry(shipped, monkeypatch):
    """Return a registry with one more plugin, the purifier "smooth"."""
    plugin = types.ModuleType("smooth_plugin")
    plugin.build = lambda config, task: Smooth(config.width)
    plugin.train = train
    spec = StageSpec(
        name="smooth",
        summary="a test",
        build="smooth_plugin:build",
        config=SmoothOptions,
        train="smooth_plugin:train",
        weights="smooth_plugin_weights",
    )

    def defend_purifiers():
        return [spec]

    def defend_victims():
        return [attrs.evolve(spec, name="smooth_victim")]

    plugin.defend_purifiers = hookimpl(defend_purifiers)
    plugin.defend_victims = hookimpl(defend_victims)
    monkeypatch.setitem(sys.modules, "smooth_plugin", plugin)
    return Registry(entry_points=[EntryPoint("smooth", "smooth_plugin", "defend")])


def smooth(width=8, seed=0):
    """Return a module whose parameters, and batch statistics, are none of their defaults."""
    torch.manual_seed(seed)
    module = Smooth(width)
    module(torch.rand(4, 1, 28, 28))
    return module.eval()


def card(**changes):
    values = {"width": 8, "depth": [1, 2], "steps": 5}
    return attrs.evolve(Card(stage="purifier", name="smooth", config=values, dataset=DATASET), **changes)


@pytest.fixture
def file(tmp_path):
    files.save(tmp_path / "smooth.safetensors", smooth(), card())
    return tmp_path / "smooth.safetensors"


def load(path, module=None):
    return files.load(path, module or smooth(seed=1), "purifier", "smooth")


def refusal(call, *arguments, **options):
    with pytest.raises(WeightsError) as caught:
        call(*arguments, **options)
    return str(caught.value)


def test_what_is_saved_is_loaded(tmp_path):
    saved, loaded = smooth(seed=0), smooth(seed=1)
    files.round_to_stored(saved)
    files.save(tmp_path / "w.safetensors", saved, card())
    load(tmp_path / "w.safetensors", loaded)
    images = torch.rand(2, 1, 28, 28)
    assert torch.equal(saved(images), loaded(images))
    assert all(parameter.dtype == torch.float32 for parameter in loaded.parameters())


def test_loading_is_half_precision_away_from_what_was_trained(file):
    trained, loaded = smooth(), smooth(seed=1)
    load(file, loaded)
    for key, value in trained.state_dict().items():
        torch.testing.assert_close(loaded.state_dict()[key], value, rtol=2**-11, atol=2**-24)
    assert not torch.equal(trained.first.weight, loaded.first.weight)


def test_kernels_are_stored_in_half_and_vectors_in_single_precision(file):
    stored = files.to_stored(smooth())
    types = {key: tensor.dtype for key, tensor in stored.items()}
    assert {types["first.weight"], types["last.weight"]} == {torch.float16}
    assert {types[key] for key in ("first.bias", "norm.weight", "norm.running_var")} == {torch.float32}
    assert types["norm.num_batches_tracked"] == torch.int64
    assert file.stat().st_size < 5000


def test_a_few_numbers_of_any_shape_keep_single_precision():
    module = smooth()
    module.register_buffer("mean", torch.tensor([0.1, 0.2, 0.3]).view(1, 3, 1, 1))
    assert torch.equal(files.to_stored(module)["mean"], module.mean)


def test_rounding_to_what_is_stored_is_done_once_and_for_all():
    module = smooth()
    files.round_to_stored(module)
    once = {key: value.clone() for key, value in module.state_dict().items()}
    files.round_to_stored(module)
    assert all(torch.equal(once[key], value) for key, value in module.state_dict().items())


def test_a_card_is_read_back_whole(tmp_path):
    path = tmp_path / "new" / "folder" / "w.safetensors"
    written = files.save(
        path, smooth(), card(recipe={"epochs": 3}, figures={"test_accuracy": 0.9}, licence="Apache-2.0")
    )
    read = read_card(path)
    assert read == written
    assert (read.figures, read.recipe, read.licence) == ({"test_accuracy": 0.9}, {"epochs": 3}, "Apache-2.0")
    assert read.content_sha256 == content_hash(files.to_stored(smooth()))
    assert read.task() == TASK


def test_the_content_hash_sees_names_types_shapes_and_values():
    tensors = {"a": torch.arange(6.0), "b": torch.zeros(2)}
    changed = [
        {"a": torch.arange(6.0), "c": torch.zeros(2)},
        {"a": torch.arange(6.0).double(), "b": torch.zeros(2)},
        {"a": torch.arange(6.0).view(2, 3), "b": torch.zeros(2)},
        {"a": torch.arange(6.0).flip(0), "b": torch.zeros(2)},
        {"a": torch.zeros(2), "b": torch.arange(6.0)},
    ]
    hashes = {content_hash(case) for case in [tensors, *changed]}
    assert len(hashes) == 1 + len(changed)
    assert content_hash(dict(reversed(tensors.items()))) == content_hash(tensors)


@pytest.mark.parametrize("back", [1, 100, 400])
def test_a_flipped_byte_is_noticed(file, back):
    data = bytearray(file.read_bytes())
    data[-back] ^= 1
    file.write_bytes(data)
    assert "do not match the content hash in their card" in refusal(load, file)


@pytest.mark.parametrize("keep", [0, 4, 8, 60, -300, -1])
def test_a_file_cut_short_is_refused(file, keep):
    file.write_bytes(file.read_bytes()[:keep])
    message = refusal(load, file)
    assert "cut short" in message
    assert str(file) in message


def test_a_file_with_more_behind_its_end_is_refused(file):
    file.write_bytes(file.read_bytes() + b"more")
    assert "damaged or cut short" in refusal(load, file)


class Trap:
    """Creates a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("write", [torch.save, lambda value, path: path.write_bytes(pickle.dumps(value))])
def test_a_renamed_pickle_is_refused_and_never_run(tmp_path, write):
    path, sprung = tmp_path / "w.safetensors", tmp_path / "sprung"
    write({"trap": Trap(sprung)}, path)
    assert "it looks like a pickle, which is never loaded" in refusal(load, path)
    assert not sprung.exists()


@pytest.mark.parametrize("content", [b"\0" * 64, b"\xff" * 64, b"not weights at all", b"\x04" + b"\0" * 7 + b"[[[["])
def test_any_other_file_is_refused(tmp_path, content):
    (tmp_path / "w.safetensors").write_bytes(content)
    message = refusal(load, tmp_path / "w.safetensors")
    assert "are not a safetensors file, or cut short" in message
    assert "pickle" not in message


def test_a_path_that_cannot_be_read_is_refused(tmp_path):
    assert "cannot be read: No such file" in refusal(load, tmp_path / "none.safetensors")
    assert "cannot be read: Is a directory" in refusal(load, tmp_path)


def with_card(path, text):
    save_file({"a": torch.zeros(3)}, path, metadata={"defend.card": text})
    return path


def test_safetensors_without_a_card_are_refused(tmp_path):
    path = tmp_path / "w.safetensors"
    save_file(smooth().state_dict(), path)
    assert "have no card: they were not written by `defend train`" in refusal(load, path)


@pytest.mark.parametrize("metadata", ["[]", "null", "{}", "5"])
def test_a_header_with_odd_metadata_is_refused(tmp_path, metadata):
    header = f'{{"__metadata__":{metadata}}}'.encode()
    path = tmp_path / "w.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    assert "have no card" in refusal(read_card, path)


@pytest.mark.parametrize(
    "change",
    [
        lambda values: "junk",
        lambda values: "[1]",
        lambda values: "null",
        lambda values: json.dumps(values | {"bogus": 1}),
        lambda values: json.dumps({key: value for key, value in values.items() if key != "stage"}),
        lambda values: json.dumps(values | {"dataset": {"name": "digits"}}),
        lambda values: json.dumps(values | {"dataset": DATASET | {"shape": [28, 28]}}),
        lambda values: json.dumps(values | {"recipe": {"calibration": "blur"}}),
        lambda values: json.dumps(values | {"recipe": {"calibration": CALIBRATION | {"fpr": "0.1"}}}),
        lambda values: json.dumps(values | {"recipe": {"calibration": {"fpr": 0.1}}}),
    ],
)
def test_a_damaged_card_is_refused(tmp_path, change):
    path = with_card(tmp_path / "w.safetensors", change(attrs.asdict(card())))
    assert "have a damaged card" in refusal(read_card, path)


def test_weights_go_by_the_images_that_their_threshold_was_set_on(tmp_path):
    path = with_card(
        tmp_path / "detector-net-mnist+paper.safetensors",
        json.dumps(attrs.asdict(card(recipe={"calibration": CALIBRATION}))),
    )
    found = find.Available(path, read_card(path), shipped=False)
    assert (found.card.filing, found.card.serves) == ("digits", "mnist")
    assert (found.edition, found.filed_for) == ("paper", "mnist+paper")


def test_a_card_of_a_later_format_is_refused(tmp_path):
    path = with_card(tmp_path / "w.safetensors", json.dumps(attrs.asdict(card(format=2))))
    assert "have a card of format 2, and this version reads 1" in refusal(read_card, path)


@pytest.mark.parametrize(("stage", "name"), [("detector", "smooth"), ("purifier", "rough")])
def test_weights_of_another_stage_are_refused(tmp_path, stage, name):
    files.save(tmp_path / "w.safetensors", smooth(), card(stage=stage, name=name))
    assert f"are of {stage} {name}, expected purifier smooth" in refusal(load, tmp_path / "w.safetensors")


def test_weights_of_another_shape_are_refused(file):
    module = smooth(width=9, seed=1)
    before = {key: value.clone() for key, value in module.state_dict().items()}
    message = refusal(load, file, module)
    assert "another architecture than purifier smooth: 7 tensors differ, the first is 'first.bias'" in message
    assert all(torch.equal(before[key], value) for key, value in module.state_dict().items())


def test_weights_with_other_tensors_are_refused(file):
    module = smooth(seed=1)
    module.extra = nn.Linear(2, 2)
    assert "2 tensors differ, the first is 'extra.bias'" in refusal(load, file, module)


def test_reading_a_card_imports_no_torch(file):
    code = (
        "import sys\nfrom pathlib import Path\nfrom defend.weights.card import read_card\n"
        "assert read_card(Path(sys.argv[1])).name == 'smooth'\n"
        "assert not {'torch', 'timm', 'safetensors.torch'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(file)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_an_explicit_path_comes_before_the_cache_before_the_package(registry, cache, shipped, tmp_path):
    found = registry.find("purifier", "smooth")
    name = "purifier-smooth-digits.safetensors"
    assert find.locate(found, "digits") is None
    (shipped / name).touch()
    assert find.locate(found, "digits") == shipped / name
    cache.mkdir(parents=True)
    (cache / name).touch()
    assert find.locate(found, "digits") == cache / name == find.cached_path("purifier", "smooth", "digits")
    (tmp_path / "mine.safetensors").touch()
    assert find.locate(found, "digits", str(tmp_path / "mine.safetensors")) == tmp_path / "mine.safetensors"
    assert find.locate(found, "mnist") is None


def test_a_victim_that_was_tuned_ships_with_the_victim(registry, shipped):
    path = shipped / "finetuner-adversarial-smooth_victim-none-digits.safetensors"
    files.save(path, smooth(), card(stage="finetuner", name="adversarial"))
    tuner = registry.find("finetuner", "adversarial")
    filed_as = find.tuned_name("adversarial", "smooth_victim", None)
    assert find.locate(tuner, "digits", filed_as=filed_as) == path
    assert find.locate(tuner, "digits", filed_as=find.tuned_name("adversarial", "another", None)) is None
    (entry,) = [entry for entry in registry.entries("finetuner") if entry.spec.name == "adversarial"]
    assert [each.path for each in find.available("finetuner", "adversarial", registry.packages(entry))] == [path]


def test_an_explicit_path_that_does_not_exist_is_refused(registry, cache):
    cache.mkdir(parents=True)
    (cache / "purifier-smooth-digits.safetensors").touch()
    message = refusal(find.locate, registry.find("purifier", "smooth"), "digits", "nowhere.safetensors")
    assert "'nowhere.safetensors' does not exist" in message


def test_a_package_of_weights_that_is_missing_is_named(registry, shipped):
    (shipped / "__init__.py").unlink()
    shipped.rmdir()
    message = refusal(find.locate, registry.find("purifier", "smooth"), "digits")
    assert "package 'smooth_plugin_weights' with the shipped weights is missing" in message


def test_the_cache_of_the_platform_is_used_unless_one_is_named(monkeypatch, tmp_path):
    assert cache_dir() == tmp_path / "cache"
    monkeypatch.delenv("DEFEND_CACHE_DIR")
    assert cache_dir().name == "defend"


def test_available_lists_the_users_weights_before_the_shipped_and_leaves_out_broken_ones(registry, cache, shipped):
    files.save(shipped / "purifier-smooth-digits.safetensors", smooth(), card())
    files.save(cache / "purifier-smooth-mnist.safetensors", smooth(), card(dataset=DATASET | {"name": "mnist"}))
    (cache / "purifier-smooth-broken.safetensors").write_text("nothing")
    found = find.available("purifier", "smooth", ["smooth_plugin_weights"])
    listed = [(each.path.parent, each.card.dataset["name"], each.shipped) for each in found]
    assert listed == [(cache, "mnist", False), (shipped, "digits", True)]


def test_missing_weights_give_the_command_that_trains_them():
    message = refusal(build_stage, "victim", "resnet50", TASK)
    assert message == (
        "no weights for victim resnet50 on digits: run `defend train victim resnet50 --dataset digits`; "
        "`defend run` does so itself with --train-missing"
    )


def test_the_card_decides_the_architecture_and_the_user_the_rest(registry, tmp_path):
    path = tmp_path / "w.safetensors"
    files.save(path, smooth(width=6), card(config={"width": 6, "depth": [3], "steps": 9}))
    built = build_stage("purifier", "smooth", TASK, {"steps": "2"}, str(path), plugins=registry)
    assert built.config == SmoothOptions(width=6, depth=(3,), steps=2)
    assert (built.path, built.card.name, built.module.training) == (path, "smooth", False)
    assert build_stage("purifier", "smooth", TASK, {}, str(path), plugins=registry).config.steps == 5


def test_asking_for_the_cards_own_architecture_is_fine(registry, file):
    built = build_stage("purifier", "smooth", TASK, {"width": "8", "depth": "1,2"}, str(file), plugins=registry)
    assert built.config == SmoothOptions()


def test_asking_for_another_architecture_gives_the_command_that_trains_it(registry, file):
    message = refusal(build_stage, "purifier", "smooth", TASK, {"width": "9"}, str(file), plugins=registry)
    assert message == (
        f"weights {str(file)!r} have width=8, and 9 was asked for: "
        "run `defend train purifier smooth --dataset digits --set width=9`"
    )


@pytest.mark.parametrize(("side", "channels"), [(32, 1), (28, 3)])
def test_weights_for_images_of_another_shape_are_refused(registry, file, side, channels):
    task = attrs.evolve(TASK, dataset="mine", channels=channels, height=side, width=side)
    message = refusal(build_stage, "purifier", "smooth", task, {}, str(file), plugins=registry)
    assert f"are for images of shape [1, 28, 28], and mine has [{channels}, {side}, {side}]" in message


def test_victim_weights_for_other_classes_are_refused(tmp_path):
    path = tmp_path / "w.safetensors"
    files.save(path, smooth(), card(stage="victim", name="resnet18"))
    message = refusal(build_stage, "victim", "resnet18", attrs.evolve(TASK, classes=3), {}, str(path))
    assert "are for 10 classes, and digits has 3" in message


def test_a_file_takes_its_place_when_the_block_ends_well(tmp_path):
    path = tmp_path / "report.json"
    path.write_text("old")
    with atomic(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def write_half(path, stop):
    with atomic(path) as temporary:
        temporary.write_text("half of the ne")
        raise stop


@pytest.mark.parametrize("stop", [ValueError, KeyboardInterrupt])
def test_a_block_that_raises_leaves_nothing_behind(tmp_path, stop):
    path = tmp_path / "report.json"
    path.write_text("old")
    with pytest.raises(stop):
        write_half(path, stop)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_an_atomic_file_has_ordinary_permissions(tmp_path):
    (tmp_path / "plain").touch()
    write_text(tmp_path / "atomic", "text \N{GREEK SMALL LETTER EPSILON}")
    assert (tmp_path / "atomic").read_text(encoding="utf-8").endswith("\N{GREEK SMALL LETTER EPSILON}")
    assert os.stat(tmp_path / "atomic").st_mode == os.stat(tmp_path / "plain").st_mode


def test_a_folder_that_is_missing_is_an_error_in_one_line(tmp_path):
    with pytest.raises(DefendError, match=r"report\.json' cannot be written: No such file or directory"):
        write_text(tmp_path / "none" / "report.json", "text")


class Tied(nn.Module):
    """One layer under two names, one norm under two, and one parameter under two."""

    def __init__(self, tied=True):
        super().__init__()
        self.one, self.norm = nn.Linear(9, 9), nn.BatchNorm1d(9)
        self.other, self.again = (self.one, self.norm) if tied else (nn.Linear(9, 9), nn.BatchNorm1d(9))
        self.scale = nn.Parameter(torch.ones(9))
        self.factor = self.scale if tied else nn.Parameter(torch.zeros(9))


class Odd(nn.Module):
    """Types and layouts that files must hold."""

    def __init__(self):
        super().__init__()
        self.brain = nn.Parameter(torch.randn(9, 9).bfloat16())
        self.scalar = nn.Parameter(torch.tensor(0.3))
        self.turned = nn.Parameter(torch.randn(4, 5).t())
        for name, value in {
            "count": torch.tensor(3),
            "mask": torch.tensor([True, False]),
            "bytes": torch.arange(5, dtype=torch.uint8),
            "part": torch.arange(8.0)[::2],
            "empty": torch.zeros(0, 3),
        }.items():
            self.register_buffer(name, value)


def plain_card():
    dataset = {
        "name": "digits",
        "sha256": "",
        "shape": [1, 28, 28],
        "classes": list("01"),
        "mean": [0.5],
        "std": [0.5],
        "flips": False,
    }
    return Card(stage="victim", name="x", config={}, dataset=dataset)


@pytest.mark.parametrize("module", [Tied, Odd])
def test_ties_types_and_layouts_come_back(tmp_path, module):
    kept, other = module(), module()
    files.round_to_stored(kept)
    files.save(tmp_path / "w.safetensors", kept, plain_card())
    files.load(tmp_path / "w.safetensors", other, "victim", "x")
    for key, value in kept.state_dict().items():
        assert torch.equal(value, other.state_dict()[key]) and value.dtype == other.state_dict()[key].dtype, key
    if module is Tied:
        assert other.one is other.other and other.scale is other.factor


def test_weights_of_two_layers_do_not_go_into_one(tmp_path):
    files.save(tmp_path / "w.safetensors", Tied(tied=False), plain_card())
    with pytest.raises(WeightsError, match="shares its memory"):
        files.load(tmp_path / "w.safetensors", Tied(), "victim", "x")
