"""Weights that users bring: what trainers wrap them in, what wrappers do to their names, what is refused and how."""

import pickle
import warnings
from argparse import Namespace
from collections import OrderedDict
from pathlib import Path

import attrs
import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn
from torch.optim.swa_utils import AveragedModel

from defend.assembly.composition import Composition
from defend.assembly.load import DataSource, find_task, open_dataset
from defend.assembly.stage import build_stage
from defend.errors import WeightsError
from defend.stages import Task
from defend.testing.toys import images
from defend.weights.card import has_card
from defend.weights.foreign import hash_of, read_state

SMALL = "test_resnet"  # timm's smallest with batch norm
TASK = Task("tiles", 3, 32, 32, 5, (0.4, 0.5, 0.6), (0.2, 0.25, 0.3), False, tuple("abcde"))


def network(seed=0, name=SMALL, task=TASK, **options):
    """Return a victim's network as a user would have trained it: without the wrapper that normalises."""
    import timm

    torch.manual_seed(seed)
    return timm.create_model(name, num_classes=task.classes, in_chans=task.channels, **options).eval()


def build(path, name=SMALL, task=TASK, **options):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        built = build_stage("victim", name, task, options, str(path))
    return built, [str(each.message) for each in caught]


def refusal(path, name=SMALL, task=TASK, **options):
    with pytest.raises(WeightsError) as caught:
        build(path, name, task, **options)
    message = str(caught.value)
    assert "\n" not in message and repr(str(path)) in message
    return message


def same(victim, net, task=TASK):
    pictures = images(task, 2)
    with torch.no_grad():
        mean, std = (torch.tensor(each).view(1, -1, 1, 1) for each in (task.mean, task.std))
        return torch.allclose(victim(pictures), net((pictures - mean) / std), atol=1e-5)


@pytest.fixture
def saved(tmp_path):
    def save(value, name="mine.pth"):
        path = tmp_path / name
        save_file(value, path) if name.endswith(".safetensors") else torch.save(value, path)
        return path

    return save


@pytest.mark.parametrize("name", ["mine.pth", "mine.pt", "mine.bin", "mine.ckpt", "best.pth.tar", "mine.safetensors"])
def test_a_plain_state_is_taken_from_any_file(saved, name):
    net = network()
    path = saved(net.state_dict(), name)
    built, told = build(path)
    assert same(built.module, net) and told == []
    assert not has_card(path)
    assert (built.card.stage, built.card.name, built.card.foreign) == ("victim", SMALL, name)
    assert built.card.config["model"] == SMALL and dict(built.card.figures) == {}
    assert built.card.task() == TASK
    assert built.content_hash == hash_of(path) == read_state(path).content_sha256


