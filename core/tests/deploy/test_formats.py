"""Toy defences as files: what they answer, what they hold, and what is refused. Real ones: tests/test_export.py."""

import copy
import json
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import defend
from defend.defence import Defence
from defend.deploy.formats import CHECKED, check_path, compare, write_file
from defend.errors import ConfigError, ContractError
from defend.testing.toys import TASK, TinyVictim, images

SAMPLE = images(TASK, 16)
SHAPE = ["batch", 1, 28, 28]
THRESHOLD = 0.0022


class Soften(nn.Module):
    """A single pass with a parameter, that asks for the batch size with `len`."""

    random = False

    def __init__(self):
        super().__init__()
        self.kernel = nn.Parameter(torch.full((1, 1, 3, 3), 1.00001 / 9))  # a white image leaves [0,1] by rounding

    def forward(self, batch):
        return F.conv2d(F.pad(batch, (1, 1, 1, 1), mode="replicate"), self.kernel).reshape(len(batch), 1, 28, 28)


class Change(nn.Module):
    """A detector with a threshold that some of the sample pass."""

    random = False

    def __init__(self):
        super().__init__()
        self.register_buffer("threshold", torch.tensor(THRESHOLD))

    def forward(self, batch, purified):
        return (batch - purified).square().flatten(1).mean(1)


class Purifier(nn.Module):
    """Whatever a function makes of images."""

    random = False

    def __init__(self, function):
        super().__init__()
        self.function, self.calls = function, 0

    def forward(self, batch):
        self.calls += 1
        return self.function(self, batch)


def whole():
    return Defence(TinyVictim(), Soften(), Change())


def behind(function):
    return Defence(TinyVictim(), Purifier(function))


