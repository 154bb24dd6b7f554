"""A published table measured again, from its declaration to its page: with a toy paper, and with the installed ones."""

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import attrs
import pytest
from tools.aside import set_aside
from tools.stale import find_stale_runs

from defend.errors import ConfigError, DataError, DefendError, WeightsError
from defend.evaluation.runner import run
from defend.plugins import registry
from defend.records.reading import read_report
from defend.records.unfinished import seal
from defend.records.watcher import Watcher
from defend.report import reproduction
from defend.reproduce import measure as measure_module
from defend.reproduce import results
from defend.reproduce.jobs import MeasureSettings, find_missing, jobs
from defend.reproduce.measure import _find_finished, reproduce
from defend.reproduce.results import TableResult, find_kept, standing
from defend.tables import Adaptive, TableArm
from defend.util.files import cache_dir
from defend.values.run_config import RunConfig

ROOT = Path(__file__).parents[1]

HOOKS = """
from defend import Paper, StageSpec, hookimpl, option, options
from defend.tables import Adaptive, Table, TableArm, TableAttack


@options
class Recipe:
    epochs: int = option(1, help="passes", at_least=1)


LEARNED = {"train": "papers.parts:train", "recipe": Recipe, "costs": {"specks": "1 s", "specks+long": "2 s"},
           "editions": {"long": {"epochs": 2}}}


@hookimpl
def defend_datasets():
    return [StageSpec(name="specks", summary="toy", build="papers.parts:specks")]


@hookimpl
def defend_victims():
    return [
        StageSpec(name="fixed", summary="toy", build="papers.parts:fixed"),
        StageSpec(name="other", summary="toy", build="papers.parts:other"),
        StageSpec(name="trained", summary="toy", build="papers.parts:trained", **LEARNED),
    ]


@hookimpl
def defend_purifiers():
    return [
        StageSpec(name="soften", summary="toy", build="papers.parts:soften"),
        StageSpec(name="broken", summary="toy", build="papers.parts:broken"),
        StageSpec(name="learned", summary="toy", build="papers.parts:learned", **LEARNED),
    ]


@hookimpl
def defend_detectors():
    return [StageSpec(name="change", summary="toy", build="papers.parts:change")]


@hookimpl
def defend_finetuners():
    return [StageSpec(name="short", summary="toy", build="papers.parts:copied", train="papers.parts:tune",
                      recipe=Recipe)]


OURS = {"purifier": "soften", "detector": "change", "credit": True}
NONE, SOFT = TableArm(name="None", reference=True), TableArm(name="Soft", purifier="soften")
LEARNING = TableArm(name="Learned", purifier="learned", weights={"purifier": "+long"})
ARMS = (
    NONE, SOFT, TableArm(name="Ours", **OURS), TableArm(name="Worst", **OURS, budgets=(0.05, 0.1)), LEARNING,
    TableArm(name="Rival", absent="another paper's defence"), TableArm(name="Best", best_of=("Soft", "Ours")),
)
ATTACKS = (
    TableAttack(name="Clean", n=24), TableAttack(name="FGSM", attack="fgsm", n=24),
    TableAttack(name="PGD", attack="pgd", threat="adaptive", options={"steps": 2}, step_share=0.5, n=12),
)
TWO = {"steps": 2}
TRANSFER = (
    TableArm(name="Exposed", source="other"), TableArm(name="Recovered", source="other", purifier="soften"),
)
TUNE = {"finetune": "short", "purifier": "soften"}
BEFORE = {"threat": "transfer", "variant": "before tuning", **TUNE}
TUNED = (
    TableArm(name="Tuned alone", judged="tuned", **BEFORE), TableArm(name="Tuned", **BEFORE),
    TableArm(name="Tuned anew", judged="tuned", **TUNE),
)


def table(number, arms, attacks=ATTACKS, **more):
    cells = {(attack.name, arm.name): 50.0 for attack in attacks for arm in arms}
    values = {"cells": cells, "victim": "fixed", "adaptive": None, **more}
    return Table(
        name=f"papers/table-{number}", caption=f"specks {number}", paper=Paper("Toys"), dataset="specks", eps=0.1,
        arms=arms, attacks=attacks, knowledge="mixed", results="papers", **values,
    )


@hookimpl
def defend_tables():
    return [
        table(1, ARMS, cells={(a.name, b.name): 50.0 for a in ATTACKS for b in ARMS if (a.attack or not b.budgets)},
              adaptive=Adaptive(n=6, draws=1, options={
                  "pgd": TWO, "pgd_joint": {**TWO, "weights": (1.0,)}, "pgd_selective": TWO, "pgd_orthogonal": TWO,
              })),
        table(2, (NONE, SOFT), ATTACKS[:2]),
        table(3, (NONE,), ATTACKS[:2], victim="trained"),
        table(4, (NONE, TableArm(name="Broken", purifier="broken")), ATTACKS[:2]),
        table(5, TRANSFER, (*ATTACKS[:1], ATTACKS[2], TableAttack(name="T", attack="fgsm", threat="transfer", n=24))),
        table(6, TUNED, ATTACKS[:2], adaptive=Adaptive(attacks=("fgsm",), n=6)),
        table(7, (NONE,), ATTACKS[:2], victim="dragon", needs=("defend-dragon",)),
    ]
"""
PARTS = """
import copy

import torch
from torch import nn
from torch.nn import functional as F

from defend.datasets.base import MemoryDataset
from defend.testing import TinyVictim, images
from defend.stages import Task
from defend.train import Loss, Optimiser, Training


class Soften(nn.Module):
    random = False

    def forward(self, images):
        return (images + F.avg_pool2d(images, 3, 1, 1)) / 2


class Broken(Soften):
    def forward(self, images):
        return super().forward(images)[:, :, 1:]


class Learned(nn.Module):
    random = False

    def __init__(self):
        super().__init__()
        self.convolution = nn.Conv2d(1, 1, 3, padding=1)

    def forward(self, images):
        return self.convolution(images).sigmoid()


class Change(nn.Module):
    random = False

    def __init__(self):
        super().__init__()
        self.register_buffer("threshold", torch.tensor(float("inf")))

    def forward(self, images, purified):
        return (images - purified).abs().flatten(1).mean(1)


class Fit(Training):
    def __init__(self, stage, recipe):
        super().__init__(stage, {"stage": stage}, epochs=recipe.epochs, batch_size=32)

    def optimisers(self, steps):
        return {"stage": Optimiser(torch.optim.SGD(self.stage.parameters(), lr=0.1))}

    def losses(self, batch):
        given = self.modules["stage"](batch.images)
        known = given.ndim == 2
        yield Loss("stage", F.cross_entropy(given, batch.labels) if known else F.mse_loss(given, batch.images))


def specks(config):
    task = Task("specks", 1, 8, 8, 10)
    sizes = {"train": 64, "val": 100, "test": 30}
    shown = {split: images(task, n, seed) for seed, (split, n) in enumerate(sizes.items())}
    shown = {split: (255 * batch).round().to(torch.uint8) for split, batch in shown.items()}
    labels = {split: TinyVictim(task)(batch / 255).argmax(1).detach() for split, batch in shown.items()}
    return MemoryDataset("specks", tuple("abcdefghij"), shown, labels)


def fixed(config, task):
    return TinyVictim(task)


def other(config, task):
    return TinyVictim(task, seed=1)


def copied(config, task, victim):
    return copy.deepcopy(victim)


def tune(config, recipe, task, victim, purifier):
    return Fit(copied(config, task, victim), recipe)


def trained(config, task):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))


def train(config, recipe, task):
    stage = Learned() if recipe.epochs == 2 else trained(config, task)
    return Fit(stage, recipe)


def soften(config, task):
    return Soften()


def broken(config, task):
    return Broken()


def learned(config, task):
    return Learned()


def change(config, task):
    return Change()
"""