def test_torchs_older_format_and_half_precision(tmp_path):
    net = network().half()
    torch.save(net.state_dict(), tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    built, _ = build(tmp_path / "old.pth")
    assert {each.dtype for each in built.module.parameters()} == {torch.float32}
    assert same(built.module, net.float())


OPTIMISER = {"state": {0: {"exp_avg": torch.ones(2)}}, "param_groups": [{"lr": 0.1}]}


@pytest.mark.parametrize(
    ("wrap", "words"),
    [
        (lambda state: {"state_dict": state, "epoch": 3, "optimizer": OPTIMISER}, ["its 'state_dict'"]),
        (lambda state: {"model": state, "best": 0.5, "args": {"lr": 0.1}}, ["its 'model'"]),
        (lambda state: {"model_state": state, "optimizer": OPTIMISER}, ["its 'model_state'"]),
        (lambda state: {"model_state_dict": state, "loss": torch.tensor(0.1)}, ["its 'model_state_dict'"]),
        (lambda state: {"net": state, "acc": 93.1, "epoch": 199}, ["its 'net'"]),
        (lambda state: {"network": {"state_dict": state}}, ["its 'network', its 'state_dict'"]),
        (lambda state: {"ema": state, "updates": 7}, ["its 'ema'"]),
        (lambda state: {"my_classifier": state, "optimizer": OPTIMISER}, ["its 'my_classifier'"]),
        (
            lambda state: {"state_dict_ema": negated(state), "state_dict": state},
            ["'state_dict' (and not 'state_dict_ema')"],
        ),
        (lambda state: OrderedDict((f"module.{key}", value) for key, value in state.items()), ["the prefix 'module.'"]),
        (
            lambda state: {"state_dict": {f"model.net.{key}": value for key, value in state.items()}},
            ["its 'state_dict'", "the prefix 'model.'", "the prefix 'net.'"],
        ),
        (
            lambda state: {f"module._orig_mod.{key}": value for key, value in state.items()},
            ["'_orig_mod.'", "'module.'"],
        ),
        (lambda state: {f"resnet.{key}": value for key, value in state.items()}, ["the prefix 'resnet.'"]),
    ],
)
def test_what_trainers_do_to_a_state_is_undone_and_told(saved, wrap, words):
    net = network()
    built, told = build(saved(wrap(net.state_dict())))
    assert same(built.module, net)
    assert len(told) == 1
    for word in words:
        assert word in told[0] and word in built.card.recipe["read"]


def negated(state):
    return {key: -value for key, value in state.items()}


@pytest.mark.parametrize(
    "wrap", [nn.DataParallel, torch.compile, lambda net: torch.compile(nn.DataParallel(net)), AveragedModel]
)
def test_what_torchs_own_wrappers_save_is_understood(saved, wrap):
    net = network()
    built, told = build(saved(wrap(net).state_dict()))
    assert same(built.module, net) and len(told) == 1


def test_a_part_that_was_compiled_alone(saved):
    net = network()
    net.layer1 = torch.compile(net.layer1)
    assert any("layer1._orig_mod." in key for key in net.state_dict())
    built, _ = build(saved(net.state_dict()))
    assert same(built.module, network())


def test_counters_that_old_torch_did_not_keep_may_be_missing(saved):
    net = network()
    state = {key: value for key, value in net.state_dict().items() if "num_batches_tracked" not in key}
    built, _ = build(saved(state))
    assert same(built.module, net)


def test_a_victim_of_ours_that_lost_its_card_keeps_its_normalisation(saved):
    module = build_stage("victim", "resnet18", open_dataset("digits").task()).module
    module.mean.fill_(0.25)
    path = saved(module.state_dict(), "mine.safetensors")
    built, _ = build(path, "resnet18", open_dataset("digits").task())
    assert built.module.mean.item() == 0.25


def test_torchvisions_resnet_needs_the_standard_stem(saved):
    net = torchvision.models.resnet18(num_classes=5).eval()
    path = saved({f"module.{key}": value for key, value in net.state_dict().items()})
    message = refusal(path, "resnet18")
    assert "1 of another shape ('conv1.weight' is [64, 3, 7, 7], not [64, 3, 3, 3])" in message
    assert message.endswith("--set victim.stem=standard") and "architecture" not in message
    built, _ = build(path, "resnet18", stem="standard")
    assert same(built.module, net)


def test_other_classes_are_named(saved):
    message = refusal(saved(network(task=attrs.evolve(TASK, classes=7)).state_dict()))
    assert "2 of another shape ('fc.weight' is [7, " in message
    assert "they are for 7 classes, and tiles has 5" in message and "stem" not in message


def test_another_architecture_is_named_with_a_few_names_and_the_counts(saved):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.features = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3))
            self.classifier = nn.Linear(8, 5)

    message = refusal(saved(Net().state_dict()))
    assert "do not fit victim test_resnet: " in message
    assert " missing ('conv1." in message and ", ...)" in message
    assert "6 unexpected ('features.0.weight', 'features.0.bias', 'features.2.weight', ...)" in message
    assert "another architecture than test_resnet" in message and len(message) < 900


def test_a_refused_state_changes_nothing_and_half_a_state_is_refused(saved):
    state = network().state_dict()
    del state["fc.bias"]
    assert "1 missing ('fc.bias')" in refusal(saved(state))
    assert "1 unexpected ('extra')" in refusal(saved({**network().state_dict(), "extra": torch.ones(1)}))


