"""The shipped weights give what they gave when they were made."""

import pytest
import torch

from defend.assembly.composition import Composition
from defend.assembly.load import open_dataset
from defend.assembly.stage import build_stage
from defend.plugins import registry
from defend.stages import Task
from defend.testing.toys import images
from defend_apudae.model import reconstruction_error

LABELS = [4, 8, 6, 5, 3, 0]
ERRORS = [0.6451, 0.37728, 0.80365, 0.46333, 0.43313, 0.39535]
DIRECT_MEANS = [0.303373, 0.337448, 0.338102, 0.248215, 0.32507, 0.336073]
DIRECT_ROW = [0.8465, 0.8062, 0.642, 0.5634, 0.4423, 0.4662, 0.4586, 0.5473, 0.5735, 0.6738, 0.7287, 0.7491]
MEAN_CHANGES = [0.02821, 0.02426, 0.02522, 0.02596, 0.02668, 0.02591]


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DEFEND_CACHE_DIR", str(tmp_path))


@pytest.fixture
def digits():
    return open_dataset("digits")


@pytest.fixture
def purifier(digits):
    return build_stage("purifier", "apudae", digits.task())


def test_golden_pairs(digits, purifier):
    images, labels = digits.tensors("test", limit=6)
    assert labels.tolist() == LABELS
    with torch.no_grad():
        direct = purifier.module.dae(images)
        changed = (purifier.module(images) - images).abs().mean((1, 2, 3))
        errors = reconstruction_error(images, purifier.module.dae)
    assert errors.tolist() == pytest.approx(ERRORS, abs=2e-3)
    assert direct.mean((1, 2, 3)).tolist() == pytest.approx(DIRECT_MEANS, abs=1e-4)
    assert direct[0, 0, 14, 8:20].tolist() == pytest.approx(DIRECT_ROW, abs=1e-3)
    assert changed.tolist() == pytest.approx(MEAN_CHANGES, abs=5e-4)


def test_the_card_is_true(digits, purifier):
    module, card = purifier.module, purifier.card
    assert card.dataset["sha256"] == digits.sha256("train")
    assert card.figures["mu"] == pytest.approx(float(module.mu), rel=1e-6)
    assert card.figures["sigma"] == pytest.approx(float(module.sigma), rel=1e-6)
    images, _ = digits.tensors("val")
    with torch.no_grad():
        errors = reconstruction_error(images, module.dae)
    assert float(errors.mean()) == pytest.approx(card.figures["mu"], rel=1e-3)
    assert float(errors.std()) == pytest.approx(card.figures["sigma"], rel=1e-3)


def test_the_autoencoder_denoises(digits, purifier):
    images, _ = digits.tensors("test", limit=50)
    torch.manual_seed(0)
    noisy = images + 0.2 * torch.randn_like(images)
    with torch.no_grad():
        restored = purifier.module.dae(noisy)
    assert float((restored - images).square().mean()) < 0.1 * float((noisy - images).square().mean())


def test_the_published_networks_build():
    for task, count in ((Task("mnist", 1, 28, 28, 10), 297_793), (Task("cifar10", 3, 32, 32, 10), 1_041_219)):
        found = registry().find("purifier", "apudae")
        module = found.spec.resolve(found.spec.build)(found.config({}), task)
        assert sum(parameter.numel() for parameter in module.parameters()) == count


# Upsampled digits stand in for MNIST's, which no test may need.
MNIST = Task("mnist", 1, 28, 28, 10)
MLP_LOGITS = {
    "mnist": [
        [-2.4482, -5.6129, -3.342, -0.9744, -2.5022],
        [-4.7517, -3.1699, -1.0434, 4.3249, -7.4637],
        [-0.744, -7.008, -4.4139, -1.0569, -7.1392],
        [-1.6469, -9.056, -4.2127, 1.4008, -10.6374],
    ],
    "fashion_mnist": [
        [-4.3131, -1.532, -0.7584, 1.2947, 1.3191],
        [6.4347, -1.5856, -0.0022, 2.3172, -3.6715],
        [-6.2237, -2.5421, -0.2335, -0.1534, 3.4619],
        [-2.1492, 0.4069, -6.7463, 2.3551, -6.803],
    ],
}
ROBUST_LOGITS = [
    [-0.3661, -10.2498, -2.0693, -4.9501, 1.877],
    [-3.4778, 0.3423, 0.8537, 0.9525, 1.643],
    [-1.3569, -6.3404, -1.8709, -3.6237, -0.0936],
    [-3.5212, -8.7415, -1.923, -2.7772, -1.0863],
]
GREY_MEANS = {
    "mnist": [0.281059, 0.301904, 0.313341, 0.210889],
    "fashion_mnist": [0.303947, 0.33465, 0.33761, 0.245024],
}
GREY_CHANGES = {"mnist": [0.06076, 0.06659, 0.05989, 0.0595], "fashion_mnist": [0.04052, 0.03871, 0.04124, 0.0373]}
GREY_ERRORS = {"mnist": (0.28597, 0.135949), "fashion_mnist": (0.540304, 0.622606)}


