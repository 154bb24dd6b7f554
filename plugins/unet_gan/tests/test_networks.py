"""The networks are the paper's, as resolved: counts, shapes, and every part against its definition."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from defend.options import make
from defend.plugins import registry
from defend.stages import Task
from defend_unet_gan.config import UnetGanOptions
from defend_unet_gan.model import Attention, AttentionGate, Discriminator, Generator, pad
from defend_unet_gan.purifier import build

GREY, COLOUR = Task("digits", 1, 28, 28, 10), Task("cifar10", 3, 32, 32, 10)
VGG13 = 9_416_010  # with one linear layer, on ten classes


def parameters(module):
    return sum(parameter.numel() for parameter in module.parameters())


def shapes(layers, module, images):
    seen = []
    hooks = [layer.register_forward_hook(lambda *call: seen.append(tuple(call[2].shape[1:]))) for layer in layers]
    module(images)
    for hook in hooks:
        hook.remove()
    return seen


def on_meta(network, *arguments, **options):
    with torch.device("meta"):
        return network(*arguments, **options).eval()


@pytest.mark.parametrize(("kernel", "exact", "rounded"), [(1, 4_001_163, 4.00), (3, 9_506_187, 9.51)])
def test_generator_has_the_sheet_s_parameters(kernel, exact, rounded):
    count = parameters(on_meta(Generator, 3, 64, up_kernel=kernel))
    assert count == exact
    assert round(count / 1e6, 2) == rounded
    assert (count < VGG13) == (kernel == 1)  # the paper: fewer than VGG-13


def test_discriminator_has_the_sheet_s_parameters():
    count = parameters(on_meta(Discriminator, 3))
    assert count == 661_953
    assert round(count / 1e6, 2) == 0.66


def test_the_published_generator_is_what_colour_images_get():
    found = registry().find("purifier", "unet_gan")
    with torch.device("meta"):
        colour, grey = (found.spec.resolve(found.spec.build)(found.config({}), task) for task in (COLOUR, GREY))
    assert parameters(colour) == 4_001_163
    assert parameters(grey) == 251_893


def test_generator_layers():
    network, images = on_meta(Generator, 3), torch.rand(2, 3, 32, 32, device="meta")
    assert shapes(network.encoder, network, images) == [(64, 32, 32), (128, 16, 16), (256, 8, 8), (512, 4, 4)]
    decoded = [(256, 8, 8), (128, 16, 16), (64, 32, 32)]
    for layers in (network.up, network.gates, network.decoder, network.attention):
        assert shapes(layers, network, images) == decoded
    assert shapes([network.own, network.cross, network.last], network, images) == [(64, 32, 32)] * 2 + [(3, 32, 32)]
    kinds = [type(layer).__name__ for layer in network.up[0]]
    assert kinds == ["Conv2d", "PixelShuffle", "BatchNorm2d", "PReLU"]
    assert [type(layer).__name__ for layer in network.encoder[0]] == ["Conv2d", "BatchNorm2d", "PReLU"]


def test_discriminator_layers():
    network = on_meta(Discriminator, 3)
    convolutions = [layer for layer in network.layers if isinstance(layer, torch.nn.Conv2d)]
    seen = shapes(convolutions, network, torch.rand(2, 3, 32, 32, device="meta"))
    assert seen == [(64, 16, 16), (128, 8, 8), (256, 4, 4), (1, 4, 4)]
    assert [layer.kernel_size for layer in convolutions] == [(4, 4)] * 3 + [(3, 3)]
    assert [type(layer).__name__ for layer in network.layers[:5]] == [
        "Conv2d",
        "LeakyReLU",
        "Conv2d",
        "BatchNorm2d",
        "LeakyReLU",
    ]
    assert not isinstance(network.layers[-1], torch.nn.Sigmoid)


@pytest.mark.parametrize("size", [(28, 28), (32, 32), (33, 29), (8, 8), (5, 3)])
def test_every_size_comes_back(size):
    network = Generator(1, 8).eval()
    assert network(torch.rand(1, 1, *size)).shape == (1, 1, *size)


def test_padding_repeats_the_border_evenly():
    images = torch.arange(28.0).expand(1, 1, 28, 28)
    padded = pad(images, 8)
    assert padded.shape == (1, 1, 32, 32)
    assert padded[0, 0, 0].tolist() == [0, 0, *range(28), 27, 27]
    assert torch.equal(padded[..., 2:30, 2:30], images)
    assert pad(padded, 8) is padded


def test_crop_undoes_the_padding():
    network = Generator(1, 8).eval()
    seen = []
    network.last.register_forward_hook(lambda module, given, answer: seen.append(answer))
    painted = network(torch.rand(1, 1, 28, 27))
    torch.testing.assert_close(painted, torch.tanh(seen[0])[..., 2:30, 2:29])


def test_attention_is_its_definition():
    torch.manual_seed(0)
    layer, features = Attention(16, 1).double(), torch.randn(2, 16, 5, 4, dtype=torch.float64)
    layer.gain.data.fill_(0.7)
    source = torch.randn(2, 16, 3, 3, dtype=torch.float64)
    q, k, v = layer.query(features).flatten(2), layer.key(source).flatten(2), layer.value(source).flatten(2)
    assert (q.shape[1], k.shape[1], v.shape[1]) == (2, 2, 16)
    weights = torch.einsum("bci,bcj->bij", q, k).softmax(2)  # no scale
    expected = features + 0.7 * torch.einsum("bij,bcj->bci", weights, v).view_as(features)
    torch.testing.assert_close(layer(features, source), expected)


def test_attention_by_hand():
    # two places, one channel that counts: queries 0 and ln 3 against keys 0 and 1 give weights 1/2, 1/2 and 1/4, 3/4
    layer = Attention(8, 1)
    for part in (layer.query, layer.key, layer.value):
        torch.nn.init.zeros_(part.weight)
        torch.nn.init.zeros_(part.bias)
    layer.gain.data.fill_(1.0)
    layer.query.weight.data[0, 0] = torch.log(torch.tensor(3.0))
    layer.key.weight.data[0, 0] = 1.0
    layer.value.weight.data[0, 0] = 1.0
    features = torch.zeros(1, 8, 1, 2)
    features[0, 0, 0, 1] = 1.0
    torch.testing.assert_close(layer(features, features)[0, 0, 0], torch.tensor([0.5, 1.75]))


def test_attention_starts_as_the_identity():
    layer, features = Attention(16, 1), torch.randn(2, 16, 4, 4)
    assert torch.equal(layer(features, features), features)


def test_pooled_keys_are_the_largest_of_four():
    torch.manual_seed(0)
    layer, features = Attention(8, 2), torch.randn(1, 8, 4, 4)
    layer.gain.data.fill_(1.0)
    q = layer.query(features).flatten(2)
    k, v = (torch.nn.functional.max_pool2d(part(features), 2).flatten(2) for part in (layer.key, layer.value))
    assert k.shape[-1] == 4
    weights = torch.einsum("bci,bcj->bij", q, k).softmax(2)
    expected = features + torch.einsum("bij,bcj->bci", weights, v).view_as(features)
    torch.testing.assert_close(layer(features, features), expected)


def test_second_derivatives_are_there_for_whoever_asks_for_them():
    torch.manual_seed(0)
    layer = Attention(8, 1).double()
    layer.gain.data.fill_(1.0)
    features = torch.randn(1, 8, 2, 2, dtype=torch.float64, requires_grad=True)
    with sdpa_kernel(SDPBackend.MATH):
        assert torch.autograd.gradgradcheck(lambda at: layer(at, at), features)


@pytest.mark.parametrize("stride", [1, 2])
def test_attention_is_what_the_fused_kernel_takes(stride):
    attend, features = Attention(16, stride), torch.rand(2, 16, 8, 8, requires_grad=True)
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):  # raises where it cannot be had
        attend(features, features).sum().backward()
    assert features.grad is not None and features.grad.isfinite().all()


def test_generator_s_gradient_is_exact():
    torch.manual_seed(0)
    network = Generator(1, 8).double().eval()
    for layer in (*network.attention, network.own, network.cross):
        layer.gain.data.fill_(0.5)
    images = torch.rand(1, 1, 12, 12, dtype=torch.float64, requires_grad=True)
    weights, wander = torch.randn(2, 1, 1, 12, 12, dtype=torch.float64)
    (gradient,) = torch.autograd.grad((network(images) * weights).sum(), images)
    with torch.no_grad():
        ahead, behind = (float((network(images + s * 1e-7 * wander) * weights).sum()) for s in (1, -1))
    assert float((gradient * wander).sum()) == pytest.approx((ahead - behind) / 2e-7, rel=1e-4)


def test_gate_by_hand():
    # unit weights, BN at its start in eval mode (near identity): sigmoid(relu(g + x)) times x
    gate = AttentionGate(2).eval()
    for part in (gate.signal[0], gate.skip[0], gate.weight[0]):
        torch.nn.init.ones_(part.weight)
        torch.nn.init.zeros_(part.bias)
    skip, signal = torch.full((1, 2, 1, 1), 0.5), torch.full((1, 2, 1, 1), 0.25)
    expected = 0.5 * torch.sigmoid(torch.tensor(1.5))
    torch.testing.assert_close(gate(skip, signal).flatten(), expected.expand(2), atol=1e-5, rtol=0)


def test_cross_attention_looks_at_the_first_encoder_stage():
    network, seen = Generator(1, 8).eval(), {}
    network.encoder[0].register_forward_hook(lambda module, given, answer: seen.update(first=answer))
    network.cross.register_forward_pre_hook(lambda module, given: seen.update(source=given[1]))
    network(torch.rand(1, 1, 16, 16))
    assert seen["source"] is seen["first"]


class Painter(torch.nn.Module):
    def __init__(self, value):
        super().__init__()
        self.value = value

    def forward(self, images):
        return torch.full_like(images, self.value)


def purifier(painted, **options):
    module = build(make(UnetGanOptions, {"width": 8, **options}, "test"), GREY)
    module.generator = Painter(painted)
    return module


@pytest.mark.parametrize(("painted", "expected"), [(-1.0, 0.0), (0.0, 0.5), (0.5, 0.75), (1.0, 1.0)])
def test_image_mode_maps_tanh_s_range_to_the_image_s(painted, expected):
    assert purifier(painted)(torch.rand(1, 1, 4, 4)).unique().tolist() == [expected]


def test_noise_mode_adds_up_to_e_max_and_clips():
    images = torch.tensor([0.0, 0.5, 1.0]).view(1, 1, 1, 3)
    up, down = purifier(1.0, mode="noise"), purifier(-1.0, mode="noise")
    torch.testing.assert_close(up(images).flatten(), torch.tensor([16 / 255, 0.5 + 16 / 255, 1.0]))
    torch.testing.assert_close(down(images).flatten(), torch.tensor([0.0, 0.5 - 16 / 255, 1 - 16 / 255]))
    half = purifier(-0.5, mode="noise", noise_scale="0.2")
    torch.testing.assert_close(half(images).flatten(), torch.tensor([0.0, 0.4, 0.9]))


def test_noise_range_goes_with_the_weights():
    first, second = purifier(1.0, mode="noise"), purifier(1.0, mode="noise")
    first.noise_range.fill_(0.25)
    second.load_state_dict(first.state_dict())
    assert float(second(torch.zeros(1, 1, 1, 1))) == 0.25
