"""The shipped weights give what they gave when they were made."""

import pytest
import torch

from defend.build import build_stage, build_tuned, open_dataset

LABELS = [4, 8, 6, 5, 3, 0]
MEANS = [0.306189, 0.339219, 0.344836, 0.25216, 0.324084, 0.343997]
MEAN_CHANGES = [0.019217, 0.01553, 0.01978, 0.016558, 0.017641, 0.018942]
ROW = [0.8634, 0.7995, 0.6794, 0.5372, 0.4464, 0.4897, 0.5228, 0.5357, 0.5938, 0.6826, 0.7593, 0.7756]
HIGHEST = {
    "resnet20": [7.979651, 9.382854, 9.365111, 7.585104, 8.620125, 9.681297],
    "se_preresnet56": [20.582869, 17.299295, 14.507801, 14.480124, 17.35544, 22.735283],
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
    tuned = build_tuned("dae", task, "resnet20", bare.module, "dae")
    assert tuned.card.recipe["victim_sha256"] == bare.card.content_sha256
    assert tuned.card.recipe["purifier_sha256"] == {"dae": purifier.card.content_sha256}
    images, labels = digits.tensors("val")
    with torch.no_grad():
        right = tuned.module(purifier.module(images)).argmax(1) == labels
    assert float(right.float().mean()) == pytest.approx(tuned.card.figures["val_purified_clean_after"], abs=0.006)
    assert any(not torch.equal(a, b) for a, b in zip(tuned.module.parameters(), bare.module.parameters(), strict=True))
