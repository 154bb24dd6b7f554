"""The shipped weights give what they gave when they were made."""

import warnings

import pytest
import torch
from torch.nn import functional

from defend.assembly.composition import Composition
from defend.assembly.load import open_dataset
from defend.assembly.stage import build_stage
from defend.errors import WeightsError
from defend.stages import Task

LABELS = [4, 8, 6, 5, 3, 0]
MEANS = [0.306189, 0.339219, 0.344836, 0.25216, 0.324084, 0.343997]
MEAN_CHANGES = [0.019217, 0.01553, 0.01978, 0.016558, 0.017641, 0.018942]
ROW = [0.8634, 0.7995, 0.6794, 0.5372, 0.4464, 0.4897, 0.5228, 0.5357, 0.5938, 0.6826, 0.7593, 0.7756]
HIGHEST = {
    "resnet20": [7.979651, 9.382854, 9.365111, 7.585104, 8.620125, 9.681297],
    "se_preresnet56": [20.582869, 17.299295, 14.507801, 14.480124, 17.35544, 22.735283],
}

# Tinted digits stand in for CIFAR-10's images, which no test may need.
TINT = (1.0, 0.5, 0.25)
CIFAR10 = Task("cifar10", 3, 32, 32, 10)
CIFAR10_MEANS = [0.15418, 0.16681, 0.16995, 0.1306]
CIFAR10_CHANGES = [0.02779, 0.029, 0.03019, 0.02983]
CIFAR10_LOGITS = {
    "before": [
        [-0.4721, -0.1052, 0.6027, 1.6891, 0.8928],
        [-1.5976, -2.3703, 1.7696, 4.4751, -0.0087],
        [-0.9692, -1.1699, 0.6694, 4.5685, -0.554],
        [-0.262, -0.6864, 2.288, 3.4325, -1.6312],
    ],
    "tuned": [
        [-2.7105, -1.4866, 0.9666, 0.9066, 4.3829],
        [-3.8164, -3.621, 1.9894, 5.4694, 1.0988],
        [-3.1892, -1.4013, 0.2859, 4.1251, 0.2981],
        [-1.999, -3.1233, 4.3754, 2.2924, 0.4265],
    ],
    "robust": [
        [-1.5649, -0.1624, 0.7811, 1.2252, 0.6138],
        [-1.7581, -1.9648, 1.4892, 2.2329, 1.1336],
        [-1.3969, -1.1846, 1.1479, 1.8459, 0.617],
        [-1.1783, -1.6374, 1.6199, 1.8206, 0.9135],
    ],
    "se_preresnet56": [
        [-0.8194, -3.6831, 1.7825, 2.9098, 0.6239],
        [-1.9193, -4.3867, 3.6909, 5.3841, 0.8377],
        [-1.2098, -2.7555, 2.3145, 3.9257, 0.0511],
        [-1.3026, -3.5615, 2.2607, 4.8806, 0.0452],
    ],
    "se_preresnet56, tuned": [
        [0.0673, 0.1914, 2.5025, 1.0707, -0.573],
        [-2.4359, -2.4734, 2.3845, 4.3046, -1.3905],
        [-3.4387, 1.2594, 0.6452, 2.9773, -1.9967],
        [-0.1795, -2.056, 2.9162, 3.0219, -1.086],
    ],
    "se_preresnet56, tuned behind its own": [
        [0.6495, -0.8355, 1.0719, 1.9291, 2.2206],
        [-3.7874, -1.3956, 1.9179, 6.8405, -2.1594],
        [-4.003, 1.0285, -0.1613, 5.7421, -3.6249],
        [-0.3568, -2.9093, 2.7417, 5.1453, -1.5669],
    ],
}


@pytest.fixture
def digits():
    return open_dataset("digits")


def test_golden_pairs(digits):
    purifier = build_stage("purifier", "dae", digits.task())
    images, labels = digits.tensors("test", limit=6)
    assert labels.tolist() == LABELS
    with torch.no_grad():
        restored = purifier.module(images)
    assert restored.mean((1, 2, 3)).tolist() == pytest.approx(MEANS, abs=1e-4)
    assert (restored - images).abs().mean((1, 2, 3)).tolist() == pytest.approx(MEAN_CHANGES, abs=1e-4)
    assert restored[0, 0, 14, 8:20].tolist() == pytest.approx(ROW, abs=1e-3)


@pytest.mark.parametrize("name", HIGHEST)
def test_the_victims_classify(digits, name):
    victim = build_stage("victim", name, digits.task())
    images, _ = digits.tensors("test", limit=6)
    pictures, labels = digits.tensors("val")
    with torch.no_grad():
        logits, right = victim.module(images), victim.module(pictures).argmax(1) == labels
    assert logits.argmax(1).tolist() == LABELS
    assert logits.amax(1).tolist() == pytest.approx(HIGHEST[name], abs=1e-2)
    assert float(right.float().mean()) == pytest.approx(victim.card.figures["val_accuracy"], abs=0.006)


