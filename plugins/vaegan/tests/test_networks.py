"""Networks of the published size: parameters, shapes, and the margin around images of other sizes."""

import pytest
import torch
from torch import nn

from defend.errors import ContractError
from defend_vaegan.model import VaeGan, padded_size


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())


def layers(module):
    kinds = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)
    return [layer for layer in module.modules() if isinstance(layer, kinds)]


def outputs(module, *given):
    seen = []
    for layer in layers(module):
        layer.register_forward_hook(lambda _, __, answer: seen.append(tuple(answer.shape[1:])))
    module.eval()(*given)
    return seen


@pytest.fixture
def published():
    with torch.device("meta"):
        return VaeGan(1, 28, 28, 128)


def test_parameter_counts(published):
    assert count(published.encoder) == 5_485_248
    assert count(published.decoder) == 2_479_585
    assert count(published.discriminator) == 4_046_273
    assert count(published) == 12_011_106


def test_encoder_layers(published):
    images = torch.empty(2, 1, 32, 32, device="meta")
    shapes = [(64, 16, 16), (128, 8, 8), (256, 4, 4), (1024,), (128,), (128,)]
    assert outputs(published.encoder, images) == shapes
    assert [tuple(answer.shape) for answer in published.encoder(images)] == [(2, 128), (2, 128)]


def test_decoder_layers(published):
    shapes = [(4096,), (192, 8, 8), (128, 16, 16), (32, 32, 32), (1, 32, 32)]
    assert outputs(published.decoder, torch.empty(2, 128, device="meta")) == shapes


def test_discriminator_layers(published):
    images = torch.empty(2, 1, 32, 32, device="meta")
    shapes = [(32, 32, 32), (128, 16, 16), (192, 8, 8), (256, 4, 4), (512,), (1,)]
    assert outputs(published.discriminator, images) == shapes
    logits, features = published.discriminator(images)
    assert (tuple(logits.shape), tuple(features.shape)) == ((2,), (2, 192, 8, 8))


def test_biases_only_where_no_batch_norm_follows(published):
    biased = [layer for layer in layers(published) if layer.bias is not None]
    free = [published.encoder.mu, published.encoder.logvar, layers(published.decoder)[-1]]
    free += [layers(published.discriminator)[0], layers(published.discriminator)[-1]]
    assert {id(layer) for layer in biased} == {id(layer) for layer in free}
    norms = [layer for layer in published.modules() if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d)]
    assert len(norms) == len(layers(published)) - len(free)
    assert all(layer.kernel_size == (5, 5) for layer in layers(published) if not isinstance(layer, nn.Linear))


def test_features_are_the_third_convolution_before_its_norm():
    torch.manual_seed(0)
    network = VaeGan(1, 8, 8, 4, 0.125).discriminator.eval()
    third = [layer for layer in network.modules() if isinstance(layer, nn.Conv2d)][2]
    seen = []
    third.register_forward_hook(lambda _, __, answer: seen.append(answer))
    _, features = network(torch.rand(2, 1, 8, 8))
    assert torch.equal(features, seen[0])
    assert features.min() < 0


@pytest.mark.parametrize(
    ("channels", "height", "width"), [(3, 32, 32), (1, 28, 28), (3, 33, 29), (1, 8, 20), (3, 64, 48)]
)
def test_images_of_any_size_come_back_in_their_size(channels, height, width):
    networks = VaeGan(channels, height, width, 5, 0.0625).eval()
    images = torch.rand(2, channels, height, width)
    padded = networks.pad(images)
    assert padded.shape[-2:] == (padded_size(height), padded_size(width))
    assert padded.shape[-2] % 8 == padded.shape[-1] % 8 == 0
    assert torch.equal(networks.crop(padded), images)
    assert padded.sum() == pytest.approx(float(images.sum()), rel=1e-5)
    answer = networks.reconstruct(images).detach()
    assert answer.shape == images.shape
    assert 0 < float(answer.min()) < float(answer.max()) < 1
    assert networks.log_dis(images).shape == (2,)


def test_28_is_padded_by_two_on_every_side():
    padded = VaeGan(1, 28, 28, 2, 0.0625).pad(torch.ones(1, 1, 28, 28))
    rows = padded[0, 0].sum(1).tolist()
    assert rows == padded[0, 0].sum(0).tolist() == [0, 0, *[28] * 28, 0, 0]


def test_another_size_than_built_for_is_refused():
    with pytest.raises(ContractError, match=r"\[1, 32, 32\].*\[1, 28, 28\]"):
        VaeGan(1, 28, 28, 2, 0.0625).reconstruct(torch.rand(1, 1, 32, 32))


def test_width_scales_every_layer_but_latent_and_pixels():
    with torch.device("meta"):
        half = VaeGan(1, 28, 28, 128, 0.5)
    assert [layer.weight.shape[0] for layer in layers(half.encoder)] == [32, 64, 128, 512, 128, 128]
    assert [tuple(layer.weight.shape[:2]) for layer in layers(half.decoder)] == [
        (2048, 128),
        (128, 96),
        (96, 64),
        (64, 16),
        (1, 16),
    ]
    assert [layer.weight.shape[0] for layer in layers(half.discriminator)] == [16, 64, 96, 128, 256, 1]
