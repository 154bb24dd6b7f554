"""The losses of Larsen et al. against values worked out by hand."""

import math

import pytest
import torch

from defend_vaegan.model import gan_costs, gaussian_nll, prior_loss, steps_allowed


def test_prior_is_the_divergence_summed_over_z_and_averaged_over_images():
    mu = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    logvar = torch.tensor([[0.0, 0.0], [math.log(4.0), 0.0]])
    one, two = 0.5, 0.5 * (4 - math.log(4.0) - 1) + 2.0
    assert float(prior_loss(mu, logvar)) == pytest.approx((one + two) / 2)
    assert float(prior_loss(torch.zeros(3, 4), torch.zeros(3, 4))) == 0


def test_llike_is_half_the_squared_distance_summed_over_features():
    one, other = torch.zeros(2, 3, 1, 2), torch.zeros(2, 3, 1, 2)
    one[0, 0, 0, 0], one[1, 2, 0, 1], other[1, 2, 0, 1] = 2.0, 1.0, -2.0
    assert float(gaussian_nll(one, other)) == pytest.approx((0.5 * 4 + 0.5 * 9) / 2)


def test_gan_costs_are_cross_entropies():
    real, fake = torch.tensor([0.0, 2.0]), torch.tensor([-1.0, 1.0])

    def dis(logit):
        return 1 / (1 + math.exp(-logit))

    costs = [float(cost) for cost in gan_costs(real, fake)]
    assert costs[0] == pytest.approx(-(math.log(dis(0)) + math.log(dis(2))) / 2)
    assert costs[1] == pytest.approx(-(math.log(1 - dis(-1)) + math.log(1 - dis(1))) / 2)


@pytest.mark.parametrize(
    ("real", "fake", "decoder", "discriminator"),
    [
        (0.68, 0.68, True, True),
        (0.34, 1.02, True, True),
        (0.32, 0.68, True, False),  # a cost below 0.33: the discriminator is ahead and waits
        (0.68, 0.32, True, False),
        (1.04, 0.68, False, True),  # a cost above 1.03: the decoder is ahead and waits
        (0.68, 1.04, False, True),
        (0.10, 1.50, True, True),  # both would wait: neither does
    ],
)
def test_balance(real, fake, decoder, discriminator):
    assert steps_allowed(real, fake, 0.68, 0.35) == (decoder, discriminator)
