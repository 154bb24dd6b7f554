"""Layers as TensorFlow defines them: `same` padding and Keras's initial values."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F


def same_padding(size: int, kernel: int, stride: int, dilation: int) -> tuple[int, int]:
    """Return how many zeros TensorFlow's `same` puts before and after an axis of a convolution.

    The output has ceil(size/stride) entries; an odd number of zeros puts the extra one after.
    """
    reach = dilation * (kernel - 1) + 1
    total = max((math.ceil(size / stride) - 1) * stride + reach - size, 0)
    return total // 2, total - total // 2


class SameConv2d(nn.Conv2d):
    """A convolution with TensorFlow's `same` padding: [B,c,H,W] to [B,width,ceil(H/stride),ceil(W/stride)]."""

    def __init__(self, channels: int, width: int, kernel: int, stride: int = 1, dilation: int = 1) -> None:
        super().__init__(channels, width, kernel, stride=stride, dilation=dilation)

    def forward(self, images: Tensor) -> Tensor:
        """Pad, then convolve."""
        rows, columns = (
            same_padding(size, self.kernel_size[0], self.stride[0], self.dilation[0]) for size in images.shape[-2:]
        )
        return super().forward(F.pad(images, (*columns, *rows)))


class SameConvTranspose2d(nn.ConvTranspose2d):
    """A transposed convolution with TensorFlow's `same` padding: [B,c,H,W] to [B,width,H*stride,W*stride].

    It is the gradient of `SameConv2d`, so what that pads is cropped here: as much before as torch's
    `padding` takes, and what is left after.
    """

    def __init__(self, channels: int, width: int, kernel: int, stride: int = 1) -> None:
        super().__init__(channels, width, kernel, stride=stride, padding=max(kernel - stride, 0) // 2)

    def forward(self, images: Tensor, output_size: Any = None) -> Tensor:
        """Convolve, then crop."""
        height, width = (size * self.stride[0] for size in images.shape[-2:])
        return super().forward(images)[..., :height, :width]


class Crop(nn.Module):
    """Drop the last rows and columns: [B,C,H,W] to [B,C,height,width]."""

    def __init__(self, height: int, width: int) -> None:
        super().__init__()
        self.height, self.width = height, width

    def forward(self, images: Tensor) -> Tensor:
        """Crop."""
        return images[..., : self.height, : self.width]


class LabelledLinear(nn.Module):
    """A fully connected layer on features and a one-hot label, W [f, y] + b = (W_f f + b) + W_y[:, y].

    The first part is the same for every label, so who tries many labels computes it once.
    """

    def __init__(self, features: int, classes: int, neurons: int) -> None:
        super().__init__()
        self.linear, self.features = nn.Linear(features + classes, neurons), features

    def unlabelled(self, features: Tensor) -> Tensor:
        """Return W_f f + b of features [M,features]: [M,neurons]."""
        return F.linear(features, self.linear.weight[:, : self.features], self.linear.bias)

    def labelled(self, partial: Tensor, labels: Tensor) -> Tensor:
        """Add the column of each label, int64 [M], to what `unlabelled` returned."""
        return partial + self.linear.weight[:, self.features :].t()[labels]

    def forward(self, features: Tensor, labels: Tensor) -> Tensor:
        """Return the layer's whole output, [M,neurons]."""
        return self.labelled(self.unlabelled(features), labels)


def keras_initial_values(network: nn.Module) -> None:
    """Draw every weight as Keras does by default: uniform (Glorot and Bengio 2010), biases zero."""
    for layer in network.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
            nn.init.xavier_uniform_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
