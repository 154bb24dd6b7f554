"""The three ways to purify against values worked out by hand.

The "networks" here are formulas: what the discriminator likes is a parabola or a plane, the decoder shows z as it is.
"""

import math

import pytest
import torch

from defend.randomness import keyed, normal_like
from defend_vaegan.config import VaeganOptions
from defend_vaegan.model import VaeGan, climb, search
from defend_vaegan.purifier import VaeganPurifier

A = 0.02


def image(*values):
    return torch.tensor(values).view(1, 1, 1, -1)


class Formulas:
    """log Dis as given; reconstructions as given, the image itself unless told otherwise."""

    def __init__(self, height, reconstruct=lambda images: images):
        self._height = height
        self.reconstruct = reconstruct

    def log_dis(self, images):
        return self._height(images).flatten(1).sum(1)


def hill(top, steepness=1.0, **more):
    return Formulas(lambda images: -steepness * (images - top).square() / 2, **more)


def plane(*weights):
    return Formulas(lambda images: image(*weights) * images)


def climbed(images, networks, **options):
    return climb(images, networks, VaeganOptions(**{"step_size": A, **options}))


def test_a_step_goes_along_the_sign_of_the_gradient():
    found = climbed(image(0.5, 0.5, 0.5), plane(3.0, -0.1, 0.0), steps=1)
    torch.testing.assert_close(found, image(0.52, 0.48, 0.5))


@pytest.mark.parametrize("stop", ["no_gain", "never"])
def test_t_steps_are_taken_while_they_gain(stop):
    found = climbed(image(0.2, 0.8), plane(1.0, -1.0), steps=7, stop=stop)
    torch.testing.assert_close(found, image(0.34, 0.66))


def test_no_pixel_moves_further_than_the_radius_or_out_of_the_box():
    found = climbed(image(0.5, 0.97, 0.01), plane(1.0, 1.0, -1.0), steps=20, radius=0.3)
    torch.testing.assert_close(found, image(0.8, 1.0, 0.0))
    torch.testing.assert_close(climbed(image(0.5, 0.5), plane(1.0, -1.0), steps=9, radius=0.05), image(0.55, 0.45))


def test_the_first_step_without_gain_is_taken_back():
    # 0.465, 0.485, 0.505 and then 0.485 again, which is further from the top
    torch.testing.assert_close(climbed(image(0.465), hill(0.5), steps=20), image(0.505))
    torch.testing.assert_close(climbed(image(0.465), hill(0.5), steps=3, stop="never"), image(0.485))


def test_a_smaller_error_of_the_reconstruction_is_a_gain_too():
    # 0.505 -> 0.485 is down the hill, but nearer to the reconstruction at 0.1; then up again, and so on
    networks = hill(0.5, reconstruct=lambda images: torch.full_like(images, 0.1))
    torch.testing.assert_close(climbed(image(0.465), networks, steps=3), image(0.485))
    torch.testing.assert_close(climbed(image(0.465), networks, steps=4), image(0.505))


def test_every_image_stops_for_itself():
    batch = torch.cat([image(0.465), image(0.1), image(0.5)])
    found = climbed(batch, hill(0.5), steps=10)
    torch.testing.assert_close(found, torch.cat([image(0.505), image(0.3), image(0.5)]))


def test_nothing_is_computed_once_every_image_stands_still():
    looks = []

    def height(images):
        looks.append(1)
        return -(images - 0.5).square()

    climbed(torch.cat([image(0.465), image(0.485)]), Formulas(height), steps=20)
    assert len(looks) == 4  # the start, two steps that gain, one that does not


def test_the_smooth_slope_shows_the_attacker_how_the_discriminator_answers():
    # x' = x + a s(g) with g = -k (x - top) = (0.8, -0.4), w = 0.6: dx'/dx = 1 - a k (1 - tanh^2(g/w))/w
    point = image(0.3, 0.6).requires_grad_()
    found = climbed(point, hill(0.5, steepness=4.0), steps=1)
    (gradient,) = torch.autograd.grad(found.sum(), point)
    slopes = [1 - A * 4.0 * (1 - math.tanh(g / 0.6) ** 2) / 0.6 for g in (0.8, -0.4)]
    torch.testing.assert_close(gradient, image(*slopes))


