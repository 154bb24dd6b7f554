"""The attacks of the author's code are attacks on the network that was not told to normalise."""

import pytest
import torch

from defend.assembly.prepare import prepare
from defend.assembly.stage import build_stage
from defend.attacks.iterated import Pgd
from defend.attacks.options import FgsmOptions, PgdOptions
from defend.attacks.single_step import Fgsm
from defend.attacks.target import Target
from defend.defence import Defence
from defend.errors import ConfigError
from defend.plugins import registry
from defend.stages import Task
from defend.testing.contracts import AttackContract
from defend.testing.toys import SEED, TASK, TinyVictim, images
from defend.victims.training import NormalisedVictim
from defend_dae_finetune import attacks

COLOUR = Task("cifar10", 3, 32, 32, 10)


def normalised(task=TASK):
    mean, std = (0.3, 0.5, 0.6)[: task.channels], (0.2, 0.25, 0.3)[: task.channels]
    return NormalisedVictim(TinyVictim(task), mean, std)


class Unnormalised(AttackContract):
    task = Task("digits", 3, 28, 28, 10)

    def target(self):
        return Target(Defence(normalised(self.task)), seed=SEED)


class TestFgsm(Unnormalised):
    name = "fgsm_unnormalised"


class TestPgd(Unnormalised):
    name = "pgd_unnormalised"
    options = {"steps": 4, "restarts": 2}


def crafted(attack, module, batch, labels):
    eps = torch.full((len(batch),), 0.05)
    return attack(Target(module, seed=SEED), batch, labels, eps=eps, keys=torch.arange(len(batch)))


@pytest.mark.parametrize(
    ("ours", "plain"),
    [
        (attacks.fgsm(FgsmOptions()), Fgsm(FgsmOptions())),
        (attacks.pgd(PgdOptions(steps=5)), Pgd(PgdOptions(steps=5, early_stop=False, logit_scale=1.0))),
    ],
)
def test_the_images_are_those_made_on_the_bare_network(ours, plain):
    victim, batch = normalised(Task("digits", 3, 28, 28, 10)), images(Task("digits", 3, 28, 28, 10), 6)
    labels = victim(batch).argmax(1)
    made = crafted(ours, victim, batch, labels)
    assert torch.allclose(made, crafted(plain, victim.network, batch, labels), atol=1e-6)
    assert (made - crafted(plain, victim, batch, labels)).abs().max() > 0.04, "on this victim both are one"


def test_the_gradient_by_hand():
    # f(x) = g((x - 0.4) / 0.2) with g(z) = (0, z^2): from the label 0 the loss rises with z^2. At x = 0.3 the victim
    # sees z = -0.5, so its own attack goes down; the network, shown 0.3 itself, says up.
    class Square(torch.nn.Module):
        def forward(self, batch):
            return torch.cat([torch.zeros(len(batch), 1), batch.flatten(1).square()], dim=1)

    victim, batch, labels = NormalisedVictim(Square(), (0.4,), (0.2,)), torch.full((1, 1, 1, 1), 0.3), torch.tensor([0])
    assert crafted(Fgsm(FgsmOptions()), victim, batch, labels).item() == pytest.approx(0.25)
    assert crafted(attacks.fgsm(FgsmOptions()), victim, batch, labels).item() == pytest.approx(0.35)


def test_every_restart_is_judged_on_the_victim_itself():
    # The victim calls dark images class 0; what it is shown un-normalised is bright to it, and always class 1.
    class Bright(torch.nn.Module):
        def forward(self, batch):
            return torch.stack([-batch.mean((1, 2, 3)), batch.mean((1, 2, 3))], dim=1)

    victim, batch = NormalisedVictim(Bright(), (0.5,), (0.1,)), torch.full((3, 1, 4, 4), 0.2)
    labels = torch.zeros(3, dtype=torch.long)
    made = crafted(attacks.pgd(PgdOptions(steps=3, restarts=2)), victim, batch, labels)
    assert victim(batch).argmax(1).tolist() == [0, 0, 0]
    assert (made - batch).min() > 0.04, "fooled in the eyes of the bare network, an image must still be attacked"


@pytest.mark.parametrize("name", ["resnet20", "se_preresnet56"])
def test_the_shipped_victims_are_found_to_normalise_folded_too(name):
    module = build_stage("victim", name, COLOUR).module
    ready, _ = prepare(Defence(module), "fp32", images(COLOUR, 2))
    mean, std = attacks.statistics(ready)
    assert torch.equal(mean, module.mean) and torch.equal(std, module.std)


def test_a_victim_that_does_not_normalise_is_refused():
    with pytest.raises(ConfigError, match="take fgsm or pgd"):
        crafted(attacks.fgsm(FgsmOptions()), TinyVictim(), images(TASK, 1), torch.tensor([0]))


@pytest.mark.parametrize("name", ["fgsm_unnormalised", "pgd_unnormalised"])
def test_they_know_of_no_defence(name):
    assert registry().find("attack", name).spec.threats == ("oblivious",)
