"""Forms of timm's networks for small images.

timm's networks are made for 224 pixels and more: at 32 their stems leave a feature map of one pixel, or none. The
forms here are the ones in use for CIFAR-10:

- ResNet, DenseNet: a 3x3 convolution for the 7x7 stride-2 one and its pooling. `small`: stride 1, no pooling; `pooled`:
  stride 1, pooling kept; `strided`: stride 2, no pooling.
- VGG (`small`): global average pooling and one linear layer for its head of three; smaller images are padded to 32.
- Inception-v3 (`small`): one 3x3 stride-1 convolution to 192 maps for its five convolutions and two poolings.

Source of `pooled` and of the Inception stem: github.com/huyvnphan/PyTorch_CIFAR10.
"""

from __future__ import annotations

from typing import cast

from timm.layers import ClassifierHead, ConvNormAct
from timm.models import is_model_in_modules
from timm.models.densenet import DenseNet
from timm.models.inception_v3 import InceptionV3
from timm.models.vgg import VGG
from torch import nn

from defend.errors import ConfigError

LARGEST_SIDE = 64
SMALLEST_RESNET_SIDE = 32
VGG_SIDE = 32
STRIDES = {"small": 1, "pooled": 1, "strided": 2}
INCEPTION_STEM = ("Conv2d_2a_3x3", "Conv2d_2b_3x3", "Pool1", "Conv2d_3b_1x1", "Conv2d_4a_3x3", "Pool2")
INCEPTION_MAPS, INCEPTION_EPS = 192, 1e-3


def arguments(model: str) -> dict[str, object]:
    """Return what to build a model with whose stem will be replaced.

    timm's VGG head has 120 M parameters, which take a second and half a gigabyte to draw: it is made one unit wide.
    """
    return {"mlp_ratio": 1 / 4096} if is_model_in_modules(model, ("vgg",)) else {}


def reshape(network: nn.Module, model: str, stem: str, side: int, pretrained: bool) -> int:
    """Turn a network into its form for small images, in place; new layers are drawn from torch's generator.

    Args:
        network: as timm builds it.
        model: its name, for the error message.
        stem: "small", "pooled", "strided", or "auto": `small` where there is one, but `strided` for a ResNet under 32
            pixels; a network without such a form stays as it is.
        side: of the images, in pixels.
        pretrained: whether the network holds weights; those of the layers that stay are kept.

    Returns:
        The side to which smaller images are to be padded; 0 if they are taken as they are.

    Raises:
        ConfigError: the network has no such form.
    """
    whole = stem in ("auto", "small")
    if whole and isinstance(network, VGG):
        _one_linear_layer(network)
        return VGG_SIDE
    if whole and isinstance(network, InceptionV3):
        _one_convolution(network, pretrained)
        return 0
    found = _large_stem(network)
    if found is not None:
        if stem == "auto":
            tiny = side < SMALLEST_RESNET_SIDE and not isinstance(network, DenseNet)
            stem = "strided" if tiny else "small"
        _three_by_three(*found, stem)
    elif stem != "auto":
        needed = "a VGG, inception_v3, or a ResNet or DenseNet" if stem == "small" else "a ResNet or DenseNet"
        instead = "small" if isinstance(network, VGG | InceptionV3) else "standard"
        raise ConfigError(f"stem={stem!r} needs {needed} with a 7x7 stem, and {model} is none: use stem={instead}")
    return 0


def _large_stem(network: nn.Module) -> tuple[nn.Module, str, str] | None:
    """Return the parent of a 7x7 convolution and its pooling, and their names in it."""
    parent, convolution, pooling = network, "conv1", "maxpool"
    if isinstance(network, DenseNet):
        parent, convolution, pooling = network.features, "conv0", "pool0"
    first = getattr(parent, convolution, None)
    large = isinstance(first, nn.Conv2d) and first.kernel_size == (7, 7) and hasattr(parent, pooling)
    return (parent, convolution, pooling) if large else None


def _three_by_three(parent: nn.Module, convolution: str, pooling: str, stem: str) -> None:
    old = cast(nn.Conv2d, getattr(parent, convolution))
    new = nn.Conv2d(old.in_channels, old.out_channels, 3, stride=STRIDES[stem], padding=1, bias=False)
    setattr(parent, convolution, new)
    if stem != "pooled":
        setattr(parent, pooling, nn.Identity())


def _one_linear_layer(network: VGG) -> None:
    network.pre_logits = nn.Identity()  # type: ignore[assignment]
    network.head = ClassifierHead(network.num_features, network.num_classes)
    network.head_hidden_size = network.num_features
    nn.init.normal_(network.head.fc.weight, 0, 0.01)  # as timm draws its own
    nn.init.zeros_(network.head.fc.bias)


def _one_convolution(network: InceptionV3, pretrained: bool) -> None:
    network.Conv2d_1a_3x3 = ConvNormAct(
        network.in_chans, INCEPTION_MAPS, 3, padding=1, norm_kwargs={"eps": INCEPTION_EPS}, act_kwargs={"inplace": True}
    )
    for name in INCEPTION_STEM:
        setattr(network, name, nn.Identity())
    if not pretrained:
        for layer in network.modules():
            if isinstance(layer, nn.Conv2d | nn.Linear):
                layer.reset_parameters()  # torch's own draw, as the CIFAR form has: timm's is several times as wide
