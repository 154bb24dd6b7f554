"""The command line as a user meets it, on the shipped weights."""

import csv
import json
import re
import subprocess
import sys
import tomllib

import numpy as np
import pytest
import torch
from PIL import Image

import defend as package
from defend.plugins import registry
from defend.util.images import write_image
from defend.weights.find import locate

QUICK = ("--victim", "resnet18", "--purifier", "apudae", "--limit", "10", "--adaptive-limit", "4", "--quiet")
FEW = ("--set", "purifier.steps=3", "--set", "pgd.steps=3", "--set", "apudae_a.steps=2")


@pytest.fixture
def digit(tmp_path):
    images, labels = package.dataset("digits").tensors("test", limit=2)
    paths = []
    for index in range(2):
        paths.append(tmp_path / f"{int(labels[index])}.png")
        write_image(paths[-1], images[index])
    return paths


def test_help_of_every_command(defend):
    top = defend("--help")
    assert top.code == 0
    for command in ("run", "list", "show", "train", "predict"):
        assert command in top.out
        assert defend(command, "--help").code == 0


def test_python_dash_m(tmp_path):
    done = subprocess.run([sys.executable, "-m", "defend", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == f"defend, version {package.__version__}"


def test_list_names_every_stage_and_its_weights(defend):
    stages = {(row["stage"], row["name"]): row for row in defend("list", "--json").json["stages"]}
    assert {"digits", "mnist", "cifar10"} <= set(stages["purifier", "apudae"]["weights"])
    assert "resnet18/digits" in stages["victim", "timm"]["weights"]
    assert {name for stage, name in stages if stage == "dataset"} == {
        "digits",
        "mnist",
        "fashion_mnist",
        "cifar10",
        "imagefolder",
        "arrays",
        "hf",
        "imagenet",
    }
    overview = defend("list").out
    assert len(overview.splitlines()) <= 20
    assert all(name in overview for stage, name in stages)
    assert "vaegan (digits," in overview
    table = defend("list", "purifier").out
    assert "defend-apudae" in table
    assert "pgd" not in table
    assert {row["stage"] for row in defend("list", "detector", "--json").json["stages"]} == {"detector"}


def test_own_weights_are_listed_where_they_belong(defend, tmp_path):
    """A family does not claim the weights of others, and an edition is called one."""
    from importlib.resources import files

    own = tmp_path / "cache" / "weights"
    own.mkdir(parents=True)
    shipped = files("defend_apudae.weights")
    (own / "victim-mlp-mnist+wide.safetensors").write_bytes((shipped / "victim-mlp-mnist.safetensors").read_bytes())
    stages = {(row["stage"], row["name"]): row["weights"] for row in defend("list", "--json").json["stages"]}
    assert {"mnist", "mnist+wide"} <= set(stages["victim", "mlp"])
    assert not any("mlp" in name for name in stages["victim", "timm"])
    (shown,) = defend("show", "mlp", "--json").json
    ours = [one for one in shown["weights"] if one["dataset"] == "mnist"]
    assert [(one["edition"], one["shipped"]) for one in ours] == [
        ("wide", False),
        ("two-layers", True),
        ("", True),
    ]
    assert "mlp, edition wide, trained here" in " ".join(defend("show", "mlp").out.split())


def test_show_names_editions_and_what_trainings_cost(defend):
    shown = " ".join(defend("show", "adversarial").out.split())
    assert "Edition trades (--edition trades): mode=trades" in shown
    assert "Training on mnist+eps-0.1 takes 1 min on one CPU core" in shown


def test_show_gives_paper_options_and_weights(defend):
    (shown,) = defend("show", "apudae", "--json").json
    assert "Denoising AutoEncoders" in shown["paper"]["title"]
    options = {option["name"]: option for option in shown["options"]}
    assert options["steps"]["default"] == 15
    assert options["steps"]["type"] == "int"
    assert all(option["help"] for option in shown["options"])
    (weights,) = [weights for weights in shown["weights"] if weights["dataset"] == "digits"]
    assert weights["shipped"] is True
    assert weights["figures"]["sigma"] > 0
    text = defend("show", "apudae").out
    assert "variant" in text
    assert "shipped" in text


def test_show_says_what_a_threat_is(defend):
    text = " ".join(defend("show", "bpda").out.split())
    assert "threat bpda, what its attacker has: the defence forwards" in text and "--threat bpda" in text
    shown = defend("show", "noise", "--json").json  # an attack and a threat
    assert {"attack", "threat"} <= {each["stage"] for each in shown}


def test_run_writes_a_folder_whose_files_agree(defend, tmp_path):
    answer = defend("run", *QUICK, *FEW, "--out", tmp_path / "run")
    assert answer.code == 0, answer.error
    assert "Worst case per image" in answer.out
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert list(report)[:5] == ["schema", "versions", "plugins", "config", "seed"]
    assert report["schema"] == 1
    about = report["dataset"]
    assert (about["name"], about["split"], about["n"]) == ("digits", "test", 10)
    assert about["images"]["said"].startswith("500 of all 1797 images, cut off from train by seed 0")
    assert about["seen"] == {"victim": "no", "purifier": "no"} and about["warnings"] == []
    rows = {(row["attack"], row["threat"]): row for row in report["rows"]}
    assert list(rows) == [
        ("none", "none"),
        ("noise", "noise"),
        ("fgsm", "oblivious"),
        ("pgd", "oblivious"),
        ("pgd", "adaptive"),
        ("apudae_a", "adaptive"),
    ]
    assert rows["none", "none"]["eps"] == 0
    assert rows["pgd", "oblivious"]["n"] == 10
    assert rows["pgd", "adaptive"]["n"] == 4
    for row in report["rows"]:
        assert {"attack", "purify"} <= set(row["seconds"])
        for arm in ("undefended", "defended"):
            low, high = row[arm]["ci95"]
            assert 0 <= low <= row[arm]["accuracy"] <= high <= 1
            assert row[arm]["accuracy_with_credit"] == row[arm]["accuracy"]
    assert report["worst_case"]["n"] == 4
    assert report["worst_case"]["accuracy"] <= min(
        row["defended"]["accuracy"] for row in report["rows"] if row["n"] == 4
    )
    assert report["cost"]["parameters"] == 297_793
    assert report["cost"]["defence_ms_per_image"] > report["cost"]["victim_ms_per_image"] > 0

    with (tmp_path / "run" / "records.csv").open() as file:
        records = list(csv.DictReader(file))
    assert len(records) == 2 * (4 * 10 + 2 * 4)
    pgd = [r for r in records if (r["attack"], r["threat"], r["arm"]) == ("pgd", "oblivious", "defended")]
    right = sum(record["label"] == record["predicted"] for record in pgd) / len(pgd)
    assert right == rows["pgd", "oblivious"]["defended"]["accuracy"]
    assert max(float(record["linf"]) for record in records) <= 0.1 + 1e-6
    for name in ("noise-noise", "fgsm-oblivious", "pgd-oblivious", "pgd-adaptive"):
        with Image.open(tmp_path / "run" / f"examples-{name}.png") as picture:
            assert min(picture.size) > 300


def test_a_thorough_run_takes_all_steps(defend):
    adaptive = ("--threat", "adaptive", "--attack", "fgsm", "--attack", "pgd", "--set", "pgd.restarts=1")
    answer = defend(
        "run",
        *QUICK,
        *adaptive,
        "--thorough",
        "--set",
        "purifier.steps=1",
        "--set",
        "apudae_a.steps=1",
        "--checks",
        "none",
        "--json",
    )
    rows = {row["attack"]: (row["n"], row["steps"]) for row in answer.json["rows"] if row["threat"] == "adaptive"}
    assert rows == {"fgsm": (4, None), "pgd": (4, 100), "apudae_a": (4, 1)}
    assert answer.json["checks"] == []


def test_a_run_reruns_from_its_config_to_the_same_records(defend, tmp_path):
    # where bfloat16 is there its time decides, which is another one each time
    same = ("--eps", "8/255", "--seed", "7", "--precision", "fp32")
    defend("run", *QUICK, *FEW, "--attack", "pgd", *same, "--out", tmp_path / "first")
    config = tomllib.loads((tmp_path / "first" / "config.toml").read_text())
    assert config["eps"] == pytest.approx(8 / 255)
    assert config["options"]["purifier"] == {"steps": "3"} or config["options"]["purifier"] == {"steps": 3}
    answer = defend("run", "--config", tmp_path / "first" / "config.toml", "--out", tmp_path / "second", "--quiet")
    assert answer.code == 0, answer.error
    assert (tmp_path / "first" / "records.csv").read_text() == (tmp_path / "second" / "records.csv").read_text()


def test_json_is_the_report(defend):
    answer = defend("run", "--victim", "resnet18", "--limit", "5", "--attack", "noise", "--json", "--quiet")
    assert answer.code == 0
    assert [row["attack"] for row in answer.json["rows"]] == ["none", "noise"]
    assert answer.json["rows"][0]["undefended"] == answer.json["rows"][0]["defended"]


def test_predict_on_the_users_own_files(defend, digit, tmp_path):
    files = list(digit)
    answer = defend(
        "predict", *files, "--victim", "resnet18", "--purifier", "apudae", "--save", tmp_path / "out", "--json"
    )
    assert answer.code == 0, answer.error
    for path, row in zip(files, answer.json, strict=True):
        assert row["image"] == str(path)
        assert row["defended"]["label"] == path.stem
        assert 0 < row["defended"]["confidence"] <= 1
        assert row["changed"]["most"] <= 15 * 0.01 + 1e-6
        with Image.open(row["purified"]) as purified:
            assert purified.size == (28, 28)


def test_predict_shows_a_table_and_takes_other_sizes(defend, tmp_path):
    Image.new("RGBA", (60, 40), (10, 200, 30, 128)).save(tmp_path / "odd.png")
    answer = defend("predict", tmp_path / "odd.png", "--victim", "resnet18")
    assert answer.code == 0, answer.error
    assert "odd.png" in answer.out


def test_predict_takes_the_device_that_its_help_says(defend, digit, monkeypatch):
    asked = []
    monkeypatch.setattr("defend.deploy.predict.resolve_device", lambda name: asked.append(name) or torch.device("cpu"))
    for flags in ((), ("--device", "cpu")):
        answer = defend("predict", next(iter(digit)), "--victim", "resnet18", "--json", *flags)
        assert answer.code == 0, answer.error
    assert asked == ["auto", "cpu"] and "auto (default)" in " ".join(defend("predict", "--help").out.split())


def test_an_image_that_cannot_be_read_takes_no_answer_with_it(defend, digit, tmp_path, monkeypatch):
    monkeypatch.setattr("defend.deploy.predict.BATCH", 1)
    (tmp_path / "broken.png").write_bytes(b"no image")
    files = [*digit][:2]
    answer = defend("predict", *files, tmp_path / "broken.png", "--victim", "resnet18", "--json")
    assert answer.code == 2 and "broken.png" in answer.error
    assert [row["image"] for row in answer.json] == [str(file) for file in files]


@pytest.mark.parametrize("given", [["--set", "jpge.quality=1"], ["--detector-weights", "nowhere.safetensors"]])
def test_predict_refuses_options_and_weights_of_what_is_no_part_of_it(refused, digit, given):
    assert "which this defence does not have" in refused("predict", next(iter(digit)), "--victim", "resnet18", *given)


def test_train_writes_weights_that_run_finds(defend, tmp_path):
    answer = defend(
        "train",
        "purifier",
        "apudae",
        "--dataset",
        "digits",
        "--set",
        "epochs=1",
        "--set",
        "width=4",
        "--set",
        "depth=3",
        "--set",
        "variant=direct",
        "--set",
        "steps=15",
        "--quiet",
        "--json",
        "--device",
        "cpu",
    )
    assert answer.code == 0, answer.error
    # what is as usual need not be said, nor what the file keeps
    assert "`defend run` takes the others by --set purifier.variant=direct\n" in answer.error
    assert answer.json["card"]["config"] == {"depth": 3, "width": 4}
    assert answer.json["card"]["figures"]["sigma"] > 0
    run = defend("run", *QUICK, "--attack", "noise", "--threat", "noise", "--json")
    assert run.json["weights"]["purifier"]["sha256"] == answer.json["card"]["content_sha256"]


def test_train_missing_trains_on_the_users_own_folder(defend, tmp_path):
    for label, shade in (("dark", 40), ("light", 210)):
        (tmp_path / "mine" / label).mkdir(parents=True)
        for index in range(12):
            Image.new("RGB", (40, 36), (shade + index, shade, shade)).save(tmp_path / "mine" / label / f"{index}.png")
    run = defend(
        "run",
        "--victim",
        "mobilenetv3_small_050",
        "--dataset",
        "imagefolder",
        "--data-dir",
        tmp_path / "mine",
        "--set",
        "dataset.image_size=32",
        "--workers",
        "0",
        "--attack",
        "noise",
        "--train-missing",
        "--json",
        "--quiet",
    )
    assert run.code == 0, run.error
    file = run.json["weights"]["victim"]["file"]
    assert re.fullmatch(r"victim-mobilenetv3_small_050-imagefolder-[0-9a-f]{10}\.safetensors", file)
    assert run.json["dataset"]["n"] == 4


def test_a_detached_defence_is_an_ordinary_module():
    defence = package.load("resnet18", dataset="digits", purifier="apudae")
    images, labels = package.dataset("digits").tensors("test", limit=4, seed=0)
    assert images.dtype == torch.float32
    assert images.shape == (4, 1, 28, 28)
    assert defence(images).shape == (4, 10)
    verdict = defence.judge(images)
    assert torch.equal(verdict.labels, labels)
    assert verdict.accepted.all()
    assert not defence.training


def test_a_file_of_arrays_goes_through_every_command(defend, tmp_path):
    """And the options of the data set reach them all."""
    digits = package.dataset("digits")
    parts = {split: digits.tensors(split) for split in ("val", "test")}
    arrays = {
        f"{kind}_{split}": part.numpy() for split, pair in parts.items() for kind, part in zip("xy", pair, strict=True)
    }
    np.savez(tmp_path / "mine.npz", **arrays)
    images = ("--dataset", tmp_path / "mine.npz", "--set", "dataset.split=val")
    shipped = {
        stage: str(locate(registry().find(stage, name), "digits"))
        for stage, name in (("purifier", "puvae"), ("victim", "resnet18"))
    }
    victim = ("--victim", "resnet18", "--victim-weights", shipped["victim"])
    calibrated = defend(
        "calibrate", "--detector", "puvae", "--detector-weights", shipped["purifier"], *images, "--fpr", 0.05, "--json"
    )
    assert calibrated.code == 0 and calibrated.json["n"] == 40, calibrated.error
    Image.fromarray((arrays["x_test"][0, 0] * 255).astype(np.uint8)).save(tmp_path / "digit.png")
    said = defend("predict", tmp_path / "digit.png", *victim, *images, "--json")
    assert said.code == 0 and said.json[0]["undefended"]["label"] == str(arrays["y_test"][0]), said.error
    quick = ("--attack", "noise", "--checks", "none", "--limit", 8, "--quiet", "--json", "--out", tmp_path / "run")
    run = defend("run", *victim, *images, *quick)
    assert run.code == 0, run.error
    assert run.json["dataset"]["images"]["said"].startswith("160 of the 200 images that were given; 40 others")
    again = defend(
        "run", "--config", tmp_path / "run" / "config.toml", "--json", "--quiet", "--out", tmp_path / "again"
    )
    assert again.json["dataset"] == run.json["dataset"]
    untrained = defend("train", "victim", "resnet18", *images)
    assert untrained.code == 2 and "has no train images" in untrained.error
    wrong = defend("calibrate", "--detector", "puvae", "--set", "datset.split=val")
    assert wrong.code == 2 and "options for 'datset'" in wrong.error


def test_options_of_a_data_set_are_shown_as_they_are_typed(defend):
    assert "--set dataset.NAME=VALUE with `defend run`" in defend("show", "imagefolder").out


def test_files_of_one_name_are_arms_of_their_own(defend, tmp_path):
    """Each has its folder, and its gate: the second one's does not stand for both."""
    for folder, change in (("old", "images * 0"), ("new", "images")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "parts.py").write_text(f"def same(images):\n    return {change}\n")
    arms = [word for each in ("old", "new") for word in ("--purifier", f"{tmp_path}/{each}/parts.py:same")]
    run = ("run", "--victim", "resnet18", *arms, "--limit", "4", "--threat", "noise", "--checks", "none", "--quiet")
    answer = defend(*run, "--out", tmp_path / "both", "--at-least", "clean=0.9", "--junit", tmp_path / "j.xml")
    assert answer.code == 3
    assert {path.name for path in (tmp_path / "both").iterdir()} == {"parts.py_same", "parts.py_same-2"}
    assert (tmp_path / "j.xml").read_text().count("<testsuite ") == 2


def test_where_nobody_attacked_there_is_no_worst_case(defend):
    few = ("--victim", "resnet18", "--purifier", "dae", "--limit", "8", "--quiet", "--checks", "basic")
    answer = defend("run", *few, "--attack", "noise", "--threat", "noise", "--out", "a", "--at-least", "0.5")
    assert answer.code == 3 and "no attack was run that counts" in answer.error
    assert "Worst case" not in answer.out and "No worst case" in answer.out
    answer = defend("run", *few, "--attack", "fgsm", "--threat", "oblivious", "--out", "b")
    assert "No attacker knew of the defence" in answer.out


def test_a_worst_case_below_what_was_asked_for_shuts_the_gate(defend):
    run = (
        "run",
        "--victim",
        "resnet18",
        "--limit",
        "4",
        "--attack",
        "fgsm",
        "--threat",
        "oblivious",
    )
    shut = defend(*run, "--quiet", "--out", "a", "--at-least", "1")
    assert (shut.code, "gate: the worst case leaves" in shut.error) == (3, True)
    assert defend(*run, "--out", "b", "--at-least", "0").code == 0


def test_a_gate_that_rests_on_a_loose_bound_says_so(defend):
    few = ("--limit", "40", "--attack", "pgd", "--threat", "oblivious")
    answer = defend("run", "--victim", "resnet18", *few, "--set", "pgd.steps=4", "--eps", "0.05", "--at-least", "0")
    words = " ".join(answer.error.split())
    assert answer.code == 0 and "gate: the worst case leaves at most" in words
    assert "an attack was still fooling images when its steps ended" in words
