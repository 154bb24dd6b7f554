"""tools/train_all.py: what was done before counts if it would be done the same now; nothing stale passes for it."""

import json
from types import SimpleNamespace

import attrs
import pytest
import tools.held
import torch
from tools import perform, train_all
from tools.perform import Settings, find_done, find_finished, hash_weights, item_command
from tools.plan import PLAN

import defend.report.reproduction_page
import defend.reproduce.measure
from defend.errors import DefendError
from defend.plugins import registry
from defend.weights.card import Card
from defend.weights.files import save

NAMES = {item.name: item for item in PLAN}
VICTIM, TUNED, TABLE = NAMES["mlp/mnist"], NAMES["adversarial/mlp/mnist+eps-0.1"], NAMES["apudae/table-2"]
PURIFIER = NAMES["apudae/mnist"]
MNIST = {"name": "mnist", "sha256": "", "shape": [1, 28, 28], "classes": ["0"], "mean": [0.0], "std": [1.0]}


def make(item, settings, value=1.0):
    """Leave what an item makes: weights that are known by `value`, or a table."""
    path = settings.product(item)
    path.parent.mkdir(parents=True, exist_ok=True)
    if item is TABLE:
        path.write_text(str(value))
        path.with_suffix(".html").write_text(str(value))
        return
    module = torch.nn.Linear(1, 1)
    torch.nn.init.constant_(module.weight, value)
    save(path, module, Card(stage=item.stage, name=item.stage_name, config={}, dataset={**MNIST, "flips": False}))


def finish(item, settings, value=1.0, whole=True):
    """Leave what an item makes, and that it is done."""
    make(item, settings, value)
    kept = {"figure": "fine", "seconds": 1, "scale": settings.scale, "whole": whole}
    kept |= {"command": item_command(item, settings), "made_with": hash_weights(item, settings)}
    settings.record(item).parent.mkdir(parents=True, exist_ok=True)
    settings.record(item).write_text(json.dumps(kept))


@pytest.fixture
def settings(tmp_path):
    """How to do an item, in a folder of the test's own."""
    return Settings(work=tmp_path / "work", spawn=True)


def test_a_training_counts_as_done_if_its_command_precision_and_scale_are_the_same(settings):
    finish(VICTIM, settings)
    assert VICTIM.precision == "bf16" and find_finished(VICTIM, settings) == "fine"
    assert find_finished(VICTIM, attrs.evolve(settings, precision="bf16")) == "fine"
    assert find_finished(VICTIM, attrs.evolve(settings, precision="no")) is None
    assert find_finished(VICTIM, attrs.evolve(settings, scale=0.1)) is None
    assert find_finished(attrs.evolve(VICTIM, options={**VICTIM.options, "epochs": 200}), settings) is None
    exact = attrs.evolve(settings, precision="no")
    finish(VICTIM, exact)
    assert find_finished(VICTIM, exact) == "fine" and find_finished(VICTIM, settings) is None


def test_what_was_made_with_other_weights_is_not_done(settings):
    for item in (VICTIM, PURIFIER, TUNED, TABLE):
        finish(item, settings)
    plan = [TABLE, VICTIM, TUNED, PURIFIER]
    assert find_done(plan, settings) == (dict.fromkeys((item.name for item in plan), "fine"), [])
    finish(VICTIM, settings, value=2.0)
    assert find_finished(TUNED, settings) is find_finished(TABLE, settings) is None
    done, stale = find_done(plan, settings)
    assert set(done) == {VICTIM.name, PURIFIER.name} and stale == [TUNED, TABLE]


def test_a_table_is_measured_again_once_more_weights_are_there(settings, monkeypatch):
    monkeypatch.setattr(perform, "find_shipped_file", lambda item: None)
    finish(VICTIM, settings)
    finish(TABLE, settings)
    assert find_finished(TABLE, settings, whole=True) == "fine"
    finish(PURIFIER, settings)
    assert find_finished(TABLE, settings, whole=True) is None
    done, stale = find_done([VICTIM, PURIFIER, TABLE], settings)
    assert TABLE.name not in done and stale == []  # the cells it has are as they would be now


def test_shipped_weights_are_known_where_the_plan_s_are_not_there(settings, monkeypatch, tmp_path):
    elsewhere = Settings(work=tmp_path / "shipped")

    def ship(value):
        make(VICTIM, elsewhere, value)

    monkeypatch.setattr(
        perform, "find_shipped_file", lambda item: (elsewhere.product(item), "toys") if item is VICTIM else None
    )
    ship(1.0)
    before = attrs.evolve(PURIFIER, needs=(VICTIM.name,))
    of_shipped = attrs.evolve(settings, plan=(VICTIM, before))
    finish(before, of_shipped)
    assert find_done([before], of_shipped) == ({before.name: "fine"}, [])
    ship(2.0)
    assert find_done([before], of_shipped) == ({}, [before])
    record = json.loads(settings.record(before).read_text())
    settings.record(before).write_text(json.dumps({**record, "made_with": {}}))
    assert find_done([before], of_shipped) == ({before.name: "fine"}, []), "a record from before that was written down"
    finish(VICTIM, settings, value=2.0)
    assert find_done([before], of_shipped) == ({}, []), "the plan's own have come since"


