"""The autoencoder and the two victims, layer by layer, at the paper's size."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from defend.errors import ConfigError
from defend.plugins import registry
from defend.stages import Task
from defend.victims.training import NormalisedVictim
from defend_dae_finetune.model import Autoencoder, restoration_error
from defend_dae_finetune.networks import PreActivatedUnit, SqueezeExcitation, Unit, resnet20, se_preresnet56

CIFAR = Task("cifar10", 3, 32, 32, 10, (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))


def parameters(module):
    return sum(parameter.numel() for parameter in module.parameters())


def test_autoencoder_is_table_1():
    with torch.device("meta"):
        network = Autoencoder(3)
    learned = [layer for layer in network.layers if parameters(layer)]
    assert [parameters(layer) for layer in learned] == [448, 1160, 584, 1168, 435]
    assert parameters(network) == 3795
    seen = []
    for layer in learned:
        layer.register_forward_hook(lambda module, given, answer: seen.append(tuple(answer.shape[1:])))
    network(torch.empty(1, 3, 32, 32, device="meta"))
    assert seen == [(16, 16, 16), (8, 8, 8), (8, 16, 16), (16, 32, 32), (3, 32, 32)]


def test_autoencoder_activations():
    kinds = [type(layer) for layer in Autoencoder(3).layers]
    assert kinds[1::2] == [nn.ReLU] * 4 + [nn.Sigmoid]
    assert kinds[::2] == [nn.Conv2d, nn.Conv2d, nn.ConvTranspose2d, nn.ConvTranspose2d, nn.Conv2d]


def test_other_widths_and_depths_mirror_the_way_down():
    network = Autoencoder(1, (12, 6, 3)).eval()
    learned = [layer for layer in network.layers if parameters(layer)]
    assert [layer.out_channels for layer in learned] == [12, 6, 3, 3, 6, 12, 1]
    assert network(torch.rand(2, 1, 28, 30)).shape == (2, 1, 28, 30)


def test_more_halvings_than_the_images_have_are_refused():
    found = registry().find("purifier", "dae")
    with pytest.raises(ConfigError, match="images of 32x32 take 1 to 5"):
        found.spec.resolve(found.spec.build)(found.config({"widths": "8,8,8,8,8,8"}), CIFAR)


def test_autoencoder_starts_as_keras_does():
    network = Autoencoder(3)
    weights, biases = network.layers[2].weight.detach(), network.layers[2].bias
    bound = (6 / (9 * (16 + 8))) ** 0.5  # Glorot: fan in 9*16, fan out 9*8
    assert 0.95 * bound < float(weights.abs().max()) <= bound
    assert not biases.any()


@pytest.mark.parametrize(("height", "width"), [(29, 32), (30, 31), (33, 33), (3, 5)])
def test_other_sizes_are_padded_by_their_edge_and_cropped(height, width):
    torch.manual_seed(0)
    network, images = Autoencoder(3).eval(), torch.rand(2, 3, height, width)
    rows = torch.arange(-(-height // 4) * 4).clamp_max(height - 1)
    columns = torch.arange(-(-width // 4) * 4).clamp_max(width - 1)
    padded = images[:, :, rows][:, :, :, columns]
    torch.testing.assert_close(network(images), network.layers(padded)[..., :height, :width])


def test_restoration_error_is_the_mean_over_an_images_pixels():
    restored = torch.tensor([[[[0.5, 0.1]], [[0.0, 0.2]]], [[[1.0, 0.0]], [[0.0, 0.0]]]])
    clean = torch.tensor([[[[0.3, 0.1]], [[0.2, 0.0]]], [[[1.0, 0.0]], [[0.0, 0.0]]]])
    torch.testing.assert_close(restoration_error(restored, clean), torch.tensor([0.03, 0.0]))


@pytest.mark.parametrize(("make", "units", "count"), [(resnet20, 9, 272_474), (se_preresnet56, 27, 862_601)])
def test_victims_have_the_published_size(make, units, count):
    with torch.device("meta"):
        network = make(3, 10)
    assert parameters(network) == count
    seen = []
    for layer in (network.stem, *network.units):
        layer.register_forward_hook(lambda module, given, answer: seen.append(tuple(answer.shape[1:])))
    assert network(torch.empty(2, 3, 32, 32, device="meta")).shape == (2, 10)
    each = units // 3
    assert seen == [(16, 32, 32)] * (each + 1) + [(32, 16, 16)] * each + [(64, 8, 8)] * each


@pytest.mark.parametrize("name", ["resnet20", "se_preresnet56"])
def test_victims_normalise_by_the_tasks_statistics(name):
    found = registry().find("victim", name)
    victim = found.spec.resolve(found.spec.build)(found.config({}), CIFAR).eval()
    assert isinstance(victim, NormalisedVictim)
    images = torch.rand(2, 3, 32, 32)
    given = []
    victim.network.register_forward_pre_hook(lambda module, inputs: given.append(inputs[0]))
    victim(images)
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (CIFAR.mean, CIFAR.std))
    torch.testing.assert_close(given[0], (images - mean) / std)


def test_timm_has_no_model_of_these_names():
    for name in ("resnet20", "se_preresnet56"):
        assert registry().find("victim", name).member is None
        assert registry().find("victim", name).entry.origin == "defend-dae-finetune"


def features(channels, seed=0):
    return torch.randn(2, channels, 6, 6, generator=torch.Generator().manual_seed(seed))


def test_unit_adds_before_its_last_relu():
    unit, given = Unit(16, 16, 1).eval(), features(16)
    nn.init.zeros_(unit.second.weight)  # then the branch is zero and the unit a ReLU of its input
    torch.testing.assert_close(unit(given), F.relu(given))


def test_unit_skips_through_a_normalised_convolution_where_the_shape_changes():
    unit, given = Unit(16, 32, 2).eval(), features(16)
    nn.init.zeros_(unit.second.weight)
    torch.testing.assert_close(unit(given), F.relu(unit.skip[1](F.conv2d(given, unit.skip[0].weight, stride=2))))
    assert unit(given).shape == (2, 32, 3, 3)


def test_pre_activated_unit_leaves_its_sum_bare():
    unit, given = PreActivatedUnit(16, 16, 1).eval(), features(16)
    nn.init.zeros_(unit.second.weight)
    torch.testing.assert_close(unit(given), given)
    wider = PreActivatedUnit(16, 32, 2).eval()
    nn.init.zeros_(wider.second.weight)
    activated = F.relu(wider.first_norm(given))
    torch.testing.assert_close(wider(given), F.conv2d(activated, wider.skip.weight, stride=2))


def test_pre_activated_unit_activates_before_each_convolution():
    unit, given = PreActivatedUnit(16, 16, 1).eval(), []
    for layer in (unit.first, unit.second):
        layer.register_forward_pre_hook(lambda module, inputs: given.append(inputs[0]))
    unit(features(16))
    assert all((each >= 0).all() for each in given)
    assert all((each == 0).any() for each in given)


def test_gate_by_hand():
    gate = SqueezeExcitation(16)  # 16 channels squeeze to one
    nn.init.constant_(gate.squeeze.weight, 0.25)
    nn.init.constant_(gate.squeeze.bias, -1.0)
    nn.init.constant_(gate.excite.weight, 2.0)
    nn.init.constant_(gate.excite.bias, 0.5)
    given = torch.full((1, 16, 2, 2), 0.5)  # means 0.5: 16*0.25*0.5 - 1 = 1, then 2*1 + 0.5
    torch.testing.assert_close(gate(given), given * torch.sigmoid(torch.tensor(2.5)))
    low = torch.full((1, 16, 2, 2), 0.1)  # 0.4 - 1 < 0: ReLU closes it
    torch.testing.assert_close(gate(low), low * torch.sigmoid(torch.tensor(0.5)))


@pytest.mark.parametrize("name", ["resnet20", "se_preresnet56"])
def test_victims_take_another_normalisation(name):
    found = registry().find("victim", name)
    victim = found.spec.resolve(found.spec.build)(found.config({"mean": "none", "std": "none"}), CIFAR)
    assert not victim.mean.any()
    assert bool((victim.std == 1).all())