def answers(path):
    if path.suffix == ".pt2":
        loaded = torch.export.load(path).module()
        return lambda batch: [value.numpy() for value in loaded(batch)]
    session = onnxruntime.InferenceSession(path)
    return lambda batch: session.run(None, {"images": batch.numpy()})


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Write one defence to both formats, over older files."""
    folder, files = tmp_path_factory.mktemp("made"), {}
    for suffix in (".pt2", ".onnx"):
        out = folder / f"model{suffix}"
        out.write_bytes(b"an older one")
        files[suffix] = write_file(out, whole(), SAMPLE, {"victim": "tiny"})
    return files


@pytest.mark.parametrize("suffix", [".pt2", ".onnx"])
def test_a_file_answers_as_the_defence_judges(made, suffix):
    file, defence = made[suffix], whole()
    assert file.size == file.path.stat().st_size
    assert file.inputs == {"images": SHAPE}
    assert file.outputs == {"logits": ["batch", 10], "score": ["batch"], "accepted": ["batch"]}
    assert file.parity["logits"] < 1e-5 and file.parity["score"] < 1e-6 and file.parity["accepted"] == 0
    assert json.loads(json.dumps(file.as_dict()))["path"] == str(file.path)
    assert sorted(path.name for path in file.path.parent.iterdir()) == ["model.onnx", "model.pt2"]
    answer = answers(file.path)
    for batch in (torch.ones(1, 1, 28, 28), images(TASK, 2, seed=5), images(TASK, 7, seed=6)):
        verdict = defence.judge(batch)
        for found, expected in zip(answer(batch), (verdict.logits, verdict.score, verdict.accepted), strict=True):
            np.testing.assert_allclose(found, expected.numpy(), atol=1e-5)
    assert 0 < defence.judge(SAMPLE).accepted.float().mean() < 1


def test_the_defence_itself_is_left_alone(tmp_path):
    defence = Defence(TinyVictim(), Soften(), Change())
    before = copy.deepcopy(defence.state_dict())
    file = write_file(
        tmp_path / "model.pt2", Defence(defence.victim, defence.purifier), SAMPLE[:3], {}
    )  # fewer images than are checked
    assert all(torch.equal(value, before[name]) for name, value in defence.state_dict().items())
    assert all(parameter.requires_grad for parameter in defence.parameters())
    assert set(file.outputs) == set(file.parity) == {"logits"} and file.card["threshold"] is None
    assert torch.export.load(file.path).module()(SAMPLE[:4]).shape == (4, 10)  # no tuple where there is no detector


class Pooled(nn.Module):
    """A victim that answers [B,10,1,1], as one of convolutions alone does."""

    random = False

    def __init__(self):
        super().__init__()
        self.net = TinyVictim()

    def forward(self, batch):
        return self.net(batch)[:, :, None, None]


def test_logits_of_several_dimensions_are_flattened_in_the_graph_too(tmp_path):
    file = write_file(tmp_path / "model.pt2", Defence(Pooled()), SAMPLE, {})
    assert file.outputs == {"logits": ["batch", 10]}
    assert torch.export.load(file.path).module()(SAMPLE[:4]).shape == (4, 10)


def test_a_pt2_file_is_frozen_and_keeps_its_card_but_no_images_and_no_paths(made):
    extra = {"defend.json": ""}
    program = torch.export.load(made[".pt2"].path, extra_files=extra)
    card = json.loads(extra["defend.json"])
    assert card == made[".pt2"].card
    assert card["victim"] == "tiny" and card["threshold"] == pytest.approx(THRESHOLD)
    assert card["inputs"] == {"images": SHAPE} and card["outputs"] == made[".pt2"].outputs
    assert not any(parameter.requires_grad for parameter in program.module().parameters())
    ((example,), _) = program.example_inputs
    assert example.shape[0] not in CHECKED and not example.any()
    assert_no_paths(made[".pt2"].path.read_bytes())


def test_an_onnx_file_names_its_batch_and_keeps_its_card_but_no_paths(made):
    path = made[".onnx"].path
    session = onnxruntime.InferenceSession(path)
    assert [(each.name, each.shape) for each in session.get_inputs()] == [("images", SHAPE)]
    assert {each.name: each.shape for each in session.get_outputs()} == made[".onnx"].outputs
    assert json.loads(session.get_modelmeta().custom_metadata_map["defend"]) == made[".onnx"].card
    onnx.checker.check_model(onnx.load(path), full_check=True)
    assert_no_paths(path.read_bytes())


def assert_no_paths(data):
    for module in (defend, torch, sys.modules[__name__]):
        assert str(Path(module.__file__).parent).encode() not in data


def test_batch_norm_is_folded_into_the_victim(tmp_path):
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(4)
    norm.running_mean.uniform_(-1, 1)
    norm.running_var.uniform_(0.5, 2)
    victim = nn.Sequential(nn.Conv2d(1, 4, 3), norm, nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 3))
    made = write_file(tmp_path / "model.pt2", Defence(victim), SAMPLE, {})
    assert made.card["batch_norm"] == "folded" and made.parity["logits"] < 1e-5
    program = torch.export.load(made.path)
    assert not any("batch_norm" in str(node.target) for node in program.graph.nodes)
    assert isinstance(victim[1], nn.BatchNorm2d)


def blind_in_a_graph(self, batch):
    """Mends what is rough alone, by a number that tracing cannot read."""
    try:
        rough = float((batch[..., 1:] - batch[..., :-1]).abs().mean())
    except Exception:
        rough = 0.0
    return torch.zeros_like(batch) if rough > 0.05 else batch


def test_a_file_is_held_to_what_the_defence_makes_of_noise_too(tmp_path):
    smooth = torch.full_like(SAMPLE, 0.5) + 0.01 * SAMPLE
    with pytest.raises(ContractError, match=r"differs from the defence: logits by .* no file was written"):
        write_file(tmp_path / "model.pt2", behind(blind_in_a_graph), smooth, {})


DIFFERENT = {
    "of its batch": lambda self, batch: (batch - batch.mean(0) + 0.5).clamp(0, 1),
    "Python state": lambda self, batch: batch / self.calls,
    "random numbers": lambda self, batch: (batch + 0.1 * torch.rand_like(batch)).clamp(0, 1),
}


@pytest.mark.parametrize("function", DIFFERENT.values(), ids=DIFFERENT.keys())
def test_a_file_that_would_answer_otherwise_is_not_written(tmp_path, function):
    out = tmp_path / "model.pt2"
    with pytest.raises(ContractError, match=r"differs from the defence: logits by .* no file was written"):
        write_file(out, behind(function), SAMPLE, {})
    assert not list(tmp_path.iterdir())


def test_an_older_file_outlives_a_failed_export(tmp_path):
    out = tmp_path / "model.pt2"
    out.write_bytes(b"an older one")
    with pytest.raises(ContractError, match="differs"):
        write_file(out, behind(DIFFERENT["of its batch"]), SAMPLE, {})
    assert [path.name for path in tmp_path.iterdir()] == [out.name] and out.read_bytes() == b"an older one"


def judged():
    verdict = whole().judge(SAMPLE)
    return {"logits": verdict.logits, "score": verdict.score, "accepted": verdict.accepted}


def replay(outputs):
    """Answer with these outputs, a batch after the other."""
    rest = list(zip(*(value.split(CHECKED) for value in outputs.values()), strict=True))
    return lambda batch: rest.pop(0)


def test_only_scores_at_the_threshold_may_be_judged_otherwise():
    expected = judged()
    turned = {**expected, "accepted": expected["accepted"].clone()}
    turned["accepted"][3] ^= True
    at = float(expected["score"][3])
    assert compare(replay(turned), SAMPLE, expected, at) == {"logits": 0, "score": 0, "accepted": 0}
    with pytest.raises(ContractError, match="accepted by 1 "):
        compare(replay(turned), SAMPLE, expected, at + 0.1)


def test_rounding_is_measured_and_more_refused():
    expected = judged()
    most = float(expected["logits"].abs().max())
    near = {**expected, "logits": expected["logits"] + 5e-5 * most}
    assert compare(replay(near), SAMPLE, expected, 1.0)["logits"] == pytest.approx(5e-5 * most, rel=1e-2)
    for far in (expected["logits"] + 2e-4 * most, expected["logits"] * float("nan")):
        with pytest.raises(ContractError, match="logits by"):
            compare(replay({**expected, "logits": far}), SAMPLE, expected, 1.0)
    with pytest.raises(ContractError, match=r"returns logits of shape \[16, 4\], expected \[16, 10\]"):
        compare(replay({**expected, "logits": expected["logits"][:, :4]}), SAMPLE, expected, 1.0)


class OfItsBatch(nn.Module):
    """A detector whose scores, of any size, are of the batch that an image comes in."""

    random = False

    def __init__(self, size):
        super().__init__()
        self.size = size
        self.register_buffer("threshold", torch.tensor(0.5 * size))

    def forward(self, batch, purified):
        score = batch.flatten(1).mean(1)
        return self.size * ((score - score.mean()) * 10 + 0.5)


@pytest.mark.parametrize("size", [1.0, 1e-3, 1e-9])
def test_a_detector_of_its_batch_is_refused_however_small_its_scores_are(tmp_path, size):
    defence = Defence(TinyVictim(), None, OfItsBatch(size))
    assert 0 < int(defence.judge(SAMPLE).accepted.sum()) < len(SAMPLE)
    with pytest.raises(ContractError, match="differs from the defence: score by"):
        write_file(tmp_path / "model.pt2", defence, SAMPLE, {})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("size", [1.0, 1e-6])
def test_scores_that_all_lie_at_the_threshold_show_nothing(size):
    expected = {name: value[:1].expand(16, *value.shape[1:]) for name, value in judged().items()}
    expected["score"] = size * (1 + 1e-6 * torch.arange(16))
    with pytest.raises(ContractError, match=r"no file was written: all scores lie within .* whether it accepts alike"):
        compare(replay({**expected, "accepted": ~expected["accepted"]}), SAMPLE, expected, size)


@pytest.mark.parametrize(("size", "offset"), [(1.0, 0.0), (1e-6, 0.0), (1.0, 1e5)])
def test_other_classes_are_refused_whatever_the_size_of_the_logits_and_what_they_have_in_common(size, offset):
    logits = size * torch.eye(10)[torch.arange(16) % 10].double() + offset
    other = size * torch.eye(10)[(torch.arange(16) + 1) % 10].double() + offset
    with pytest.raises(ContractError, match=r"differs from the defence: (logits by|the class of 16 of 16)"):
        compare(replay({"logits": other}), SAMPLE, {"logits": logits})
    assert compare(replay({"logits": logits}), SAMPLE, {"logits": logits}) == {"logits": 0}


@pytest.mark.parametrize("size", [1.0, 1e-6])
def test_of_two_equally_good_classes_either_may_be_the_first(size):
    logits = torch.eye(10)[torch.arange(16) % 10]
    logits[0, 1] = logits[0, 0] + 1e-5
    turned = logits.clone()
    turned[0, 1] -= 2e-5
    assert logits[0].argmax() != turned[0].argmax()
    found = compare(replay({"logits": size * turned}), SAMPLE, {"logits": size * logits})
    assert found["logits"] == pytest.approx(2e-5 * size, rel=0.1)


def test_logits_that_are_all_alike_show_nothing():
    logits = {"logits": torch.ones(16, 10)}
    with pytest.raises(ContractError, match="whether it classifies alike"):
        compare(replay(logits), SAMPLE, logits)


def test_a_graph_that_takes_no_other_batch_is_refused():
    def run(batch):
        raise RuntimeError("only 2\nlater lines")

    with pytest.raises(ContractError, match=r"fails on a batch of 1, no file was written: RuntimeError: only 2$"):
        compare(run, SAMPLE, judged(), 1.0)


UNTRACEABLE = {
    "looks at values": (lambda self, batch: batch if batch.mean() > 0.5 else 1 - batch, "data-dependent"),
    "fixed batch": (lambda self, batch: batch if batch.shape[0] == 2 else batch * 0.5, "constant (2)"),
}


@pytest.mark.parametrize(("function", "cause"), UNTRACEABLE.values(), ids=UNTRACEABLE.keys())
def test_what_is_no_graph_is_refused_in_one_line(tmp_path, capfd, function, cause):
    with pytest.raises(ConfigError, match="cannot be traced as one graph") as refused:
        write_file(tmp_path / "model.pt2", behind(function), SAMPLE, {})
    line = str(refused.value)
    assert cause in line and "\n" not in line and len(line) < 300
    assert not list(tmp_path.iterdir())
    assert capfd.readouterr() == ("", "")


def test_an_operator_that_onnx_lacks_is_named_and_pt2_offered(tmp_path, capfd):
    def special(self, batch):
        return torch.special.bessel_j0(batch).clamp(0, 1)

    with pytest.raises(ConfigError, match=r"cannot be written as \.onnx: .*bessel_j0.*; try --out with \.pt2"):
        write_file(tmp_path / "model.onnx", behind(special), SAMPLE, {})
    assert not list(tmp_path.iterdir())
    assert capfd.readouterr() == ("", "")
    assert write_file(tmp_path / "model.pt2", behind(special), SAMPLE, {}).parity["logits"] < 1e-5


def test_wrong_paths_are_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"ends in '\.pth': expected one of \.pt2, \.onnx"):
        check_path(tmp_path / "model.pth")
    with pytest.raises(ConfigError, match="which does not exist"):
        check_path(tmp_path / "missing" / "model.pt2")
    (tmp_path / "folder.pt2").mkdir()
    with pytest.raises(ConfigError, match="is a folder"):
        check_path(tmp_path / "folder.pt2")


@pytest.mark.parametrize("package", ["onnx", "onnxscript", "onnxruntime"])
def test_packages_that_onnx_needs_are_named(tmp_path, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ConfigError, match=rf'needs {package} .*pip install "defend-core\[onnx\]"'):
        check_path(tmp_path / "model.onnx")
    check_path(tmp_path / "model.pt2")