def test_the_tuned_victim_is_of_the_shipped_parts_and_as_its_card_says(digits):
    task = digits.task()
    bare, purifier = build_stage("victim", "resnet20", task), build_stage("purifier", "dae", task)
    tuned = Composition.of("resnet20", "dae", finetune="dae").build(task)["finetuner"]
    assert tuned.card.recipe["victim_sha256"] == bare.card.content_sha256
    assert tuned.card.recipe["purifier_sha256"] == {"dae": purifier.card.content_sha256}
    images, labels = digits.tensors("val")
    with torch.no_grad():
        right = tuned.module(purifier.module(images)).argmax(1) == labels
    assert float(right.float().mean()) == pytest.approx(tuned.card.figures["val_purified_clean_after"], abs=0.006)
    assert any(not torch.equal(a, b) for a, b in zip(tuned.module.parameters(), bare.module.parameters(), strict=True))


def test_golden_pairs_of_the_weights_for_cifar10(digits):
    images, _ = digits.tensors("test", limit=4)
    images = functional.pad(images, (2, 2, 2, 2)) * torch.tensor(TINT).view(1, 3, 1, 1)
    victim, purifier = build_stage("victim", "resnet20", CIFAR10), build_stage("purifier", "dae", CIFAR10)
    tuned = Composition.of("resnet20", "dae", finetune="dae", weights={"finetuner": "+mix"}).build(CIFAR10)["finetuner"]
    assert tuned.card.recipe["victim_sha256"] == victim.card.content_sha256
    assert tuned.card.recipe["purifier_sha256"] == {"dae": purifier.card.content_sha256}
    assert (tuned.card.recipe["schedule"], tuned.card.recipe["train_subset"]) == ("mix", 10_000)
    robust = Composition.of("resnet20", finetune="adversarial").build(CIFAR10)["finetuner"]
    assert robust.card.recipe["victim_sha256"] == victim.card.content_sha256
    assert robust.card.recipe["eps"] == 8 / 255
    deep = build_stage("victim", "se_preresnet56", CIFAR10)
    deep_tuned = Composition.of("se_preresnet56", "dae", finetune="dae").build(CIFAR10)["finetuner"]
    assert deep_tuned.card.recipe["victim_sha256"] == deep.card.content_sha256
    assert deep_tuned.card.recipe["purifier_sha256"] == {"dae": purifier.card.content_sha256}
    assert (deep_tuned.card.recipe["schedule"], deep_tuned.card.recipe["train_subset"]) == ("two_sets", 5_000)
    own = {"purifier": "+se_preresnet56", "finetuner": "+se_preresnet56"}
    parts = Composition.of("se_preresnet56", "dae", finetune="dae", weights=own).build(CIFAR10)
    own_attacks, deeper = parts["purifier"], parts["finetuner"]
    assert own_attacks.card.recipe["victim"] == "se_preresnet56"
    assert deeper.card.recipe["victim_sha256"] == deep.card.content_sha256
    assert deeper.card.recipe["purifier_sha256"] == {"dae": own_attacks.card.content_sha256}
    assert (deeper.card.recipe["schedule"], deeper.card.recipe["train_subset"]) == ("two_sets", 10_000)
    networks = {
        "before": victim,
        "tuned": tuned,
        "robust": robust,
        "se_preresnet56": deep,
        "se_preresnet56, tuned": deep_tuned,
        "se_preresnet56, tuned behind its own": deeper,
    }
    with torch.no_grad():
        restored = purifier.module(images)
        logits = {name: built.module(images) for name, built in networks.items()}
    assert restored.mean((1, 2, 3)).tolist() == pytest.approx(CIFAR10_MEANS, abs=1e-4)
    assert (restored - images).abs().mean((1, 2, 3)).tolist() == pytest.approx(CIFAR10_CHANGES, abs=1e-4)
    for name, golden in CIFAR10_LOGITS.items():
        for row, wanted in zip(logits[name][:, :5].tolist(), golden, strict=True):
            assert row == pytest.approx(wanted, abs=1e-2)


# A tuned victim beside another one than it comes from


@pytest.fixture
def other_victim(tmp_path):
    """A file of the shipped network's weights, a little off, as a user's own are."""
    network = build_stage("victim", "resnet20", open_dataset("digits").task()).module
    path = tmp_path / "mine.pth"
    torch.save(
        {key: value + 0.01 if value.is_floating_point() else value for key, value in network.state_dict().items()}, path
    )
    return str(path)


def tuned(**weights):
    whole = Composition.of("resnet20", "dae", finetune="dae", weights=weights)
    return whole.build(open_dataset("digits").task())


def test_a_victim_tuned_from_others_weights_is_not_taken_for_the_users_own(other_victim):
    with pytest.raises(
        WeightsError, match=r"other weights of victim resnet20 .*--finetune-weights.*defend train finetuner"
    ):
        tuned(victim=other_victim)


def test_one_that_was_named_is_taken_and_told(other_victim):
    shipped = str(tuned()["finetuner"].path)
    with pytest.warns(UserWarning, match="was tuned from other weights of victim resnet20"):
        tuned(victim=other_victim, finetuner=shipped)


def test_what_ships_is_tuned_from_what_ships():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tuned()