@pytest.fixture
def toys(installed):
    """Install a plugin with four tables; return them by their number."""
    installed("papers", {"__init__.py": HOOKS, "parts.py": PARTS})
    return {int(name[-1]): table for name, table in registry().tables.items() if name.startswith("papers/")}


@pytest.fixture
def measure(tmp_path):
    """Measure a table: `measure(table, limit=4)`."""

    def run_it(table, watcher=None, **settings):
        return reproduce(table, MeasureSettings(out=tmp_path / "out", device="cpu", **settings), watcher)

    return run_it


def plan(table, tmp_path, **settings):
    """Return a table's jobs as (arm, attacks, threats, eps, limit), and their folders."""
    arms = [arm for arm in table.arms if not arm.absent and not arm.best_of]
    found = list(jobs(table, MeasureSettings(out=tmp_path, **settings), arms, registry()))
    told = [(job.arm.name, job.attacks, job.config.threats, job.eps, job.config.limit) for job in found]
    return told, [job.folder.name for job in found], found


# Which runs a table needs


def test_attacks_that_differ_in_nothing_else_share_a_run(toys, tmp_path):
    told, _, found = plan(toys[1], tmp_path)
    oblivious, adaptive, cheap = ("oblivious",), ("adaptive",), ("FGSM", "Clean")
    assert told == [
        ("None", cheap, oblivious, 0.1, 24),
        ("None", ("PGD",), oblivious, 0.1, 12),
        ("Soft", cheap, oblivious, 0.1, 24),
        ("Soft", ("PGD",), adaptive, 0.1, 12),
        ("Ours", cheap, oblivious, 0.1, 24),
        ("Ours", ("PGD",), adaptive, 0.1, 12),
        ("Worst", ("FGSM",), oblivious, 0.05, 24),
        ("Worst", ("FGSM",), oblivious, 0.1, 24),
        ("Worst", ("PGD",), adaptive, 0.05, 12),
        ("Worst", ("PGD",), adaptive, 0.1, 12),
        ("Learned", cheap, oblivious, 0.1, 24),
        ("Learned", ("PGD",), adaptive, 0.1, 12),
        ("Soft", (), adaptive, 0.1, 6),
        ("Ours", (), ("adaptive", "detector-aware"), 0.1, 6),
        ("Learned", (), adaptive, 0.1, 6),
    ]
    assert found[8].config.options["pgd"] == {"steps": 2, "step_size": 0.025}
    assert found[12].config.options == {"pgd": {"steps": 2}}, "attacks on a detector are none of an arm without one"
    aware = found[13].config
    assert aware.attacks == ("pgd", "pgd_joint", "pgd_selective", "pgd_orthogonal")
    assert set(aware.options) == set(aware.attacks)
    assert {job.config.checks for job in found[:12]} == {"none"}
    assert {job.config.checks for job in found[12:]} == {"basic"}


