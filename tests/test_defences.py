"""Whole defences from the command line: detectors, fine-tuned victims, sequences, several purifiers at once."""

import csv
import json
import re
import shlex
import shutil
import sys
from pathlib import Path

import attrs
import pytest
import torch

import defend
import defend as package
from defend.assembly.calibrate import find_kept
from defend.assembly.stage import build_stage
from defend.checks import CHECKS
from defend.evaluation.plan import find_undone
from defend.evaluation.provenance import describe
from defend.evaluation.runner import run, run_arms
from defend.plugins import forget_installed, registry
from defend.util.images import write_image
from defend.values.run_config import RunConfig
from defend.values.toml import alternatives
from defend.weights.card import read_card
from defend.weights.files import save
from defend.weights.find import cached_path, find_shipped, locate

HOOKS = """
from defend import StageSpec, hookimpl, option, options
from defend.recipes import Recipe as Whole


@options
class Strength:
    strength: float = option(0.5, help="how far towards the mean image", at_least=0, at_most=1)


@options
class Recipe:
    epochs: int = option(1, help="passes", at_least=1)
    lr: float = option(1e-3, help="learning rate", at_least=0)


@hookimpl
def defend_purifiers():
    return [
        StageSpec(name="soften", summary="toy", build="toys.parts:soften", config=Strength),
        StageSpec(name="round", summary="toy", build="toys.parts:rounding"),
    ]


@hookimpl
def defend_detectors():
    return [StageSpec(name="change", summary="toy", build="toys.parts:change")]


@hookimpl
def defend_recipes():
    return [Whole(name="guarded", summary="toy", config={"victim": "resnet20", "detector": "change", "fpr": 0.05})]


@hookimpl
def defend_finetuners():
    return [StageSpec(name="short", summary="toy", build="toys.parts:copied", train="toys.parts:tune", recipe=Recipe)]
"""
PARTS = """
import copy

import torch
from torch import nn
from torch.nn import functional as F

from defend.train import Loss, Optimiser, Training


class Soften(nn.Module):
    random = False

    def __init__(self, strength):
        super().__init__()
        self.strength = strength

    def forward(self, images):
        blurred = F.avg_pool2d(images, 3, 1, 1)
        return images + self.strength * (blurred - images)


class Round(nn.Module):
    random = False

    def forward(self, images):
        return (images - 0.1 * torch.sin(6.2832 * images) / 6.2832).clamp(0, 1)


class Change(nn.Module):
    random = False

    def __init__(self):
        super().__init__()
        self.register_buffer("threshold", torch.tensor(float("inf")))

    def forward(self, images, purified):
        return (images - F.avg_pool2d(images, 3, 1, 1)).abs().flatten(1).mean(1)


class Tune(Training):
    def __init__(self, victim, recipe, purifier, before):
        frozen = {"before": before} if purifier is None else {"before": before, "purifier": purifier}
        super().__init__(victim, {"victim": victim}, epochs=recipe.epochs, batch_size=128, frozen=frozen)
        self.lr = recipe.lr

    def epoch_size(self, epoch, size):
        return 128

    def optimisers(self, steps):
        return {"victim": Optimiser(torch.optim.Adam(self.stage.parameters(), lr=self.lr))}

    def losses(self, batch):
        seen = self.frozen["purifier"](batch.images) if "purifier" in self.frozen else batch.images
        yield Loss("victim", F.cross_entropy(self.modules["victim"](seen), batch.labels))

    def finish(self, dataset, device):
        return {"tuned": 1.0}


def soften(config, task):
    return Soften(config.strength)


def rounding(config, task):
    return Round()


def change(config, task):
    return Change()


def copied(config, task, victim):
    return copy.deepcopy(victim)


def tune(config, recipe, task, victim, purifier):
    return Tune(copied(config, task, victim), recipe, purifier, victim)
"""


@pytest.fixture(autouse=True)
def toys(installed):
    """Install a plugin with two purifiers, a detector and a fine-tuner."""
    installed("toys", {"__init__.py": HOOKS, "parts.py": PARTS})


@pytest.fixture
def digits(tmp_path):
    """Forty test images as files."""
    images, _ = defend.dataset("digits").tensors("test", limit=40)
    paths = [tmp_path / f"{place}.png" for place in range(len(images))]
    for path, image in zip(paths, images, strict=True):
        write_image(path, image)
    return paths


