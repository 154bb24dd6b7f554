"""Attacked images are saved, rounded, judged again, and taken from a file that somebody else wrote."""

import csv
import json
import sys

import numpy as np
import pytest
from PIL import Image

from defend.errors import ConfigError, DataError
from defend.evaluation.runner import plan_arms, run, run_arms
from defend.records.compare import compare
from defend.records.reading import read_run
from defend.records.watcher import Watcher
from defend.testing.toys import TASK, tiny_dataset
from defend.util import interrupts
from defend.values.run_config import RunConfig
from defend.values.toml import run_config

TOYS = {"victim": "victim", "purifier": "negative", "dataset": "tiny"}
SETTINGS = {**TOYS, "eps": 0.1, "limit": 8, "adaptive_limit": 8, "checks": "none", "store": False, "batch_size": 3}
N = 8


def verdicts(folder, attack, variant=""):
    """Return what was predicted of each image by each arm in one row."""
    with (folder / "records.csv").open(newline="") as file:
        lines = [line for line in csv.DictReader(file) if (line["attack"], line["variant"]) == (attack, variant)]
    assert lines
    return {(line["image"], line["arm"]): (line["predicted"], line["confidence"], line["linf"]) for line in lines}


def saved(toys, folder, kind="npz", **settings):
    asked = {**SETTINGS, "threats": ("adaptive",), "attacks": ("pgd",), **settings}
    return run(RunConfig(**asked, save_images=kind, out=str(folder)), plugins=toys)


def judged(toys, path, folder, **settings):
    return run(RunConfig(**{**SETTINGS, **settings}, attacks=(f"file:{path}",), out=str(folder)), plugins=toys)


def test_what_was_saved_is_judged_alike_when_it_comes_back(toys, tmp_path):
    report = saved(toys, tmp_path / "first", sweep=(0.05,), checks="basic")
    assert not any("8-bit" in check.detail for check in report.checks if check.status == "warn")
    assert [row.key for row in report.rows] == [
        "none/none",
        "pgd/adaptive@0.05",
        "pgd/adaptive",
        "pgd/adaptive:8-bit",
    ]
    assert "pgd/adaptive:8-bit" in report.worst_case.over
    files = sorted(path.name for path in (tmp_path / "first" / "attacked").iterdir())
    assert files == ["pgd-adaptive-0.05.npz", "pgd-adaptive.npz"]

    again = judged(toys, tmp_path / "first" / "attacked" / "pgd-adaptive.npz", tmp_path / "second")
    assert [row.key for row in again.rows] == ["none/none", "file:pgd-adaptive.npz/given"]
    assert again.worst_case.over == ("none/none", "file:pgd-adaptive.npz/given")
    before = verdicts(tmp_path / "first", "pgd", "8-bit")
    assert verdicts(tmp_path / "second", "file:pgd-adaptive.npz") == before
    assert before != verdicts(tmp_path / "first", "pgd"), "rounding moved something"
    config = run_config({}, tmp_path / "second" / "config.toml")
    assert config.attacks == (f"file:{tmp_path / 'first' / 'attacked' / 'pgd-adaptive.npz'}",)


def test_pictures_hold_what_the_archive_holds(toys, tmp_path):
    saved(toys, tmp_path / "npz")
    saved(toys, tmp_path / "png", "png")
    folder = tmp_path / "png" / "attacked" / "pgd-adaptive"
    with np.load(tmp_path / "npz" / "attacked" / "pgd-adaptive.npz") as archive:
        images, keys, labels = (archive[name] for name in ("adversarial", "keys", "labels"))
    with (folder / "index.csv").open(newline="") as file:
        index = list(csv.DictReader(file))
    assert [int(line["image"]) for line in index] == keys.tolist()
    assert [int(line["label"]) for line in index] == labels.tolist()
    for pixels, line in zip(images, index, strict=True):
        with Image.open(folder / line["file"]) as picture:
            assert np.array_equal(np.asarray(picture), pixels[:, :, 0])


def test_a_run_that_goes_on_saves_and_rounds_what_it_had_made_before(toys, tmp_path, monkeypatch):
    saved(toys, tmp_path / "whole")
    asked = []

    def stop():
        asked.append(1)
        if len(asked) == 6:  # before the last of the attacked row's three batches
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(interrupts, "stop_if_asked", stop)
        assert saved(toys, tmp_path / "cut").partial
    (done,) = run_arms([run_config({}, tmp_path / "cut" / "config.toml")], plugins=toys, resume=True)
    assert not done.report.partial
    for variant in ("", "8-bit"):
        assert verdicts(tmp_path / "cut", "pgd", variant) == verdicts(tmp_path / "whole", "pgd", variant)
    whole, cut = (np.load(tmp_path / name / "attacked" / "pgd-adaptive.npz") for name in ("whole", "cut"))
    with whole, cut:
        assert all(np.array_equal(whole[name], cut[name]) for name in ("adversarial", "keys", "labels"))


