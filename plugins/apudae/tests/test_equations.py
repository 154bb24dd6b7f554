"""Every equation of the paper against values worked out by hand.

The "autoencoder" here is linear, DAE(x) = x/2, so r(x) = sum(x^2)/4 and its gradient is x/2.
"""

import math

import pytest
import torch

from defend.randomness import keyed
from defend_apudae.config import ApudaeOptions
from defend_apudae.model import direction, loss, purify, rate, reconstruction_error, transform
from defend_apudae.networks import DenoisingAutoencoder
from defend_apudae.purifier import ApudaePurifier

MU, SIGMA = torch.tensor(0.1), torch.tensor(0.2)


def half(images):
    return images / 2


def image(*values):
    return torch.tensor(values).view(1, 1, 1, -1)


def run(images, **options):
    return purify(images, half, MU, SIGMA, ApudaeOptions(**options))


@pytest.mark.parametrize(("depth", "channels", "parameters"), [(5, 1, 297_793), (15, 3, 1_041_219)])
def test_parameter_counts_of_table_1(depth, channels, parameters):
    network = DenoisingAutoencoder(channels, depth)
    assert sum(parameter.numel() for parameter in network.parameters()) == parameters


@pytest.mark.parametrize(
    ("depth", "skipped"), [(5, {2, 4}), (15, {2, 4, 6, 8, 10, 12, 14}), (2, set()), (3, {2}), (10, {2, 4, 6, 8})]
)
def test_every_second_encoder_output_is_skipped_to_the_decoder(depth, skipped):
    assert DenoisingAutoencoder(1, depth, 4).skipped == skipped


def test_layers_and_their_shapes():
    network, seen = DenoisingAutoencoder(1, 5).eval(), []
    for layer in (*network.encoder, *network.decoder, network.last):
        layer.register_forward_hook(lambda module, given, answer: seen.append(tuple(answer.shape)))
    assert network(torch.rand(2, 1, 28, 28)).shape == (2, 1, 28, 28)
    assert seen == [(2, 64, 14, 14)] * 9 + [(2, 1, 28, 28)]


def test_output_is_relu_of_last_layer_plus_input():
    network = DenoisingAutoencoder(1, 3, 4).eval()
    torch.nn.init.zeros_(network.last.weight)
    torch.nn.init.constant_(network.last.bias, -0.25)
    images = torch.rand(1, 1, 8, 8)
    torch.testing.assert_close(network(images), (images - 0.25).clamp_min(0))


def test_norm_comes_after_relu():
    network = DenoisingAutoencoder(1, 2, 4).eval()
    block, given = network.encoder[0], []
    torch.nn.init.constant_(block.conv.bias, -9.0)  # every convolution output is negative
    block.norm.register_forward_pre_hook(lambda module, inputs: given.append(inputs[0].detach()))
    network(torch.rand(2, 1, 8, 8))
    assert torch.equal(given[0], torch.zeros(2, 4, 4, 4))


def test_reconstruction_error_is_summed():
    images = torch.tensor([[[[0.2, 0.4]], [[0.6, 0.8]]], [[[0.0, 0.0]], [[1.0, 0.0]]]])
    torch.testing.assert_close(
        reconstruction_error(images, half), torch.tensor([(0.04 + 0.16 + 0.36 + 0.64) / 4, 0.25])
    )


def test_losses():
    r = torch.tensor([0.05, 0.5])
    torch.testing.assert_close(loss("A", r, MU, SIGMA), r)
    torch.testing.assert_close(loss("D", r, MU, SIGMA), torch.tensor([0.25, 2.0]))
    for variant in "EFG":
        torch.testing.assert_close(loss(variant, r, MU, SIGMA), torch.tensor([0.0, 2.0]))


def test_equation_8_gradient_descent():
    # one step: x - 0.5 * x/2 = 0.75 x
    torch.testing.assert_close(run(image(0.4, 0.8), rule="gd", step_size=0.5, steps=1), image(0.3, 0.6))
    torch.testing.assert_close(run(image(0.4, 0.8), rule="gd", step_size=0.5, steps=2), image(0.225, 0.45))


