"""Parts put together: plugins of the user's own, faults inside a run, invariance of the records."""

import csv
import json

import pytest
import torch
from torch import nn

import defend
from defend.assembly.load import open_dataset
from defend.assembly.prepare import prepare
from defend.defence import Defence
from defend.evaluation.evaluate import EvaluationSettings, Evaluator
from defend.evaluation.plan import find_undone
from defend.evaluation.runner import run
from defend.plugins import registry
from defend.records.rows import PlannedRow
from defend.records.watcher import Watcher
from defend.testing.toys import TASK, TinyVictim
from defend.util.memory import CPU_PIXELS
from defend.values.run_config import RunConfig
from defend.values.threats import DEFENDED, UNDEFENDED, Threat

PLUGIN = """
from defend import StageSpec, hookimpl

@hookimpl
def defend_purifiers():
    names = ["shrinks", "poisons", "overshoots", "interrupts", "tires"]
    return [StageSpec(name=name, summary="rigged", build=f"rigged.parts:{name}") for name in names]
"""
PARTS = """
import torch
from torch import nn


class Rigged(nn.Module):
    random = False

    def __init__(self, change):
        super().__init__()
        self.change, self.calls = change, 0

    def forward(self, images):
        self.calls += len(images) == 4  # whole batches; of those that are tried before the run, two
        return self.change(self, images)


def interrupt(module, images):
    if module.calls > 3:
        raise KeyboardInterrupt
    return images


def shrinks(config, task):
    return Rigged(lambda module, images: images[..., 1:])


def poisons(config, task):
    return Rigged(lambda module, images: images / 0)


def overshoots(config, task):
    return Rigged(lambda module, images: images + 0.5)


def tire(module, images):
    return images if module.calls < 3 else images / 0


def tires(config, task):
    return Rigged(tire)


def interrupts(config, task):
    return Rigged(interrupt)
"""


@pytest.fixture
def rigged(installed):
    """Install a plugin with faulty purifiers."""
    installed("rigged", {"__init__.py": PLUGIN, "parts.py": PARTS})


ONE = ("run", "--victim", "resnet20", "--limit", "8", "--batch-size", "4", "--attack", "noise", "--quiet")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("shrinks", "[4, 1, 28, 27], expected shape [4, 1, 28, 28]"),
        ("poisons", "not finite"),
        ("overshoots", "to 1.5, expected [0,1]"),
    ],
)
def test_a_purifier_that_breaks_its_contract_is_named(rigged, refused, name, words):
    line = refused(*ONE, "--purifier", name)
    assert f"purifier {name}" in line
    assert words in line


def test_ctrl_c_keeps_what_was_finished(rigged, defend, tmp_path):
    answer = defend(*ONE, "--purifier", "interrupts", "--out", tmp_path / "run", "--json")
    assert answer.code == 130
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["partial"] is True
    rows = {row["attack"]: row for row in report["rows"]}
    assert (rows["none"]["n"], rows["none"]["partial"]) == (8, False)
    assert (rows["noise"]["n"], rows["noise"]["partial"]) == (4, True)
    assert answer.json["rows"] == report["rows"]


def test_a_wrong_option_is_found_before_anything_is_written(rigged, refused, tmp_path):
    refused(*ONE, "--purifier", "apudae", "--attack", "fgsm", "--set", "fgsm.target=sideways", "--out", tmp_path / "a")
    assert not (tmp_path / "a").exists()


def test_a_fault_in_a_later_row_loses_no_earlier_one(rigged, refused, tmp_path):
    refused(*ONE, "--purifier", "tires", "--out", tmp_path / "run")
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert [(row["attack"], row["n"]) for row in report["rows"]] == [("none", 8)]
    assert report["partial"] is True


def evaluate(batch_size, module, attack="pgd", threat=DEFENDED):
    dataset = open_dataset("digits")
    found = registry().find("attack", attack)
    attack_object = found.spec.resolve(found.spec.build)(found.config({"steps": 3} if attack == "pgd" else {}))
    arms = {UNDEFENDED: Defence(TinyVictim(TASK)), DEFENDED: Defence(TinyVictim(TASK), module)}
    arms = {name: arm.double().requires_grad_(False) for name, arm in arms.items()}
    kind = "adaptive" if threat == DEFENDED else "oblivious"
    keys, judges = dataset.keys("test", 20), (UNDEFENDED, DEFENDED)
    plan = PlannedRow(attack, Threat(kind, "linf", 0.1), attack_object, keys, 3, threat, judges)
    settings = EvaluationSettings(device=torch.device("cpu"), batch_size=batch_size, draws=2, seed=1)
    record = Evaluator(arms, Doubled(dataset), settings).row(plan)
    assert record is not None
    return record


