"""The training: its loss, its steps, its resuming, its threshold."""

import math

import pytest
import torch
from torch.nn import functional as F

from defend.assembly.composition import Composition
from defend.assembly.stage import build_stage
from defend.datasets.base import Batch, MemoryDataset
from defend.errors import ContractError, WeightsError
from defend.records.watcher import TrainingWatcher
from defend.stages import Task
from defend.testing.toys import TASK, TinyVictim, images
from defend.training.loop import FitSettings, fit
from defend.training.stage import train_stage
from defend_puvae_detect import training
from defend_puvae_detect.config import PuvaeOptions, PuvaeRecipe
from defend_puvae_detect.model import divergence, reconstruction_cost
from defend_puvae_detect.purifier import build
from defend_puvae_detect.training import PuvaeTraining

SMALL = PuvaeOptions(width=4, hidden=16, latent=6)
OPTIONS = {"width": 4, "hidden": 16, "latent": 6}


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DEFEND_CACHE_DIR", str(tmp_path))


def tiny(validation=20, task=TASK):
    pictures = (images(task, 24 + 2 * validation) * 255).to(torch.uint8)
    labels = torch.arange(len(pictures)) % 10
    ends = {"train": (0, 24), "val": (24, 24 + validation), "test": (24 + validation, len(pictures))}
    return MemoryDataset(
        "tiny",
        [str(digit) for digit in range(10)],
        {split: pictures[a:b] for split, (a, b) in ends.items()},
        {split: labels[a:b] for split, (a, b) in ends.items()},
    )


def described(**recipe):
    torch.manual_seed(0)
    chosen = PuvaeRecipe(**{"epochs": 2, "batch_size": 12, "fpr": 0.1, **recipe})
    return PuvaeTraining(build(SMALL, TASK), TinyVictim(), chosen)


def weights(training):
    return training.stage.state_dict()


def test_the_loss_weighs_its_three_terms():
    described_one, batch = described(), Batch(images(TASK, 6), torch.arange(6), torch.arange(6))
    torch.manual_seed(7)
    (loss,) = described_one.losses(batch)
    torch.manual_seed(7)
    e = torch.randn(6, 6)
    made = described_one.modules["network"](batch.images, batch.labels, e)
    ce = F.cross_entropy(described_one.frozen["classifier"](made.logits.sigmoid()), batch.labels)
    rc, kl = reconstruction_cost(made.logits, batch.images), divergence(made.m, made.s, "standard")
    torch.testing.assert_close(loss.value, 10 * ce + 0.01 * rc + 0.1 * kl)
    torch.testing.assert_close(loss.metrics["ce"], ce)


def test_input_noise_is_to_be_removed():
    noisy, batch = described(input_noise=0.4), Batch(images(TASK, 6), torch.arange(6), torch.arange(6))
    torch.manual_seed(7)
    (loss,) = noisy.losses(batch)
    torch.manual_seed(7)
    given = batch.images + 0.4 * torch.rand(6, 1, 1, 1) * torch.randn_like(batch.images)
    made = noisy.modules["network"](given, batch.labels, torch.randn(6, 6))
    torch.testing.assert_close(loss.metrics["rc"], reconstruction_cost(made.logits, batch.images))


@pytest.mark.parametrize("schedule", ["constant", "one_cycle"])
def test_steps_change_the_network_and_leave_the_classifier(schedule):
    training, before = described(schedule=schedule), TinyVictim().state_dict()
    start = {key: value.clone() for key, value in weights(training).items()}
    figures = fit(training, tiny(), FitSettings(), {})
    frozen = training.frozen["classifier"].state_dict()
    assert all(torch.equal(frozen[key], before[key]) for key in before)
    assert all(not torch.equal(value, start[key]) for key, value in weights(training).items() if key.endswith("weight"))
    assert math.isfinite(figures["val_error"])


def test_a_latent_that_has_collapsed_is_told_once():
    """A purifier whose answer depends on the label alone has no gradient: to an attack it would look robust."""
    training = described(epochs=3)
    network = training.stage.network
    with torch.no_grad():
        for layer, bias in ((network.m, -50.0), (network.s, -50.0)):  # means and spreads that no ReLU lets through
            layer.weight.zero_()
            layer.bias.fill_(bias)
    with pytest.warns(UserWarning, match=r"latent of puvae has collapsed .*--set lr=") as told:
        figures = fit(training, tiny(), FitSettings(), {})
    assert len([each for each in told if "collapsed" in str(each.message)]) == 1
    assert figures["val_kl"] < 1e-6
    assert fit(described(), tiny(), FitSettings(), {})["val_kl"] > 1e-3


def test_the_threshold_keeps_to_its_rate_on_held_out_images():
    training = described()
    figures = fit(training, tiny(), FitSettings(), {})
    assert figures["threshold"] == float(training.stage.threshold) > figures["val_error"] / 2
    assert figures["val_rejected"] == 0.1  # two of twenty
    assert not [key for key in figures if key.startswith("threshold_at_fpr")]  # twenty are too few for the paper's