def test_variant_a_takes_sign_steps():
    torch.testing.assert_close(run(image(0.4, 0.8, 0.0), steps=3, step_size=0.01), image(0.37, 0.77, 0.0))


def test_equation_9_momentum_average():
    # m1 = 0.1 * 0.2 = 0.02, x1 = 0.4 - 0.02 = 0.38; m2 = 0.9 * 0.02 + 0.1 * 0.19 = 0.037, x2 = 0.343
    torch.testing.assert_close(run(image(0.4), variant="B", rule="ema", step_size=1.0, steps=2), image(0.343))


def test_adam_rule_matches_torch():
    start = image(0.4, 0.8, 0.6)
    parameter = start.clone().requires_grad_()
    adam = torch.optim.Adam([parameter], lr=0.01)
    for _ in range(5):
        adam.zero_grad()
        reconstruction_error(parameter, half).sum().backward()
        adam.step()
    torch.testing.assert_close(run(start, variant="B", step_size=0.01, steps=5), parameter.detach(), atol=1e-6, rtol=0)


def test_equation_10_adaptive_rate():
    r = torch.tensor([0.1, 0.3, 0.5])
    expected = [0.0, 0.01 * (1 - math.exp(-1)), 0.01 * (1 - math.exp(-4))]
    torch.testing.assert_close(rate("C", 0.01, r, MU, SIGMA).flatten(), torch.tensor(expected))
    assert rate("A", 0.01, r, MU, SIGMA).flatten().tolist() == pytest.approx([0.01] * 3)


def test_equation_10_in_the_loop():
    # r = 0.64/4 = 0.16: rate = 0.1 (1 - exp(-0.09))
    step = 0.1 * (1 - math.exp(-0.09))
    torch.testing.assert_close(run(image(0.8), variant="C", rule="sign", step_size=0.1, steps=1), image(0.8 - step))


def test_equation_11_moves_towards_mu_from_both_sides():
    low, high = image(0.4), image(0.8)  # r = 0.04 < mu, r = 0.16 > mu
    torch.testing.assert_close(run(low, variant="D", rule="sign", step_size=0.01, steps=1), image(0.41))
    torch.testing.assert_close(run(high, variant="D", rule="sign", step_size=0.01, steps=1), image(0.79))


@pytest.mark.parametrize("rule", ["sign", "gd", "ema", "adam"])
def test_hinge_leaves_images_below_mu_alone(rule):
    torch.testing.assert_close(run(image(0.4), variant="E", rule=rule, steps=4), image(0.4))


def test_hinge_is_scaled_by_sigma():
    # gradient of (r - mu)/sigma at 0.8: 0.4/0.2 = 2
    torch.testing.assert_close(run(image(0.8), variant="E", rule="gd", step_size=0.01, steps=1), image(0.78))


def test_equation_12_gradient_at_a_noisy_point_only():
    # gradient at x + n is (x + n)/2/sigma: zero noise gives E; the noise itself does not stay in the image
    start = image(0.8)
    plain = run(start, variant="E", rule="gd", step_size=0.01, steps=1)
    silent = run(start, variant="F", noise="gaussian", noise_size=0.0, rule="gd", step_size=0.01, steps=1)
    torch.testing.assert_close(silent, plain)
    with keyed(torch.tensor([7]), seed=0, stream="test"):
        noisy = run(start, variant="F", noise="gaussian", noise_size=0.01, rule="gd", step_size=0.01, steps=1)
    with keyed(torch.tensor([7]), seed=0, stream="test"):
        from defend.randomness import normal_like

        offset = 0.01 * normal_like(start)
    torch.testing.assert_close(noisy, start - 0.01 * (start + offset) / 2 / SIGMA)