class Doubled:
    """A data set in double precision, so that rounding cannot hide or fake a dependence on the batch."""

    def __init__(self, dataset):
        self._dataset = dataset

    def task(self):
        return self._dataset.task()

    def batches(self, split, keys, batch_size, device):
        import attrs

        for batch in self._dataset.batches(split, keys, batch_size, device):
            yield attrs.evolve(batch, images=batch.images.double())


class NoisyPurifier(nn.Module):
    random = True

    def forward(self, images):
        from defend.randomness import normal_like

        return (images + 0.05 * normal_like(images)).clamp(0, 1)


@pytest.mark.parametrize("batch_size", [1, 7])
@pytest.mark.parametrize("attack", ["pgd", "noise", "rfgsm"])
def test_batch_size_changes_no_record(batch_size, attack):
    whole, other = evaluate(64, NoisyPurifier(), attack), evaluate(batch_size, NoisyPurifier(), attack)
    assert torch.equal(whole.keys, other.keys)
    torch.testing.assert_close(whole.l2, other.l2, atol=1e-6, rtol=0)
    for name in (UNDEFENDED, DEFENDED):
        assert torch.equal(whole.arms[name].predicted, other.arms[name].predicted)
        torch.testing.assert_close(whole.arms[name].confidence, other.arms[name].confidence, atol=1e-6, rtol=0)


def test_batch_size_changes_no_record_of_a_real_run(tmp_path):
    def records(batch_size):
        out = tmp_path / str(batch_size)
        run(
            RunConfig(
                victim="resnet18",
                purifier="apudae",
                attacks=("noise", "fgsm"),
                threats=("noise", "oblivious"),
                limit=6,
                batch_size=batch_size,
                checks="none",
                precision="fp32",
                out=str(out),
                options={"purifier": {"steps": 3}},
            )
        )
        with (out / "records.csv").open() as file:
            return [{key: value for key, value in row.items() if key != "confidence"} for row in csv.DictReader(file)]

    assert records(1) == records(4) == records(64)


def test_the_python_face_runs_without_a_folder(tmp_path):
    config = defend.RunConfig(victim="resnet18", attacks=("fgsm",), limit=6)
    report = defend.run(config)
    assert [row.key for row in report.rows] == ["none/none", "fgsm/oblivious"]
    assert report.worst_case is not None
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_announced_while_a_rows_bar_is_shown(tmp_path):
    """A terminal shows one live display at a time: older versions of rich refuse a second."""
    told = []

    class Listening(Watcher):
        def preparing(self, what):
            told.append(what.split(":")[0])

        def begin(self, rows):
            told.append("begin")

        def end(self):
            told.append("end")

    run(RunConfig(victim="resnet18", attacks=("fgsm",), limit=4, out=str(tmp_path / "run")), Listening())
    during = told[told.index("begin") + 1 : told.index("end")]
    assert during == []
    assert "checking" in told[told.index("end") :]


def test_memory_that_runs_out_halves_the_batch():
    seen = []

    class Hungry(TinyVictim):
        def forward(self, images):
            seen.append(len(images))
            if len(images) > 5:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")
            return super().forward(images)

    dataset = open_dataset("digits")
    arms = {UNDEFENDED: Defence(Hungry(TASK)), DEFENDED: Defence(Hungry(TASK))}
    evaluator = Evaluator(arms, dataset, EvaluationSettings(device=torch.device("cpu"), batch_size=16))
    keys, judges = dataset.keys("test", 20), (UNDEFENDED, DEFENDED)
    record = evaluator.row(PlannedRow("none", Threat("none", "none", 0.0), None, keys, None, UNDEFENDED, judges))
    assert record is not None
    assert len(record.keys) == 20
    assert evaluator.batch_size == 4
    assert seen[:3] == [16, 8, 4]


class Narrow(nn.Module):
    """A detector, or with `purify` a purifier, that has room for six images."""

    random = False

    def __init__(self):
        super().__init__()
        self.register_buffer("threshold", torch.tensor(float("inf")))

    def forward(self, images, purified=None):
        if len(images) > 6:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")
        smooth = nn.functional.avg_pool2d(images, 3, 1, 1)
        return smooth if purified is None else (images - purified).flatten(1).abs().sum(1)


def test_whatever_meets_the_end_of_memory_goes_on_with_fewer_images():
    victim = TinyVictim(TASK)
    images, labels = defend.dataset("digits").tensors("test", limit=12, seed=0)
    held_out = defend.dataset("digits").tensors("val", limit=120, seed=0)
    more = {"val": held_out, "fpr": 0.05, "attacks": ["fgsm"], "threats": ["oblivious", "adaptive"], "progress": False}
    found = defend.evaluate(victim, (images, labels), purifier=Narrow(), detector=Narrow(), batch_size=16, **more)
    assert found.report.detector["calibration"]["n"] == 120
    said = [check.detail for check in found.report.checks]
    assert [detail for detail in said if "OutOfMemory" in detail or "could not be judged" in detail] == []
    assert any(detail.endswith("with 4 images, as memory ran out") for detail in said)
    del more["val"], more["fpr"]
    small = nn.Sequential(Narrow(), victim)
    how = {"purifier": "noise", "certify": 20, "adaptive_limit": 2, "draws": 1, "checks": "none"}
    certified = defend.evaluate(small, (images, labels), **how, **more)
    assert certified.report.certified.n == 2


