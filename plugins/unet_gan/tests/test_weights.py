"""The shipped weights give what they gave when they were made."""

import pytest
import torch

from defend.assembly.load import open_dataset
from defend.assembly.stage import build_stage
from defend.attacks.host import craft
from defend.attacks.options import FgsmOptions
from defend.attacks.single_step import Fgsm
from defend.attacks.target import Target

LABELS = [4, 8, 6, 5, 3, 0]
MEANS = [0.308561, 0.33709, 0.343865, 0.253509, 0.326463, 0.338729]
MEAN_CHANGES = [0.01328, 0.01155, 0.0131, 0.01153, 0.01218, 0.01171]
ROW = [0.8592, 0.7726, 0.6443, 0.5271, 0.4529, 0.498, 0.5149, 0.544, 0.5882, 0.6331, 0.7087, 0.75]


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DEFEND_CACHE_DIR", str(tmp_path))


@pytest.fixture
def digits():
    return open_dataset("digits")


@pytest.fixture
def purifier(digits):
    return build_stage("purifier", "unet_gan", digits.task())


def test_golden_pairs(digits, purifier):
    images, labels = digits.tensors("test", limit=6)
    assert labels.tolist() == LABELS
    with torch.no_grad():
        painted = purifier.module(images)
    assert painted.mean((1, 2, 3)).tolist() == pytest.approx(MEANS, abs=1e-4)
    assert (painted - images).abs().mean((1, 2, 3)).tolist() == pytest.approx(MEAN_CHANGES, abs=1e-4)
    assert painted[0, 0, 14, 8:20].tolist() == pytest.approx(ROW, abs=1e-3)


def test_the_card_is_true(digits, purifier):
    module, card = purifier.module, purifier.card
    assert card.dataset["sha256"] == digits.sha256("train")
    assert float(module.noise_range) == pytest.approx(card.recipe["eps_max"] / 255)
    victim = build_stage("victim", "resnet18", digits.task()).module.requires_grad_(False)
    images, labels = digits.tensors("val")
    attacked = craft(Fgsm(FgsmOptions()), Target(victim), images, labels, eps=card.recipe["eps_max"] / 255)
    with torch.no_grad():
        restored = module(attacked)
        clean, defended = (
            float((victim(seen).argmax(1) == labels).float().mean()) for seen in (module(images), restored)
        )
    assert clean == pytest.approx(card.figures["val_clean_accuracy"], abs=0.006)
    assert defended == pytest.approx(card.figures["val_fgsm_oblivious_accuracy"], abs=0.006)
    assert float((restored - images).abs().mean()) == pytest.approx(card.figures["val_fgsm_l1"], rel=1e-2)


def test_every_attention_has_been_learnt(purifier):
    network = purifier.module.generator
    assert all(abs(layer.gain.item()) > 1e-3 for layer in (*network.attention, network.own, network.cross))