def test_code_noise_grows_with_the_error_and_stays():
    clean, dirty = image(math.sqrt(0.4)), image(1.0)  # r = mu: no noise; r = 0.25: ((0.15)/(0.4))^2 = 0.140625
    with keyed(torch.tensor([3]), seed=0, stream="test"):
        assert torch.equal(run(clean, variant="F", step_size=0.0, steps=1), clean)
    moved = []
    for key in range(200):
        with keyed(torch.tensor([key]), seed=0, stream="test"):
            moved.append(float(run(image(0.9), variant="F", step_size=0.0, steps=1) - 0.9))
    r = 0.81 / 4
    bound = 0.7 / 255 * ((r - 0.1) / 0.4) ** 2
    assert max(map(abs, moved)) <= bound * 1.001
    assert max(map(abs, moved)) > bound * 0.9
    assert float(dirty) == 1.0


def test_the_size_of_code_noise_is_part_of_the_gradient():
    def value(start):
        with keyed(torch.tensor([5]), seed=0, stream="test"):
            return run(start, variant="F", step_size=0.0, steps=1).sum()

    start = image(0.9).double().requires_grad_()
    (slope,) = torch.autograd.grad(value(start), start)
    numeric = (value(start.detach() + 1e-4) - value(start.detach() - 1e-4)) / 2e-4
    assert float(slope.sum()) == pytest.approx(float(numeric), rel=1e-6) and abs(float(numeric) - 1) > 1e-4


def test_an_image_that_is_not_square_is_turned_and_not_sheared():
    canvas = torch.zeros(1, 1, 48, 48)
    canvas[..., 22:26, 10:38] = torch.linspace(0, 1, 28)
    with keyed(torch.tensor([3]), seed=0, stream="test"):
        whole = transform(canvas, 0.0, 10.0)
    with keyed(torch.tensor([3]), seed=0, stream="test"):
        strip = transform(canvas[:, :, 16:32], 0.0, 10.0)
    torch.testing.assert_close(strip, whole[:, :, 16:32], atol=1e-4, rtol=0)


def test_equation_13_transform_turns_and_scales():
    images = torch.zeros(1, 1, 9, 9)
    images[0, 0, 4, 7] = 1.0  # right of the centre
    assert torch.allclose(transform(images, 0.0, 0.0), images, atol=1e-5)
    smooth = torch.linspace(0, 1, 9).expand(1, 1, 9, 9)
    for key in range(20):
        with keyed(torch.tensor([key]), seed=0, stream="test"):
            turned = transform(smooth, 0.1, 10.0)
        assert turned.shape == smooth.shape
        assert turned.min() >= 0
        assert turned.max() <= 1 + 1e-6
        assert abs(float(turned[0, 0, 4, 4]) - 0.5) < 1e-5  # the centre stays
        assert not torch.equal(turned, smooth)


@pytest.mark.parametrize("steps", [1, 4, 15])
@pytest.mark.parametrize("variant", list("ABCDEFG"))
def test_exactly_n_updates(variant, steps):
    calls = []

    def counting(images):
        calls.append(1)
        return images / 2

    config = ApudaeOptions(variant=variant, steps=steps, noise="gaussian")
    purify(image(0.4, 0.9), counting, MU, SIGMA, config)
    assert len(calls) == steps


def test_result_is_clipped_only_at_the_end():
    # three sign steps of 0.3 down from 0.5 cross zero after two; clipping inside would end at 0 as well,
    # so follow r itself: x goes 0.2, -0.1, then the sign turns and the last step goes up to 0.2
    torch.testing.assert_close(run(image(0.5), steps=3, step_size=0.3), image(0.2))
    torch.testing.assert_close(run(image(0.5), steps=2, step_size=0.3), image(0.0))