QUICK = (
    *("run", "--victim", "resnet20", "--limit", "10", "--adaptive-limit", "2", "--set", "pgd.steps=2"),
    *("--checks", "none", "--precision", "exact", "--quiet"),
)
ONE_ROW = (*QUICK, "--attack", "pgd", "--threat", "oblivious")


def test_a_detector_without_a_threshold_is_calibrated_in_the_run(defend):
    answer = defend(*QUICK, "--detector", "change", "--json")
    assert answer.code == 0, answer.error
    found = answer.json["detector"]
    assert found["calibration"]["n"] == 200 and found["calibration"]["measured"] <= 0.01
    assert found["threshold"] == pytest.approx(found["calibration"]["threshold"])
    assert set(found["rows"]) == {"fgsm/oblivious", "pgd/oblivious", "pgd/adaptive"}
    assert found["auroc"] == min(row["auroc"] for row in found["rows"].values())
    assert found["tpr_at_fpr"] == found["rows"][found["auroc_row"]]["tpr_at_fpr"]
    for row in answer.json["rows"]:
        arm = row["defended"]
        credit = row["attack"] != "none"
        assert arm["accuracy_with_credit"] >= arm["accuracy"]
        if not credit:
            assert arm["accuracy_with_credit"] == arm["accuracy"]


def test_predict_refuses_a_detector_that_would_accept_every_image(defend, refused, digits):
    victim = ("predict", *digits, "--victim", "resnet20", "--detector")
    line = refused(*victim, "change")
    assert "detector change has no threshold for digits, and would accept every image: add --fpr 0.01" in line
    assert "or run `defend calibrate --detector change --dataset digits` first" in line
    # what scores by a victim's answers is kept for none
    assert "defend calibrate" not in refused(*victim, "squeeze")
    answer = defend(*victim, "squeeze", "--fpr", "0.5", "--json")
    assert answer.code == 0, answer.error
    rejected = [not row["defended"]["accepted"] for row in answer.json]
    assert 0.3 < sum(rejected) / len(rejected) < 0.7
    assert all(row["undefended"]["accepted"] for row in answer.json)
    assert "no detector to calibrate" in refused("predict", *digits, "--victim", "resnet20", "--fpr", "0.5")


def test_what_is_loaded_without_a_threshold_warns_until_one_is_set(toys):
    with pytest.warns(UserWarning, match=r"detector change has no threshold for digits, and accepts every image"):
        defence = defend.load("resnet20", detector="change")
    with pytest.warns(UserWarning, match=r"detector change has no threshold for digits"):
        defend.load_recipe("guarded")
    images, _ = defend.dataset("digits").tensors("test", limit=100)
    assert defence.judge(images).accepted.all()
    defend.calibrate(defence, "digits", 0.2)
    assert 0.1 < 1 - defence.judge(images).accepted.float().mean() < 0.3
    defend.load("resnet20", purifier="puvae", detector="puvae")  # has one with its weights


def test_what_is_loaded_with_weights_of_the_users_own_says_so():
    """A recipe's figures are of the shipped ones."""
    found = registry().find("victim", "resnet20")
    shipped, own = locate(found, "digits"), cached_path("victim", "resnet20", "digits")
    own.parent.mkdir(parents=True)
    shutil.copy(shipped, own)
    said = rf"victim resnet20 are your own, .* in the place of those shipped with .*`defend cache --forget {own.name}`"
    with pytest.warns(UserWarning, match=said):
        defend.load("resnet20")
    with pytest.warns(UserWarning, match=said), pytest.warns(UserWarning, match="has no threshold"):
        defend.load_recipe("guarded")
    own.unlink()
    defend.load("resnet20")


def test_fpr_moves_the_threshold(defend):
    loose, tight = (
        defend(*ONE_ROW, "--detector", "change", "--fpr", rate, "--json").json["detector"] for rate in ("0.2", "0.01")
    )
    assert loose["threshold"] < tight["threshold"]
    assert loose["fpr"] == 0.2


def test_fpr_is_refused_without_a_detector_and_where_it_cannot_be_shown(refused):
    assert "no detector to calibrate" in refused(*ONE_ROW, "--fpr", "0.01")
    line = refused(*ONE_ROW, "--detector", "change", "--fpr", "0.001")
    assert "needs at least 1000 held-out clean images, and there are 200" in line


