"""The stage keeps to core's contract in every mode."""

from typing import ClassVar

import pytest
import torch

from defend.attacks.host import craft
from defend.attacks.target import Target
from defend.defence import Defence
from defend.errors import ConfigError
from defend.stages import Task
from defend.testing.contracts import AttackContract, PurifierContract
from defend.testing.toys import TASK, TinyVictim, UnusualVictim, images
from defend_vaegan.purifier import build

SMALL = {"width": 0.125, "latent": 6, "steps": 3, "latent_steps": 3}


class Awake(PurifierContract):
    """Untrained networks whose batch norms have seen images, so that activations are of ordinary size."""

    name = "vaegan"
    not_denoising: ClassVar = dict.fromkeys(
        ("digits", "mnist", "fashion_mnist"), "it returns an image that it can make, not the one without noise"
    )

    def stage_module(self):
        purifier = super().stage_module()
        generator = torch.Generator().manual_seed(0)
        networks = purifier.networks.train()
        images = networks.pad(torch.rand(16, *networks.shape, generator=generator))
        with torch.no_grad():
            for _ in range(3):
                mu, _ = networks.encoder(images)
                networks.discriminator(torch.cat([images, networks.decoder(mu)]))
        return purifier.eval()


class TestRecon(Awake):
    options = {**SMALL, "mode": "recon"}


class TestDiscGrad(Awake):
    options = {**SMALL, "mode": "disc_grad"}


class TestDiscGradEveryStep(Awake):
    options = {**SMALL, "mode": "disc_grad", "stop": "never"}


class TestDiscGradExactSlope(Awake):
    options = {**SMALL, "mode": "disc_grad", "sign_slope": "exact"}


class TestLatent(Awake):
    options = {**SMALL, "mode": "latent"}


class TestLatentRestarts(Awake):
    options = {**SMALL, "mode": "latent", "restarts": 3}


class TestColour(Awake):
    options = SMALL
    task = Task("cifar10", 3, 32, 32, 10)


class TestOddSize(Awake):
    options = SMALL
    task = Task("imagefolder", 3, 33, 29, 2)


class TestStraight(AttackContract):
    name = "vaegan_straight"
    options = {"steps": 2}

    def target(self):
        return Target(Defence(TinyVictim(TASK), TestDiscGrad().stage_module()), seed=3)


def test_the_attack_asks_for_its_purifier():
    attack, target = TestStraight().attack(), Target(Defence(TinyVictim(TASK)))
    with pytest.raises(ConfigError, match="--purifier vaegan, and the purifier is 'none'"):
        attack(target, images(TASK, 1), torch.tensor([0]), eps=torch.tensor([0.1]), keys=torch.tensor([0]))


def attacked(victim, batch, labels):
    target = Target(Defence(victim, TestDiscGrad().stage_module()))
    return craft(TestStraight().attack(), target, batch, labels, eps=0.1), target


@pytest.mark.parametrize("form", ["tuple", "dict", "map", "in place"])
def test_the_attack_takes_a_victims_answer_as_the_defence_does(form):
    batch, labels = images(TASK, 3), torch.arange(3)
    found, _ = attacked(UnusualVictim(form), batch, labels)
    torch.testing.assert_close(found, attacked(TinyVictim(), batch, labels)[0])


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_the_attack_takes_images_of_every_float_type(dtype):
    found, _ = attacked(TinyVictim(), images(TASK, 2).to(dtype), torch.arange(2))
    assert found.dtype == dtype


class Louder(TinyVictim):
    """Logits a million times as large, beside which nothing of a cross-entropy's slope is left."""

    def forward(self, batch):
        return 1e6 * super().forward(batch)


def test_a_factor_of_the_logits_does_not_blind_the_attack():
    batch = images(TASK, 4)
    labels = Defence(TinyVictim(), TestDiscGrad().stage_module())(batch).argmax(1)
    _, target = attacked(Louder(), batch, labels)
    assert int(target.sight.seen.zero.sum()) == 0


def test_only_restarts_are_random():
    contract = Awake()
    for options, random in (
        ({"mode": "recon"}, False),
        ({"mode": "disc_grad"}, False),
        ({"mode": "disc_grad", "restarts": 3}, False),
        ({"mode": "latent"}, False),
        ({"mode": "latent", "restarts": 2}, True),
    ):
        config = contract.found().config({**SMALL, **options})
        assert build(config, contract.task).random is random
