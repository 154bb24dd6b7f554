"""Every equation of the paper against values worked out by hand, and the networks against its tables."""

import math
import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from defend.errors import ConfigError
from defend.options import NoOptions
from defend.randomness import keyed
from defend.stages import Task
from defend.testing.toys import images
from defend_puvae_detect.classifiers import build_a, build_b
from defend_puvae_detect.config import PuvaeOptions
from defend_puvae_detect.detector import PuvaeDetector
from defend_puvae_detect.layers import LabelledLinear, SameConv2d, SameConvTranspose2d, same_padding
from defend_puvae_detect.model import divergence, grid_threshold, network_for, reconstruction_cost, reconstruction_error
from defend_puvae_detect.purifier import PuvaePurifier, closest

MNIST, FASHION, CIFAR = (
    Task("mnist", 1, 28, 28, 10),
    Task("fashion_mnist", 1, 28, 28, 10),
    Task("cifar10", 3, 32, 32, 10),
)
SMALL = {"width": 4, "hidden": 16, "latent": 6}


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())


def small(task=MNIST, **options):
    torch.manual_seed(1)
    config = PuvaeOptions(**{**SMALL, **options})
    return network_for(config, task).double().eval(), config


# Networks


@pytest.mark.parametrize(
    ("task", "options", "parameters"),
    [
        (MNIST, {}, 27_844_161),
        (FASHION, {}, 28_090_113),
        (CIFAR, {}, 45_148_138),
        (CIFAR, {"latent": 32}, 42_098_730),  # the notebook prints this and a constant of 10x10
    ],
)
def test_parameter_counts_of_c_and_d(task, options, parameters):
    with torch.device("meta"):
        assert count(network_for(PuvaeOptions(**options), task)) == parameters


@pytest.mark.parametrize(("build", "task", "parameters"), [(build_a, MNIST, 924_746), (build_b, CIFAR, 34_059_658)])
def test_parameter_counts_of_a_and_b(build, task, parameters):
    with torch.device("meta"):
        assert count(build(NoOptions(), task)) == parameters


def shapes(network, run):
    """Return the shapes that the layers with weights return on the meta device, in order."""
    seen = []
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
            layer.register_forward_hook(lambda module, given, answer: seen.append(tuple(answer.shape[1:])))
    run()
    return seen


def layers_of_vae(task):
    with torch.device("meta"):
        network = network_for(PuvaeOptions(), task)
        batch = torch.zeros(2, task.channels, task.height, task.width)
        labels, noise = torch.zeros(2, dtype=torch.int64), torch.zeros(2, network.latent)
        return shapes(network, lambda: network(batch, labels, noise))


def test_layers_of_c():
    # the first layer of encoder and decoder are split into image and label, so no Linear is called for them
    assert layers_of_vae(MNIST) == [
        *[(32, 28, 28)] * 3,
        (1024,),
        (32,),
        (32,),
        (32, 7, 7),
        (32, 14, 14),
        (32, 28, 28),
        (1, 28, 28),
    ]


def test_layers_of_d():
    assert layers_of_vae(CIFAR) == [
        (3, 32, 32),
        *[(32, 32, 32)] * 3,
        (1024,),
        (1024,),
        (8192,),
        *[(32, 16, 16)] * 2,
        (32, 33, 33),
        (3, 32, 32),
    ]


def test_first_layers_take_all_features_and_the_label():
    with torch.device("meta"):
        c, d = network_for(PuvaeOptions(), MNIST), network_for(PuvaeOptions(), CIFAR)
    assert tuple(c.first.linear.weight.shape) == (1024, 28 * 28 * 32 + 10)
    assert tuple(c.start.linear.weight.shape) == (512, 32 + 10)
    assert tuple(d.first.linear.weight.shape) == (1024, 32 * 32 * 32 + 10)
    assert tuple(d.start.linear.weight.shape) == (1024, 1024 + 10)


def test_layers_of_a_and_b():
    with torch.device("meta"):
        a, b = build_a(NoOptions(), MNIST), build_b(NoOptions(), CIFAR)
        seen_a = shapes(a, lambda: a(torch.zeros(2, 1, 28, 28)))
        seen_b = shapes(b, lambda: b(torch.zeros(2, 3, 32, 32)))
    assert seen_a == [(64, 24, 24), (64, 10, 10), (128,), (10,)]
    assert seen_b == [(64, 32, 32), (128, 32, 32), (256, 16, 16), (512,), (256,), (10,)]


@pytest.mark.parametrize("size", [(1, 28, 28), (3, 32, 32), (1, 20, 21), (3, 33, 29), (1, 9, 40)])
@pytest.mark.parametrize("layout", ["c", "d"])
def test_any_size_comes_back(layout, size):
    network, _ = small(Task("any", *size, 3), network=layout, width=2)
    made = network(torch.rand(2, *size).double(), torch.tensor([0, 2]), torch.zeros(2, 6).double())
    assert made.logits.shape == (2, *size)