class Trap:
    """Creates a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("name", ["mine.pth", "mine.bin", "mine"])
@pytest.mark.parametrize("how", ["torch", "old", "pickle"])
def test_a_pickle_is_refused_and_never_run(tmp_path, name, how):
    path, sprung = tmp_path / name, tmp_path / "sprung"
    value = {"state_dict": {"a": torch.ones(1)}, "trap": Trap(sprung)}
    if how == "pickle":
        path.write_bytes(pickle.dumps(value))
    else:
        torch.save(value, path, _use_new_zipfile_serialization=how == "torch")
    message = refusal(path)
    assert "torch.save(model.state_dict(), 'weights.pth')" in message and "weights_only" not in message
    assert not sprung.exists()


def test_a_whole_module_and_arguments_are_named(saved):
    assert "hold more than tensors (torch.nn.modules." in refusal(saved(nn.Sequential(nn.Linear(2, 2))))
    arguments = {"state_dict": network().state_dict(), "args": Namespace(lr=0.1)}
    assert "hold more than tensors (argparse.Namespace)" in refusal(saved(arguments))


def test_a_torchscript_archive_is_named(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.trace(nn.Linear(2, 2), torch.ones(1, 2)).save(str(tmp_path / "mine.pt"))
    assert "a TorchScript archive" in refusal(tmp_path / "mine.pt")


@pytest.mark.parametrize(
    "content", [b"", b"text", b"PK\3\4", b"\x80\x02.", b"\x80", b"\0" * 64, b"\xff" * 64, pickle.dumps([1, 2])]
)
def test_any_other_file_is_refused(tmp_path, content):
    (tmp_path / "mine.pth").write_bytes(content)
    assert "torch.save(model.state_dict(), 'weights.pth')" in refusal(tmp_path / "mine.pth")


def test_a_file_cut_short_is_refused(saved):
    for name in ("mine.pth", "mine.safetensors"):
        path = saved(network().state_dict(), name)
        path.write_bytes(path.read_bytes()[:-5000])
        assert "cut short" in refusal(path)


def test_a_folder_is_refused(tmp_path):
    (tmp_path / "mine.pth").mkdir()
    with pytest.raises(WeightsError, match="is a folder: expected a file of weights"):
        build(tmp_path / "mine.pth")


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ([torch.ones(2)], "hold list"),
        (torch.ones(2), "hold Tensor"),
        ({}, "hold nothing"),
        ({"epoch": 3, "lr": 0.1}, "a dictionary with 'epoch', 'lr'"),
        ({"a": {"w": torch.ones(1)}, "b": {"w": torch.ones(1)}}, "a dictionary with 'a', 'b'"),
        ({0: torch.ones(1)}, "a tensor named 0"),
        ({"w": torch.ones(1), "epoch": 3}, "'epoch' of type int"),
        ({"w": torch.ones(2).to_sparse()}, "'w', which is torch.sparse_coo"),
        ({"w": torch.ones(2, device="meta")}, "'w', which is meta"),
        ({"w": torch.tensor([1, float("nan")])}, "NaN in 'w'"),
    ],
)
def test_what_is_no_state_is_refused(saved, value, words):
    assert words in refusal(saved(value))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda weight: weight * float("inf"), "not finite in 'fc.weight'"),
        (lambda weight: weight.to(torch.int8), "'fc.weight' as torch.int8, expected torch.float32"),
        (lambda weight: weight.to(torch.complex64), "'fc.weight' as torch.complex64"),
        (lambda weight: weight.double() * 1e300, "not finite in 'fc.weight'"),
    ],
)
def test_values_that_are_no_weights_are_refused(saved, change, words):
    state = network().state_dict()
    state["fc.weight"] = change(state["fc.weight"].abs() + 1)
    assert words in refusal(saved(state))


def test_a_composition_hashes_and_takes_its_task_from_the_data_set(saved):
    path = saved(network(name="resnet18", task=attrs.evolve(TASK, classes=10, channels=1)).state_dict())
    composition = Composition.of("resnet18", weights={"victim": str(path)})
    assert composition.hash_weights("digits") == {"victim": read_state(path).content_sha256}
    task, classes = find_task(composition, DataSource("digits"))
    assert task == open_dataset("digits").task() and classes == open_dataset("digits").classes


def test_a_purifier_takes_a_file_without_a_card(saved):
    usual = build_stage("purifier", "dae", open_dataset("digits").task())
    path = saved({"state_dict": {f"module.{key}": value for key, value in usual.module.state_dict().items()}})
    with pytest.warns(UserWarning, match="without the prefix 'module.'"):
        mine = build_stage("purifier", "dae", open_dataset("digits").task(), weights=str(path))
    pictures = images(open_dataset("digits").task(), 2)
    with torch.no_grad():
        assert torch.equal(mine.module(pictures), usual.module(pictures))


def test_a_file_without_a_card_that_nobody_named_is_not_taken(tmp_path, monkeypatch):
    monkeypatch.setenv("DEFEND_CACHE_DIR", str(tmp_path))
    (tmp_path / "weights").mkdir()
    save_file(network().state_dict(), tmp_path / "weights" / f"victim-{SMALL}-tiles.safetensors")
    with pytest.raises(WeightsError, match=r"have no card.*--victim-weights"):
        build_stage("victim", SMALL, TASK)
