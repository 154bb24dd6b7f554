"""The networks and losses of the U-Net GAN, as resolved in the README where the paper gives no figures.

Shapes are those of the paper's images, 32x32, at its width of 64: encoder stages of 64, 128, 256 and 512
channels at sides 32, 16, 8 and 4, and a decoder back through 8 and 16 to 32.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn
from torch.nn import functional as F

STAGES = 4
STRIDE = 2 ** (STAGES - 1)  # of the innermost stage; images are padded to a multiple of it
NARROWING = 8  # queries and keys have an eighth of the channels (SAGAN)
SLOPE = 0.2


def conv_stage(inside: int, outside: int) -> nn.Sequential:
    """One 3x3 convolution, BN, PReLU: all that a stage has (paper)."""
    return nn.Sequential(nn.Conv2d(inside, outside, 3, padding=1), nn.BatchNorm2d(outside), nn.PReLU())


def up_step(inside: int, outside: int, kernel: int) -> nn.Sequential:
    """Twice the side: convolution to four times the channels, PixelShuffle, BN, PReLU (paper)."""
    return nn.Sequential(
        nn.Conv2d(inside, 4 * outside, kernel, padding=kernel // 2),
        nn.PixelShuffle(2),
        nn.BatchNorm2d(outside),
        nn.PReLU(),
    )


class AttentionGate(nn.Module):
    """Weighs every place of a skip connection by what the decoder makes of it (Oktay et al. 2018)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        between = channels // 2
        self.signal = nn.Sequential(nn.Conv2d(channels, between, 1), nn.BatchNorm2d(between))
        self.skip = nn.Sequential(nn.Conv2d(channels, between, 1), nn.BatchNorm2d(between))
        self.weight = nn.Sequential(nn.Conv2d(between, 1, 1), nn.BatchNorm2d(1), nn.Sigmoid())

    def forward(self, skip: Tensor, signal: Tensor) -> Tensor:
        """Return the skip [B,C,H,W] times its weights [B,1,H,W] in (0,1); `signal` is the decoder's [B,C,H,W]."""
        weights: Tensor = self.weight(F.relu(self.signal(signal) + self.skip(skip)))
        return skip * weights