def test_folders_are_named_after_what_is_run(toys, tmp_path):
    _, names, _ = plan(toys[1], tmp_path)
    _, again, _ = plan(toys[1], tmp_path / "elsewhere", data_dir="x", device="cuda", batch_size=7, train_missing=True)
    assert names == again, "where and how fast decides nothing"
    assert names[0].startswith("specks-fixed-oblivious-0.1-")
    assert names[13].startswith("specks-fixed-soften-change-adaptive-detector-aware-0.1-")
    assert (names[7], names[9]) == (names[4], names[5]), "one budget of Worst is Ours, and is run once"
    assert len(set(names)) == len(names) - 2
    _, other, _ = plan(toys[1], tmp_path, seed=1)
    assert not set(names) & set(other)
    _, shared, _ = plan(toys[2], tmp_path)
    assert shared == [names[0], names[2]], "two tables share their runs"


def test_a_limit_is_on_every_cell(toys, tmp_path):
    told, _, _ = plan(toys[1], tmp_path, limit=8)
    assert [row[-1] for row in told] == [8] * 12 + [6] * 3


def test_clean_images_alone_are_a_run_of_noise(toys, tmp_path):
    table = toys[2]
    alone = attrs.evolve(table, cells={("Clean", "Soft"): 50.0})
    told, _, found = plan(alone, tmp_path)
    assert told == [("Soft", ("Clean",), ("noise",), 0.1, 24)]
    assert found[0].config.attacks == ("noise",)


def test_only_a_whole_defence_at_one_budget_faces_the_adaptive_attacker(toys, tmp_path):
    tuned = {"finetune": "adversarial", "purifier": "soften"}
    arms = (
        TableArm(name="None"),
        TableArm(name="Tuned alone", judged="tuned", **tuned),
        TableArm(name="Tuned", **tuned),
        TableArm(name="Worst", purifier="soften", budgets=(0.1, 0.2)),
    )
    table = attrs.evolve(
        toys[2], arms=arms, cells={("FGSM", arm.name): 50.0 for arm in arms}, adaptive=Adaptive(attacks=("fgsm",))
    )
    told, names, _ = plan(table, tmp_path)
    assert [row[0] for row in told if not row[1]] == ["Tuned"]
    assert names[1] == names[2], "both judge one run"


# A table from its runs


def test_cells_are_what_a_run_gives(toys, measure, tmp_path):
    table = toys[1]
    result = measure(table)
    assert TableResult.from_json((tmp_path / "out" / "papers-table-1.json").read_text(), "it") == TableResult.from_json(
        result.to_json(), "it"
    )
    assert not result.partial
    assert not result.failed
    base = {"victim": "fixed", "dataset": "specks", "eps": 0.1, "device": "cpu", "checks": "none", "sources": ("none",)}
    one = run(
        RunConfig(purifier="soften", attacks=("fgsm",), threats=("oblivious",), limit=24, adaptive_limit=24, **base)
    )
    clean, fgsm = one.rows
    soft = {cell.attack: cell for cell in result.cells if cell.arm == "Soft"}
    assert (soft["Clean"].ours, soft["Clean"].ci95) == (clean.defended.accuracy, clean.defended.ci95)
    assert (soft["FGSM"].ours, soft["FGSM"].ci95, soft["FGSM"].n) == (fgsm.defended.accuracy, fgsm.defended.ci95, 24)
    bare = {cell.attack: cell.ours for cell in result.cells if cell.arm == "None"}
    assert (bare["Clean"], bare["FGSM"]) == (clean.undefended.accuracy, fgsm.undefended.accuracy)
    assert bare["Clean"] == 1, "labels are what the victim says"

    two = RunConfig(
        purifier="soften",
        detector="change",
        attacks=("pgd",),
        threats=("adaptive",),
        limit=12,
        adaptive_limit=12,
        draws=1,
        options={"pgd": {"steps": 2, "step_size": 0.05}},
        **base,
    )
    credited = run(two).rows[1].defended.accuracy_with_credit
    ours = {cell.attack: cell for cell in result.cells if cell.arm == "Ours"}
    assert ours["PGD"].ours == credited
    less = run(attrs.evolve(two, eps=0.05, options={"pgd": {"steps": 2, "step_size": 0.025}}))
    worst = {cell.attack: cell for cell in result.cells if cell.arm == "Worst"}
    assert worst["PGD"].ours == min(credited, less.rows[1].defended.accuracy_with_credit)
    assert "Clean" not in worst

    for cell in (cell for cell in result.cells if cell.arm == "Best"):
        several = {arm: result.cell(cell.attack, arm).ours for arm in ("Soft", "Ours")}
        assert cell.ours == max(several.values()) == several[cell.details["best"]]
    assert {cell.why for cell in result.cells if cell.arm == "Rival"} == {"another paper's defence"}
    learned = [cell for cell in result.cells if cell.arm == "Learned"]
    assert {(cell.standing, cell.why) for cell in learned} == {("open", "its weights are missing")}
    assert result.missing == ("defend train purifier learned --dataset specks --edition long  (2 s)",)

    assert [one.arm for one in result.adaptive] == ["Soft", "Ours"]
    soft, ours = result.adaptive
    assert (soft.n, soft.over, soft.credit) == (6, ("none/none", "pgd/adaptive"), False)
    assert ours.credit
    assert {"pgd/adaptive", "pgd_joint/detector-aware", "pgd_orthogonal/detector-aware"} <= set(ours.over)
    for cell in result.cells:
        if cell.ours is not None:
            assert standing(table, cell.attack, cell.arm, cell.ours) == (cell.standing, cell.why)
    assert result.dataset["name"] == "specks"
    assert result.seconds > 0
    reproduction.markdown(table, result)