class Failing:
    """Fails as a training; as a table it tells what there is to measure with."""

    seen = ()

    def __init__(self, item, settings):
        self._item, self._settings = item, settings
        if item is TABLE:
            made = [one for one in (VICTIM, PURIFIER, TUNED) if settings.product(one).is_file()]
            Failing.seen = (*Failing.seen, [one.name for one in made])

    def poll(self):
        return (self._item not in (PURIFIER, TUNED)), "exit code 1"


@pytest.mark.parametrize("recorded", [True, False])
def test_weights_of_a_trial_are_not_measured_where_the_training_fails(settings, monkeypatch, capsys, recorded):
    trial = attrs.evolve(settings, scale=0.01)
    for item in (PURIFIER, TUNED, TABLE):
        finish(item, trial)
        if not recorded:
            trial.record(item).unlink()
    finish(VICTIM, settings)
    Failing.seen = ()
    monkeypatch.setattr(train_all, "Process", Failing)
    monkeypatch.setattr(train_all, "_import_now", lambda: None)
    train_all.carry_out([VICTIM, PURIFIER, TUNED, TABLE], settings, None, 1, wait=False)
    assert Failing.seen == ([VICTIM.name],)
    moved = {path.name for path in settings.aside.iterdir()}
    table = {TABLE.file, TABLE.file.replace(".json", ".html")} if recorded else set()
    assert moved == {PURIFIER.file, TUNED.file} | table
    assert f"aside    {PURIFIER.name}" in capsys.readouterr().out


def test_a_training_that_begins_sets_aside_what_is_there(settings, monkeypatch):
    monkeypatch.setattr(perform.multiprocessing, "get_context", lambda kind: SimpleNamespace(Process=NotStarted))
    for item in (VICTIM, TABLE):
        finish(item, settings)
        perform.Process(item, settings)
        assert not settings.record(item).exists()
    assert not settings.product(VICTIM).exists() and settings.product(TABLE).exists()


class NotStarted:
    """A process that does nothing, and has failed."""

    exitcode = 1

    def __init__(self, **_):
        pass

    def is_alive(self):
        return False

    def start(self):
        pass


def test_what_went_wrong_is_what_this_try_printed(settings, monkeypatch):
    """A child on a full disk ends before it has opened its log."""
    monkeypatch.setattr(perform.multiprocessing, "get_context", lambda kind: SimpleNamespace(Process=NotStarted))
    assert perform.Process(VICTIM, settings).poll() == (False, "exit code 1: nothing was printed")
    log = settings.log(VICTIM)
    log.parent.mkdir(parents=True)
    log.write_text("an error of yesterday\n")
    process = perform.Process(VICTIM, settings)
    assert process.poll() == (False, "exit code 1: nothing was printed")
    log.write_text("an error of yesterday\nan error of today\n\n")
    assert process.poll() == (False, "exit code 1: an error of today")


def test_a_table_alone_does_not_take_the_weights_of_a_trial(settings, capsys):
    work = ["--work", str(settings.work), "--only", TABLE.name]
    finish(VICTIM, attrs.evolve(settings, scale=0.01))
    assert train_all.main(work) == 2
    error = capsys.readouterr().err
    assert VICTIM.file in error and f"add {VICTIM.name!r} to --only" in error and error.count("\n") == 1
    assert settings.product(VICTIM).is_file()


@pytest.fixture
def measuring(settings, monkeypatch, tmp_path):
    """Measure the table with `reproduce` as it is told: `measuring(reproduce)`; return what `_measure` does.

    What is written of it is listed under `measuring.pages`.
    """

    def measure(reproduce):
        monkeypatch.setattr(defend.reproduce.measure, "reproduce", reproduce)
        return perform._measure(TABLE, attrs.evolve(settings, threads=torch.get_num_threads()), tmp_path / "progress")

    measure.pages = []
    monkeypatch.setattr(tools.held, "hold", lambda *_: None)
    monkeypatch.setattr(tools.held, "HeldRegistry", registry)
    monkeypatch.setattr(defend.report.reproduction_page, "write_page", lambda *page: measure.pages.append(page))
    monkeypatch.setenv("DEFEND_CACHE_DIR", str(settings.work / "cache"))
    return measure


def test_a_table_is_measured_as_by_its_command_and_says_which_weights_were_not_trained(
    settings, measuring, monkeypatch
):
    """What `defend reproduce` does not set is not set; shipped weights in the place of the plan's leave it open."""
    finish(VICTIM, settings)
    asked = []

    def reproduce(table, how, watcher, plugins):
        asked.append((torch.get_float32_matmul_precision(), torch.backends.cudnn.benchmark))
        return SimpleNamespace(partial=False, cells=(), missing=(), failed={})

    torch.set_float32_matmul_precision("highest")  # as it is where nobody sets it
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    said, whole = measuring(reproduce)
    assert asked == [("highest", False)]
    assert said.endswith(f"; not trained here: {PURIFIER.name}, {TUNED.name}") and not whole


def test_a_table_of_which_an_arm_failed_is_written_and_has_failed(measuring):
    result = SimpleNamespace(partial=False, cells=(), missing=(), failed={"APuDAE": "no room"})
    with pytest.raises(DefendError, match=r"^1 of [0-9]+ arms failed, for example APuDAE: no room$"):
        measuring(lambda *_: result)
    assert [page[1] for page in measuring.pages] == [result]
