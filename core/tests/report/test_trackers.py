"""Loggers: what they are told, what is refused, and that none of them stops a run."""

import csv
import sys
from types import SimpleNamespace

import attrs
import pytest
import torch

from defend.errors import ConfigError
from defend.records.watcher import TrainingWatcher, Watcher
from defend.report.trackers import FILE, Log, LoggedRun, LoggedTraining, check_names, log_verdicts
from defend.values.report import Check, DatasetInfo, Report, WorstCase
from defend.values.run_config import RunConfig


def read(folder):
    with (folder / FILE).open() as file:
        return [(int(row["step"]), row["name"], float(row["value"])) for row in csv.DictReader(file)]


def record(attack, threat, right, variant="", headline=True, eps=0.1):
    plan = SimpleNamespace(
        attack=attack, name=attack, threat=SimpleNamespace(kind=threat, eps=eps), variant=variant, headline=headline
    )
    labels = torch.zeros(4, dtype=torch.int64)
    arms = {
        name: SimpleNamespace(predicted=torch.tensor(said), accepted=torch.tensor([True, True, True, False]))
        for name, said in right.items()
    }
    return SimpleNamespace(plan=plan, labels=labels, arms=arms)


def test_a_run_logs_every_arm_of_every_row(tmp_path):
    log = Log(["csv"], "mine", tmp_path, {"victim": "resnet18"})
    watcher = LoggedRun(Watcher(), log)
    watcher.finished(record(None, "none", {"undefended": [0, 0, 0, 0]}))
    watcher.finished(record("pgd", "adaptive", {"dae: defended": [0, 1, 1, 0]}))
    watcher.finished(record("pgd", "oblivious", {"undefended": [0, 0, 1, 0]}, headline=False))
    watcher.end()
    log.end()
    assert read(tmp_path / "mine") == [
        (1, "clean/undefended", 0.75),  # a rejected image counts as wrong
        (2, "pgd/adaptive/dae/defended", 0.25),
        (3, "pgd/oblivious/eps 0.1/undefended", 0.5),
    ]


def verdict(statuses, worst=None, partial=False, checks="basic"):
    return Report(
        versions={},
        plugins={},
        config=RunConfig(victim="resnet18", purifier="dae", checks=checks),
        seed=0,
        device="cpu",
        precision={"crafting": "fp32"},
        seconds=1.0,
        dataset=DatasetInfo("digits", "test", 100, "01234567"),
        rows=(),
        worst_case=worst,
        detector=None,
        checks=tuple(Check(f"check {place}", status, "", place) for place, status in enumerate(statuses, 1)),
        cost=None,
        weights={},
        partial=partial,
    )


def test_a_log_ends_with_what_the_checks_say_of_its_figures(tmp_path):
    steady = WorstCase(accuracy=0.5, ci95=(0.4, 0.6), n=100, over=("pgd",), undefended=0.0)
    log = Log(["csv"], "mine", tmp_path, {})
    log.write({"clean/undefended": 1.0}, 1)
    log_verdicts(log, {"dae": verdict(["pass", "warn", "fail"], attrs.evolve(steady, rising=("pgd",)))})
    assert read(tmp_path / "mine")[1:] == [
        (2, "checks/failed", 1.0),
        (2, "checks/warned", 1.0),
        (2, "not_to_be_trusted", 1.0),
        (2, "worst_case", 0.5),
        (2, "worst_case_is_upper_bound", 1.0),
    ]
    log_verdicts(log, {"dae": verdict(["pass"], steady), "unet_gan": verdict(["pass"], partial=True)})
    assert read(tmp_path / "mine")[6:] == [
        (3, "dae/checks/failed", 0.0),
        (3, "dae/checks/warned", 0.0),
        (3, "dae/not_to_be_trusted", 0.0),
        (3, "dae/worst_case", 0.5),
        (3, "dae/worst_case_is_upper_bound", 0.0),
        (3, "unet_gan/checks/failed", 0.0),
        (3, "unet_gan/checks/warned", 0.0),
        (3, "unet_gan/not_to_be_trusted", 1.0),
    ]


def test_a_log_of_a_run_without_checks_is_not_to_be_trusted(tmp_path):
    log = Log(["csv"], "mine", tmp_path, {})
    log_verdicts(log, {"dae": verdict([], checks="none")})
    assert (1, "not_to_be_trusted", 1.0) in read(tmp_path / "mine")


def test_a_training_logs_the_losses_of_its_epochs(tmp_path):
    log = Log(["csv"], "train", tmp_path, {})
    watcher = LoggedTraining(TrainingWatcher(), log)
    watcher.step(1, 4, {})
    watcher.step(2, 4, {"loss": 0.5})
    watcher.step(4, 4, {"loss": 0.25})
    assert read(tmp_path / "train") == [(2, "loss", 0.5), (4, "loss", 0.25)]


def test_a_training_that_goes_on_keeps_what_it_logged_and_one_that_begins_anew_does_not(tmp_path):
    for steps, value in (((2, 4, 6), 1.0), ((5, 7), 2.0), ((2,), 3.0)):
        log = Log(["csv"], "train", tmp_path, {})
        for step in steps:
            log.write({"loss": value}, step)
        log.end()
        if value == 2.0:
            assert read(tmp_path / "train") == [(2, "loss", 1.0), (4, "loss", 1.0), (5, "loss", 2.0), (7, "loss", 2.0)]
    assert read(tmp_path / "train") == [(2, "loss", 3.0)]


@pytest.mark.parametrize("text", ["", "step,name\n1,loss\n", "step,name,value\nx,loss,1\n", "\x00\n"])
def test_a_file_that_is_no_log_is_written_over(tmp_path, text):
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / FILE).write_text(text)
    Log(["csv"], "train", tmp_path, {}).write({"loss": 1.0}, 3)
    assert read(tmp_path / "train") == [(3, "loss", 1.0)]


def test_what_is_no_logger_is_refused():
    with pytest.raises(ConfigError, match="did you mean 'tensorboard'"):
        check_names(["tensorbord"])


def test_a_logger_that_is_not_installed_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ConfigError, match="pip install wandb"):
        check_names(["wandb"])


def test_a_logger_that_fails_is_given_up_and_the_run_goes_on(tmp_path):
    (tmp_path / "mine").write_text("in the way")
    log = Log(["csv"], "mine", tmp_path, {})
    with pytest.warns(UserWarning, match="--log csv failed"):
        log.write({"loss": 1.0}, 1)
    log.write({"loss": 1.0}, 2)
    log.end()


def test_trackers_of_accelerate_are_asked_as_they_want(monkeypatch, tmp_path):
    told = []

    class Kept:
        requires_logging_directory = True

        def __init__(self, title, logging_dir):
            told.append((title, logging_dir))

        def start(self):
            told.append("start")

        def store_init_configuration(self, values):
            told.append(values)

        def log(self, values, step=None):
            told.append((values, step))

        def finish(self):
            told.append("finish")

    import accelerate.tracking

    monkeypatch.setitem(accelerate.tracking.LOGGER_TYPE_TO_CLASS, "mlflow", Kept)
    monkeypatch.setattr("defend.report.trackers.check_names", lambda names: None)
    log = Log(["mlflow"], "mine", tmp_path, {"eps": 0.1})
    log.write({"loss": 1.0}, 3)
    log.end()
    assert told == [("mine", str(tmp_path)), "start", {"eps": "0.1"}, ({"loss": 1.0}, 3), "finish"]