def test_transfer_from_another_victim(toys, measure):
    result = measure(toys[5])
    assert not result.failed
    config = RunConfig(
        victim="fixed",
        dataset="specks",
        purifier="soften",
        eps=0.1,
        device="cpu",
        checks="none",
        attacks=("fgsm",),
        threats=("transfer",),
        sources=("other",),
        limit=24,
    )
    rows = {row.variant: row for row in run(config).rows}
    assert result.cell("T", "Exposed").ours == rows["other"].undefended.accuracy
    assert result.cell("T", "Recovered").ours == rows["other"].defended.accuracy
    assert result.cell("PGD", "Recovered").ours is not None, "an attack of another threat has no source"
    assert result.cell("T", "Recovered").details["threat"] == "transfer"


def test_arms_of_a_tuned_victim(toys, measure):
    result = measure(toys[6], train_missing=True)
    assert not result.failed
    config = RunConfig(
        victim="fixed",
        dataset="specks",
        purifier="soften",
        finetune="short",
        eps=0.1,
        device="cpu",
        checks="none",
        attacks=("fgsm",),
        threats=("transfer", "oblivious"),
        sources=("none",),
        limit=24,
    )
    clean, before, anew = run(config).rows
    assert before.variant == "before tuning"
    figures = {(cell.attack, cell.arm): cell.ours for cell in result.cells}
    assert figures == {
        ("Clean", "Tuned alone"): clean.arms["tuned"].accuracy,
        ("FGSM", "Tuned alone"): before.arms["tuned"].accuracy,
        ("Clean", "Tuned"): clean.defended.accuracy,
        ("FGSM", "Tuned"): before.defended.accuracy,
        ("Clean", "Tuned anew"): clean.arms["tuned"].accuracy,
        ("FGSM", "Tuned anew"): anew.arms["tuned"].accuracy,
    }
    assert [one.arm for one in result.adaptive] == ["Tuned"]


def nothing_is_run(*_, **__):
    raise AssertionError("what is complete was run again")


def test_what_is_complete_is_not_run_again(toys, measure, monkeypatch):
    first = measure(toys[2])
    monkeypatch.setattr("defend.reproduce.measure.run_arms", nothing_is_run)
    monkeypatch.setattr("defend.reproduce.measure.open_dataset", nothing_is_run)
    assert measure(toys[2]) == first


class Stops(Watcher):
    """Presses Ctrl-C after so many batches."""

    def __init__(self, after):
        self.left = after

    def images(self, count):
        self.left -= 1
        if self.left <= 0:
            raise KeyboardInterrupt


@pytest.mark.parametrize("after", [1, 2, 8])
def test_cut_off_and_gone_on_with_it_is_the_same(toys, measure, tmp_path, after):
    whole = reproduce(toys[2], MeasureSettings(out=tmp_path / "whole", device="cpu", batch_size=8))
    cut = measure(toys[2], Stops(after), batch_size=8)
    assert cut.partial
    assert len([cell for cell in cut.cells if cell.standing == "open"]) == (4 if after < 6 else 2)
    assert {cell.why for cell in cut.cells if cell.standing == "open"} == {"it is still to be run"}
    again = measure(toys[2], batch_size=5)
    assert attrs.evolve(again, seconds=0.0) == attrs.evolve(whole, seconds=0.0)


def test_a_cut_run_of_something_else_is_not_gone_on_with(toys, measure, tmp_path):
    measure(toys[2], Stops(2), batch_size=8)
    (path,) = (tmp_path / "out").glob("*/unfinished/run.json")
    about = json.loads(path.read_text())
    assert about["fingerprint"]["batch size"] == 8  # finished batches are counted
    about["fingerprint"]["weights file"] = [{"victim": "0" * 64}]
    del about["digest"]
    path.write_text(seal(about))
    result = measure(toys[2])
    assert "begun with another weights file" in result.failed["None"]
    assert result.failed["None"].endswith("; or delete the folder, and the same command measures it again")
    assert result.cell("FGSM", "Soft").ours is not None


def test_a_run_that_fails_leaves_the_others(toys, measure):
    said = []
    result = measure(toys[4], announce=said.append)
    assert not result.partial
    assert result.cell("FGSM", "None").ours is not None
    assert result.cell("FGSM", "Broken").why == "its run failed"
    assert list(result.failed) == ["Broken"]
    assert "purifier broken" in result.failed["Broken"]
    assert any(result.failed["Broken"] in line for line in said)
    table = toys[4]
    alone = attrs.evolve(table, arms=table.arms[1:], cells={("FGSM", "Broken"): 50.0})
    with pytest.raises(DefendError, match="purifier broken"):
        measure(alone)