def test_a_threshold_of_an_edition_is_filed_under_it(defend):
    """And is what the same flags find afterwards; whoever names no edition has the usual weights as before."""
    shipped = locate(registry().find("purifier", "puvae"), "digits")
    paper = cached_path("purifier", "puvae", "digits", "paper")
    paper.parent.mkdir(parents=True)
    shutil.copy(shipped, paper)
    flags = ("calibrate", "--detector", "puvae", "--fpr", "0.1", "--json", "--quiet")
    kept = defend(*flags, "--detector-weights", "+paper")
    assert kept.code == 0, kept.error
    assert kept.json["path"] == str(cached_path("detector", "puvae", "digits", "paper"))
    found = registry().find("detector", "puvae")
    assert str(locate(found, "digits", "+paper")) == kept.json["path"]
    assert locate(found, "digits") == shipped


def test_calibrate_keeps_the_threshold_for_later_runs(defend):
    kept = defend("calibrate", "--detector", "change", "--fpr", "0.05", "--json", "--quiet")
    assert kept.code == 0, kept.error
    card = read_card(Path(kept.json["path"]))
    assert (card.stage, card.name) == ("detector", "change")
    assert card.figures["threshold"] == pytest.approx(kept.json["threshold"])
    found = defend(*ONE_ROW, "--detector", "change", "--json").json["detector"]
    assert found["threshold"] == pytest.approx(kept.json["threshold"])
    assert found["calibration"]["kept"] and found["calibration"]["fpr"] == found["fpr"] == 0.05
    assert (found["calibration"]["n"], found["calibration"]["behind"]) == (200, None)
    text = defend("calibrate", "--detector", "change", "--fpr", "0.05", "--quiet").out
    assert "rejects 5.00 % of 200 held-out clean images (asked: at most 5 %)" in " ".join(text.split())


def test_a_threshold_used_behind_another_purifier_is_doubted(defend):
    flags = ("calibrate", "--detector", "change", "--purifier", "soften", "--fpr", "0.2", "--quiet")
    assert defend(*flags).code == 0
    with_checks = [*ONE_ROW, "--checks", "basic", "--detector", "change", "--json"]
    for purifier, status in (("soften", "pass"), ("round", "warn")):
        found = defend(*with_checks, "--purifier", purifier).json
        assert found["detector"]["calibration"]["behind"] == "soften"
        (check,) = (each for each in found["checks"] if each["number"] == 11)
        assert ("set behind soften, and the detector stands behind round" in check["detail"]) == (status == "warn")
        assert ("set for 20.0 % on 200 of digits" in check["detail"]) and check["status"] in (status, "warn")
    table = " ".join(defend(*ONE_ROW, "--detector", "change", "--purifier", "round").out.split())
    assert "set on 200 held-out clean images of digits behind soften for at most 20 %" in table


def test_a_threshold_used_behind_another_purifier_is_not_predicted_or_exported_with(defend, refused, digits, tmp_path):
    calibrate = ("calibrate", "--purifier", "soften", "--detector", "change", "--fpr", "0.2", "--quiet")
    assert defend(*calibrate).code == 0
    flags = ("--victim", "resnet20", "--detector", "change", "--purifier")
    export, predict = ("export", "--out", tmp_path / "model.pt2", "--json"), ("predict", *digits[:2])
    for command in (export, predict):
        line = refused(*command, *flags, "round")
        assert "the threshold was set behind soften, and the detector stands behind round: add --fpr 0.2" in line
        assert "or run `defend calibrate --purifier round --detector change --dataset digits` first" in line
    assert not list(tmp_path.glob("model*"))
    with pytest.warns(
        UserWarning, match=r"set behind soften, and the detector stands behind no purifier: set one with"
    ):
        package.load("resnet20", detector="change")
    with pytest.warns(UserWarning, match="set behind soften, and the detector stands behind no purifier"):
        package.load_recipe("guarded")
    assert not (set_here := defend(*predict, *flags, "round", "--fpr", "0.2")).code, set_here.error
    package.load("resnet20", "digits", "soften", "change")
    assert defend(*predict, *flags, "soften").code == 0
    made = defend(*export, *flags, "soften")
    assert made.code == 0, made.error
    told = made.json["card"]["calibration"]
    assert (told["fpr"], told["behind"], told["dataset"], told["n"]) == (0.2, "soften", "digits", 200)
    again = defend(*export, *flags, "round", "--fpr", "0.1").json["card"]["calibration"]
    assert (again["fpr"], again["behind"], again["dataset"], again["n"]) == (0.1, "round", "digits", 200)