def test_dropout_only_in_training():
    torch.manual_seed(0)
    network, batch = build_a(NoOptions(), MNIST), torch.rand(2, 1, 28, 28)
    assert not torch.equal(network.train()(batch), network(batch))
    assert torch.equal(network.eval()(batch), network(batch))


def test_initial_values_are_keras_own():
    torch.manual_seed(0)
    layer = build_a(NoOptions(), MNIST)[6]  # 6400 to 128
    bound = math.sqrt(6 / (6400 + 128))
    assert 0.99 * bound < float(layer.weight.detach().abs().max()) <= bound
    assert torch.equal(layer.bias, torch.zeros(128))


# TensorFlow's padding


@pytest.mark.parametrize(
    ("size", "kernel", "stride", "dilation", "expected"),
    [
        (28, 7, 1, 2, (6, 6)),
        (32, 2, 1, 1, (0, 1)),
        (32, 2, 1, 2, (1, 1)),
        (32, 3, 2, 1, (0, 1)),
        (33, 3, 2, 1, (1, 1)),
        (14, 7, 2, 1, (2, 3)),
        (4, 1, 2, 1, (0, 0)),
    ],
)
def test_same_padding(size, kernel, stride, dilation, expected):
    assert same_padding(size, kernel, stride, dilation) == expected


def ones(layer):
    nn.init.ones_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def test_two_by_two_convolution_pads_right_and_bottom():
    given = torch.tensor([[1.0, 2.0], [3.0, 4.0]]).view(1, 1, 2, 2)
    assert ones(SameConv2d(1, 1, 2))(given).flatten().tolist() == [10, 6, 7, 4]


def test_strided_convolution_of_an_even_size_starts_at_the_first_pixel():
    given = torch.arange(1.0, 5.0).expand(1, 1, 4, 4)
    # columns 1+2+3 and 3+4+0, over three rows and then two
    assert ones(SameConv2d(1, 1, 3, stride=2))(given).flatten().tolist() == [18, 21, 12, 14]


def test_two_by_two_transposed_convolution_drops_the_last_row_and_column():
    given = torch.tensor([[1.0, 2.0], [3.0, 4.0]]).view(1, 1, 2, 2)
    # in full: 1 3 2 / 4 10 6 / 3 7 4
    assert ones(SameConvTranspose2d(1, 1, 2))(given).flatten().tolist() == [1, 3, 4, 10]


def test_seven_by_seven_transposed_convolution_crops_two_before_and_three_after():
    layer = ones(SameConvTranspose2d(1, 1, 7, stride=2))
    with torch.no_grad():
        layer.weight.copy_(torch.arange(7.0).expand(1, 1, 7, 7))
    one = torch.ones(1, 1, 1, 1)
    assert layer(one)[0, 0, 0].tolist() == [2, 3]  # entries 0 1 [2 3] 4 5 6


@pytest.mark.parametrize(("kernel", "stride", "size"), [(7, 2, 14), (2, 1, 5), (3, 1, 6), (3, 2, 8)])
def test_transposed_is_the_gradient_of_the_convolution(kernel, stride, size):
    torch.manual_seed(0)
    down, up = SameConv2d(2, 3, kernel, stride).double(), SameConvTranspose2d(3, 2, kernel, stride).double()
    with torch.no_grad():
        up.weight.copy_(down.weight)
        up.bias.zero_()
    given = torch.rand(1, 2, size, size, dtype=torch.float64, requires_grad=True)
    out = down(given)
    outer = torch.rand_like(out)
    (gradient,) = torch.autograd.grad(out, given, outer)
    torch.testing.assert_close(up(outer), gradient)


def test_even_kernels_warn_of_nothing():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert SameConv2d(1, 1, 2)(torch.rand(1, 1, 4, 4)).shape == (1, 1, 4, 4)


# Loss


def test_reconstruction_cost_is_a_sum_over_pixels_of_means_over_channels():
    x_hat = torch.tensor([0.5, 0.25]).view(1, 2, 1, 1).expand(3, 2, 2, 2)  # three images, two channels, four pixels
    target = torch.tensor([1.0, 0.0]).view(1, 2, 1, 1).expand(3, 2, 2, 2)
    expected = 4 * (-math.log(0.5) - math.log(0.75)) / 2
    assert float(reconstruction_cost(torch.logit(x_hat), target)) == pytest.approx(expected, rel=1e-6)


