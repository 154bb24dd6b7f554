"""The autoencoder of Table 1."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

WIDTHS = (16, 8)  # of Table 1


class Autoencoder(nn.Module):
    """Two convolutions down, two transposed ones up, one to the image; 3,795 parameters for 3 channels (Table 1).

    3x3 throughout: 16 and 8 channels at half and a quarter of the size, 8 and 16 back up, ReLU after each; the last
    ends in a sigmoid. The table's "input shapes" are the shapes of the outputs. There is no batch norm and no skip,
    so every image passes the narrow middle: 8 numbers for each 4x4 pixels.

    Args:
        channels: of the images.
        widths: channels of each halving, from the image inwards; the way up is the way down, backwards.
    """

    random = False

    def __init__(self, channels: int, widths: Sequence[int] = WIDTHS) -> None:
        super().__init__()
        self._scale, layers, before = 2 ** len(widths), list[nn.Module](), channels
        for width in widths:
            layers += [nn.Conv2d(before, width, 3, stride=2, padding=1), nn.ReLU()]
            before = width
        for width in reversed(widths):
            layers += [nn.ConvTranspose2d(before, width, 3, stride=2, padding=1, output_padding=1), nn.ReLU()]
            before = width
        self.layers = nn.Sequential(*layers, nn.Conv2d(before, channels, 3, padding=1), nn.Sigmoid())
        for layer in self.layers:
            if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):  # as the author's library starts [C]
                nn.init.xavier_uniform_(layer.weight)
                assert layer.bias is not None
                nn.init.zeros_(layer.bias)

    def forward(self, images: Tensor) -> Tensor:
        """Restore images [B,C,H,W] in [0,1], of any size: padded to whole cells by their edge, and cropped."""
        height, width = images.shape[-2:]
        low, right = -height % self._scale, -width % self._scale
        padded = F.pad(images, (0, right, 0, low), mode="replicate") if low or right else images
        restored: Tensor = self.layers(padded)
        return restored[..., :height, :width]


def restoration_error(restored: Tensor, clean: Tensor) -> Tensor:
    """Mean squared error of each image, [B]: between the autoencoder's output and the clean image [P]."""
    return torch.square(restored - clean).flatten(1).mean(1)