OWN_PURIFIER = """
from torch import nn


class purify(nn.Module):
    random = False

    def forward(self, images):
        return K * images
"""


def test_a_threshold_used_behind_other_options_or_weights_is_doubted(defend, refused, digits, tmp_path):
    behind = ("--purifier", "soften", "--detector", "change")
    assert defend("calibrate", *behind, "--fpr", "0.2", "--set", "purifier.strength=1", "--quiet").code == 0
    predict = ("predict", *digits[:2], "--victim", "resnet20")
    said = "the threshold was set where purifier soften had strength=1.0, and here it has strength=0.5"
    assert f"{said}: add --fpr 0.2" in refused(*predict, *behind)
    assert defend(*predict, *behind, "--set", "purifier.strength=1").code == 0
    with pytest.warns(UserWarning, match=said):
        package.load("resnet20", purifier="soften", detector="change")
    for strength in (1, 0.5):
        options = ("--set", f"purifier.strength={strength}", "--checks", "basic", "--json")
        (check,) = (each for each in defend(*ONE_ROW, *behind, *options).json["checks"] if each["number"] == 11)
        assert (said in check["detail"]) == (strength == 0.5)
    # an old file names them alone
    path = cached_path("detector", "change", "digits")
    built = build_stage("detector", "change", package.dataset("digits").task())
    calibration = {key: value for key, value in built.card.calibration.items() if key != "parts"}
    save(path, built.module, attrs.evolve(built.card, recipe={**built.card.recipe, "calibration": calibration}))
    assert defend(*predict, *behind).code == 0

    weights = build_stage("purifier", "dae", package.dataset("digits").task())
    with torch.no_grad():
        next(weights.module.parameters()).mul_(1.01)
    other = tmp_path / "other.safetensors"
    save(other, weights.module, weights.card)
    behind = ("--purifier", "dae", "--detector", "change")
    assert defend("calibrate", *behind, "--purifier-weights", other, "--fpr", "0.2", "--quiet").code == 0
    line = refused(*predict, *behind)
    assert (
        f"set where purifier dae had weights={read_card(other).content_sha256[:16]}, and here it has weights=" in line
    )
    assert defend(*predict, *behind, "--purifier-weights", other).code == 0
    wrong = refused("calibrate", *behind, "--purifier-weights", f"soften={other}")
    assert "weights for 'soften', which this defence does not have" in wrong


def test_a_threshold_that_was_set_on_other_images_is_not_predicted_with(refused, digits):
    every = find_shipped(registry().find("purifier", "puvae").packages)
    (mnist,) = (path for path in every if path.name == "purifier-puvae-mnist.safetensors")
    flags = ("predict", *digits[:2], "--victim", "resnet20", "--detector", "puvae", "--detector-weights", mnist)
    line = refused(*flags)
    assert "detector puvae: the threshold was set on mnist, not on digits: add --fpr 0.01" in line
    with pytest.warns(UserWarning, match="the threshold was set on mnist, not on digits"):
        package.load("resnet20", detector="puvae", weights={"detector": str(mnist)})


@pytest.mark.parametrize("how", ["def purify(images):\n    return K * images", OWN_PURIFIER])
def test_a_threshold_set_behind_other_code_of_ones_own_is_doubted(defend, refused, digits, tmp_path, monkeypatch, how):
    file = tmp_path / "own.py"
    behind = ("--purifier", f"{file}:purify", "--detector", "change")
    predict = ("predict", *digits[:2], "--victim", "resnet20", *behind)
    file.write_text(f"K = 0.9\n{how}\n")
    assert defend("calibrate", *behind, "--fpr", "0.2", "--quiet").code == 0
    assert defend(*predict).code == 0
    file.write_text(f"K = 0.875\n{how}\n")
    for name in [name for name, module in sys.modules.items() if getattr(module, "__file__", None) == str(file)]:
        monkeypatch.delitem(sys.modules, name)
    forget_installed()  # as in another process
    assert re.search(r"the threshold was set where purifier \S+ had code=\w+, and here it has code=", refused(*predict))


OWN = """
import torch
from torch import nn


class Bright(nn.Module):
    random = False

    def __init__(self):
        super().__init__()
        self.register_buffer("threshold", torch.tensor(float("inf")))
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, images, purified):
        return self.weight * images.flatten(1).mean(1)
"""


