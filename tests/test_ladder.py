"""The threat ladder and the gate, from the command line."""

import csv
import json

import pytest
from safetensors.torch import load_file

from defend.checks import CHECKS

HOOKS = """
from defend import StageSpec, hookimpl


@hookimpl
def defend_purifiers():
    names = ["soften", "detach", "shake"]
    return [StageSpec(name=name, summary="toy", build=f"rungs.parts:{name}") for name in names]


@hookimpl
def defend_detectors():
    return [StageSpec(name="change", summary="toy", build="rungs.parts:change")]
"""
PARTS = """
import torch
from torch import nn
from torch.nn import functional as F

from defend.randomness import uniform_like


class Soften(nn.Module):
    random = False

    def forward(self, images):
        return (images + F.avg_pool2d(images, 3, 1, 1)) / 2

    def surrogates(self):
        return {"blur": nn.AvgPool2d(3, 1, 1)}


class Detach(Soften):
    def forward(self, images):
        return super().forward(images).detach()


class Shake(Soften):
    random = True

    def forward(self, images):
        return (images + uniform_like(images, -0.3, 0.3)).clamp(0, 1)


class Change(nn.Module):
    random = False

    def __init__(self):
        super().__init__()
        self.register_buffer("threshold", torch.tensor(float("inf")))

    def forward(self, images, purified):
        return (images - purified).abs().flatten(1).mean(1)


def soften(config, task):
    return Soften()


def detach(config, task):
    return Detach()


def shake(config, task):
    return Shake()


def change(config, task):
    return Change()
"""


@pytest.fixture
def rungs(installed):
    installed("rungs", {"__init__.py": HOOKS, "parts.py": PARTS})


SHORT = [f"--set={name}.steps=2" for name in ("pgd", "apgd_ce", "apgd_dlr", "apgd_ce_l2", "apgd_dlr_l2")]
SHORT += [f"--set=pgd_{name}.steps=2" for name in ("joint", "selective", "orthogonal")]
SHORT += ["--set=square.queries=5", "--set=square_l2.queries=5", "--set=pgd_joint.weights=1", "--limit=6"]
SHORT += ["--adaptive-limit=3", "--victim=resnet20", "--quiet"]
"""Options of every attack of the ladder."""


