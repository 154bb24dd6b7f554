"""Processes that share a run judge the same thing, or the run is refused."""

import pytest
import torch
from torch import nn

from defend.errors import ConfigError
from defend.evaluation.agreement import check_alike, check_modules
from defend.util.processes import Processes

TWO_PROCESSES = """
import json, os, sys, torch
from pathlib import Path
import defend
from defend.assembly.composition import Composition
from defend.errors import ConfigError
from defend.records.watcher import Watcher
from defend.testing.toys import TASK, TinyVictim, images, tiny_dataset
from defend.training.missing import train_missing

rank, said = int(os.environ["RANK"]), {}


class Suspicious(torch.nn.Module):
    # scores as a device might that rounds otherwise
    def __init__(self):
        super().__init__()
        self.register_buffer("threshold", torch.tensor(float("inf")))

    def forward(self, images, purified):
        return images.flatten(1).mean(1) + 1e-3 * rank


def evaluate(victim, detector=None, seeds=(0, 1)):
    data, val = ((images(TASK, 16, seed), torch.arange(16) % 10) for seed in seeds)
    how = {"threats": ["oblivious"], "attacks": ["fgsm"], "eps": 0.1, "store": False, "device": "cpu"}
    how |= {"fpr": 0.1} if detector else {}
    return defend.evaluate(victim, data, detector=detector, val=val, classes=10, progress=False, **how).report


report = evaluate(TinyVictim(TASK), Suspicious())
said["thresholds"] = [report.detector["threshold"], report.worst_case.accuracy]
try:
    evaluate(TinyVictim(TASK, seed=rank))
except ConfigError as error:
    said["victims"] = str(error)
for what, seeds in (("images", (2 + rank, 1)), ("held out", (0, 2 + rank))):
    try:
        evaluate(TinyVictim(TASK), Suspicious(), seeds)
    except ConfigError as error:
        said[what] = str(error)
os.environ["DEFEND_CACHE_DIR"] = str(Path(sys.argv[1]) / f"cache{rank}")
if rank:
    (Path(sys.argv[1]) / "cache1" / "weights").mkdir(parents=True)
    (Path(sys.argv[1]) / "cache1" / "weights" / "victim-resnet10t-tiny.safetensors").touch()
try:
    train_missing(Composition.of("resnet10t"), tiny_dataset(TASK), Watcher(), device="cpu")
except ConfigError as error:
    said["missing"] = str(error)
(Path(sys.argv[1]) / f"{rank}.json").write_text(json.dumps(said))
"""


def test_two_processes_judge_by_one_threshold_and_refuse_different_weights(launch_two):
    first, second = launch_two(TWO_PROCESSES)
    assert first == second
    assert first["victims"].startswith("process 1 of this run has another victim than process 0")
    assert first["images"].startswith("process 1 of this run has another data than process 0")
    assert first["held out"].startswith("process 1 of this run has another held-out data than process 0")
    assert first["missing"].startswith("process 1 finds weights of victim resnet10t, and process 0 finds none")


class Two(Processes):
    """Process 0 of two; what the other one says is what `other` makes of this one's."""

    def gather(self, value, what):
        return [value, self.other(value)]


def two(other):
    processes = Two(0, 2)
    object.__setattr__(processes, "other", other)
    return processes


def test_what_differs_is_named():
    check_alike(two(dict), {"layout": "contiguous"})
    with pytest.raises(ConfigError, match="process 1 of this run has another layout than process 0"):
        check_alike(two(lambda said: {**said, "layout": "channels_last"}), {"layout": "contiguous"})
    with pytest.raises(ConfigError, match="another purifier than"):  # one has a part more
        check_alike(two(lambda said: {**said, "purifier": "dae"}), {"layout": "contiguous"})


def test_every_parameter_and_buffer_counts():
    module = nn.BatchNorm2d(2)
    module.register_buffer("sparse", torch.eye(2).to_sparse())  # no bytes to read, and it counts too
    mine = []

    def other(said):
        mine.append(said)
        return dict(mine[0])

    processes = two(other)
    check_modules(processes, {"victim": module})
    check_modules(processes, {"victim": module})
    module.running_mean[0] = 1
    with pytest.raises(ConfigError, match="another victim"):
        check_modules(processes, {"victim": module})
    module.running_mean[0] = 0
    module.sparse = 2 * module.sparse
    with pytest.raises(ConfigError, match="another victim"):
        check_modules(processes, {"victim": module})
