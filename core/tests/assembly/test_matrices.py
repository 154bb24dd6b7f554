"""Tiny maps as one matrix product: the same function and gradient, only where it pays, and nothing left behind."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from defend.assembly.matrices import WholeMap, find_small_maps, multiply_small_maps
from defend.assembly.prepare import prepare
from defend.defence import Defence


def frozen(module):
    return module.eval().requires_grad_(False)


def late():
    """Return a network whose later convolutions, "2" and "4", see maps of 2x2, and images for it."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 4, 3, stride=4, padding=1), nn.ReLU()]
    for _ in range(2):
        layers += [nn.Conv2d(4, 4, 3, padding=1), nn.ReLU()]
    return frozen(nn.Sequential(*layers, nn.Flatten(), nn.Linear(16, 3))), torch.rand(3, 1, 8, 8)


@pytest.mark.parametrize("size", [(1, 1), (2, 2), (1, 4), (3, 2), (2, 5)])
@pytest.mark.parametrize(
    "settings",
    [
        {"padding": 1},
        {"padding": 1, "stride": 2},
        {"padding": (1, 2), "stride": (2, 1), "bias": False},
        {"padding": 2, "dilation": 2},
        {"padding": (2, 1), "kernel_size": (5, 3)},
    ],
)
def test_it_is_the_layer(size, settings):
    torch.manual_seed(1)
    layer = frozen(nn.Conv2d(3, 5, **{"kernel_size": 3} | settings).double())
    maps = torch.randn(4, 3, *size, dtype=torch.float64, requires_grad=True)
    expected, made = layer(maps), WholeMap(layer, size)(maps)
    weights = torch.randn_like(expected)
    slopes = [torch.autograd.grad((weights * each).sum(), maps)[0] for each in (expected, made)]
    torch.testing.assert_close(made, expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(slopes[1], slopes[0], rtol=0, atol=1e-12)
    assert made.is_contiguous(memory_format=torch.channels_last)


def test_maps_of_another_size_or_type_are_convolved():
    layer = frozen(nn.Conv2d(3, 5, 3, padding=1))
    whole = WholeMap(layer, (2, 2))
    for maps in (torch.rand(2, 3, 6, 7), torch.rand(1, 3, 2, 3)):
        assert torch.equal(whole(maps), layer(maps))
    exact = copy.deepcopy(whole).double()
    maps = torch.rand(2, 3, 2, 2).double()
    assert torch.equal(exact(maps), copy.deepcopy(layer).double()(maps))


def test_only_layers_that_meet_small_maps_are_found():
    network, images = late()
    assert find_small_maps(network, images) == {"2": (2, 2), "4": (2, 2)}
    assert find_small_maps(network[:5], torch.rand(1, 1, 16, 16)) == {}  # 4x4 has more pixels than half the taps
    assert not any(layer._forward_pre_hooks for layer in network.modules())


class Twice(nn.Module):
    """One layer on maps of two sizes."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Conv2d(1, 1, 3, padding=1)

    def forward(self, images):
        return self.layer(self.layer(images)[..., ::2, ::2])


class Scaled(nn.Conv2d):
    """More than a convolution."""

    def forward(self, images):
        return 2 * super().forward(images)


@pytest.mark.parametrize(
    "module",
    [
        Twice(),
        nn.Sequential(Scaled(1, 1, 3, padding=1)),
        nn.Sequential(nn.Conv2d(2, 2, 3, padding=1, groups=2)),
        nn.Sequential(nn.Conv2d(1, 1, 3, padding="same")),
        nn.Sequential(nn.Conv2d(1, 1, 3, padding=1, padding_mode="reflect")),
        nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Conv2d(1, 1, 3, padding=1))),
        nn.Sequential(*[nn.Conv2d(1, 1, 3, padding=1)] * 2),
    ],
)
def test_what_is_no_plain_layer_of_one_size_is_left(module):
    channels = 2 if getattr(next(iter(module.children())), "groups", 1) == 2 else 1
    assert find_small_maps(frozen(module), torch.rand(1, channels, 2, 2)) == {}


def test_a_prepared_victim_answers_as_the_victim():
    network, images = late()
    ready, done = prepare(Defence(network), "auto", images)
    assert sum(isinstance(layer, WholeMap) for layer in ready.modules()) == 2 and "left_out" not in done
    assert not any(isinstance(layer, WholeMap) for layer in network.modules())
    exact, _ = prepare(Defence(network), "exact", images)
    assert not any(isinstance(layer, WholeMap) for layer in exact.modules())
    torch.testing.assert_close(ready(images), network(images), rtol=0, atol=1e-5)


def test_what_answers_otherwise_is_left_out(monkeypatch):
    network, images = late()
    monkeypatch.setattr(F, "linear", lambda maps, matrix, bias=None: maps @ matrix.T)  # forgets the bias
    ready, done = prepare(Defence(network[:-1]), "auto", images)
    assert not any(isinstance(layer, WholeMap) for layer in ready.modules())
    assert "the output moved" in done["left_out"]


def test_a_small_part_of_the_layers_is_replaced_by_name():
    network, images = late()
    before = network(images)
    multiply_small_maps(network, {"4": (2, 2)})
    assert isinstance(network[4], WholeMap) and type(network[2]) is nn.Conv2d
    torch.testing.assert_close(network(images), before, rtol=0, atol=1e-5)