def test_reports_that_are_damaged_or_of_other_images_are_named(toys, measure, tmp_path):
    measure(toys[2])
    path = next((tmp_path / "out").glob("specks-fixed-soften-*/report.json"))
    report = json.loads(path.read_text())
    report["dataset"]["sha256"] = "0" * 64
    path.write_text(json.dumps(report))
    with pytest.raises(DataError, match="was edited: 'dataset' is not what the run wrote"):
        measure(toys[2])
    del report["digests"]  # as of an older version, which had no digests of attacks either
    report["rows"] = [row | {"made_of": None} for row in report["rows"]]
    path.write_text(json.dumps(report))
    with pytest.raises(DataError, match="was measured on other images of specks than the table's other runs"):
        measure(toys[2])
    path.write_text("{")
    with pytest.raises(DataError, match=r"cannot be read.*delete the folder"):
        measure(toys[2])


def test_several_processes_are_refused(toys, measure, monkeypatch):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="without torchrun"):
        measure(toys[2])


# Weights


def test_missing_weights_are_named_with_what_they_cost(toys, measure):
    assert {arm: [str(gap) for gap in gaps] for arm, gaps in find_missing(toys[1], registry()).items()} == {
        "Learned": ["defend train purifier learned --dataset specks --edition long  (2 s)"]
    }
    with pytest.raises(WeightsError, match=r"run defend train victim trained --dataset specks  \(1 s\), or --train-m"):
        measure(toys[3])


def test_missing_weights_are_trained_and_replaced_ones_noticed(toys, measure, tmp_path, defend):
    result = measure(toys[3], train_missing=True)
    assert result.cell("FGSM", "None").ours is not None
    assert list(result.weights["None"]) == ["victim"]
    assert measure(toys[3]) == result
    answer = defend("train", "victim", "trained", "--dataset", "specks", "--seed", "5", "--quiet")
    assert answer.code == 0, answer.error
    with pytest.raises(DataError, match="with other weights of the victim than there are now: delete the folder"):
        measure(toys[3])


@pytest.fixture
def train(defend):
    """Train the toy victim with a seed: `train(5)`; with None only what is there of it goes."""

    def train_it(seed):
        for path in (cache_dir() / "weights").glob("victim-trained-*"):
            path.unlink()
        if seed is not None:
            answer = defend("train", "victim", "trained", "--dataset", "specks", "--seed", seed, "--quiet")
            assert answer.code == 0, answer.error

    return train_it


@pytest.fixture
def two(toys):
    """A table of one arm whose victim is trained, in two runs."""
    return attrs.evolve(toys[3], attacks=toys[1].attacks, cells={("FGSM", "None"): 50.0, ("PGD", "None"): 50.0})


def test_a_table_is_not_finished_with_another_training_than_it_was_begun_with(two, measure, train, tmp_path):
    train(5)
    first = measure(two)
    train(None)
    assert measure(two, train_missing=True) == first, "what is complete needs no weights"
    shutil.rmtree(next((tmp_path / "out").glob("specks-trained-*")))
    said = "with weights of the victim that are not there any more, and what --train-missing trains may be others"
    with pytest.raises(DataError, match=said):
        measure(two, train_missing=True)
    assert not list((cache_dir() / "weights").glob("victim-*")), "nothing was trained for it"


def test_weights_that_are_replaced_meanwhile_are_noticed(two, measure, train, keep, tmp_path):
    train(5)
    whole = reproduce(two, MeasureSettings(out=tmp_path / "whole", device="cpu"))
    without = tuple(attrs.evolve(cell, ours=None) if cell.attack == "PGD" else cell for cell in whole.cells)
    keep(attrs.evolve(whole, cells=without))
    with pytest.raises(DataError, match="with other weights of the victim than the kept result: the same command"):
        measure(two, announce=lambda line: train(6), only_open=True)
    shutil.rmtree(tmp_path / "out")
    train(5)
    with pytest.raises(DataError, match="with other weights of the victim than the other runs of 'None': delete the f"):
        measure(two, announce=lambda line: train(6) if "run 2 of 2" in line else None)


def test_an_arm_keeps_the_hashes_of_all_that_its_runs_were_made_with(toys, measure, train, keep):
    """Its transfer alone has a source, and is not its last run."""
    arm = attrs.evolve(toys[5].arm("Exposed"), source="trained")
    attacks = tuple(toys[5].attack(name) for name in ("T", "PGD"))
    table = attrs.evolve(
        toys[5],
        name="papers/table-8",
        arms=(arm,),
        attacks=attacks,
        cells={(one.name, arm.name): 50.0 for one in attacks},
    )
    train(5)
    whole = measure(table)
    assert list(whole.weights["Exposed"]) == ["source trained"]
    without = tuple(attrs.evolve(cell, ours=None) if cell.attack == "PGD" else cell for cell in whole.cells)
    keep(attrs.evolve(whole, cells=without))
    assert measure(table, only_open=True).weights == whole.weights


def test_a_source_that_was_trained_anew_is_noticed(toys, defend, tmp_path):
    """What transfers comes from it: half a table from the one and half from the other is of two attackers."""
    transfer = {"attacks": ("fgsm",), "threats": ("transfer",), "sources": ("trained",)}
    usual = {"victim": "fixed", "dataset": "specks", "eps": 0.1, "device": "cpu", "checks": "none", "limit": 8}
    job = SimpleNamespace(
        folder=tmp_path / "run", config=RunConfig(**usual, **transfer, train_missing=True, out=str(tmp_path / "run"))
    )
    assert list(run(job.config).weights) == ["source trained"]
    assert _find_finished(job, registry()) is not None
    assert defend("train", "victim", "trained", "--dataset", "specks", "--seed", "5", "--quiet").code == 0
    with pytest.raises(DataError, match="with other weights of the source trained than there are now"):
        _find_finished(job, registry())


