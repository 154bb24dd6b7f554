"""The paper's two victims, as osmr/imgclsmob defines them for CIFAR [S]: ResNet-20 and SE-PreResNet-56.

Stages of 16, 32 and 64 channels at full, half and a quarter of the image's size, units of two 3x3
convolutions, a global average pool (8x8 on CIFAR) and a linear layer to logits. Each takes normalised images.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

STAGES = (16, 32, 64)
REDUCTION = 16  # of the squeeze-and-excitation


def convolution(channels: int, width: int, stride: int = 1) -> nn.Conv2d:
    """3x3, `same`, no bias: a normalisation stands before or after it."""
    return nn.Conv2d(channels, width, 3, stride=stride, padding=1, bias=False)


class Unit(nn.Module):
    """ResNet-20's unit (He et al. 2015): normalised after each convolution, ReLU after the addition.

    Where the shape changes, the skip is a normalised 1x1 convolution.
    """

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.first, self.first_norm = convolution(channels, width, stride), nn.BatchNorm2d(width)
        self.second, self.second_norm = convolution(width, width), nn.BatchNorm2d(width)
        self.skip: nn.Module = nn.Identity()
        if stride != 1 or channels != width:
            self.skip = nn.Sequential(nn.Conv2d(channels, width, 1, stride=stride, bias=False), nn.BatchNorm2d(width))

    def forward(self, features: Tensor) -> Tensor:
        """Map [B,channels,H,W] to [B,width,H/stride,W/stride]."""
        hidden = F.relu(self.first_norm(self.first(features)))
        total: Tensor = self.second_norm(self.second(hidden)) + self.skip(features)
        return F.relu(total)


class SqueezeExcitation(nn.Module):
    """Scales each channel by a gate computed from all channels' means (Hu et al. 2017)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(width, width // REDUCTION, 1)
        self.excite = nn.Conv2d(width // REDUCTION, width, 1)

    def forward(self, features: Tensor) -> Tensor:
        """Map [B,width,H,W] to the same."""
        gates: Tensor = self.excite(F.relu(self.squeeze(F.adaptive_avg_pool2d(features, 1)))).sigmoid()
        return features * gates


class PreActivatedUnit(nn.Module):
    """SE-PreResNet's unit (He et al. 2016): BN and ReLU before each convolution, a gate at the end, a bare sum.

    Where the shape changes, the skip is a 1x1 convolution of the activated input.
    """

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.first_norm, self.first = nn.BatchNorm2d(channels), convolution(channels, width, stride)
        self.second_norm, self.second = nn.BatchNorm2d(width), convolution(width, width)
        self.gate = SqueezeExcitation(width)
        self.skip: nn.Module | None = None
        if stride != 1 or channels != width:
            self.skip = nn.Conv2d(channels, width, 1, stride=stride, bias=False)

    def forward(self, features: Tensor) -> Tensor:
        """Map [B,channels,H,W] to [B,width,H/stride,W/stride]."""
        activated = F.relu(self.first_norm(features))
        hidden = self.second(F.relu(self.second_norm(self.first(activated))))
        skipped: Tensor = features if self.skip is None else self.skip(activated)
        gated: Tensor = self.gate(hidden)
        return gated + skipped


class Network(nn.Module):
    """Stem, three stages of `units` units each, global average pool, linear layer.

    Args:
        unit: `Unit` or `PreActivatedUnit`.
        units: in each stage: 3 make ResNet-20, 9 make SE-PreResNet-56.
        channels: of the images.
        classes: number of logits.
    """

    def __init__(self, unit: type[Unit] | type[PreActivatedUnit], units: int, channels: int, classes: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(convolution(channels, STAGES[0]), nn.BatchNorm2d(STAGES[0]), nn.ReLU())
        widths = [width for width in STAGES for _ in range(units)]
        befores = [STAGES[0], *widths]
        self.units = nn.Sequential(
            *(unit(before, width, 1 if before == width else 2) for before, width in zip(befores, widths, strict=False))
        )
        self.head = nn.Linear(STAGES[-1], classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits [B,classes] of normalised images [B,C,H,W]."""
        logits: Tensor = self.head(self.units(self.stem(images)).mean((2, 3)))
        return logits


def resnet20(channels: int, classes: int) -> Network:
    """ResNet-20: 272,474 parameters for 3 channels and 10 classes."""
    return Network(Unit, 3, channels, classes)


def se_preresnet56(channels: int, classes: int) -> Network:
    """SE-PreResNet-56: 862,601 parameters for 3 channels and 10 classes."""
    return Network(PreActivatedUnit, 9, channels, classes)
