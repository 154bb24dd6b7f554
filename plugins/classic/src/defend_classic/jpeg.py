"""Baseline JPEG, there and back, as a function that can be differentiated (ITU-T T.81; JFIF for colour).

What a codec does to pixels is done here in floating point: levels of 8 bits, YCbCr, colour at half the resolution,
blocks of 8x8, cosine transform, quantisation by libjpeg's tables, and all of it back. The lossless rest of a file is
left out. libjpeg works in whole numbers, so that a pixel may differ from its result by a level or two of 255; the tests
hold both together. Forwards every rounding is one; backwards it is `rounding`'s business.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from defend_classic.filters import Rounding

# T.81, tables K.1 and K.2
LUMINANCE = (
    (16, 11, 10, 16, 24, 40, 51, 61),
    (12, 12, 14, 19, 26, 58, 60, 55),
    (14, 13, 16, 24, 40, 57, 69, 56),
    (14, 17, 22, 29, 51, 87, 80, 62),
    (18, 22, 37, 56, 68, 109, 103, 77),
    (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101),
    (72, 92, 95, 98, 112, 100, 103, 99),
)
CHROMINANCE = (
    (17, 18, 24, 47, 99, 99, 99, 99),
    (18, 21, 26, 66, 99, 99, 99, 99),
    (24, 26, 56, 99, 99, 99, 99, 99),
    (47, 66, 99, 99, 99, 99, 99, 99),
    *((99,) * 8,) * 4,
)
TO_YCBCR = ((0.299, 0.587, 0.114), (-0.168735892, -0.331264108, 0.5), (0.5, -0.418687589, -0.081312411))
TO_RGB = ((1.0, 0.0, 1.402), (1.0, -0.344136286, -0.714136286), (1.0, 1.772, 0.0))


def compress(images: Tensor, quality: int, subsampling: str, rounding: Rounding) -> Tensor:
    """Return images [B,C,H,W] in [0,1] as JPEG gives them back: three channels are RGB, any others grey each."""
    levels = rounding(255 * images)
    if images.shape[1] != 3:
        return _clip(_coded(levels, quantisation(LUMINANCE, quality), rounding)) / 255
    shift = levels.new_tensor([0.0, 128.0, 128.0]).view(1, 3, 1, 1)
    planes = rounding(_mixed(levels, TO_YCBCR) + shift)
    light = _clip(_coded(planes[:, :1], quantisation(LUMINANCE, quality), rounding))
    colour = _halved(planes[:, 1:], rounding) if subsampling == "4:2:0" else planes[:, 1:]
    colour = _clip(_coded(colour, quantisation(CHROMINANCE, quality), rounding))
    if subsampling == "4:2:0":
        # three quarters of the nearer sample and one of the farther, libjpeg's "fancy upsampling"
        colour = rounding(F.interpolate(colour, scale_factor=2.0, mode="bilinear", align_corners=False))
        colour = colour[..., : images.shape[2], : images.shape[3]]
    return _clip(rounding(_mixed(torch.cat([light, colour], 1) - shift, TO_RGB))) / 255


def quantisation(table: tuple[tuple[int, ...], ...], quality: int) -> Tensor:
    """Return a table [8,8] scaled to a quality as libjpeg scales it (its `jpeg_set_quality`)."""
    scale = 5000 // quality if quality < 50 else 200 - 2 * quality
    return torch.tensor([[min(max((entry * scale + 50) // 100, 1), 255) for entry in row] for row in table])


def _coded(planes: Tensor, table: Tensor, rounding: Rounding) -> Tensor:
    """Return planes [B,C,H,W] of levels after cosine transform, quantisation, and both back."""
    height, width = planes.shape[2:]
    filled = F.pad(planes, (0, -width % 8, 0, -height % 8), mode="replicate")
    blocks = filled.unflatten(3, (-1, 8)).unflatten(2, (-1, 8)).transpose(3, 4) - 128
    basis, step = _cosines().to(planes), table.to(planes)
    kept = rounding(basis @ blocks @ basis.T / step) * step
    restored = rounding(basis.T @ kept @ basis) + 128
    return restored.transpose(3, 4).flatten(4, 5).flatten(2, 3)[..., :height, :width]


def _cosines() -> Tensor:
    """Return the orthonormal cosine transform of 8 samples, [8,8]: JPEG's own scaling."""
    place = torch.arange(8, dtype=torch.float64)
    basis = torch.cos(math.pi * (2 * place[None, :] + 1) * place[:, None] / 16) / 2
    basis[0] /= math.sqrt(2)
    return basis


def _halved(planes: Tensor, rounding: Rounding) -> Tensor:
    """Return the means of 2x2 pixels, the last row and column repeated where they stand alone.

    A mean that lies between two levels is rounded down in even columns and up in odd ones, as libjpeg does.
    """
    height, width = planes.shape[2:]
    means = F.avg_pool2d(F.pad(planes, (0, width % 2, 0, height % 2), mode="replicate"), 2)
    odd = torch.arange(means.shape[3], device=means.device) % 2
    return rounding(means + (odd / 4 - 1 / 8).to(means))  # means are quarters


def _mixed(planes: Tensor, matrix: tuple[tuple[float, ...], ...]) -> Tensor:
    return torch.einsum("oc,bchw->bohw", planes.new_tensor(matrix), planes)


def _clip(levels: Tensor) -> Tensor:
    return levels.clamp(0, 255)