def test_the_threshold_of_a_users_own_detector_is_taken_as_told(defend, tmp_path):
    (tmp_path / "det.py").write_text(OWN)
    own = ("--detector", tmp_path / "det.py:Bright")
    said = defend("calibrate", *own, "--fpr", "0.2", "--quiet").out
    (flags,) = re.findall(r"Take it with (--detector-weights .+)", said.replace("\n", " "))
    answer = defend(*ONE_ROW, *own, *shlex.split(flags), "--json")
    assert answer.code == 0, answer.error
    found = answer.json
    assert found["detector"]["calibration"]["kept"] and found["detector"]["fpr"] == 0.2
    # it learnt somewhere, and nobody said where
    assert found["dataset"]["seen"]["detector"] == "unknown"
    assert any("not known what the weights of detector" in each for each in found["dataset"]["warnings"])
    assert "Take it with" not in defend("calibrate", "--detector", "change", "--fpr", "0.2", "--quiet").out


def test_a_threshold_for_other_images_clears_no_weights_of_having_seen_them(defend):
    every = find_shipped(registry().find("purifier", "puvae").packages)
    (shipped,) = (path for path in every if path.name == "purifier-puvae-mnist.safetensors")
    digits, before = package.dataset("digits"), read_card(shipped)

    def look(path):
        built = build_stage("detector", "puvae", digits.task(), {}, str(path))
        return describe("digits", digits, 10, {"detector": built})

    assert look(shipped).seen == {"detector": "unknown"}
    flags = ("--detector-weights", shipped, "--fpr", "0.1", "--json", "--quiet")
    answer = defend("calibrate", "--detector", "puvae", *flags)
    assert answer.code == 0, answer.error
    path = cached_path("detector", "puvae", "digits")
    assert answer.json["path"] == str(path)
    after = read_card(path)
    assert after.dataset == before.dataset and after.figures["val_accuracy"] == before.figures["val_accuracy"]
    assert after.calibration["dataset"] == "digits" and after.calibration["sha256"] == digits.sha256("val")
    assert (after.calibration["n"], after.calibration["fpr"], after.calibration["behind"]) == (200, 0.1, None)
    assert "val_rejected" not in after.figures  # of the threshold that stood before
    found = look(path)
    assert found.seen == {"detector": "unknown"} and "not trained on them" not in found.images["said"]
    # found as digits' weights, shown as those of mnist
    (shown,) = (each for each in defend("show", "puvae", "--json").json[-1]["weights"] if not each["shipped"])
    assert (shown["filed_as"], shown["learnt_of"], shown["dataset"]) == ("digits", "mnist", "mnist")
    words = " ".join(defend("show", "puvae").out.split())
    assert "trained on mnist" in words and "set on 200 held-out clean images of digits behind no purifier" in words


def test_a_card_that_an_old_version_overwrote_clears_nothing():
    digits = package.dataset("digits")
    built = build_stage("purifier", "puvae", digits.task())
    assert describe("digits", digits, 10, {"purifier": built}).seen == {"purifier": "no"}
    card = attrs.evolve(built.card, recipe={**built.card.recipe, "calibrated_behind": "blur"})
    found = describe("digits", digits, 10, {"purifier": attrs.evolve(built, card=card)})
    assert found.seen == {"purifier": "unknown"} and "no longer says what the weights" in found.warnings[0]
    kept = find_kept(attrs.evolve(card, figures={"fpr": 0.1, "val_rejected": 0.1}), built.module)
    assert (kept.behind, kept.fpr, kept.n) == ("blur", 0.1, 0)


def test_the_table_tells_of_rejections(defend):
    text = defend(*ONE_ROW, "--detector", "change", "--purifier", "soften").out
    assert "rejected" in text and "AUROC" in text and "false positives" in text


def test_a_sequence_says_which_counter_attacks_it_goes_without():
    config = RunConfig(victim="resnet18", purifier="apudae,vaegan", threats=("adaptive",))
    told = find_undone(config, [], registry())
    assert set(told) == {"attack apudae_a", "attack vaegan_straight"}
    assert "made against apudae alone" in told["attack apudae_a"]
    assert not find_undone(RunConfig(victim="resnet18", purifier="apudae", threats=("adaptive",)), [], registry())


