"""APuDAE's denoising autoencoder, as the authors' code has it: the paper's Table 1 differs (README)."""

from __future__ import annotations

import math

from torch import Tensor, nn
from torch.nn import functional as F


class Encode(nn.Module):
    """conv 3x3, ReLU, BN: in that order [C]."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, width, 3, stride=stride, padding=1)
        self.norm = nn.BatchNorm2d(width)

    def forward(self, images: Tensor) -> Tensor:
        """Map [B,C,H,W] to [B,width,H/stride,W/stride]."""
        encoded: Tensor = self.norm(F.relu(self.conv(images)))
        return encoded


class Decode(nn.Module):
    """deconv 3x3 stride 1, ReLU, BN [C]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.ConvTranspose2d(width, width, 3, stride=1, padding=1)
        self.norm = nn.BatchNorm2d(width)

    def forward(self, hidden: Tensor) -> Tensor:
        """Map [B,width,H,W] to the same."""
        decoded: Tensor = self.norm(F.relu(self.conv(hidden)))
        return decoded


class DenoisingAutoencoder(nn.Module):
    """A RED-Net with batch norm [C]: N convolutions, N transposed ones, additive skips.

    Every second encoder output, up to ceil(N/2) - 1 of them, is added to the decoder output that
    mirrors it, followed by ReLU; the last layer's output is added to the input, followed by ReLU.

    Args:
        channels: of the images.
        depth: N, at least 2. N=5, c=1 has 297,793 parameters; N=15, c=3 has 1,041,219.
        width: hidden channels, 64 in the paper.
    """

    def __init__(self, channels: int, depth: int, width: int = 64) -> None:
        super().__init__()
        self.depth = depth
        self.encoder = nn.ModuleList(
            [Encode(channels, width, stride=2), *(Encode(width, width, stride=1) for _ in range(depth - 1))]
        )
        self.decoder = nn.ModuleList([Decode(width) for _ in range(depth - 1)])
        self.last = nn.ConvTranspose2d(width, channels, 3, stride=2, padding=1, output_padding=1)
        self.skipped = frozenset(range(2, depth, 2)[: math.ceil(depth / 2) - 1])

    def forward(self, images: Tensor) -> Tensor:
        """Reconstruct images [B,C,H,W], H and W of any size of 2 or more; at least 0, not bounded by 1."""
        height, width = images.shape[-2:]
        padded = F.pad(images, (0, width % 2, 0, height % 2), mode="replicate") if height % 2 or width % 2 else images
        hidden, kept = padded, {}
        for number, encode in enumerate(self.encoder, start=1):
            hidden = encode(hidden)
            if number in self.skipped:
                kept[number] = hidden
        for number, decode in enumerate(self.decoder, start=1):
            hidden = decode(hidden)
            mirrored = self.depth - number
            if mirrored in kept:
                hidden = F.relu(hidden + kept[mirrored])
        return F.relu(self.last(hidden) + padded)[..., :height, :width]