def test_the_smooth_slope_passes_a_clip_and_the_exact_one_does_not():
    # up by 0.02 from 0.99 is clipped to 1; the plane's gradient is constant, so nothing else has a slope
    for slope, seen in (("smooth", (1.0, 1.0)), ("exact", (0.0, 1.0))):
        point = image(0.99, 0.5).requires_grad_()
        found = climbed(point, plane(1.0, 1.0), steps=3, sign_slope=slope)
        torch.testing.assert_close(found, image(1.0, 0.56))
        (gradient,) = torch.autograd.grad(found.sum(), point, allow_unused=True)
        torch.testing.assert_close(gradient, image(*seen))


def test_the_exact_slope_sees_the_identity():
    point = image(0.3, 0.6).requires_grad_()
    found = climbed(point, hill(0.5, steepness=4.0), steps=5, sign_slope="exact", stop="never")
    (gradient,) = torch.autograd.grad(found.sum(), point)
    assert torch.equal(gradient, torch.ones_like(point))


def test_the_slope_changes_no_result():
    point = torch.rand(4, 1, 1, 9).requires_grad_()
    smooth, exact = (climbed(point, hill(0.5), steps=9, sign_slope=slope) for slope in ("smooth", "exact"))
    assert torch.equal(smooth, exact)
    assert torch.equal(smooth, climbed(point.detach(), hill(0.5), steps=9))


class Identity:
    """Dec(z) is z, mu(x) is x/2, the discriminator's logit the sum of the pixels; two pixels."""

    def encode(self, images):
        return images.flatten(1) / 2

    def decode(self, latents):
        return latents.view(-1, 1, 1, 2)

    def discriminator(self, images):
        return images.flatten(1).sum(1), None

    def crop(self, images):
        return images

    decoder = decode


def projected(images, **options):
    config = VaeganOptions(mode="latent", **{"dis_weight": 0.0, "momentum": 0.0, **options})
    return Identity().decode(search(images, Identity(), config))


def test_no_latent_step_is_the_reconstruction():
    torch.testing.assert_close(projected(image(0.4, 0.8), latent_steps=0), image(0.2, 0.4))


def test_descent_of_the_mean_squared_error():
    # the gradient of (|z - x|^2)/2 pixels is z - x: each step halves the distance
    torch.testing.assert_close(projected(image(0.4, 0.8), latent_steps=1, latent_lr=0.5), image(0.3, 0.6))
    torch.testing.assert_close(projected(image(0.4, 0.8), latent_steps=2, latent_lr=0.5), image(0.35, 0.7))


def test_momentum():
    # g0 = -0.2, z1 = 0.2 + 0.1 = 0.3; g1 = -0.1, v = 0.7 (-0.2) - 0.1 = -0.24, z2 = 0.3 + 0.12
    torch.testing.assert_close(
        projected(image(0.4, 0.8), latent_steps=2, latent_lr=0.5, momentum=0.7), image(0.42, 0.84)
    )


def test_the_rate_is_cut_after_four_fifths_of_the_steps():
    # five steps: four that halve the distance 0.2, then one of a tenth of the rate
    torch.testing.assert_close(
        projected(image(0.4, 0.8), latent_steps=5, latent_lr=0.5), image(0.4 - 0.2 / 16 * 0.95, 0.8 - 0.4 / 16 * 0.95)
    )


def test_the_discriminators_share():
    # one step from z = x/2 = (0.2, 0.4), logit 0.6: slope (2 (z - x) - lambda (1 - sigmoid(0.6)))/2
    pull = 0.3 * (1 - 1 / (1 + math.exp(-0.6))) / 2
    found = projected(image(0.4, 0.8), latent_steps=1, latent_lr=0.5, dis_weight=0.3)
    torch.testing.assert_close(found, image(0.3 + 0.5 * pull, 0.6 + 0.5 * pull))