def test_large_images_are_few_at_a_time_on_a_cpu(monkeypatch):
    seen, released = [], []
    monkeypatch.setattr("defend.util.memory.release_freed", lambda: released.append(len(seen)))

    class Counting(TinyVictim):
        def forward(self, images):
            seen.append(len(images))
            return super().forward(images)

    dataset = open_dataset("digits")
    found = registry().find("attack", "fgsm")
    attack = found.spec.resolve(found.spec.build)(found.config({}))
    keys, judges = dataset.keys("test", 20), (UNDEFENDED,)
    records = []
    for pixels in (CPU_PIXELS, 5 * 28 * 28 + 1):
        monkeypatch.setattr("defend.util.memory.CPU_PIXELS", pixels)
        torch.manual_seed(0)
        arms = {UNDEFENDED: Defence(Counting(TASK).requires_grad_(False))}
        evaluator = Evaluator(arms, dataset, EvaluationSettings(device=torch.device("cpu"), batch_size=16))
        plan = PlannedRow("fgsm", Threat("oblivious", "linf", 0.1), attack, keys, None, UNDEFENDED, judges)
        records.append(evaluator.row(plan))
        assert max(seen) == evaluator.batch_size == (16 if pixels == CPU_PIXELS else 5)
        # what was freed goes back to the system after each batch of large images
        assert len(set(released)) == len(released) == (0 if pixels == CPU_PIXELS else 5)
        seen.clear()
    one, other = records
    assert torch.equal(one.keys, other.keys)
    assert torch.equal(one.arms[UNDEFENDED].predicted, other.arms[UNDEFENDED].predicted)
    torch.testing.assert_close(one.linf, other.linf)


def test_prepared_defence_agrees_with_the_plain_one():
    defence = defend.load("resnet18", purifier="apudae", options={"purifier": {"variant": "direct"}})
    images, _ = defend.dataset("digits").tensors("test", limit=40)
    ready, done = prepare(defence, "fp32", images[:4])
    assert done == {"victim": "batch norm folded", "layout": "channels_last"}
    with torch.no_grad():
        torch.testing.assert_close(ready(images), defence(images), atol=1e-3, rtol=1e-4)
    assert not any(parameter.requires_grad for parameter in ready.parameters())
    assert any(parameter.requires_grad for parameter in defence.parameters())


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # foolbox's imports
def test_other_libraries_attack_the_defence_as_it_is():
    import foolbox
    import torchattacks

    defence = defend.load("resnet18", purifier="apudae", options={"purifier": {"steps": 2}})
    images, labels = defend.dataset("digits").tensors("test", limit=4)
    theirs = foolbox.attacks.LinfPGD(steps=3, rel_stepsize=0.4)
    model = foolbox.PyTorchModel(defence, bounds=(0, 1), device="cpu")
    _, by_foolbox, _ = theirs(model, images, labels, epsilons=0.2)
    by_torchattacks = torchattacks.PGD(defence, eps=0.2, alpha=0.08, steps=3)(images, labels)
    for attacked in (by_foolbox, by_torchattacks):
        assert (attacked - images).abs().max() <= 0.2 + 1e-6
        before = defence.judge(images).logits.gather(1, labels[:, None])
        after = defence.judge(attacked).logits.gather(1, labels[:, None])
        assert (after < before).all(), "the attack found no slope"


def test_the_shipped_victim_is_what_its_card_says():
    from defend.assembly.stage import build_stage

    dataset = open_dataset("digits")
    victim = build_stage("victim", "resnet18", dataset.task())
    images, labels = dataset.tensors("test")
    with torch.no_grad():
        right = (victim.module(images).argmax(1) == labels).double().mean()
    assert float(right) == pytest.approx(victim.card.figures["test_accuracy"], abs=1e-9)


def test_objects_of_installed_purifiers_keep_the_attacks_made_against_them():
    plugins = registry()
    whole = defend.load("resnet18", purifier="apudae,dae")
    apudae = whole.purifier.purifiers[0]
    name, known = plugins.with_thing("purifier", apudae)
    wanted = plugins.find("purifier", "apudae").spec.counter_attacks
    assert wanted and known.find("purifier", name).spec.counter_attacks == wanted
    # in a sequence they find their purifier nowhere, and that is told
    name, known = plugins.with_thing("purifier", whole.purifier)
    config = defend.RunConfig(victim="resnet18", purifier=name)
    left_out = find_undone(config, (), known)
    assert all("it is made against apudae alone" in left_out[f"attack {each}"] for each in wanted)