def test_purifiers_in_sequence(defend, refused, tmp_path):
    both = defend(*ONE_ROW, "--purifier", "soften,round", "--set", "soften.strength=0.9", "--json")
    assert both.code == 0, both.error
    assert both.json["config"]["purifier"] == "soften,round"
    assert both.json["config"]["options"]["soften"] == {"strength": "0.9"}
    assert "name one of soften, round" in refused(
        *ONE_ROW, "--purifier", "soften,round", "--set", "purifier.strength=1"
    )
    assert "names one twice" in refused(*ONE_ROW, "--purifier", "soften,soften")
    assert "did you mean 'soften'" in refused(*ONE_ROW, "--purifier", "soften,softn")


def test_a_sequence_loads_in_python():
    defence = defend.load("resnet20", purifier="soften,round", options={"soften": {"strength": 0.0}})
    images, _ = defend.dataset("digits").tensors("test", limit=2)
    expected = defend.load("resnet20", purifier="round")
    assert defence(images).allclose(expected(images), atol=1e-5)


def test_tuning_trains_files_and_runs(defend, refused, tmp_path):
    line = refused(*ONE_ROW, "--purifier", "soften", "--finetune", "short")
    assert "defend train finetuner short --dataset digits --victim resnet20 --purifier soften" in line
    assert "a fine-tuner needs --victim" in refused("train", "finetuner", "short")
    trained = defend("train", "finetuner", "short", "--victim", "resnet20", "--purifier", "soften", "--json", "--quiet")
    assert trained.code == 0, trained.error
    assert trained.json["path"].endswith("finetuner-short-resnet20-soften-digits.safetensors")
    card = trained.json["card"]
    assert (card["config"]["victim"], card["config"]["purifier"]) == ("resnet20", "soften")
    assert len(card["recipe"]["victim_sha256"]) == 64
    answer = defend(*QUICK, "--purifier", "soften", "--finetune", "short", "--json", "--out", tmp_path / "tuned")
    assert answer.code == 0, answer.error
    rows = {f"{row['attack']}/{row['threat']}": row for row in answer.json["rows"]}
    assert list(rows) == [
        "none/none",
        "noise/noise",
        "fgsm/transfer",
        "pgd/transfer",
        "fgsm/oblivious",
        "pgd/oblivious",
        "pgd/adaptive",
    ]
    assert set(rows["pgd/transfer"]["arms"]) == {"tuned", "untuned"}
    # made against the victim as it was, so that one falls, and the tuned one falls to its own
    assert rows["pgd/transfer"]["undefended"]["accuracy"] <= rows["pgd/oblivious"]["undefended"]["accuracy"]
    assert rows["pgd/oblivious"]["arms"]["tuned"]["accuracy"] <= rows["pgd/transfer"]["arms"]["tuned"]["accuracy"]
    with (tmp_path / "tuned" / "records.csv").open() as file:
        arms = {line["arm"] for line in csv.DictReader(file)}
    assert arms == {"undefended", "tuned", "untuned", "defended"}
    shown = defend(*ONE_ROW, "--purifier", "soften", "--finetune", "short").out
    assert "tuned, bare" in shown and "defended, untuned" in shown and "transfer: made against" in shown
    assert "behind no purifier" in refused(*ONE_ROW, "--finetune", "short")


def test_a_victim_tuned_alone_by_train_missing_stands_behind_a_purifier_if_asked(defend, refused, tmp_path):
    # an option for a purifier that is not there is refused before anything is trained
    refused(*ONE_ROW, "--finetune", "short", "--train-missing", "--set", "purifier.x=1")
    behind = (*ONE_ROW, "--purifier", "soften", "--finetune", "short", "--finetune-weights")
    line = refused(*behind, "bare")
    assert "`defend train finetuner short --dataset digits --victim resnet20`" in line and "--train-missing" in line
    answer = defend(*behind, "bare", "--train-missing", "--json")
    assert answer.code == 0, answer.error
    (found,) = tmp_path.rglob("finetuner-*.safetensors")
    assert found.name == "finetuner-short-resnet20-none-digits.safetensors"
    again = defend(*ONE_ROW, "--finetune", "short", "--train-missing", "--json").json
    assert again["config"]["finetune"] == "short"
    assert again["weights"]["finetuner"] == answer.json["weights"]["finetuner"]
    assert "behind soften; to put one before it nonetheless: bare" in refused(*behind, found)
    line = refused(*ONE_ROW, "--purifier", "soften", "--purifier-weights", "bare")
    assert "purifier soften has no weights 'bare'" in line