def test_runs_of_other_weights_are_found_before_a_table_is_measured(toys, measure, tmp_path, defend):
    settings = MeasureSettings(out=tmp_path / "out", device="cpu")
    measure(toys[3], train_missing=True)
    before = sorted(path.name for path in (tmp_path / "out").iterdir() if path.is_dir())
    assert list(find_stale_runs(toys[3], settings, registry())) == []
    assert defend("train", "victim", "trained", "--dataset", "specks", "--seed", "5", "--quiet").code == 0
    moved = set_aside(find_stale_runs(toys[3], settings, registry()), tmp_path / "aside")
    assert sorted(path.name for path in moved) == sorted(path.name for path in (tmp_path / "aside").iterdir()) == before
    assert measure(toys[3]).cell("FGSM", "None").ours is not None


def test_an_edition_is_trained_where_it_is_missing(toys, measure, defend, refused):
    table = toys[1]
    alone = attrs.evolve(table, cells={("Clean", "Learned"): 50.0}, adaptive=None)
    result = measure(alone, train_missing=True, limit=4)
    assert result.cell("Clean", "Learned").n == 4
    assert [path.name for path in (cache_dir() / "weights").iterdir()] == ["purifier-learned-specks+long.safetensors"]
    assert result.command == "defend reproduce papers/table-1 --limit 4"
    asked = ("train", "purifier", "learned", "--dataset", "specks", "--quiet", "--edition")
    answer = defend(*asked, "long", "--json")
    assert answer.json["path"].endswith("purifier-learned-specks+long.safetensors")
    assert answer.json["card"]["recipe"]["epochs"] == 2
    assert "unknown edition 'lang' of purifier learned: did you mean 'long'?" in refused(*asked, "lang")
    told = ("run", "--victim", "fixed", "--purifier", "learned", "--dataset", "specks", "--purifier-weights", "+lang")
    assert "has no edition 'lang': did you mean 'long'?" in refused(*told, "--quiet")


# From the command line


def test_a_table_from_the_command_line(toys, defend, tmp_path):
    out = tmp_path / "tables"
    answer = defend("reproduce", "papers/table-2", "--limit", "6", "--out", out)
    assert answer.code == 0, answer.error
    assert "papers/table-2: specks 2" in answer.out
    assert f"Page: {out / 'papers-table-2.html'}" in answer.out
    assert "run 1 of 2: None: FGSM, Clean; eps 0.1, 6 images" in answer.error
    assert (out / "papers-table-2.html").is_file()
    answer = defend("reproduce", "papers/table-2", "--limit", "6", "--out", out, "--json")
    assert answer.error == "", "nothing is run"
    assert [cell["n"] for cell in answer.json[0]["cells"]] == [6] * 4
    assert answer.json[0]["knowledge"] == "mixed"


def test_exit_codes(toys, defend, refused, tmp_path, monkeypatch):
    assert "did you mean 'papers/table-2'?" in refused("reproduce", "papers/tabel-2")
    assert "no table was named" in refused("reproduce")
    assert "--list lists every table" in refused("reproduce", "papers", "--list")
    assert "--limit 0: expected at least 1" in refused("reproduce", "papers/table-2", "--limit", "0")
    assert "--readme needs --kept" in refused("reproduce", "papers/table-2", "--readme", "README.md")
    assert "--page needs --kept" in refused("reproduce", "papers/table-2", "--page", "x.html")
    assert "no result of papers/table-2 came with its plugin" in refused("reproduce", "papers/table-2", "--kept")
    assert "needs weights that are not there" in refused("reproduce", "papers/table-3", "--quiet")
    out = ("--limit", "4", "--quiet", "--out", tmp_path / "out")
    answer = defend("reproduce", "papers/table-3", "papers/table-4", *out)
    assert answer.code == 2
    assert "papers/table-3: table papers/table-3 needs weights" in " ".join(answer.error.split())
    assert "Broken: a run failed" in answer.out
    with monkeypatch.context() as patched:
        patched.setattr("defend.report.progress.RunBar", lambda *_: Stops(1))
        answer = defend("reproduce", "papers/table-2", *out)
    assert answer.code == 130
    assert "interrupted: the same command goes on where it stopped" in answer.error
    assert "Not finished" in (tmp_path / "out" / "papers-table-2.html").read_text(encoding="utf-8")


def test_a_table_whose_parts_are_not_installed_is_left_out_unless_named(toys, defend, refused, tmp_path, monkeypatch):
    lacks = "table 'papers/table-7' needs defend-dragon, not installed here: run `pip install defend-dragon`"
    assert lacks in refused("reproduce", "papers/table-7", "--out", tmp_path)

    def measured(table, *_):
        raise DefendError(f"measured {table.name}")

    monkeypatch.setattr("defend.reproduce.measure.reproduce", measured)
    said = " ".join(defend("reproduce", "papers", "--out", tmp_path).error.split())
    assert lacks in said and "measured papers/table-6" in said and "measured papers/table-7" not in said
    listed = {entry["name"]: entry["missing"] for entry in defend("reproduce", "--list", "--json").json}
    assert listed["papers/table-7"] == ["defend-dragon"] and listed["papers/table-6"] == []