def test_the_nearest_of_the_restarts_is_kept_and_belongs_to_the_image():
    batch = torch.cat([image(1.0, 0.0), image(0.0, 0.0)])
    with keyed(torch.tensor([4, 9]), seed=0, stream="test"):
        draws = normal_like(torch.empty(2, 30, 2))
    with keyed(torch.tensor([4, 9]), seed=0, stream="test"):
        found = projected(batch, latent_steps=0, restarts=31)
    nearest = min(draws[0].tolist(), key=lambda z: (z[0] - 1) ** 2 + z[1] ** 2)
    assert (nearest[0] - 1) ** 2 + nearest[1] ** 2 < 0.25  # nearer than mu(x)
    torch.testing.assert_close(found[0].flatten(), torch.tensor(nearest))
    torch.testing.assert_close(found[1], image(0.0, 0.0)[0])  # mu(x) itself is exact
    with keyed(torch.tensor([9]), seed=0, stream="test"):
        torch.testing.assert_close(projected(batch[1:], latent_steps=0, restarts=31), found[1:])


def real_networks():
    torch.manual_seed(0)
    networks = VaeGan(1, 12, 10, 5, 0.125).double().train()
    for _ in range(20):
        networks.discriminator(networks.decoder(networks.encoder(torch.rand(8, 1, 16, 16).double())[0]))
    return networks.eval()


@pytest.mark.parametrize("options", [{"mode": "recon"}, {"mode": "latent", "latent_steps": 3, "dis_weight": 0.5}])
def test_gradients_through_the_purifier_are_exact(options):
    module = VaeganPurifier(real_networks(), VaeganOptions(**options))
    start = torch.rand(2, 1, 12, 10).double()
    weights, wander = torch.randn_like(start), torch.randn_like(start) * 1e-6
    point = start.clone().requires_grad_()
    (gradient,) = torch.autograd.grad((module(point) * weights).sum(), point)
    with torch.no_grad():
        numeric = float(((module(start + wander) - module(start - wander)) * weights).sum()) / 2
    assert float((gradient * wander).sum()) == pytest.approx(numeric, rel=1e-3, abs=1e-12)


def test_disc_grad_ends_in_the_reconstruction_of_what_it_climbed_to():
    networks, images = real_networks(), torch.rand(3, 1, 12, 10).double()
    config = VaeganOptions(steps=4)
    top = climb(images, networks, config)
    assert (networks.log_dis(top) > networks.log_dis(images)).all()
    assert (top - images).abs().max() <= 4 * config.step_size + 1e-9
    assert torch.equal(VaeganPurifier(networks, config)(images), networks.reconstruct(top))


@pytest.mark.parametrize("mode", ["recon", "disc_grad", "latent"])
def test_straight_has_the_purifiers_result_and_the_autoencoders_gradient(mode):
    networks, images = real_networks(), torch.rand(2, 1, 12, 10).double()
    config = VaeganOptions(mode=mode, steps=4, latent_steps=4)
    module, point = VaeganPurifier(networks, config), images.clone().requires_grad_()
    purified, weights = module.straight(point), torch.randn_like(images)
    torch.testing.assert_close(purified, module(images), rtol=0, atol=1e-12)
    (gradient,) = torch.autograd.grad((purified * weights).sum(), point)

    def autoencoder(at):
        if mode == "latent":
            found = search(images, networks, config)
            return networks.decode(found + networks.encode(at) - networks.encode(images).detach())
        start = climb(images, networks, config) if mode == "disc_grad" else images
        return networks.reconstruct(start + at - images)

    again = images.clone().requires_grad_()
    (expected,) = torch.autograd.grad((autoencoder(again) * weights).sum(), again)
    torch.testing.assert_close(gradient, expected)
    assert gradient.abs().sum() > 0


def test_an_attacker_may_differentiate_the_plain_autoencoder_instead_of_the_climb():
    purifier = VaeganPurifier(VaeGan(1, 28, 28, 8, 0.0625), VaeganOptions(width=0.0625, latent=8)).eval()
    images = torch.rand(2, 1, 28, 28)
    ((name, surrogate),) = purifier.surrogates().items()
    assert name == "autoencoder"
    torch.testing.assert_close(surrogate(images), purifier.networks.reconstruct(images))
    assert VaeganPurifier(purifier.networks, VaeganOptions(mode="recon")).surrogates() == {}
