"""Real defences as files, from the command line, and read where `defend` is not installed."""

import re
import subprocess
import sys

import numpy as np
import torch

from defend import dataset, load

HOOKS = """
from defend import StageSpec, hookimpl, option, options


@options
class Jitter:
    size: float = option(0.1, help="of the noise, and no more to choose", at_least=0.01, at_most=1)


@hookimpl
def defend_purifiers():
    return [StageSpec(name="jitter", summary="toy", build="toys.parts:jitter", config=Jitter)]


@hookimpl
def defend_detectors():
    return [StageSpec(name="change", summary="toy", build="toys.parts:change")]
"""
PARTS = """
import torch
from torch import nn

from defend.randomness import uniform_like


class Jitter(nn.Module):
    random = True

    def __init__(self, size):
        super().__init__()
        self.size = size

    def forward(self, images):
        return (images + uniform_like(images, -self.size, self.size)).clamp(0, 1)


class Change(nn.Module):
    random = False

    def __init__(self):
        super().__init__()
        self.register_buffer("threshold", torch.tensor(float("inf")))

    def forward(self, images, purified):
        return (images - purified).abs().flatten(1).mean(1)


def jitter(config, task):
    return Jitter(config.size)


def change(config, task):
    return Change()
"""
DAE = ("export", "--purifier", "dae", "--victim", "resnet20")
WITHOUT_DEFEND = """
import importlib.abc, sys


class Missing(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0].startswith(UNWANTED):
            raise ModuleNotFoundError(name)


sys.meta_path.insert(0, Missing())
import numpy as np
"""
RUN_PT2 = """
import torch
model = torch.export.load("model.pt2").module()
found = model(torch.from_numpy(np.load("images.npy")))
np.savez("found.npz", found.numpy())
"""
RUN_ONNX = """
import onnxruntime
session = onnxruntime.InferenceSession("model.onnx")
np.savez("found.npz", *session.run(None, {"images": np.load("images.npy")}))
"""


def elsewhere(folder, code, unwanted, images):
    """Run code in a fresh process in which nothing that begins with an unwanted name can be imported."""
    np.save(folder / "images.npy", images.numpy())
    text = WITHOUT_DEFEND.replace("UNWANTED", repr(unwanted)) + code
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", text], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return list(np.load(folder / "found.npz").values())


def test_pt2_where_there_is_only_torch(defend, tmp_path):
    answer = defend(*DAE, "--finetune", "dae", "--out", tmp_path / "model.pt2", "--json")
    assert answer.code == 0, answer.error
    told = answer.json
    assert told["path"] == str(tmp_path / "model.pt2") and told["size"] == (tmp_path / "model.pt2").stat().st_size
    assert told["inputs"] == {"images": ["batch", 1, 28, 28]} and told["outputs"] == {"logits": ["batch", 10]}
    assert told["batches"] == [1, 15] and told["parity"]["logits"] < 1e-4
    card = told["card"]
    assert (card["victim"], card["purifier"], card["finetune"], card["dataset"]) == ("resnet20", "dae", "dae", "digits")
    assert card["classes"] == [str(digit) for digit in range(10)] and card["batch_norm"] == "folded"
    assert set(card["weights"]) == {"victim", "dae", "finetuner"}
    assert all(len(each) == 64 for each in card["weights"].values())
    images, _ = dataset("digits").tensors("test", limit=5, seed=1)
    (logits,) = elsewhere(tmp_path, RUN_PT2, ("defend",), images)
    expected = load("resnet20", purifier="dae", finetune="dae").judge(images).logits
    np.testing.assert_allclose(logits, expected.numpy(), atol=1e-4)


def test_onnx_where_there_is_only_onnxruntime_once_the_detector_has_a_threshold(installed, defend, refused, tmp_path):
    installed("toys", {"__init__.py": HOOKS, "parts.py": PARTS})
    export = (*DAE, "--detector", "change", "--out", tmp_path / "model.onnx")
    line = refused(*export)
    command = "defend calibrate --purifier dae --detector change --dataset digits"
    assert "detector change has no threshold for digits" in line and f"`{command}`" in line
    assert not list(tmp_path.glob("model*"))
    assert defend(*command.split()[1:], "--quiet").code == 0
    answer = defend(*export)
    assert answer.code == 0, answer.error
    text = " ".join(answer.out.split())
    assert "images [batch, 1, 28, 28] in [0,1] to logits [batch, 10], score [batch], accepted [batch]" in text
    assert "in batches of 1 and 15: logits" in text and not answer.error
    images, _ = dataset("digits").tensors("test", limit=5, seed=1)
    images[3:] = torch.rand(2, 1, 28, 28, generator=torch.Generator().manual_seed(0))  # what no digit looks like
    found = elsewhere(tmp_path, RUN_ONNX, ("defend", "torch"), images)
    verdict = load("resnet20", purifier="dae", detector="change").judge(images)
    assert verdict.accepted.tolist() == [True] * 3 + [False] * 2
    for value, expected in zip(found, (verdict.logits, verdict.score, verdict.accepted), strict=True):
        np.testing.assert_allclose(value, expected.numpy(), atol=1e-4)


def test_what_optimises_at_test_time_is_refused_with_what_to_use_instead(refused, tmp_path):
    names = ("--purifier", "dae,vaegan", "--victim", "resnet20")
    line = refused("export", *names, "--out", tmp_path / "model.pt2")
    assert "purifier vaegan optimises at test time" in line
    assert re.search(
        r"add --set vaegan.mode=recon, or take a single-pass purifier \([a-z_, ]*dae[a-z_, ]*\), or use", line
    )
    assert not list(tmp_path.glob("model*"))


def test_what_is_random_is_refused_with_what_to_use_instead(installed, refused, tmp_path):
    installed("toys", {"__init__.py": HOOKS, "parts.py": PARTS})
    out = ("--victim", "resnet20", "--out", tmp_path / "model.pt2")
    assert "detector puvae draws random numbers" in (line := refused("export", "--detector", "puvae", *out))
    assert "add --set detector.z_noise=0, or use the defence in Python" in line
    line = refused("export", "--purifier", "jitter", *out)  # its noise cannot be turned off
    assert "purifier jitter draws random numbers" in line and "--set" not in line
    assert re.search(r"take a single-pass purifier \([a-z_, ]*dae[a-z_, ]*\)", line)
    assert not list(tmp_path.glob("model*"))


def test_wrong_input_is_refused(refused, tmp_path):
    assert "expected one of .pt2, .onnx" in refused(*DAE, "--out", tmp_path / "model.pth")
    assert "which does not exist" in refused(*DAE, "--out", tmp_path / "missing" / "model.pt2")
    out = ("--out", tmp_path / "model.pt2")
    assert "options for 'dea', which this defence does not have: expected one of" in refused(
        *DAE, "--set", "dea.x=1", *out
    )
    assert "weights for 'puvae', which this defence does not have" in refused(
        *DAE, "--purifier-weights", "puvae=x.safetensors", *out
    )
    assert "weights file 'none.safetensors' does not exist" in refused(
        *DAE, "--victim-weights", "none.safetensors", *out
    )