def test_kept_results_are_shown_and_written(toys, defend, refused, measure, tmp_path):
    result = measure(toys[2], limit=4)
    site = Path(sys.modules["papers"].__file__).parent
    result.save(site / "table-2.json")
    answer = defend("reproduce", "papers", "--kept")
    assert answer.code == 0, answer.error
    assert "papers/table-2" in answer.out
    answer = defend("reproduce", "papers/table-2", "--kept", "--json")
    assert answer.json[0]["cells"][0]["n"] == 4
    listed = {entry["name"]: entry for entry in defend("reproduce", "--list", "--json").json}
    assert sum(listed["papers/table-2"]["standings"].values()) == listed["papers/table-2"]["cells"] == 4
    assert listed["papers/table-3"]["standings"]["open"] == listed["papers/table-3"]["cells"]
    assert "papers/table-2" in defend("reproduce", "--list").out
    readme = tmp_path / "README.md"
    readme.write_text("<!-- table papers/table-2 -->\n<!-- end papers/table-2 -->\n")
    answer = defend("reproduce", "papers", "--kept", "--readme", readme)
    assert answer.out.strip() == f"Written to {readme}: papers/table-2"
    assert "| Clean (n=4) |" in readme.read_text()
    assert defend("reproduce", "papers", "--kept", "--page", tmp_path / "kept.html").code == 0
    assert "specks 2" in (tmp_path / "kept.html").read_text(encoding="utf-8")
    attrs.evolve(result, table="papers/table-3").save(site / "table-3.json")
    assert "--page" in refused("reproduce", "papers", "--kept", "--page", tmp_path / "kept.html")
    (site / "table-2.json").write_text("{")
    assert "is damaged" in refused("reproduce", "papers/table-2", "--kept")


@pytest.fixture
def keep(toys):
    """Put a result beside its plugin: `keep(result)`."""
    site = Path(sys.modules["papers"].__file__).parent

    def save(result):
        result.save(site / f"{result.table.partition('/')[2]}.json")

    return save


def test_only_what_a_kept_result_lacks_is_measured(toys, measure, keep, tmp_path, monkeypatch, defend):
    whole = reproduce(toys[1], MeasureSettings(out=tmp_path / "whole", device="cpu", limit=4, train_missing=True))
    lost = {("FGSM", "Soft"), ("FGSM", "Best"), ("Clean", "None")}
    blank = {"ours": None, "ci95": None, "n": 0, "standing": "open", "details": {}}
    keep(
        attrs.evolve(
            whole,
            cells=tuple(
                attrs.evolve(cell, **blank) if (cell.attack, cell.arm) in lost else cell for cell in whole.cells
            ),
            adaptive=tuple(one for one in whole.adaptive if one.arm != "Ours"),
            versions={**whole.versions, "torch": "0.1"},
        )
    )
    runs = []
    made = measure_module.run_arms
    monkeypatch.setattr(
        measure_module, "run_arms", lambda configs, *rest, **more: runs.extend(configs) or made(configs, *rest, **more)
    )
    result = measure(toys[1], limit=4, only_open=True)
    assert [(cell.attack, cell.arm, cell.ours, cell.n) for cell in result.cells] == [
        (cell.attack, cell.arm, cell.ours, cell.n) for cell in whole.cells
    ]
    left = {one.arm: (one.accuracy, one.n, one.over, one.declared) for one in whole.adaptive}
    assert {one.arm: (one.accuracy, one.n, one.over, one.declared) for one in result.adaptive} == left
    assert result.weights == whole.weights and not result.partial
    # Best is the better of two, so both are measured; and Ours is attacked by who knows it
    asked = [(config.purifier, config.detector, config.attacks, config.threats) for config in runs]
    assert [one[:3] for one in asked[:3]] == [
        (None, None, ("noise",)),
        ("soften", None, ("fgsm",)),
        ("soften", "change", ("fgsm",)),
    ]
    assert len(asked) == 4 and "adaptive" in asked[3][3]
    assert result.versions["torch"].startswith("0.1, ")
    keep(whole)
    runs.clear()
    assert measure(toys[1], limit=4, only_open=True).cells == find_kept(toys[1]).cells and not runs
    answer = defend("reproduce", "papers/table-1", "--open", "--limit", "4", "--out", tmp_path / "cli")
    assert answer.code == 0, answer.error


def test_cells_of_other_weights_are_open_and_what_does_not_join_is_refused(
    toys, measure, keep, defend, refused, tmp_path
):
    first = measure(toys[3], train_missing=True)
    keep(first)
    assert defend("train", "victim", "trained", "--dataset", "specks", "--seed", "5", "--quiet").code == 0
    settings = MeasureSettings(out=tmp_path / "later", device="cpu", only_open=True)
    second = reproduce(toys[3], settings)
    assert list(find_stale_runs(toys[3], settings, registry())) == []
    assert defend("train", "victim", "trained", "--dataset", "specks", "--seed", "6", "--quiet").code == 0
    assert len(list(find_stale_runs(toys[3], settings, registry()))) == 1
    assert second.weights != first.weights and second.cell("FGSM", "None").ours is not None
    with pytest.raises(ConfigError, match="--seed 3: the kept result of papers/table-3 is of seed 0"):
        reproduce(toys[3], attrs.evolve(settings, seed=3))
    keep(attrs.evolve(first, dataset={**first.dataset, "sha256": "0" * 64}))
    with pytest.raises(DataError, match="on other images of specks than the kept result: measure all of the table"):
        reproduce(toys[3], attrs.evolve(settings, out=tmp_path / "other"))
    assert "--open is of a measurement, and --kept measures nothing" in refused(
        "reproduce", "papers", "--kept", "--open"
    )


