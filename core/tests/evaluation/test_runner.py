"""What a run computes in, whatever torch was set to before; and what it must find unchanged to go on."""

import importlib.metadata
import sys

import pytest
import torch
from torch import nn

import defend
from defend.assembly.calibrate import calibrate
from defend.defence import Defence
from defend.errors import ConfigError
from defend.evaluation.runner import run, run_arms
from defend.testing.toys import TASK, TinyVictim, images, tiny_dataset
from defend.util import interrupts
from defend.values.run_config import RunConfig
from defend.values.toml import run_config

noted = set()


def note():
    noted.add((torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32))


class Noting(TinyVictim):
    def forward(self, batch):
        note()
        return super().forward(batch)


class NotingDetector(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("threshold", torch.tensor(float("inf")))

    def forward(self, batch, purified):
        note()
        return batch.flatten(1).mean(1)


def test_a_run_calibrates_attacks_judges_and_checks_in_ieee_fp32():
    noted.clear()
    data, val = ((images(TASK, 16, seed), torch.arange(16) % 10) for seed in (0, 1))
    how = {"threats": ["adaptive"], "attacks": ["fgsm"], "eps": 0.1, "fpr": 0.1, "store": False, "device": "cpu"}
    before = torch.backends.cudnn.allow_tf32
    assert before, "torch's default"
    found = defend.evaluate(Noting(), data, detector=NotingDetector(), val=val, classes=10, progress=False, **how)
    assert found.report.checks
    assert noted == {("highest", False)}
    assert torch.backends.cudnn.allow_tf32 == before


def test_a_detector_is_calibrated_in_ieee_fp32():
    noted.clear()
    calibrate(Defence(Noting(), detector=NotingDetector()), tiny_dataset(TASK), 0.1, device=torch.device("cpu"))
    assert noted == {("highest", False)}


SETTINGS = {
    "victim": "victim",
    "purifier": "negative",
    "dataset": "tiny",
    "eps": 0.1,
    "limit": 6,
    "batch_size": 3,
    "threats": ("oblivious",),
    "checks": "none",
    "store": False,
    "device": "cpu",
}


@pytest.fixture
def cut(toys, tmp_path, monkeypatch):
    """Begin a run of an attack and stop it within its attacked row; return what goes on with it."""

    def begin(attack):
        asked = []

        def stop():
            asked.append(1)
            if len(asked) == 4:  # the clean row has two batches
                raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(interrupts, "stop_if_asked", stop)
            assert run(RunConfig(**SETTINGS, attacks=(attack,), out=str(tmp_path / "cut")), plugins=toys).partial
        config = run_config({}, tmp_path / "cut" / "config.toml")
        return lambda: run_arms([config], plugins=toys, resume=True)[0].report

    return begin


def install(monkeypatch, library, version):
    of = importlib.metadata.version
    monkeypatch.setattr(importlib.metadata, "version", lambda name: version if name == library else of(name))


@pytest.mark.parametrize(
    ("attack", "library"), [("torchattacks:FGSM", "torchattacks"), ("fgsm", "torchvision"), ("fgsm", "pillow")]
)
def test_a_run_does_not_go_on_with_another_version_of_a_library(cut, monkeypatch, attack, library):
    go_on, before = cut(attack), importlib.metadata.version(library)
    install(monkeypatch, library, "9.9")
    with pytest.raises(ConfigError, match=rf"another set of library versions \({library} {before} against 9\.9 here\)"):
        go_on()


def test_a_run_goes_on_with_another_version_of_what_it_does_not_use_and_reports_what_it_does(cut, monkeypatch):
    go_on = cut("fgsm")
    install(monkeypatch, "torchattacks", "9.9")
    install(monkeypatch, "rich", "9.9")
    report = go_on()
    assert not report.partial
    assert {name: report.versions[name] for name in ("torch", "numpy")} == {
        "torch": torch.__version__,
        "numpy": importlib.metadata.version("numpy"),
    }
    assert {"torchvision", "pillow", "scikit-learn"} <= report.versions.keys()
    assert not {"torchattacks", "rich"} & report.versions.keys()


def test_a_run_does_not_go_on_with_other_weights_of_a_victim_that_a_library_brought(cut, monkeypatch):
    go_on = cut("fgsm")
    monkeypatch.setattr(sys.modules["toy_plugin"], "victim", lambda config, task: TinyVictim(task, seed=1))
    with pytest.raises(ConfigError, match="begun with another weights file"):
        go_on()