def archive(folder, **arrays):
    clean, _ = tiny_dataset(TASK).tensors("test", N)
    keys = tiny_dataset(TASK).keys("test", N).numpy()
    given = {"adversarial": (clean + 0.05).clamp(0, 1).numpy(), "keys": keys, **arrays}
    path = folder / "adv.npz"
    np.savez(path, **{name: array for name, array in given.items() if array is not None})
    return path


def true_labels():
    return tiny_dataset(TASK).tensors("test", N)[1].numpy()


def clean_images():
    return tiny_dataset(TASK).tensors("test", N)[0].numpy()


def test_order_is_what_the_file_says_or_what_its_clean_images_say(toys, tmp_path):
    keys, clean = tiny_dataset(TASK).keys("test", N).numpy(), clean_images()
    attacked = (clean + 0.05).clip(0, 1)
    turned = {"adversarial": attacked[::-1], "keys": keys[::-1]}
    unnamed = {"adversarial": attacked[::-1].transpose(0, 2, 3, 1), "keys": None, "clean": clean[::-1]}
    found = []
    for place, arrays in enumerate(({}, turned, unnamed, {"clean": clean})):
        judged(toys, archive(tmp_path, **arrays), tmp_path / str(place))
        found.append(verdicts(tmp_path / str(place), "file:adv.npz"))
    assert found[0] == found[1] == found[2] == found[3]