def test_the_whole_ladder_of_a_purifier_with_a_detector(rungs, defend, tmp_path):
    out = tmp_path / "run"
    asked = ("run", "--purifier", "soften", "--detector", "change", "--threat", "ladder", "--eps", "0.1,0.05")
    answer = defend(*asked, *SHORT, "--source", "mobilenetv3_small_050", "--json", "--out", out)
    assert answer.code == 0, answer.error
    rows = answer.json["rows"]
    assert [row["threat"] for row in rows if row["headline"]] == [
        "none",
        "noise",
        "transfer",
        "transfer",
        "oblivious",
        "oblivious",
        "query",
        "query",
        "bpda",
        "bpda",
        *["adaptive"] * 5,
        "detector-aware",
        "detector-aware",
        "detector-aware",
    ]
    variants = {(row["threat"], row["variant"]) for row in rows if row["variant"]}
    source = "mobilenetv3_small_050"
    assert variants == {
        ("transfer", source),
        ("transfer", f"{source} behind the defence"),
        ("bpda", "identity"),
        ("bpda", "blur"),
    }
    assert {row["eps"] for row in rows if not row["headline"]} == {0.05}
    assert len(answer.json["worst_case"]["over"]) == 18
    assert answer.json["worst_case"]["n"] == 3
    assert answer.json["worst_case"]["weakest"] in answer.json["worst_case"]["over"]
    assert answer.json["worst_case"]["with_credit"]["accuracy"] == credited(out)
    norms = answer.json["worst_case"]["norms"]
    within = {"l2": {"square_l2", "apgd_ce_l2", "apgd_dlr_l2"}}
    within["linf"] = {row["attack"] for row in rows} - within["l2"]
    for norm, attacks in within.items():
        assert norms[norm]["accuracy"] == left(out, {"none", *attacks})
    assert answer.json["worst_case"]["accuracy"] <= min(one["accuracy"] for one in norms.values())
    assert all(row["queries"]["max"] <= 5 for row in rows if row["threat"] == "query")
    aware = [row for row in rows if row["threat"] == "detector-aware"]
    assert all(set(row["success_at_fpr"]) == {"0.01", "0.05"} for row in aware)
    assert set(answer.json["detector"]["thresholds"]) == {"0.01", "0.05"}
    assert answer.json["left_out"] == {}
    assert [check["number"] for check in answer.json["checks"]] == list(range(1, len(CHECKS) + 1))

    kept = load_file(out / "examples.safetensors")
    place = next(place for place, row in enumerate(rows) if row["threat"] == "adaptive")
    assert kept[f"{place}/attacked"].shape == (3, 1, 28, 28)
    with (out / "records.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    asked = [line["queries"] for line in lines if line["attack"] == "square" and line["arm"] == "defended"]
    assert len(asked) == 6
    assert all(1 <= int(queries) <= 5 for queries in asked[:3])


def left(out, attacks):
    """The share of the adaptive rows' images that are right, and accepted, under all rows of some attacks."""
    with (out / "records.csv").open(newline="") as file:
        lines = [line for line in csv.DictReader(file) if line["arm"] == "defended" and line["eps"] != "0.05"]
    right = {line["image"]: True for line in lines if line["threat"] == "adaptive"}
    for line in lines:
        if line["attack"] in attacks and line["image"] in right:
            right[line["image"]] &= line["predicted"] == line["label"] and line["accepted"] == "1"
    assert len(right) == 3
    return sum(right.values()) / len(right)


def credited(out):
    """The share of images that no attack of the headline got accepted and misclassified, from the records."""
    fooled, judged, rows = set(), {}, 0
    with (out / "records.csv").open(newline="") as file:
        for line in csv.DictReader(file):
            if line["arm"] == "defended" and line["eps"] != "0.05":
                judged.setdefault(line["image"], set()).add((line["attack"], line["threat"], line["variant"]))
                right, accepted = line["predicted"] == line["label"], line["accepted"] == "1"
                if (accepted and not right) or (line["threat"] == "none" and not accepted):
                    fooled.add(line["image"])
    rows = max(len(seen) for seen in judged.values())
    everywhere = {image for image, seen in judged.items() if len(seen) == rows}
    return len(everywhere - fooled) / len(everywhere)


def test_the_gate_stops_a_defence_that_a_check_catches(rungs, defend, tmp_path):
    asked = ("run", "--purifier", "detach", "--attack", "pgd", *SHORT[:1], *SHORT[-4:])
    answer = defend(*asked, "--gate", "--out", tmp_path / "run")
    assert answer.code == 3
    assert "Not to be trusted" in answer.out
    assert "gate: 1 failed (5 " in answer.error
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert [check["number"] for check in report["checks"] if check["status"] == "fail"] == [5]
    assert defend(*asked, "--out", tmp_path / "again").code == 0, "without --gate it is only said"


def test_the_gate_lets_an_honest_defence_through(rungs, defend):
    answer = defend(
        "run",
        "--purifier",
        "soften",
        "--gate",
        "--attack",
        "fgsm",
        "--attack",
        "pgd",
        "--victim",
        "resnet18",
        "--limit",
        "12",
        "--adaptive-limit",
        "6",
        "--quiet",
    )
    assert answer.code == 0, answer.out
    assert "Checks: " in answer.out


def test_a_random_defence_is_asked_several_times(rungs, defend):
    asked = ("run", "--purifier", "shake", "--attack", "pgd", *SHORT[:1], *SHORT[-4:], "--draws", "2")
    answer = defend(*asked, "--passes", "4", "--json")
    for row in answer.json["rows"]:
        assert row["passes"]["n"] == 4
        assert row["passes"]["one_shot"]["accuracy"] == row["defended"]["accuracy"]
        assert row["passes"]["worst"]["accuracy"] <= row["defended"]["accuracy"]
    worst = answer.json["worst_case"]
    assert worst["passes"]["worst"]["accuracy"] <= worst["accuracy"] == worst["passes"]["one_shot"]["accuracy"]
    table = defend(*asked, "--passes", "4").out
    assert "worst/4" in table
    assert "right in each of 4 passes" in table


def test_a_victim_alone_can_be_asked_and_what_does_not_fit_is_said(defend):
    answer = defend("run", "--threat", "ladder", *SHORT[:1], *SHORT[8:10], *SHORT[-4:], "--set=square_l2.queries=5")
    assert answer.code == 0, answer.error
    assert "square" in answer.out
    for words in ("bpda: left out, there is no purifier", "detector-aware: left out, there is no detector"):
        assert words in answer.out


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--threat", "detector-aware"], "needs a detector"),
        (["--threat", "lader"], "ladder"),
        (["--threat", "adaptive"], "needs a defence"),
        (["--gate", "--checks", "none"], "--checks none"),
        (["--checks", "ful"], "full"),
        (["--source", "resnet19", "--threat", "transfer"], "resnet18"),
        (["--eps", "0.1,8"], "8/255"),
        (["--eps", "0.1,"], "''"),
        (["--eps-l2", "-1"], "eps_l2"),
        (["--passes", "0"], "at least 1"),
    ],
)
def test_wrong_input(refused, flags, words):
    assert words in refused("run", "--victim", "resnet18", "--limit", "4", "--quiet", *flags)
