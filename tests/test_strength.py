"""Attack strength, judged from outside: other libraries on a whole, composed defence."""

import pytest
import torch

import defend
from defend.attacks.host import craft
from defend.attacks.target import Target
from defend.plugins import registry
from defend.util.statistics import wilson

EPS, STEPS, IMAGES = 0.06, 20, 24


@pytest.fixture(scope="module")
def attacked():
    """What is left of dae and resnet20 on some digits by each attack: `attacked(name, **options)`, bool [N]."""
    defence = defend.load("resnet20", purifier="dae").requires_grad_(False)
    images, labels = defend.dataset("digits").tensors("test", limit=IMAGES, seed=1)

    def left(name, **options):
        found = registry().find("attack", name)
        attack = found.spec.resolve(found.spec.build)(found.config(options))
        adversarial = craft(attack, Target(defence), images, labels, eps=EPS)
        assert float((adversarial - images).abs().max()) <= EPS + 1e-6
        return defence.judge(adversarial).labels == labels

    return left


def test_other_libraries_find_nothing_that_the_adaptive_row_missed(attacked):
    ours = attacked("pgd", steps=STEPS) & attacked("apgd_ce", steps=STEPS)
    assert 0 < int(ours.sum()) < IMAGES, "nothing can be told apart where everything or nothing is left"
    low, _ = wilson(int(ours.sum()), IMAGES)
    theirs = {
        "foolbox:LinfPGD": attacked("foolbox:LinfPGD", arguments=f"steps={STEPS}"),
        "torchattacks:APGD": attacked("torchattacks:APGD", arguments=f"steps={STEPS}"),
    }
    for name, left in theirs.items():
        assert float(left.float().mean()) >= low, f"{name} leaves {int(left.sum())}, ours {int(ours.sum())}"
        assert not torch.equal(left, torch.ones_like(left)), f"{name} did nothing"