def test_what_is_trained_for_open_cells_opens_the_others_of_its_arms(two, measure, train, keep, tmp_path):
    train(5)
    whole = measure(two)
    keep(whole)
    train(None)
    settings = MeasureSettings(out=tmp_path / "later", device="cpu", only_open=True, train_missing=True)
    assert reproduce(two, settings).weights == whole.weights, "nothing is open, and nothing is trained"
    without = tuple(attrs.evolve(cell, ours=None) if cell.attack == "PGD" else cell for cell in whole.cells)
    keep(attrs.evolve(whole, cells=without))
    later = reproduce(two, settings)
    runs = [read_report(path.parent) for path in (tmp_path / "later").glob("*/report.json")]
    made = {run.weights["victim"]["sha256"] for run in runs}
    assert len(runs) == 2 and later.weights == {"None": {"victim": made.pop()}} != whole.weights and not made
    assert all(cell.ours is not None for cell in later.cells)


def test_the_list_imports_no_torch_and_answers_at_once():
    code = (
        "import sys, time\nfrom defend.cli import main\n"
        "began = time.monotonic()\n"
        "try:\n    main(['reproduce', '--list'])\nexcept SystemExit as error:\n    assert not error.code, error.code\n"
        "heavy = {'torch', 'timm', 'torchvision', 'sklearn', 'numpy', 'matplotlib', 'accelerate'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "apudae/table-2" in done.stdout
    assert time.monotonic() - began < 20


# The installed plugins' own tables


def kept_results():
    """Return the kept result of every installed table that has one."""
    found = {name: results.find_kept(table) for name, table in registry().tables.items()}
    return {name: result for name, result in found.items() if result is not None}


def block(table):
    """Return what stands between a table's marks in its plugin's README; None of one that nobody runs, if without."""
    text = (ROOT / "plugins" / table.plugin / "README.md").read_text(encoding="utf-8")
    before, after = f"<!-- table {table.name} -->", f"<!-- end {table.name} -->"
    if table.not_run and results.find_kept(table) is None and before not in text and after not in text:
        return None
    assert text.count(before) == text.count(after) == 1, f"{table.plugin}/README.md has no place for {table.name}"
    return text.partition(before)[2].partition(after)[0].strip("\n")


def test_every_paper_has_its_tables_and_its_readme_holds_the_kept_results():
    tables, there = registry().tables, kept_results()
    papers = {path.name for path in (ROOT / "plugins").iterdir()} - {"classic"}  # baselines, of many papers
    assert {table.plugin for table in tables.values()} == papers
    for name, table in tables.items():
        assert table.results, f"{name} keeps no result"
        assert name in there or table.not_run or table.takes, f"{name} does not say what it takes to measure it"
        expected = reproduction.markdown(table, there.get(name)).strip("\n")
        assert block(table) in (expected, None), f"python -m tools.restate: {table.plugin}/README.md lacks {name}"


def test_kept_results_are_of_the_tables_as_they_are():
    for name, result in kept_results().items():
        table = registry().tables[name]
        stored = TableResult.from_package(table.results, table.short)
        assert stored == result, f"python -m tools.restate: {name} was kept before its table changed"
        assert_of(table, stored)
        assert "--limit" not in stored.command


def assert_of(table, result: TableResult):
    """A result has the table's cells and the paper's figures, and stands as it would today."""
    assert result.table == table.name
    assert not result.partial
    assert not result.failed
    paper = {place: None if figure is None else round(figure / 100, 4) for place, figure in table.cells.items()}
    assert {(cell.attack, cell.arm): cell.paper for cell in result.cells} == paper
    for cell in result.cells:
        stands, why = standing(table, cell.attack, cell.arm, cell.ours)
        assert cell.standing == stands, (table.name, cell)
        if cell.ours is not None:
            assert cell.why == why, (table.name, cell)
            assert cell.ci95[0] <= cell.ours <= cell.ci95[1]
            assert cell.n > 0
            declared = table.declare(cell.attack, cell.arm)
            assert cell.details.get("declared") == declared, f"python -m tools.restate --stamp: {table.name}, {cell}"
    for one in result.adaptive:
        assert one.declared == table.declare_adaptive(one.arm), f"python -m tools.restate --stamp: {table.name}, {one}"
    assert {one.arm for one in result.adaptive} <= {arm.name for arm in table.arms if arm.protected}


def test_a_result_of_another_table_would_be_noticed(toys, measure):
    result = TableResult.from_json(measure(toys[2], limit=4).to_json(), "it")
    assert_of(toys[2], result)
    wrong = attrs.evolve(result.cells[0], standing="better")
    for changed in (
        attrs.evolve(result, partial=True),
        attrs.evolve(result, cells=result.cells[1:]),
        attrs.evolve(result, cells=(wrong, *result.cells[1:])),
        attrs.evolve(result, cells=(attrs.evolve(result.cells[0], details={}), *result.cells[1:])),
    ):
        with pytest.raises(AssertionError):
            assert_of(toys[2], changed)