def test_a_quick_run_transfers_from_the_victim_before_tuning_alone(defend):
    answer = defend(*QUICK, "--attack", "pgd", "--json")
    assert [row["threat"] for row in answer.json["rows"]] == ["none", "oblivious"]


def test_several_purifiers_share_one_attack(defend, tmp_path):
    out = tmp_path / "both"
    answer = defend(*QUICK, "--purifier", "soften", "--purifier", "round", "--purifier", "soften,round", "--out", out)
    assert answer.code == 0, answer.error
    assert "soften" in answer.out and "round" in answer.out
    runs = {folder.name: json.loads((folder / "report.json").read_text()) for folder in out.iterdir()}
    assert set(runs) == {"soften", "round", "soften+round"}

    def attacked(name):
        with (out / name / "records.csv").open() as file:
            return {
                (r["attack"], r["image"]): (r["linf"], r["l2"])
                for r in csv.DictReader(file)
                if r["threat"] == "oblivious"
            }

    assert attacked("soften") == attacked("round") == attacked("soften+round")
    alone = defend(*QUICK, "--purifier", "round", "--out", tmp_path / "alone", "--json").json
    assert [row["defended"] for row in alone["rows"]] == [row["defended"] for row in runs["round"]["rows"]]
    rerun = defend("run", "--config", out / "soften+round" / "config.toml", "--quiet", "--json").json
    assert [row["defended"] for row in rerun["rows"]] == [row["defended"] for row in runs["soften+round"]["rows"]]
    compared = defend("compare", out / "soften", out / "round", tmp_path / "alone", "--json")
    assert compared.code == 0, compared.error


def test_crafting_happens_once_for_all_arms():
    from defend.evaluation.evaluate import Evaluator

    rows = []
    original = Evaluator.row

    class Counting:
        def __get__(self, evaluator, owner):
            def row(plan, number):
                rows.append((plan.name, plan.threat.kind, plan.attacked))
                return original(evaluator, plan, number)

            return row

    config = RunConfig(victim="resnet20", limit=8, adaptive_limit=2, attacks=("pgd",), options={"pgd": {"steps": 2}})
    patched = pytest.MonkeyPatch()
    patched.setattr(Evaluator, "row", Counting())
    try:
        outcomes = run_arms(alternatives(config, ["soften", "round"]))
    finally:
        patched.undo()
    assert rows == [
        ("none", "none", "undefended"),
        ("pgd", "oblivious", "undefended"),
        ("pgd", "adaptive", "soften: defended"),
        ("pgd", "adaptive", "round: defended"),
    ]
    assert [[row.key for row in each.report.rows] for each in outcomes] == [
        ["none/none", "pgd/oblivious", "pgd/adaptive"]
    ] * 2


def test_an_arm_without_a_purifier_takes_no_attacks_on_the_others(defend):
    answer = defend(*ONE_ROW, "--threat", "adaptive", "--purifier", "none", "--purifier", "round", "--json")
    assert answer.code == 0, answer.error
    threats = {row["threat"]: [cell is not None for cell in row["runs"].values()] for row in answer.json["rows"]}
    assert threats["adaptive"] == [False, True] and threats["oblivious"] == [True, True]
    assert {row["threat"] for row in answer.json["worst_case"]["over"]} >= {"adaptive", "oblivious"}
    alone = defend(*ONE_ROW, "--purifier", "none", "--json").json
    assert alone["config"].get("purifier") is None


def test_options_of_several_arms_go_by_name(refused, defend):
    pair = ("--purifier", "soften", "--purifier", "round")
    line = refused(*ONE_ROW, *pair, "--set", "purifier.strength=1")
    assert "options for 'purifier', and there are 2" in line
    assert "names one twice" in refused(*ONE_ROW, "--purifier", "round", "--purifier", "round")
    answer = defend(*ONE_ROW, *pair, "--set", "soften.strength=0.1", "--json")
    assert answer.code == 0, answer.error


def test_every_part_at_once_in_python():
    report = run(
        RunConfig(
            victim="resnet20", purifier="soften", detector="change", attacks=("fgsm",), threats=("oblivious",), limit=10
        )
    )
    assert report.detector is not None
    assert report.rows[1].defended.accuracy_with_credit >= report.rows[1].defended.accuracy
    assert [check.number for check in report.checks] == list(range(1, len(CHECKS) + 1))
