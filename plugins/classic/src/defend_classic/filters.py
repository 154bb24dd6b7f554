"""Bit depth, median and mean: images [B,C,H,W] to the same shape, every channel for itself."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from defend_classic.rounding import round_straight

Rounding = Callable[[Tensor], Tensor]


def reduce_depth(images: Tensor, depth: int, rounding: Rounding = round_straight) -> Tensor:
    """Return images in [0,1] with `depth` bits a channel: round(x (2^d - 1)) / (2^d - 1) (Xu et al. 2018, III.A)."""
    levels = (1 << depth) - 1
    return rounding(images * levels) / levels


def take_median(images: Tensor, size: int) -> Tensor:
    """Return the median of the window around every pixel (Xu et al. 2018, III.B).

    A window of even side reaches one pixel further up and left, and of its two middle values the larger is taken;
    beyond the edge the image is mirrored, the edge itself included. All this is as in SciPy, which the paper used.
    """
    windows = _mirrored(images, size).unfold(2, size, 1).unfold(3, size, 1).flatten(-2)
    return windows.sort(-1).values[..., size * size // 2]


def blur(images: Tensor, weights: Tensor) -> Tensor:
    """Return the weighted mean of every window, mirrored at the edge; `weights` [K] are those of rows and columns."""
    size, channels = len(weights), images.shape[1]
    kernel = torch.outer(weights, weights).to(images).expand(channels, 1, size, size)
    return F.conv2d(_mirrored(images, size), kernel, groups=channels)


def gaussian(size: int, sigma: float) -> Tensor:
    """Return the weights of a Gaussian window [size], which sum to one."""
    places = torch.arange(size, dtype=torch.float64) - (size - 1) / 2
    weights = torch.exp(-places.square() / (2 * sigma**2))
    return weights / weights.sum()


def _mirrored(images: Tensor, size: int) -> Tensor:
    """Return images with as much beyond the edge as windows of a size need: d c b a | a b c d."""
    before, after = size // 2, (size - 1) // 2
    for dim in (2, 3):
        length = images.shape[dim]
        places = torch.arange(-before, length + after, device=images.device) % (2 * length)
        images = images.index_select(dim, torch.minimum(places, 2 * length - 1 - places))
    return images
