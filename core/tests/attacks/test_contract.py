"""Every attack of core keeps the contract that a plugin's attack has to keep, in each of its modes."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from defend.attacks.cw import CarliniWagner
from defend.attacks.host import craft
from defend.attacks.options import CwOptions
from defend.attacks.target import Target
from defend.defence import Defence
from defend.errors import ConfigError
from defend.testing.contracts import AttackContract
from defend.testing.toys import TinyVictim

ROUGH = 5e-3


class Rough(nn.Module):
    """A detector: how far an image is from itself smoothed, mean square; smooth images stay below `ROUGH`."""

    random = False

    def __init__(self, threshold):
        super().__init__()
        self.register_buffer("threshold", torch.tensor(threshold))

    def forward(self, pictures, purified):
        smooth = F.avg_pool2d(F.pad(pictures, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
        return (pictures - smooth).square().flatten(1).mean(1)


class TestNoise(AttackContract):
    name = "noise"


class TestFgsm(AttackContract):
    name = "fgsm"


class TestFgsmL2(AttackContract):
    name = "fgsm_l2"


class TestBimL2(AttackContract):
    name = "bim_l2"
    options = {"steps": 4}


class TestPgdL2(AttackContract):
    name = "pgd_l2"
    options = {"steps": 4, "restarts": 2}


class TestFgsmOnPredictedLabels(AttackContract):
    name = "fgsm"
    options = {"labels": "predicted"}


class TestFgsmTowardsTheLeastLikely(AttackContract):
    name = "fgsm"
    options = {"target": "least_likely"}


class TestRfgsmTramer(AttackContract):
    name = "rfgsm"
    options = {"variant": "tramer"}


class TestRfgsmApudae(AttackContract):
    name = "rfgsm"
    options = {"variant": "apudae"}


class TestRfgsmApudaeAsItsCode(AttackContract):
    name = "rfgsm"
    options = {"variant": "apudae", "strict_code": True}


class TestBim(AttackContract):
    name = "bim"


class TestPgd(AttackContract):
    name = "pgd"
    options = {"steps": 8}


class TestPgdWithoutRandomStart(AttackContract):
    name = "pgd"
    options = {"steps": 8, "random_start": False}


class TestPgdWithRestarts(AttackContract):
    name = "pgd"
    options = {"steps": 4, "restarts": 3}


class TestPgdThatNeverStops(AttackContract):
    name = "pgd"
    options = {"steps": 8, "early_stop": False}


# A large first constant and rate, so that a few steps already fool the victim: an attack that finds nothing
# returns the images and keeps every contract.
BRISK = {"steps": 12, "binary_search_steps": 2, "initial_const": 10.0, "lr": 0.1}


class TestCwClipped(AttackContract):
    name = "cw"
    options = {"clip": "linf", **BRISK}


class TestCwMinimal(AttackContract):
    name = "cw"
    options = {"clip": "none", **BRISK}


class TestMiFgsm(AttackContract):
    name = "mi_fgsm"
    options = {"steps": 4}


class TestVmiFgsm(AttackContract):
    name = "vmi_fgsm"
    options = {"steps": 3, "samples": 2}


class TestFmn(AttackContract):
    name = "fmn"
    options = {"steps": 8}


class TestFmnL2(AttackContract):
    name = "fmn_l2"
    options = {"steps": 8}


class TestHopSkipJump(AttackContract):
    name = "hsj"
    options = {"queries": 90, "initial_evals": 20}


class TestHopSkipJumpL2(AttackContract):
    name = "hsj_l2"
    options = {"queries": 90, "initial_evals": 20}


class TestSquare(AttackContract):
    name = "square"
    options = {"queries": 40}


class TestSquareWithRestarts(AttackContract):
    name = "square"
    options = {"queries": 15, "restarts": 2}
    eps = 0.03


class TestSquareL2(AttackContract):
    name = "square_l2"
    options = {"queries": 40}
    eps = 1.0


class DetectorAware(AttackContract):
    """Made against a detector, so that what is attacked needs one."""

    def target(self):
        return Target(Defence(TinyVictim(self.task), detector=Rough(ROUGH)), seed=3)


class TestPgdJoint(DetectorAware):
    name = "pgd_joint"
    options = {"steps": 5, "weights": (0.0, 1.0)}


class TestPgdSelective(DetectorAware):
    name = "pgd_selective"
    options = {"steps": 8}


class TestPgdOrthogonal(DetectorAware):
    name = "pgd_orthogonal"
    options = {"steps": 8, "restarts": 2}


class TestPgdOrthogonalWithoutRandomStart(DetectorAware):
    name = "pgd_orthogonal"
    options = {"steps": 8, "random_start": False}


class Returning:
    """An attack that returns what a function makes of the images."""

    def __init__(self, make, norm, **attributes):
        self.make, self.norm = make, norm
        self.__dict__.update(attributes)

    def __call__(self, target, pictures, labels, *, eps, keys):
        self.eps = eps
        return self.make(pictures)


def hosted(attack, pictures, eps):
    target = Target(TinyVictim())
    target.queries = torch.ones(1)
    labels = torch.zeros(len(pictures), dtype=torch.int64)
    return craft(attack, target, pictures, labels, eps=eps), target


def test_host_clips_to_the_l2_ball_and_to_the_image():
    pictures = torch.full((2, 1, 2, 2), 0.5)
    found, target = hosted(Returning(lambda batch: batch + 0.4, "l2"), pictures, torch.tensor([0.2, 5.0]))
    torch.testing.assert_close(found[0], torch.full((1, 2, 2), 0.6))  # 4 pixels by 0.1: 0.2 long
    torch.testing.assert_close(found[1], torch.full((1, 2, 2), 0.9))  # within the ball
    torch.testing.assert_close(target.overshoot, torch.tensor([0.6, 0.0]))
    found, target = hosted(Returning(lambda batch: batch + 0.8, "l2"), pictures, 5.0)
    assert (found == 1).all()
    torch.testing.assert_close(target.overshoot, torch.tensor([0.3, 0.3]))  # beyond the box alone


def test_host_says_how_far_a_result_was_outside_its_linf_budget():
    pictures = torch.full((2, 1, 2, 2), 0.5)
    _, target = hosted(Returning(lambda batch: batch + 0.25, "linf", excess=0.05), pictures, torch.tensor([0.1, 0.2]))
    torch.testing.assert_close(target.overshoot, torch.tensor([0.1, 0.0]))
    assert target.queries is None, "what another attack counted stayed"


def test_an_attack_that_minimises_has_no_budget():
    pictures = torch.full((1, 1, 2, 2), 0.5)
    attack = Returning(lambda batch: batch + 0.3, "l2", minimal=True)
    for eps in (None, 0.1):
        found, target = hosted(attack, pictures, eps)
        assert torch.isinf(attack.eps).all() and target.overshoot.item() == 0
        torch.testing.assert_close(found, pictures + 0.3)
    for clip, minimal in (("none", True), ("linf", False)):
        assert CarliniWagner(CwOptions(clip=clip)).minimal is minimal
    with pytest.raises(ConfigError, match="eps is None for attack Returning: expected its linf budget"):
        hosted(Returning(lambda batch: batch, "linf"), pictures, None)
