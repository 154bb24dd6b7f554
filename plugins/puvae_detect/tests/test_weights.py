"""The shipped weights give what they gave when they were made."""

import pytest
import torch
from torch.nn import functional as F

from defend.assembly.composition import Composition
from defend.assembly.load import load_defence, open_dataset
from defend.assembly.stage import build_module, build_stage
from defend.plugins import registry
from defend.randomness import keyed
from defend.stages import Task
from defend.util.metrics import auroc
from defend_puvae_detect.model import reconstruction_error

LABELS = [4, 8, 6, 5, 3, 0]
ERRORS = [0.03978, 0.05847, 0.02705, 0.03991, 0.03245, 0.03168]
MEANS = [0.31082, 0.3237, 0.33353, 0.25687, 0.31753, 0.33024]
ROW = [0.9264, 0.8845, 0.7822, 0.6672, 0.5218, 0.5034, 0.5128, 0.4854, 0.5509, 0.6975, 0.829, 0.8772]
OWN_LOGITS = [36.47, 23.084, 27.882, 21.102, 18.81, 31.78]
THRESHOLD = 0.066121


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DEFEND_CACHE_DIR", str(tmp_path))


@pytest.fixture
def digits():
    return open_dataset("digits")


def test_golden_reconstructions(digits):
    images, labels = digits.tensors("test", limit=6)
    purifier = build_stage("purifier", "puvae", digits.task(), {"z_noise": 0}).module
    with torch.no_grad():
        restored = purifier(images)
    assert labels.tolist() == LABELS
    assert reconstruction_error(images, restored, "mean_pixel_rms").tolist() == pytest.approx(ERRORS, abs=5e-4)
    assert restored.mean((1, 2, 3)).tolist() == pytest.approx(MEANS, abs=5e-4)
    assert restored[0, 0, 14, 8:20].tolist() == pytest.approx(ROW, abs=5e-3)


def test_golden_scores(digits):
    images, _ = digits.tensors("test", limit=6)
    detector = build_stage("detector", "puvae", digits.task(), {"z_noise": 0}).module
    with torch.no_grad():
        assert detector(images, images).tolist() == pytest.approx(ERRORS, abs=5e-4)
    assert float(detector.threshold) == pytest.approx(THRESHOLD, abs=1e-5)


def test_golden_logits_of_classifier_a(digits):
    images, labels = digits.tensors("test", limit=6)
    with torch.no_grad():
        logits = build_stage("victim", "classifier_a", digits.task()).module(images)
    assert logits.gather(1, labels[:, None])[:, 0].tolist() == pytest.approx(OWN_LOGITS, abs=2e-2)


def test_the_card_of_the_vae_is_true(digits):
    purifier = build_stage("purifier", "puvae", digits.task())
    card, keys = purifier.card, digits.keys("val")
    images, labels = digits.tensors("val")
    classifier = build_stage("victim", card.recipe["classifier"], digits.task()).module
    with torch.no_grad(), keyed(keys, seed=0, stream="defender"):
        restored = purifier.module(images)
        errors = reconstruction_error(images, restored, "mean_pixel_rms")
    assert card.dataset["sha256"] == digits.sha256("train")
    assert (card.config["width"], card.config["hidden"]) == (8, 256)
    assert float(errors.mean()) == pytest.approx(card.figures["val_error"], rel=1e-3)
    rejected = (errors >= purifier.module.threshold).double().mean()
    assert float(rejected) == pytest.approx(card.figures["val_rejected"], abs=0.006)  # one image at the threshold
    right = (classifier(restored).argmax(1) == labels).double().mean()
    assert float(right) == pytest.approx(card.figures["val_accuracy"], abs=0.006)


def test_the_card_of_classifier_a_is_true(digits):
    victim = build_stage("victim", "classifier_a", digits.task())
    assert victim.card.dataset["sha256"] == digits.sha256("train")
    images, labels = digits.tensors("test")
    with torch.no_grad():
        right = (victim.module(images).argmax(1) == labels).double().mean()
    assert float(right) == pytest.approx(victim.card.figures["test_accuracy"], abs=0.003)


def test_an_attack_on_the_victim_is_undone_or_rejected(digits):
    defence = load_defence("resnet18", purifier="puvae", detector="puvae")
    images, labels = digits.tensors("test", limit=60)
    keys = digits.keys("test", 60)
    point = images.clone().requires_grad_()
    (slope,) = torch.autograd.grad(F.cross_entropy(defence.victim(point), labels), point)
    attacked = (images + 0.2 * slope.sign()).clamp(0, 1)
    assert (defence.victim(attacked).argmax(1) == labels).double().mean() < 0.2
    with keyed(keys, seed=0, stream="defender"):
        clean = defence.judge(images)
    with keyed(keys, seed=0, stream="defender"):
        seen = defence.judge(attacked)
    assert ((clean.labels == labels) & clean.accepted).double().mean() > 0.9
    assert ((seen.labels == labels) | ~seen.accepted).double().mean() > 0.9
    assert auroc(clean.score, seen.score) > 0.95


def test_the_published_networks_are_what_the_plain_options_build():
    for stage, name, task, count in (
        ("purifier", "puvae", Task("mnist", 1, 28, 28, 10), 27_844_161),
        ("detector", "puvae", Task("cifar10", 3, 32, 32, 10), 45_148_138),
        ("victim", "classifier_a", Task("mnist", 1, 28, 28, 10), 924_746),
        ("victim", "classifier_b", Task("cifar10", 3, 32, 32, 10), 34_059_658),
    ):
        found = registry().find(stage, name)
        with torch.device("meta"):
            module = build_module(found, found.config({}), task)
        assert sum(parameter.numel() for parameter in module.parameters()) == count


