"""The stages of this plugin keep to core's contracts."""

from typing import ClassVar

import pytest
import torch

from defend.assembly.stage import build_module
from defend.defence import Defence
from defend.errors import ConfigError
from defend.plugins import registry
from defend.randomness import keyed
from defend.stages import Task
from defend.testing.contracts import DetectorContract, PurifierContract, VictimContract
from defend.testing.toys import SEED, TASK, TinyVictim, images
from defend_puvae_detect.config import PuvaeOptions
from defend_puvae_detect.detector import PuvaeDetector
from defend_puvae_detect.model import network_for, reconstruction_error
from defend_puvae_detect.purifier import PuvaePurifier

SMALL = {"width": 4, "hidden": 16, "latent": 6}
COLOUR = Task("cifar10", 3, 32, 32, 10)
ODD = Task("imagefolder", 3, 33, 29, 2)


class Projecting(PurifierContract):
    name = "puvae"
    not_denoising: ClassVar = dict.fromkeys(
        ("digits", "mnist", "mnist+rc-0.01", "fashion_mnist", "cifar10+compact"),
        "it returns the nearest image that it can make, not the one without noise",
    )


class TestPurifier(Projecting):
    options = SMALL


class TestPurifierWithoutNoise(Projecting):
    options = {**SMALL, "z_noise": 0}


class TestPurifierRmse(Projecting):
    options = {**SMALL, "score": "rmse"}


class TestPurifierColour(Projecting):
    options = SMALL
    task = COLOUR


class TestPurifierColourByC(Projecting):
    options = {**SMALL, "network": "c"}
    task = COLOUR


class TestPurifierOddSize(Projecting):
    options = SMALL
    task = ODD


class TestDetector(DetectorContract):
    name = "puvae"
    options = SMALL


class TestDetectorWithoutNoise(DetectorContract):
    name = "puvae"
    options = {**SMALL, "z_noise": 0}


class TestDetectorRmse(DetectorContract):
    name = "puvae"
    options = {**SMALL, "score": "rmse"}


class TestDetectorColour(DetectorContract):
    name = "puvae"
    options = SMALL
    task = COLOUR


class TestClassifierA(VictimContract):
    name = "classifier_a"


class TestClassifierAColour(VictimContract):
    name = "classifier_a"
    task = ODD


class TestClassifierB(VictimContract):
    name = "classifier_b"
    task = Task("imagefolder", 3, 13, 10, 3)


def purifier(**options):
    torch.manual_seed(SEED)
    found = registry().find("purifier", "puvae")
    return build_module(found, found.config({**SMALL, **options}), TASK).eval()


def detector(**options):
    torch.manual_seed(SEED)
    found = registry().find("detector", "puvae")
    return build_module(found, found.config({**SMALL, **options}), TASK).eval()


def test_random_exactly_if_it_draws():
    assert purifier().random and detector().random
    assert not purifier(z_noise=0).random and not detector(z_noise=0).random


def test_noise_makes_two_passes_differ():
    noisy, batch = purifier(), images(TASK, 2)
    with torch.no_grad():
        assert not torch.equal(noisy(batch), noisy(batch))


def test_noise_belongs_to_the_image_and_the_label():
    noisy = purifier(z_noise=0.5)
    pair = images(TASK, 1).expand(2, -1, -1, -1)
    with torch.no_grad(), keyed(torch.tensor([1, 2]), seed=0, stream="test"):
        first, second = noisy(pair)
    assert not torch.equal(first, second), "two keys drew the same noise"


def test_an_untrained_detector_rejects_nothing():
    verdict = Defence(TinyVictim(), None, detector()).judge(images(TASK, 3))
    assert verdict.accepted.all()


def test_purifier_and_detector_have_one_layout():
    ours, theirs = purifier().state_dict(), detector().state_dict()
    assert ours.keys() == theirs.keys()
    assert {key.partition(".")[0] for key in ours} == {"network", "threshold"}


def test_beside_its_purifier_the_reconstruction_is_computed_once():
    defence = Defence(TinyVictim(), purifier(z_noise=0), detector(z_noise=0))
    calls = []
    defence.purifier.network.trunk.register_forward_hook(lambda *_: calls.append(1))
    batch = images(TASK, 3)
    verdict = defence.judge(batch)
    assert len(calls) == 1
    assert defence.detector.network is defence.purifier.network
    alone = detector(z_noise=0)(batch, batch)
    torch.testing.assert_close(verdict.score, alone.detach(), atol=1e-6, rtol=0)


def test_beside_its_purifier_the_score_is_that_of_what_was_purified():
    # with noise on z, a second reconstruction would be another one
    defence, batch = Defence(TinyVictim(), purifier(z_noise=0.5), detector(z_noise=0.5)), images(TASK, 3)
    verdict = defence.judge(batch)
    expected = reconstruction_error(batch, verdict.purified, "mean_pixel_rms")
    torch.testing.assert_close(verdict.score, expected)
    assert not defence.detector.random and defence.random


@pytest.mark.parametrize("other", ["none", "identity", "options", "tensors"])
def test_beside_anything_else_it_reconstructs_itself(other):
    alone = detector(z_noise=0)
    different = {"none": None, "identity": torch.nn.Identity(), "options": purifier(z_noise=0.2)}.get(other)
    if other == "tensors":
        different = purifier(z_noise=0)
        with torch.no_grad():
            different.network.m.bias.add_(0.1)
    assert alone.beside(different) is alone


def test_beside_keeps_threshold_and_can_be_undone():
    alone, matching = detector(), purifier()
    alone.threshold.fill_(0.125)
    light = alone.beside(matching)
    assert light.reuse and float(light.threshold) == 0.125 and light.stage_name == "puvae"
    assert light.beside(matching) is light
    back = light.beside(None)
    assert not back.reuse and back.random and float(back.threshold) == 0.125


def test_detector_ignores_what_another_purifier_returned():
    alone, batch = detector(z_noise=0), images(TASK, 2)
    with torch.no_grad():
        assert torch.equal(alone(batch, torch.zeros_like(batch)), alone(batch, batch))


def test_rejected_at_the_threshold_and_above():
    alone, batch = detector(z_noise=0), images(TASK, 4)
    with torch.no_grad():
        scores = alone(batch, batch)
    alone.threshold.copy_(scores.sort().values[2])
    accepted = Defence(TinyVictim(), None, alone).judge(batch).accepted
    assert torch.equal(accepted, scores < scores.sort().values[2])


def test_classifier_a_says_when_images_are_too_small():
    found = registry().find("victim", "classifier_a")
    with pytest.raises(ConfigError, match="classifier_b"):
        build_module(found, found.config({}), Task("tiny", 1, 8, 8, 10))


def test_a_detector_of_the_same_network_shares_it():
    config = PuvaeOptions(**SMALL)
    network = network_for(config, TASK)
    light = PuvaeDetector(network, config).beside(PuvaePurifier(network, config))
    assert light.network is network
