"""Every command that the tool prints runs as it is printed: one function writes them, and each kind is run here."""

import ast
import html
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import defend as package

SOURCE = Path(package.__file__).parent
WRITER = "commands.py"
VICTIM = """
import torch
class Small(torch.nn.Module):
    def __init__(self, width: int = 4):
        super().__init__()
        torch.manual_seed(0)
        self.body = torch.nn.Sequential(
            torch.nn.Conv2d(3, width, 3), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(width, 2)
        )
    def forward(self, images):
        return self.body(images)
"""
FEW = ("--attack", "fgsm", "--threat", "oblivious", "--checks", "none", "--quiet")


@pytest.fixture
def pets(tmp_path):
    """Return a folder of two classes, whose name a shell would take apart, and a file with a victim beside it."""
    draw = np.random.default_rng(0)
    folder = tmp_path / "my pets"
    for split, count in (("train", 12), ("test", 4)):
        for label in ("cat", "dog"):
            (folder / split / label).mkdir(parents=True)
            for number in range(count):
                pixels = draw.integers(0, 256, (12, 12, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / split / label / f"{number}.png")
    (tmp_path / "my_model.py").write_text(VICTIM)
    return folder


@pytest.fixture
def printed(defend):
    """Run a command that must be refused with words to run another; return these words."""

    def run(*arguments):
        answer = defend(*arguments)
        assert answer.code == 2, (answer.out, answer.error)
        (line,) = [line for line in answer.error.splitlines() if line.startswith("error:")]
        (command,) = re.findall(r"`defend ([^`]+)`", line)[:1]
        return shlex.split(command)

    return run


def test_weights_of_a_victim_that_are_missing(defend, printed, pets):
    words = printed("run", "--victim", "resnet20", "--dataset", "./my pets", *FEW, "--set", "dataset.image_size=8")
    assert words == ["train", "victim", "resnet20", "--dataset", str(pets), "--set", "dataset.image_size=8"]
    answer = defend(*words, "--set", "epochs=1", "--quiet")
    assert answer.code == 0, answer.error
    answer = defend(
        *("run", "--victim", "resnet20", "--dataset", "./my pets", *FEW, "--set", "dataset.image_size=8"), "--json"
    )
    assert answer.code == 0, answer.error


def test_weights_of_a_purifier_before_a_victim_of_the_users_own(defend, printed, pets):
    own = ("--victim", "my_model.py:Small", "--set", "victim.width=3", "--mean", "half", "--std", "half")
    words = printed("run", *own, "--purifier", "dae", "--dataset", "./my pets", *FEW)
    assert words[:5] == ["train", "purifier", "dae", "--dataset", str(pets)]
    assert "victim.width=3" in words and "victim.mean=half" in words
    answer = defend(*words, "--set", "epochs=1", "--quiet")
    assert answer.code == 0, answer.error
    answer = defend("run", *own, "--purifier", "dae", "--dataset", "./my pets", *FEW, "--json")
    assert answer.code == 0, answer.error
    # what --train-missing makes is found in its place
    before = answer.json["weights"]["purifier"]
    gone = defend("cache", "--forget", before["file"])
    assert gone.code == 0, gone.error
    again = defend("run", *own, "--purifier", "dae", "--dataset", "./my pets", *FEW, "--json", "--train-missing")
    assert again.code == 0, again.error
    after = again.json["weights"]["purifier"]
    assert after["file"] == before["file"] and after["sha256"] != before["sha256"], "trained for longer than an epoch"


def test_a_training_that_looks_at_a_victim_without_weights(defend, refused, printed, pets):
    words = ("train", "purifier", "dae", "--dataset", "./my pets", "--set", "epochs=1", "--quiet")
    line = refused(*words)
    assert "looks at victim resnet20" in line and "--victim" in line and "--train-missing" in line
    assert printed(*words) == ["train", "victim", "resnet20", "--dataset", "./my pets"]
    answer = defend(*words, "--victim", "my_model.py:Small")
    assert answer.code == 0, answer.error


def test_a_run_that_goes_on_or_is_made_again(defend, tmp_path):
    out = tmp_path / "a run"
    answer = defend("run", "--victim", "resnet18", "--limit", 10, *FEW, "--out", out)
    assert answer.code == 0, answer.error
    (page,) = re.findall(r"A page to share: defend (.+)", " ".join(answer.out.splitlines()))
    assert shlex.split(page) == ["report", str(out)]
    assert defend(*shlex.split(page)).code == 0
    (rerun,) = re.findall(r"defend run --config '[^']+'", html.unescape((out / "report.html").read_text()))
    answer = defend(*shlex.split(rerun)[1:], "--quiet", "--json")
    assert answer.code == 0, answer.error


def test_weights_that_are_forgotten(defend):
    answer = defend("train", "victim", "classifier_a", "--set", "epochs=1", "--quiet")
    assert answer.code == 0, answer.error
    (command,) = re.findall(r"to go back: defend (.+)", answer.out)
    assert defend(*shlex.split(command)).code == 0


def test_a_detector_without_a_threshold(defend, printed, monkeypatch):
    import defend.assembly.calibrate as module

    calibrated = module.is_calibrated
    monkeypatch.setattr(module, "is_calibrated", lambda detector: False)
    words = ("export", "--victim", "resnet18", "--purifier", "dae", "--detector", "puvae")
    command = printed(*words, "--set", "detector.z_noise=0", "--out", "m.pt2")
    behind = ["--purifier", "dae", "--detector", "puvae", "--set", "detector.z_noise=0"]
    assert command == ["calibrate", *behind, "--dataset", "digits"]
    monkeypatch.setattr(module, "is_calibrated", calibrated)
    answer = defend(*command, "--quiet")
    assert answer.code == 0, answer.error


def test_all_printed_commands_are_written_by_one_function():
    """A command with a value filled in stands in no other text: it would be quoted wrongly, or lack an option."""
    verbs = "run|train|calibrate|report|cache|compare|export|predict|check|recipe|reproduce"
    guilty = []
    for path in SOURCE.rglob("*.py"):
        if path.name == WRITER:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.JoinedStr):
                continue
            text = "".join(str(part.value) if isinstance(part, ast.Constant) else "{}" for part in node.values)
            if re.search(rf"defend ({verbs})[^`.:;]*{{}}", text):
                guilty.append(f"{path.relative_to(SOURCE)}:{node.lineno}: {text}")
    assert guilty == [], "\n".join(guilty)