# Upsampled digits stand in for MNIST's and Fashion-MNIST's images, which no test may need.
A_LOGITS = {
    "mnist": [
        [0.0596, -2.0129, -2.0575, -2.7384, 1.2908],
        [-2.0355, -0.6098, -0.2559, -1.2146, -2.0417],
        [-0.9522, -1.2636, -2.4806, -5.18, -0.8286],
        [-3.3479, -3.9148, -4.6447, -2.5341, -1.1206],
    ],
    "fashion_mnist": [
        [-0.898, -3.0876, -2.7139, -0.7898, 3.5073],
        [6.1035, -6.9634, -0.7851, 6.1009, -7.0302],
        [-6.9953, -9.146, 0.7977, -3.5767, 10.7107],
        [5.7568, -5.6784, 1.0932, 6.7233, -2.6538],
    ],
}
PAPERS_ACCURACY = {"mnist": 0.992, "fashion_mnist": 0.922}


@pytest.mark.parametrize("dataset", A_LOGITS)
def test_golden_logits_of_classifier_a_on_the_papers_data(digits, dataset):
    images, _ = digits.tensors("test", limit=4)
    victim = build_stage("victim", "classifier_a", Task(dataset, 1, 28, 28, 10))
    with torch.no_grad():
        logits = victim.module(images)
    for row, golden in zip(logits[:, :5].tolist(), A_LOGITS[dataset], strict=True):
        assert row == pytest.approx(golden, abs=1e-2)
    assert victim.card.figures["test_accuracy"] == pytest.approx(PAPERS_ACCURACY[dataset], abs=0.005)


ROBUST_LOGITS = {
    "mnist+norms": [
        [-1.4525, -6.4842, -0.6529, -2.7657, 0.665],
        [-3.5596, -1.0854, 1.9895, 0.5315, -2.0665],
        [-2.4072, -4.2719, -0.9052, -1.1642, -0.4301],
        [-5.0264, -6.208, -3.8777, -0.5836, -0.5295],
    ],
    "mnist": [
        [-0.3139, -7.4079, -2.1907, -3.7654, -0.5311],
        [-2.7581, -1.6404, 2.1977, 1.5517, -3.7079],
        [-2.436, -4.6279, -1.4279, -2.3663, -1.2934],
        [-4.8821, -7.4227, -5.2876, -1.933, -2.2505],
    ],
    "fashion_mnist": [
        [-0.8674, -2.9349, 0.2965, 0.2375, 0.8211],
        [5.7793, -4.2361, 0.7137, 1.6129, -0.6754],
        [-1.522, -2.8129, -0.0462, 0.6176, 1.0428],
        [0.489, -2.5752, -1.1577, 1.472, -0.3562],
    ],
}
ROBUST_EPS = {"mnist+norms": 0.3, "mnist": 0.3, "fashion_mnist": 0.1}


@pytest.mark.parametrize("made", ROBUST_LOGITS)
def test_golden_logits_of_the_adversarially_trained_classifier_a(digits, made):
    dataset, plus, edition = made.partition("+")
    images, _ = digits.tensors("test", limit=4)
    task = Task(dataset, 1, 28, 28, 10)
    before = build_stage("victim", "classifier_a", task)
    weights = {"finetuner": f"{plus}{edition}"} if edition else {}
    tuned = Composition.of("classifier_a", finetune="adversarial", weights=weights).build(task)["finetuner"]
    assert tuned.card.recipe["victim_sha256"] == before.card.content_sha256
    assert tuned.card.recipe["eps"] == ROBUST_EPS[made]
    assert tuned.card.recipe.get("l2_share", 0) == (0.5 if edition == "norms" else 0)  # cards older than it lack it
    with torch.no_grad():
        logits = tuned.module(images)
    for row, golden in zip(logits[:, :5].tolist(), ROBUST_LOGITS[made], strict=True):
        assert row == pytest.approx(golden, abs=1e-2)


# to a VAE of other images, digits are beyond its threshold, or near it
VAE_ERRORS = {"mnist": [0.1374, 0.1605, 0.18419, 0.16048], "fashion_mnist": [0.13872, 0.09607, 0.1429, 0.10856]}
VAE_FIGURES = {"mnist": (0.081707, 0.97, 0.001), "fashion_mnist": (0.134352, 0.85, 0.01)}


@pytest.mark.parametrize("dataset", VAE_ERRORS)
def test_golden_errors_of_the_vaes_on_the_papers_data(digits, dataset):
    images, _ = digits.tensors("test", limit=4)
    built = build_stage("purifier", "puvae", Task(dataset, 1, 28, 28, 10), {"z_noise": 0})
    with torch.no_grad():
        errors = reconstruction_error(images, built.module(images), "mean_pixel_rms")
    threshold, accuracy, rejected = VAE_FIGURES[dataset]
    assert errors.tolist() == pytest.approx(VAE_ERRORS[dataset], abs=1e-3)
    assert float(built.module.threshold) == pytest.approx(threshold, abs=1e-5)
    assert built.card.figures["val_accuracy"] > accuracy
    assert built.card.figures["val_rejected"] <= rejected
