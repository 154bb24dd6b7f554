"""The stages of this plugin keep to core's contracts."""

from typing import ClassVar

import pytest
import torch
from torch.nn import functional as F

from defend.attacks.host import craft
from defend.attacks.target import Target
from defend.defence import Defence
from defend.errors import ConfigError
from defend.plugins import registry
from defend.stages import Task
from defend.testing.contracts import AttackContract, PurifierContract
from defend.testing.toys import SEED, TASK, TinyVictim, UnusualVictim, images
from defend_apudae.attacks import low_error, through_autoencoder
from defend_apudae.model import reconstruction_error
from defend_apudae.purifier import ApudaePurifier, build

SMALL = {"depth": 3, "width": 8, "steps": 3}


class Calibrated(PurifierContract):
    """An untrained autoencoder, with mu and sigma that put its errors on the slope of every loss."""

    name = "apudae"
    not_denoising: ClassVar = {
        "cifar10": "trained for 5 epochs: at 8/255 it is worse than doing nothing; to be replaced"
    }

    def stage_module(self):
        purifier = super().stage_module()
        purifier.mu.fill_(20.0)
        purifier.sigma.fill_(10.0)
        return purifier


class TestDirect(Calibrated):
    options = {**SMALL, "variant": "direct"}


class TestA(Calibrated):
    options = {**SMALL, "variant": "A"}


class TestAExact(Calibrated):
    options = {**SMALL, "variant": "A", "sign_slope": "exact"}


class TestB(Calibrated):
    options = {**SMALL, "variant": "B"}


class TestBMomentum(Calibrated):
    options = {**SMALL, "variant": "B", "rule": "ema", "step_size": 1e-3}


class TestC(Calibrated):
    options = {**SMALL, "variant": "C"}


class TestCSign(Calibrated):
    options = {**SMALL, "variant": "C", "rule": "sign"}


class TestD(Calibrated):
    options = {**SMALL, "variant": "D"}


class TestE(Calibrated):
    options = {**SMALL, "variant": "E"}


class TestELiteral(Calibrated):
    options = {**SMALL, "variant": "E", "rule": "gd"}


class TestF(Calibrated):
    options = {**SMALL, "variant": "F"}


class TestFGaussian(Calibrated):
    options = {**SMALL, "variant": "F", "noise": "gaussian"}


class TestG(Calibrated):
    options = {**SMALL, "variant": "G"}


class TestColour(Calibrated):
    options = {**SMALL, "variant": "E"}
    task = Task("cifar10", 3, 32, 32, 10)


class TestOddSize(Calibrated):
    options = {**SMALL, "variant": "A"}
    task = Task("imagefolder", 3, 33, 29, 2)


def behind(victim):
    torch.manual_seed(SEED)
    return Defence(victim, build(Calibrated().found().config(SMALL), TASK).eval())


class CounterAttack(AttackContract):
    def target(self):
        return Target(behind(TinyVictim(TASK)), seed=SEED)


class TestCounterAttackA(CounterAttack):
    name = "apudae_a"
    options = {"steps": 2}


class TestCounterAttackB(CounterAttack):
    name = "apudae_b"
    options = {"steps": 2, "betas": "0.01,1"}


@pytest.mark.parametrize("name", ["apudae_a", "apudae_b"])
def test_counter_attacks_ask_for_their_purifier(name):
    contract = TestCounterAttackA() if name == "apudae_a" else TestCounterAttackB()
    target = Target(Defence(TinyVictim(TASK)))
    with pytest.raises(ConfigError, match="--purifier apudae"):
        contract.attack()(target, images(TASK, 1), torch.tensor([0]), eps=torch.tensor([0.1]), keys=torch.tensor([0]))


def counter_attack(name, **options):
    found = registry().find("attack", name)
    return found.spec.resolve(found.spec.build)(found.config({"steps": 5, **options}))


@pytest.mark.parametrize("name", ["apudae_a", "apudae_b"])
@pytest.mark.parametrize("form", ["tuple", "dict", "map", "in place"])
def test_counter_attacks_take_a_victims_answer_as_the_defence_does(name, form):
    batch, labels = images(TASK, 4), torch.arange(4)
    found, usual = (
        craft(counter_attack(name), Target(behind(victim)), batch, labels, eps=0.1)
        for victim in (UnusualVictim(form), TinyVictim())
    )
    torch.testing.assert_close(found, usual)


@pytest.mark.parametrize("name", ["apudae_a", "apudae_b"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_counter_attacks_take_images_of_every_float_type(name, dtype):
    batch, labels = images(TASK, 3).to(dtype), torch.arange(3)
    assert craft(counter_attack(name), Target(behind(TinyVictim())), batch, labels, eps=0.1).dtype == dtype


class Louder(TinyVictim):
    """Logits a million times as large, beside which nothing of a cross-entropy's slope is left."""

    def forward(self, batch):
        return 1e6 * super().forward(batch)


@pytest.mark.parametrize("name", ["apudae_a", "apudae_b"])
def test_a_factor_of_the_logits_hides_nothing_from_counter_attacks(name):
    batch = images(TASK, 16)
    labels = behind(TinyVictim())(batch).argmax(1)
    left = {}
    for victim in (TinyVictim(), Louder()):
        target = Target(behind(victim))
        found = craft(counter_attack(name), target, batch, labels, eps=0.1)
        left[type(victim)] = int((target.module(found).argmax(1) == labels).sum())
        assert int(target.sight.seen.zero.sum()) == 0
    assert left[Louder] <= left[TinyVictim] + 1 < 9, left


def test_with_a_scale_the_counter_attacks_climb_the_papers_formulas():
    defence, batch, labels = behind(TinyVictim()), images(TASK, 4), torch.arange(4)
    dae = defence.purifier.dae
    loss, logits = through_autoencoder(1.0)(defence, batch, labels)
    torch.testing.assert_close(logits, defence.victim(dae(batch).clamp(0, 1)))
    torch.testing.assert_close(loss, F.cross_entropy(logits, labels, reduction="none"))
    loss, logits = low_error(0.5, 1.0)(defence, batch, labels)
    torch.testing.assert_close(logits, defence.victim(batch))
    error = reconstruction_error(batch, dae)
    torch.testing.assert_close(loss, F.cross_entropy(logits, labels, reduction="none") - 0.5 * error)


def test_random_variants_say_so():
    variants = {name: Calibrated().found().config({"variant": name}) for name in ("direct", *"ABCDEFG")}
    declared = {name for name, config in variants.items() if ApudaePurifier(torch.nn.Identity(), config).random}
    assert declared == {"F", "G"}