class Attention(nn.Module):
    """features + gain * softmax(q k^T) v, unscaled, gain 0 at first (SAGAN, Zhang et al. 2019, eqs. 1 to 3).

    Args:
        channels: c; queries and keys have c/8, values c.
        key_stride: keys and values are max-pooled by it.
    """

    def __init__(self, channels: int, key_stride: int) -> None:
        super().__init__()
        self.query = nn.Conv2d(channels, channels // NARROWING, 1)
        self.key = nn.Conv2d(channels, channels // NARROWING, 1)
        self.value = nn.Conv2d(channels, channels, 1)
        self.gain = nn.Parameter(torch.zeros(1))
        self._stride = key_stride

    def forward(self, features: Tensor, source: Tensor) -> Tensor:
        """Attend from `features` [B,C,H,W] to `source` [B,C,H',W'], the features themselves for self-attention.

        Queries and keys are filled up with zeros to the values' channels, which changes no product: torch's
        fused kernels want one size, and channels side by side in memory. They have no second derivative; whoever
        needs it asks torch for the plain one, `torch.nn.attention.sdpa_kernel(SDPBackend.MATH)`.
        """
        query = _tokens(self.query(features))
        key, value = (_tokens(_pool(layer(source), self._stride)) for layer in (self.key, self.value))
        missing = (0, value.shape[-1] - query.shape[-1])
        found = F.scaled_dot_product_attention(F.pad(query, missing), F.pad(key, missing), value, scale=1.0)
        return features + self.gain * found[:, 0].transpose(1, 2).reshape(features.shape)


def _tokens(features: Tensor) -> Tensor:
    """[B,C,H,W] to [B,1,HW,C]: one head."""
    return features.flatten(2).transpose(1, 2).contiguous()[:, None]


def _pool(features: Tensor, stride: int) -> Tensor:
    return features if stride == 1 else F.max_pool2d(features, stride)


class Generator(nn.Module):
    """The attention U-Net: images [B,C,H,W] in [0,1] of any size to [B,C,H,W] in [-1,1].

    Sides that are no multiple of 8 are padded with their own border, and the result is cropped. With 3
    channels and a width of 64 it has 4,001,163 parameters, 9,506,187 with `up_kernel` 3.

    Args:
        channels: of the images.
        width: channels of the first stage, a multiple of 8.
        up_kernel: of the convolution before every PixelShuffle.
        key_stride: see `Attention`.
    """

    def __init__(self, channels: int, width: int = 64, up_kernel: int = 1, key_stride: int = 1) -> None:
        super().__init__()
        self.width = width
        widths = [width * 2**stage for stage in range(STAGES)]
        deeper = list(itertools.pairwise(widths))
        self.encoder = nn.ModuleList([conv_stage(channels, width), *(conv_stage(a, b) for a, b in deeper)])
        inward = deeper[::-1]  # the decoder's order: sides 8, 16, 32
        self.up = nn.ModuleList([up_step(b, a, up_kernel) for a, b in inward])
        self.gates = nn.ModuleList([AttentionGate(a) for a, _ in inward])
        self.decoder = nn.ModuleList([conv_stage(2 * a, a) for a, _ in inward])
        self.attention = nn.ModuleList([Attention(a, key_stride) for a, _ in inward])
        self.own = Attention(width, key_stride)
        self.cross = Attention(width, key_stride)
        self.last = nn.Conv2d(width, channels, 3, padding=1)

    def forward(self, images: Tensor) -> Tensor:
        """See the class."""
        height, width = images.shape[-2:]
        top, left = -height % STRIDE // 2, -width % STRIDE // 2
        hidden, skips = pad(images, STRIDE) * 2 - 1, []
        for number, stage in enumerate(self.encoder):
            hidden = stage(F.max_pool2d(hidden, 2) if number else hidden)
            skips.append(hidden)
        skips.pop()
        first = skips[0]
        for up, gate, stage, attend in zip(self.up, self.gates, self.decoder, self.attention, strict=True):
            hidden = up(hidden)
            hidden = stage(torch.cat([gate(skips.pop(), hidden), hidden], 1))
            hidden = attend(hidden, hidden)
        hidden = self.own(hidden, hidden)
        hidden = self.cross(hidden, first)
        painted: Tensor = torch.tanh(self.last(hidden))
        return painted[..., top : top + height, left : left + width]


def pad(images: Tensor, stride: int) -> Tensor:
    """Repeat the border of [B,C,H,W] until both sides are multiples of `stride`, evenly on both sides."""
    down, across = (-side % stride for side in images.shape[-2:])
    if not down and not across:
        return images
    return F.pad(images, (across // 2, across - across // 2, down // 2, down - down // 2), mode="replicate")


class Discriminator(nn.Module):
    """PatchGAN: 4x4 convolutions of stride 2 (width, 2 width, 4 width), then 3x3 to one map, no sigmoid.

    LeakyReLU 0.2 after each, BN from the second on. 661,953 parameters with 3 channels and width 64.
    """

    def __init__(self, channels: int, width: int = 64) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(channels, width, 4, stride=2, padding=1), nn.LeakyReLU(SLOPE)]
        for inside in (width, 2 * width):
            layers += [
                nn.Conv2d(inside, 2 * inside, 4, stride=2, padding=1),
                nn.BatchNorm2d(2 * inside),
                nn.LeakyReLU(SLOPE),
            ]
        self.layers = nn.Sequential(*layers, nn.Conv2d(4 * width, 1, 3, padding=1))

    def forward(self, images: Tensor) -> Tensor:
        """Return a verdict for every patch of images [B,C,H,W] in [0,1]: [B,1,H/8,W/8], 1 for real, 0 for painted."""
        verdicts: Tensor = self.layers(images * 2 - 1)
        return verdicts


def discriminator_loss(real: Tensor, painted: Tensor) -> Tensor:
    """LSGAN (Mao et al. 2017): verdicts on clean images towards 1, on painted ones towards 0."""
    return ((real - 1).square().mean() + painted.square().mean()) / 2


def adversarial_loss(painted: Tensor) -> Tensor:
    """LSGAN: verdicts on painted images towards 1, for the generator."""
    return (painted - 1).square().mean()


def feature_matching(painted: tuple[Tensor, Tensor], clean: tuple[Tensor, Tensor]) -> Tensor:
    """Stage 2: L1 between the pooled features [B,D] of painted and clean images, plus L1 between their logits [B,K]."""
    return F.l1_loss(painted[0], clean[0]) + F.l1_loss(painted[1], clean[1])
