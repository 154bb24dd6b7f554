"""The shipped weights give what they gave when they were made."""

import attrs
import pytest
import torch

from defend.assembly.load import open_dataset
from defend.assembly.stage import build_module, build_stage
from defend.attacks.host import craft
from defend.attacks.options import FgsmOptions
from defend.attacks.single_step import Fgsm
from defend.attacks.target import Target
from defend.plugins import registry
from defend.stages import Task
from defend_vaegan.model import climb, search

LABELS = [4, 8, 6, 5, 3, 0]
MEANS = [0.30326, 0.32093, 0.33542, 0.25159, 0.31301, 0.33296]
ROW = [0.9211, 0.8838, 0.7115, 0.5868, 0.4711, 0.4865, 0.5008, 0.4924, 0.599, 0.658, 0.7038, 0.7245]
ERRORS = [0.05384, 0.06848, 0.04252, 0.05511, 0.04853, 0.04382]
LOG_DIS = [-0.4414, -0.8513, -0.0514, -0.1177, -1.0424, -0.4041]
CLIMBED_BY = [0.01919, 0.01567, 0.02209, 0.01854, 0.00924, 0.01397]
PURIFIED_MEANS = [0.30163, 0.32113, 0.33798, 0.25231, 0.31446, 0.33373]
LATENT_ERRORS = [0.04605, 0.05779, 0.04058, 0.04767, 0.03826, 0.0402]
# Upsampled digits stand in for the images of larger sets, which no test may need. Of each: means and errors of the
# reconstructions, log Dis, errors after the search for a latent; and the largest val_rmse that its card may have.
LARGER = {
    "mnist": (
        [0.22441, 0.21619, 0.24502, 0.09463],
        [0.29169, 0.35276, 0.33932, 0.32279],
        [-12.1996, -12.9918, -11.0456, -12.726],
        [0.2385, 0.31366, 0.29872, 0.27709],
        0.08,
    ),
    "fashion_mnist": (
        [0.28606, 0.32374, 0.309, 0.23404],
        [0.19325, 0.14493, 0.18873, 0.16913],
        [-5.5043, -2.9581, -3.5352, -1.5937],
        [0.18205, 0.13711, 0.17029, 0.15301],
        0.11,
    ),
}


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DEFEND_CACHE_DIR", str(tmp_path))


@pytest.fixture
def digits():
    return open_dataset("digits")


@pytest.fixture
def purifier(digits):
    return build_stage("purifier", "vaegan", digits.task())


def rmse(one, other):
    return (one - other).square().mean((1, 2, 3)).sqrt().tolist()


@torch.no_grad()
def test_golden_pairs(digits, purifier):
    images, labels = digits.tensors("test", limit=6)
    networks, config = purifier.module.networks, purifier.module.config
    assert labels.tolist() == LABELS
    reconstructed = networks.reconstruct(images)
    assert reconstructed.mean((1, 2, 3)).tolist() == pytest.approx(MEANS, abs=1e-4)
    assert reconstructed[0, 0, 14, 8:20].tolist() == pytest.approx(ROW, abs=1e-3)
    assert rmse(reconstructed, images) == pytest.approx(ERRORS, abs=1e-4)
    assert networks.log_dis(images).tolist() == pytest.approx(LOG_DIS, abs=5e-3)
    assert rmse(networks.decode(search(images, networks, config)), images) == pytest.approx(LATENT_ERRORS, abs=5e-4)
    # a sign that another machine rounds the other way moves a pixel by two steps
    climbed = climb(images, networks, config)
    assert (climbed - images).abs().mean((1, 2, 3)).tolist() == pytest.approx(CLIMBED_BY, abs=1e-3)
    assert purifier.module(images).mean((1, 2, 3)).tolist() == pytest.approx(PURIFIED_MEANS, abs=2e-3)


def test_the_card_is_true(digits, purifier):
    networks, card = purifier.module.networks, purifier.card
    assert card.dataset["sha256"] == digits.sha256("train")
    assert card.config == {"width": 0.25, "latent": 128}
    spec = registry().find("purifier", "vaegan").spec
    assert {key: card.recipe[key] for key in spec.recipes["digits"]} == spec.recipes["digits"]
    defaults = attrs.asdict(spec.recipe())
    rest = set(defaults) - set(spec.recipes["digits"]) - {"source", "eps"}  # which are younger than the card
    assert {key: card.recipe[key] for key in rest} == {key: defaults[key] for key in rest}
    images, _ = digits.tensors("val")
    with torch.no_grad():
        reconstructed = networks.reconstruct(images)
        assert float((reconstructed - images).square().mean().sqrt()) == pytest.approx(
            card.figures["val_rmse"], rel=1e-3
        )
        for name, seen in (("val_dis_images", images), ("val_dis_reconstructions", reconstructed)):
            assert float(networks.log_dis(seen).exp().mean()) == pytest.approx(card.figures[name], rel=5e-3)


@pytest.mark.parametrize("dataset", LARGER)
@torch.no_grad()
def test_golden_pairs_of_the_weights_for_larger_sets(digits, dataset):
    means, errors, log_dis, latent_errors, val_rmse = LARGER[dataset]
    images, _ = digits.tensors("test", limit=4)
    built = build_stage("purifier", "vaegan", Task(dataset, 1, 28, 28, 10))
    networks, config = built.module.networks, built.module.config
    reconstructed = networks.reconstruct(images)
    assert reconstructed.mean((1, 2, 3)).tolist() == pytest.approx(means, abs=1e-4)
    assert rmse(reconstructed, images) == pytest.approx(errors, abs=1e-4)
    assert networks.log_dis(images).tolist() == pytest.approx(log_dis, abs=2e-2)
    latents = search(images, networks, config)
    assert rmse(networks.decode(latents), images) == pytest.approx(latent_errors, abs=5e-4)
    spec = registry().find("purifier", "vaegan").spec
    made = {**built.card.recipe, **built.card.config}
    assert {key: made[key] for key in spec.recipes[dataset]} == spec.recipes[dataset]
    assert built.card.figures["val_rmse"] < val_rmse


@pytest.mark.parametrize("mode", ["recon", "disc_grad", "latent"])
def test_an_attack_on_the_victim_alone_is_undone(digits, mode):
    victim = build_stage("victim", "resnet18", digits.task()).module
    images, labels = digits.tensors("test", limit=40)
    attacked = craft(Fgsm(FgsmOptions()), Target(victim), images, labels, eps=0.1, keys=torch.arange(40))
    module = build_stage("purifier", "vaegan", digits.task(), {"mode": mode}).module
    with torch.no_grad():
        bare, clean, defended = (
            float((victim(seen).argmax(1) == labels).float().mean())
            for seen in (attacked, module(images), module(attacked))
        )
    assert bare < 0.2
    assert clean >= 0.95
    assert defended >= 0.8


def test_the_discriminator_tells_attacked_images_from_clean_ones(digits, purifier):
    victim = build_stage("victim", "resnet18", digits.task()).module
    images, labels = digits.tensors("test", limit=40)
    attacked = craft(Fgsm(FgsmOptions()), Target(victim), images, labels, eps=0.1, keys=torch.arange(40))
    with torch.no_grad():
        clean, dirty = (purifier.module.networks.log_dis(seen) for seen in (images, attacked))
    assert float((dirty < clean).float().mean()) > 0.9


def test_the_published_network_is_what_the_defaults_build(digits):
    found, task = registry().find("purifier", "vaegan"), digits.task()
    with torch.device("meta"):
        module = build_module(found, found.config({}), task)
    assert sum(parameter.numel() for parameter in module.parameters()) == 12_011_106