def test_reconstruction_cost_is_that_of_probabilities():
    logits, target = torch.randn(2, 1, 3, 3).double(), torch.rand(2, 1, 3, 3).double()
    by_hand = F.binary_cross_entropy(logits.sigmoid(), target, reduction="none").sum() / 2
    torch.testing.assert_close(reconstruction_cost(logits, target), by_hand)


def test_both_divergences():
    m, s = torch.tensor([[0.0, 2.0]]), torch.tensor([[1.0, 3.0]])
    standard = (math.e - 1 - 1 + 4 + math.e**3 - 3 - 1) / 2
    authors = (math.e - math.log(math.e - 1) + 4 + math.e**3 - math.log(math.e**3 - 1)) / 2
    assert float(divergence(m, s, "standard")) == pytest.approx(standard, rel=1e-6)
    assert float(divergence(m, s, "authors")) == pytest.approx(authors, rel=1e-6)


def test_standard_divergence_is_least_at_zero_and_the_authors_own_is_not():
    s = torch.linspace(0.01, 3, 300)
    standard, authors = (
        torch.stack([divergence(torch.zeros(1), at, kind) for at in s]) for kind in ("standard", "authors")
    )
    assert int(standard.argmin()) == 0
    assert float(s[authors.argmin()]) == pytest.approx(math.log(2), abs=0.02)  # where e^s - 1 = 1
    assert float(divergence(torch.zeros(1), torch.zeros(1), "standard")) == 0


@pytest.mark.parametrize("kind", ["standard", "authors"])
@pytest.mark.parametrize("value", [0.0, 1e-9, 20.0])
def test_divergence_stays_finite(kind, value):
    s = torch.tensor([value], requires_grad=True)
    result = divergence(torch.zeros(1), s, kind)
    (gradient,) = torch.autograd.grad(result, s)
    assert torch.isfinite(result) and torch.isfinite(gradient).all()


def test_heads_and_the_draw_of_z():
    network, _ = small()
    stem = network.stem(torch.rand(3, 1, 28, 28).double())
    seen = []
    network.start.register_forward_hook(lambda module, given, answer: seen.append(given[0]))
    labels, e = torch.tensor([1, 2, 3]), torch.randn(3, 6).double()
    made = network.reconstruct(stem, labels, e)
    assert (made.m >= 0).all() and (made.s > 0).all()  # ReLU and softplus
    torch.testing.assert_close(seen[0], made.m + torch.exp(made.s / 2) * e)


# Inference


def test_first_layer_is_split_into_image_and_label():
    torch.manual_seed(0)
    layer = LabelledLinear(5, 3, 4).double()
    features, labels = torch.randn(6, 5).double(), torch.tensor([0, 1, 2, 0, 1, 2])
    whole = layer.linear(torch.cat([features, F.one_hot(labels, 3).double()], 1))
    torch.testing.assert_close(layer(features, labels), whole)
    torch.testing.assert_close(layer.labelled(layer.unlabelled(features), labels), whole)


@pytest.mark.parametrize("task", [MNIST, CIFAR])
def test_one_batched_pass_equals_ten_naive_ones(task):
    network, _ = small(task)
    batch = images(task, 3).double()
    noise = torch.randn(3, 10, 6).double()
    naive = []
    for label in range(10):
        labels = torch.full((3,), label)
        one_hot = F.one_hot(labels, 10).double()
        hidden = network.rest(network.first.linear(torch.cat([network.trunk(batch).flatten(1), one_hot], 1)))
        m, s = F.relu(network.m(hidden)), F.softplus(network.s(hidden))
        z = torch.cat([m + (s / 2).exp() * noise[:, label], one_hot], 1)
        naive.append(network.decoder(network.start.linear(z)).sigmoid())
    torch.testing.assert_close(network.reconstruct_all(network.stem(batch), noise), torch.stack(naive, 1))


@pytest.mark.parametrize("gradients", [True, False])
def test_trunk_and_big_layer_run_once_an_image(gradients):
    network, config = small()
    sizes, stems = [], []
    network.trunk.register_forward_hook(lambda module, given, answer: sizes.append(len(answer)))
    unlabelled = network.first.unlabelled
    network.first.unlabelled = lambda features: stems.append(len(features)) or unlabelled(features)
    with torch.set_grad_enabled(gradients):
        closest(network, images(MNIST, 3).double(), config)
    assert sizes == [3] and stems == [3]