@pytest.mark.parametrize("rule", ["gd", "ema", "adam"])
@pytest.mark.parametrize("variant", ["B", "C", "D", "E"])
@pytest.mark.parametrize("steps", [3, 12])  # 12 go through segments whose graph is made again
def test_gradient_through_the_purifier_is_second_order_and_exact(variant, rule, steps):
    torch.manual_seed(1)
    network = DenoisingAutoencoder(1, 3, 4).double().eval()
    start = torch.rand(2, 1, 6, 6, dtype=torch.float64)
    mu, sigma = torch.tensor(0.5, dtype=torch.float64), torch.tensor(2.0, dtype=torch.float64)
    config = ApudaeOptions(variant=variant, rule=rule, steps=steps, step_size=0.009 / steps)
    point = start.clone().requires_grad_()
    purified = purify(point, network, mu, sigma, config)
    weights = torch.randn_like(start)
    (gradient,) = torch.autograd.grad((purified * weights).sum(), point)
    wander = torch.randn_like(start) * 1e-6

    def value(at):
        return float((purify(at, network, mu, sigma, config) * weights).sum())

    numeric = (value(start + wander) - value(start - wander)) / 2
    exact = float((gradient * wander).sum())
    assert exact == pytest.approx(numeric, rel=1e-3, abs=1e-12)


def test_literal_gradient_descent_is_a_linear_map_with_known_slope():
    # three steps of x <- (1 - a/2) x with a = 0.5: slope 0.75^3
    point = image(0.4, 0.8).requires_grad_()
    purified = run(point, rule="gd", step_size=0.5, steps=3)
    (gradient,) = torch.autograd.grad(purified.sum(), point)
    torch.testing.assert_close(gradient, torch.full_like(point, 0.75**3))


def test_exact_sign_steps_pass_the_gradient_on_unchanged():
    point = image(0.4, 0.8).requires_grad_()
    (gradient,) = torch.autograd.grad(run(point, steps=5, sign_slope="exact").sum(), point)
    torch.testing.assert_close(gradient, torch.ones_like(point))


def test_smooth_sign_shows_the_attacker_how_the_purifier_answers():
    # one step: x' = x - a s(x/2); with g = (0.2, 0.4) and w = 0.3, ds/dg = (1 - tanh^2(g/w))/w and dg/dx = 1/2
    point = image(0.4, 0.8).requires_grad_()
    (gradient,) = torch.autograd.grad(run(point, steps=1, step_size=0.01).sum(), point)
    slopes = [1 - 0.01 * 0.5 * (1 - math.tanh(g / 0.3) ** 2) / 0.3 for g in (0.2, 0.4)]
    torch.testing.assert_close(gradient, image(*slopes))


@pytest.mark.parametrize("variant", ["A", "C"])
def test_the_slope_of_sign_changes_no_result(variant):
    point = image(0.4, 0.8, 0.3).requires_grad_()
    smooth = run(point, variant=variant, rule="sign", sign_slope="smooth")
    exact = run(point, variant=variant, rule="sign", sign_slope="exact")
    assert torch.equal(smooth, exact)


def test_directions_remember():
    one, nothing = torch.tensor([1.0]), torch.tensor([0.0])
    first, average, _ = direction("ema", one, nothing, nothing, 1, 0.5)
    second, _, _ = direction("ema", one, average, nothing, 2, 0.5)
    assert (float(first), float(second)) == (0.5, 0.75)


def test_an_attacker_may_differentiate_the_plain_autoencoder_or_fewer_steps_instead():
    purifier = ApudaePurifier(DenoisingAutoencoder(1, 3, 4), ApudaeOptions(steps=7)).eval()
    purifier.mu, purifier.sigma = MU, SIGMA
    images = torch.rand(2, 1, 28, 28)
    offered = purifier.surrogates()
    assert list(offered) == ["autoencoder", "3 steps"]
    torch.testing.assert_close(offered["autoencoder"](images), purifier.dae(images).clamp(0, 1))
    fewer = purify(images, purifier.dae, MU, SIGMA, ApudaeOptions(steps=3))
    torch.testing.assert_close(offered["3 steps"](images), fewer)
    assert ApudaePurifier(purifier.dae, ApudaeOptions(variant="direct")).surrogates() == {}
    assert list(ApudaePurifier(purifier.dae, ApudaeOptions(steps=3)).surrogates()) == ["autoencoder"]