@pytest.mark.parametrize("dataset", GREY_MEANS)
def test_golden_pairs_of_the_weights_for_grey_images(digits, dataset):
    images, _ = digits.tensors("test", limit=4)
    built = build_stage("purifier", "apudae", Task(dataset, 1, 28, 28, 10))
    with torch.no_grad():
        assert built.module.dae(images).mean((1, 2, 3)).tolist() == pytest.approx(GREY_MEANS[dataset], abs=1e-4)
        changed = (built.module(images) - images).abs().mean((1, 2, 3))
    assert changed.tolist() == pytest.approx(GREY_CHANGES[dataset], abs=5e-4)
    assert (float(built.module.mu), float(built.module.sigma)) == pytest.approx(GREY_ERRORS[dataset], rel=1e-5)
    recipe = registry().find("purifier", "apudae").spec.recipes[dataset]
    assert {key: built.card.recipe[key] for key in recipe} == recipe


# Smooth random colours stand in for CIFAR-10's images.
CIFAR10 = Task("cifar10", 3, 32, 32, 10)
CIFAR10_MEANS = [0.474387, 0.441207, 0.539345, 0.484318]
CIFAR10_CHANGES = [0.06501, 0.0711, 0.07306, 0.07171]


def test_golden_pairs_of_the_cifar10_weights():
    batch, built = images(CIFAR10, 4), build_stage("purifier", "apudae", CIFAR10)
    with torch.no_grad():
        assert built.module.dae(batch).mean((1, 2, 3)).tolist() == pytest.approx(CIFAR10_MEANS, abs=1e-4)
        changed = (built.module(batch) - batch).abs().mean((1, 2, 3))
    # steps along signs answer to rounding, which processors do in their own ways: up to 9e-4 apart
    assert changed.tolist() == pytest.approx(CIFAR10_CHANGES, abs=2e-3)
    assert sum(parameter.numel() for parameter in built.module.parameters()) == 1_041_219
    assert (float(built.module.mu), float(built.module.sigma)) == pytest.approx((2.15814, 1.53846), rel=1e-5)
    assert built.card.figures["val_rmse"] < 0.03
    assert {key: built.card.recipe[key] for key in ("epochs", "lr", "schedule")} == {
        "epochs": 5,
        "lr": 2e-3,
        "schedule": "one_cycle",
    }


@pytest.mark.parametrize("dataset", ["mnist", "fashion_mnist"])
def test_golden_logits_of_the_mlp(digits, dataset):
    images, _ = digits.tensors("test", limit=4)
    victim = build_stage("victim", "mlp", Task(dataset, 1, 28, 28, 10))
    with torch.no_grad():
        logits = victim.module(images)
    for row, golden in zip(logits[:, :5].tolist(), MLP_LOGITS[dataset], strict=True):
        assert row == pytest.approx(golden, abs=5e-3)


def test_the_mlp_is_as_good_as_its_size_allows():
    cards = {name: build_stage("victim", "mlp", Task(name, 1, 28, 28, 10)).card for name in MLP_LOGITS}
    assert 0.96 < cards["mnist"].figures["test_accuracy"] < 0.99  # the paper's network: 97.4 %
    assert 0.86 < cards["fashion_mnist"].figures["test_accuracy"] < 0.91


def test_golden_logits_of_the_adversarially_trained_mlp(digits):
    images, _ = digits.tensors("test", limit=4)
    before = build_stage("victim", "mlp", MNIST)
    tuned = Composition.of("mlp", finetune="adversarial", weights={"finetuner": "+eps-0.1"}).build(MNIST)["finetuner"]
    assert tuned.card.recipe["victim_sha256"] == before.card.content_sha256
    with torch.no_grad():
        logits = tuned.module(images)
    for row, golden in zip(logits[:, :5].tolist(), ROBUST_LOGITS, strict=True):
        assert row == pytest.approx(golden, abs=5e-3)