def test_published_rates_are_reported_where_there_are_images_enough():
    figures = fit(described(epochs=1), tiny(validation=100), FitSettings(), {})
    assert {key for key in figures if key.startswith("threshold_at")} == {
        "threshold_at_fpr_0.01",
        "threshold_at_fpr_0.03",
    }
    assert figures["threshold_at_fpr_0.01"] > figures["threshold_at_fpr_0.03"] > figures["threshold"]


def test_the_grid_rule_takes_from_the_grid_or_fails():
    # an untrained network's errors are far above .25 on these images, so all are rejected
    with pytest.raises(ContractError, match="threshold_rule=quantile"):
        fit(described(epochs=1, threshold_rule="grid", lr=1e-7), tiny(), FitSettings(), {})
    generous = fit(described(epochs=1, threshold_rule="grid", lr=1e-7, fpr=1.0), tiny(), FitSettings(), {})
    assert generous["threshold"] == pytest.approx(0.05)


def test_a_resumed_training_ends_with_the_same_weights(tmp_path):
    whole = described()
    fit(whole, tiny(), FitSettings(), {"one": 1})

    class StoppedError(Exception):
        pass

    class Stop(TrainingWatcher):
        def step(self, done, total, losses):
            if done == 3:
                raise StoppedError

    cut = FitSettings(folder=tmp_path / "run", checkpoint_seconds=0, progress=Stop())
    with pytest.raises(StoppedError):
        fit(described(), tiny(), cut, {"one": 1})
    resumed = described()
    fit(resumed, tiny(), FitSettings(folder=tmp_path / "run", checkpoint_seconds=0), {"one": 1})
    ours, theirs = weights(resumed), weights(whole)
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


def test_one_training_makes_purifier_and_detector(monkeypatch):
    class Stub:
        module = TinyVictim()

    monkeypatch.setattr(training, "build_stage", lambda stage, name, task: Stub)
    monkeypatch.setattr("defend.training.stage.check_victims", lambda *asked: None)  # there are no weights of it either
    dataset = tiny()
    path, card = train_stage("purifier", "puvae", dataset, options={**OPTIONS, "epochs": 1, "fpr": 0.1})
    assert path.name == "purifier-puvae-tiny.safetensors"
    purifier = build_stage("purifier", "puvae", dataset.task())
    detector = build_stage("detector", "puvae", dataset.task())
    assert detector.path == purifier.path == path
    assert float(detector.module.threshold) == pytest.approx(card.figures["threshold"])
    assert detector.module.beside(purifier.module).reuse


def test_a_missing_classifier_is_named_with_its_command():
    with pytest.raises(WeightsError, match="defend train victim classifier_a --dataset tiny"):
        train_stage("purifier", "puvae", tiny(), options={**OPTIONS, "epochs": 1})


def test_a_missing_training_names_the_classifier_that_it_stands_before_with_other_weights():
    def command(**victim_weights):
        whole = Composition.of("classifier_a", "puvae", weights={"purifier": "+rc-0.01", **victim_weights})
        (purifier,) = whole.of_stage("purifier")
        return purifier.say_command("mnist")

    usual = "defend train purifier puvae --dataset mnist --edition rc-0.01"
    assert command() == usual
    named = "defend train purifier puvae --dataset mnist --victim classifier_a --victim-weights +paper"
    assert command(victim="+paper") == f"{named} --edition rc-0.01"


@pytest.mark.parametrize("name", ["classifier_a", "classifier_b"])
def test_classifiers_train_without_augmentation(name):
    dataset = tiny(task=Task("tiny", 1, 10, 10, 10))
    path, card = train_stage("victim", name, dataset, options={"epochs": 2, "batch_size": 12})
    assert card.recipe["shift"] == 0 and card.recipe["weight_decay"] == 0 and card.recipe["lr"] == 1e-3
    assert set(card.figures) == {"val_accuracy", "test_accuracy"}
    assert build_stage("victim", name, dataset.task()).path == path


def test_the_papers_recipes():
    from defend.plugins import registry

    spec = registry().find("purifier", "puvae").spec
    assert (PuvaeRecipe().epochs, PuvaeRecipe().batch_size, PuvaeRecipe().lr) == (350, 512, 1e-3)
    assert spec.recipes["cifar10"]["classifier"] == "classifier_b"
    assert (spec.recipes["cifar10"]["epochs"], spec.recipes["cifar10"]["batch_size"]) == (1024, 256)


def test_gradients_reach_every_weight():
    training = described()
    (loss,) = training.losses(Batch(images(TASK, 12), torch.arange(12) % 10, torch.arange(12)))
    loss.value.backward()
    assert all(parameter.grad is not None for parameter in training.stage.parameters())