@pytest.mark.parametrize("score", ["mean_pixel_rms", "rmse"])
@pytest.mark.parametrize("gradients", [True, False])
def test_the_reconstruction_with_the_least_error_is_kept(gradients, score):
    network, config = small(z_noise=0, score=score)
    with torch.no_grad():  # labels that matter
        network.start.linear.weight[:, 6:] = 3 * torch.randn(8, 10).double()
        network.m.bias.fill_(1.0)
    batch = images(MNIST, 5).double()
    every = network.reconstruct_all(network.stem(batch), torch.zeros(5, 10, 6).double())
    errors = torch.stack([reconstruction_error(batch, every[:, label], score) for label in range(10)], 1)
    with torch.set_grad_enabled(gradients):
        kept = closest(network, batch, config)
    torch.testing.assert_close(reconstruction_error(batch, kept, score), errors.min(1).values)
    torch.testing.assert_close(kept, every[torch.arange(5), errors.argmin(1)])


def test_gradient_is_that_of_gathering_from_all():
    network, config = small(z_noise=0.3)
    batch = images(MNIST, 4).double()

    def gathered(at):
        noise = 0.3 * draw()
        every = network.reconstruct_all(network.stem(at), noise)
        best = reconstruction_error(at[:, None], every, config.score).argmin(1)
        return every[torch.arange(4), best]

    def draw():
        from defend.randomness import normal_like

        return normal_like(torch.zeros(4, 10, 6).double())

    weights, gradients = torch.randn_like(batch), []
    for function in (gathered, lambda at: closest(network, at, config)):
        point = batch.clone().requires_grad_()
        with keyed(torch.arange(4), seed=0, stream="test"):
            (gradient,) = torch.autograd.grad((function(point) * weights).sum(), point)
        gradients.append(gradient)
    torch.testing.assert_close(*gradients)


# Score and threshold


def test_mean_pixel_rms_is_the_mean_absolute_error_on_grey():
    given = torch.tensor([0.1, 0.5, 0.9, 0.0]).view(1, 1, 2, 2)
    restored = torch.tensor([0.2, 0.5, 0.5, 0.3]).view(1, 1, 2, 2)
    assert reconstruction_error(given, restored, "mean_pixel_rms").tolist() == pytest.approx([0.8 / 4])
    assert reconstruction_error(given, restored, "rmse").tolist() == pytest.approx([math.sqrt(0.26 / 4)])


def test_mean_pixel_rms_takes_the_root_over_channels_first():
    restored = torch.tensor([[0.3, 0.0], [0.4, 0.0], [0.0, 0.6]]).view(1, 3, 1, 2)
    expected = (math.sqrt(0.25 / 3) + math.sqrt(0.36 / 3)) / 2
    assert reconstruction_error(torch.zeros(1, 3, 1, 2), restored, "mean_pixel_rms").tolist() == pytest.approx(
        [expected]
    )
    assert reconstruction_error(torch.zeros(1, 3, 1, 2), restored, "rmse").tolist() == pytest.approx(
        [math.sqrt(0.61 / 6)]
    )


@pytest.mark.parametrize("score", ["mean_pixel_rms", "rmse"])
def test_no_error_has_a_slope_of_zero(score):
    given = torch.rand(2, 3, 4, 4, requires_grad=True)
    error = reconstruction_error(given, given.detach(), score)
    (gradient,) = torch.autograd.grad(error.sum(), given)
    assert torch.equal(gradient, torch.zeros_like(gradient))


@pytest.mark.parametrize("reuse", [True, False])
@pytest.mark.parametrize("score", ["mean_pixel_rms", "rmse"])
@pytest.mark.parametrize("task", [MNIST, CIFAR])
def test_gradient_of_the_score_agrees_with_finite_differences(task, score, reuse):
    network, config = small(task, score=score)
    purifier, detector = PuvaePurifier(network, config), PuvaeDetector(network, config, reuse=reuse)
    start = images(task, 3).double()

    def scores(at):
        with keyed(torch.arange(3), seed=0, stream="test"):
            return detector(at, purifier(at) if reuse else at)

    point = start.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(scores(point).sum(), point)
    for _ in range(3):
        wander = 1e-7 * torch.randn_like(start)
        with torch.no_grad():
            numeric = (scores(start + wander) - scores(start - wander)) / 2
        assert (gradient * wander).flatten(1).sum(1).tolist() == pytest.approx(numeric.tolist(), rel=1e-4, abs=1e-13)


def test_the_grid_takes_its_first_threshold_that_keeps_to_the_rate():
    scores = torch.tensor([0.01] * 96 + [0.062, 0.07, 0.071, 0.3])
    assert grid_threshold(scores, 0.04) == 0.05  # four of a hundred may go: .062 and the rest do
    assert grid_threshold(scores, 0.03) == 0.07
    assert grid_threshold(scores, 0.01) == 0.08
    with pytest.raises(ConfigError, match="quantile"):
        grid_threshold(scores, 0.001)


def test_a_score_on_the_grid_counts_as_rejected():
    assert grid_threshold(torch.tensor([0.05, 0.01]), 0.0) == 0.06
