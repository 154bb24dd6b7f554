"""The notebook's own attacks: eleven outputs, constant where an image is rejected."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from defend.attacks.target import Target
from defend.defence import Defence
from defend.errors import ConfigError
from defend.testing.contracts import AttackContract
from defend.testing.toys import SEED, TASK, TinyVictim, images
from defend_puvae_detect.attacks import rejecting


class Brightness(nn.Module):
    """A detector that scores an image by its mean."""

    random = False

    def __init__(self, threshold):
        super().__init__()
        self.register_buffer("threshold", torch.tensor(threshold))

    def forward(self, images, purified):
        return images.flatten(1).mean(1)


class Rejecting(AttackContract):
    def target(self):
        return Target(Defence(TinyVictim(TASK), detector=Brightness(0.5)), seed=SEED)


class TestFgsm(Rejecting):
    name = "fgsm_rejecting"


class TestBim(Rejecting):
    name = "bim_rejecting"
    options = {"steps": 4}


class TestPgd(Rejecting):
    name = "pgd_rejecting"
    options = {"steps": 4, "restarts": 2}


@pytest.mark.parametrize("scale", [None, 3.0])
def test_the_loss_has_an_eleventh_output_and_no_slope_where_an_image_is_rejected(scale):
    victim, batch = TinyVictim(TASK), images(TASK, 2)
    labels = victim(batch).argmin(1)
    shown = torch.stack([0.2 * batch[0], 0.5 + 0.5 * batch[1]]).requires_grad_()
    loss, logits = rejecting(scale)(Defence(victim, detector=Brightness(0.5)), shown, labels)
    (slope,) = torch.autograd.grad(loss.sum(), shown)
    assert torch.equal(logits, victim(shown))
    eleven = torch.cat([(scale or 1) * logits[0], torch.zeros(1)])
    assert loss[0].item() == pytest.approx(F.cross_entropy(eleven[None], labels[:1]).item())
    assert slope[0].abs().sum() > 0
    # ten zeros and a one: -log(1 / (10 + e)), whatever the image is
    assert loss[1].item() == pytest.approx(torch.tensor(10 + torch.e).log().item())
    assert slope[1].abs().sum() == 0


def test_without_a_detector_there_is_nothing_that_rejects():
    with pytest.raises(ConfigError, match="no detector: add one"):
        rejecting(None)(Defence(TinyVictim(TASK)), images(TASK, 1), torch.tensor([0]))