FAULTS = {
    "number": ({"adversarial": clean_images()[:3], "keys": np.arange(3)}, "it lacks"),
    "fewer": (
        {"adversarial": clean_images()[:5], "keys": tiny_dataset(TASK).keys("test", 5).numpy()},
        "--limit 5 judges the first of them",
    ),
    "twice": ({"keys": np.zeros(N, dtype=np.int64)}, "names image 0 twice"),
    "keys": ({"keys": np.arange(3)}, "expected a whole number an image, [8]"),
    "order": ({"keys": None}, "nothing tells whose images these are"),
    "other images": ({"clean": clean_images()[::-1]}, "clean images are not the data set's"),
    "range": ({"adversarial": clean_images() * 255}, "outside [0,1]"),
    "finite": ({"adversarial": clean_images() * np.nan}, "not finite"),
    "budget": ({"adversarial": clean_images() * 0}, "away in linf, and eps is 0.1"),
    "shape": ({"adversarial": np.zeros((N, 5, 5))}, "expected [N,1,28,28] or [N,28,28,1]"),
    "type": ({"adversarial": np.zeros((N, 28, 28), dtype=np.int32)}, "expected uint8, or floats"),
    "nothing": ({"adversarial": None}, "it holds keys: expected np.savez"),
    "less": ({"eps": np.array(0.05)}, "made for eps 0.05, and this run's is 0.1 in linf"),
    "grey levels": (
        {"eps": np.array(8)},
        "eps 8, and no two images are further apart than 1 in linf: grey",
    ),
    "eps": ({"eps": np.array([0.1, 0.1])}, "expected one number above 0, or none"),
    "norm": ({"norm": np.array("l7")}, "its norm is 'l7'"),
    "objects": ({"adversarial": np.array([None] * N)}, "holds Python objects, which are never loaded"),
    "advice": ({"adversarial": np.array([None] * N)}, "expected plain ones, np.savez(FILE, adversarial=..."),
    "partly finite": ({"adversarial": np.where(clean_images() > 0.5, np.nan, 0.25)}, "(from 0.25 to 0.25, "),
    "other keys": ({"keys": np.arange(N) + 1000}, "whose keys are 1000 to 1007"),
    "other labels": ({"labels": true_labels() + 1}, "8 of 8 labels are not the data set's"),
    "labels' number": ({"labels": true_labels()[:3]}, "expected the true class of every image, [8]"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_file_that_cannot_be_believed_is_refused_in_one_line(toys, tmp_path, fault):
    arrays, said = FAULTS[fault]
    with pytest.raises(DataError) as refused:
        judged(toys, archive(tmp_path, **arrays), tmp_path / "run")
    assert said in str(refused.value) and "adv.npz" in str(refused.value) and "\n" not in str(refused.value)


def test_what_is_no_file_of_images_is_refused(toys, tmp_path):
    (tmp_path / "torn.npz").write_bytes(archive(tmp_path).read_bytes()[:100])
    faults = {"torn.npz": "damaged", "none.npz": "cannot be read", "adv.png": "for example file:adv.npz"}
    for name, said in faults.items():
        with pytest.raises((DataError, ConfigError), match=said):
            judged(toys, tmp_path / name, tmp_path / "run")
    (tmp_path / "other").mkdir()
    both = (f"file:{archive(tmp_path)}", f"file:{archive(tmp_path / 'other')}")
    with pytest.raises(ConfigError, match="rename one of the files"):
        run(RunConfig(**SETTINGS, attacks=both), plugins=toys)
    with pytest.raises(ConfigError, match="no attack of its own"):
        run(RunConfig(**SETTINGS, threats=("given",)), plugins=toys)


def test_images_of_a_file_may_have_an_l2_budget(toys, tmp_path):
    far = clean_images().copy()
    far[:, 0, 0, 0] = (far[:, 0, 0, 0] + 0.5) % 1
    path = archive(tmp_path, adversarial=far, norm=np.array("l2"))
    report = judged(toys, path, tmp_path / "run", eps_l2=1.0)
    assert (report.rows[1].norm, report.rows[1].eps) == ("l2", 1.0)
    with pytest.raises(DataError, match="it says that its norm is l2, and norm=linf was asked for"):
        judged(toys, path, tmp_path / "other", options={"file:adv.npz": {"norm": "linf"}})
    path = archive(tmp_path, adversarial=far)
    with pytest.raises(DataError, match="away in linf"):
        judged(toys, path, tmp_path / "other", options={"file:adv.npz": {"norm": "linf"}})


def test_a_file_that_says_a_larger_budget_than_the_run_s_is_of_another_norm(toys, tmp_path):
    # an L2 attack spreads over many pixels: each of its images lies within a smaller L-inf budget
    near = (clean_images() + 0.01).clip(0, 1)
    path = archive(tmp_path, adversarial=near, eps=np.array(0.3))
    with pytest.raises(DataError, match=r"made for eps 0.3, and this run's is 0.1 in linf: give the budget"):
        judged(toys, path, tmp_path / "run")


class Reading(Watcher):
    """Reads what the run folder says whenever something else begins."""

    def __init__(self, folder):
        self.folder, self.said = folder, []

    def preparing(self, what):
        if (self.folder / "report.json").is_file():
            self.said.append((what, json.loads((self.folder / "report.json").read_text())["partial"]))


def test_a_report_is_partial_until_everything_is_done(toys, tmp_path):
    watcher = Reading(tmp_path)
    report = run(RunConfig(**{**SETTINGS, "checks": "basic"}, out=str(tmp_path)), watcher, toys)
    assert [partial for what, partial in watcher.said if "checking" in what] and not report.partial
    assert all(partial for _, partial in watcher.said), "all rows are there, and the checks are still to come"
    assert not json.loads((tmp_path / "report.json").read_text())["partial"]


def test_a_plan_of_a_run_that_saves_images_is_a_plan(toys, tmp_path):
    asked = RunConfig(**SETTINGS, attacks=("fgsm",), save_images="npz", out=str(tmp_path / "run"))
    _, chosen = plan_arms([asked], plugins=toys)
    assert (chosen.save_images, chosen.out) == ("npz", asked.out) and not (tmp_path / "run").exists()


def test_images_are_saved_where_there_is_a_folder(toys):
    with pytest.raises(ConfigError, match="name one"):
        run(RunConfig(**SETTINGS, save_images="npz"), plugins=toys)
    with pytest.raises(ConfigError, match="save_images"):
        RunConfig(victim="v", save_images="jpeg")


OWN = """
class Mine:
    norm, size = "linf", {size}

    def __call__(self, target, images, labels, *, eps, keys):
        return (images + self.size).clamp(0, 1)
"""


def made_of(report):
    """The digest of the attack in the run's one attacked row."""
    (digest,) = {row.made_of for row in report.rows if row.threat != "none"}
    assert digest and report.rows[0].made_of is None
    return digest


def test_two_files_of_one_name_are_told_apart_by_what_they_hold(toys, tmp_path):
    found = {}
    for name, up in (("one", 0.05), ("other", 0.04), ("same", 0.05)):
        (tmp_path / name).mkdir()
        path = archive(tmp_path / name, adversarial=(clean_images() + up).clip(0, 1))
        found[name] = made_of(judged(toys, path, tmp_path / f"run-{name}"))
        if name == "same":
            assert made_of(judged(toys, path, tmp_path / "fewer", limit=4, adaptive_limit=4)) == found[name]
    assert found["one"] == found["same"] != found["other"]


def test_an_attack_of_ones_own_is_another_once_it_is_edited(toys, tmp_path, monkeypatch):
    folders, found, path = [], {}, tmp_path / "my_attack.py"
    asked = {**SETTINGS, "attacks": (f"{path}:Mine",), "threats": ("oblivious",)}
    for name, size in (("one", 0.05), ("other", 0.04), ("same", 0.05)):
        path.write_text(OWN.format(size=size))
        folders.append(tmp_path / f"run-{name}")
        with monkeypatch.context() as patch:  # imported anew, as by another process
            patch.setattr(sys, "path", list(sys.path))
            patch.setattr(toys, "_custom", {})
            # Python takes kept bytecode for a file's where size and second of writing are the same
            patch.setattr(sys, "dont_write_bytecode", True)
            found[name] = made_of(run(RunConfig(**asked, out=str(folders[-1])), plugins=toys))
            del sys.modules["my_attack"]
    assert found["one"] == found["same"] != found["other"]
    one, other, same = map(read_run, folders)
    (note,) = [note for note in compare([one, other]).notes if "not the same attack" in note]
    assert note.startswith("attacks called my_attack.py:Mine/oblivious, eps 0.1 differ (")
    assert not any("not the same attack" in note for note in compare([one, same]).notes)
