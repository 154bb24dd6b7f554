"""The stages of this plugin keep to core's contracts."""

from typing import ClassVar

import pytest
import torch

from defend.attacks.target import Target
from defend.defence import Defence
from defend.errors import ConfigError
from defend.stages import Task
from defend.testing.contracts import AttackContract, PurifierContract
from defend.testing.toys import SEED, TASK, TinyVictim, images
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


class CounterAttack(AttackContract):
    def target(self):
        torch.manual_seed(SEED)
        options = Calibrated().found().config(SMALL)
        return Target(Defence(TinyVictim(TASK), build(options, TASK).eval()), seed=SEED)


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


def test_random_variants_say_so():
    variants = {name: Calibrated().found().config({"variant": name}) for name in ("direct", *"ABCDEFG")}
    declared = {name for name, config in variants.items() if ApudaePurifier(torch.nn.Identity(), config).random}
    assert declared == {"F", "G"}
