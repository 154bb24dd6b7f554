"""The purifier stages: images [B,C,H,W] in [0,1] to the same; without weights, each with its paper."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from defend import Task
from defend.randomness import normal_like, uniform_like, uniform_per_image
from defend_classic.config import (
    BitsOptions,
    BlurOptions,
    JpegOptions,
    MedianOptions,
    NoiseOptions,
    ResizePadOptions,
    TvOptions,
)
from defend_classic.filters import Rounding, blur, gaussian, reduce_depth, take_median
from defend_classic.jpeg import compress
from defend_classic.rounding import round_softly, round_straight
from defend_classic.variation import minimise


class Jpeg(nn.Module):
    """JPEG compression (Dziugaite et al. 2016; Guo et al. 2018, section 3.1): what the codec gives back.

    Its roundings pass gradients straight through. The surrogate "soft" rounds by Shin and Song's cubic instead.
    """

    random = False

    def __init__(self, config: JpegOptions, rounding: Rounding = round_straight) -> None:
        super().__init__()
        self.config, self.rounding = config, rounding

    def forward(self, images: Tensor) -> Tensor:
        """Return the images as they come back from the codec."""
        # the cubic may leave [0,1] by a little
        return compress(images, self.config.quality, self.config.subsampling, self.rounding).clamp(0, 1)

    def surrogates(self) -> dict[str, nn.Module]:
        """Return what an attacker may differentiate in its place."""
        return {"soft": Jpeg(self.config, round_softly)}


class Bits(nn.Module):
    """Fewer bits a channel (Xu et al. 2018, section III.A). Its rounding passes gradients straight through."""

    random = False

    def __init__(self, depth: int, rounding: Rounding = round_straight) -> None:
        super().__init__()
        self.depth, self.rounding = depth, rounding

    def forward(self, images: Tensor) -> Tensor:
        """Return the images with 2^depth levels a channel."""
        return reduce_depth(images, self.depth, self.rounding)

    def surrogates(self) -> dict[str, nn.Module]:
        """Return what an attacker may differentiate in its place."""
        return {"soft": Bits(self.depth, round_softly)}


class Median(nn.Module):
    """The median of every window (Xu et al. 2018, section III.B); its slope is that of the pixel chosen."""

    random = False

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def forward(self, images: Tensor) -> Tensor:
        """Return the medians."""
        return take_median(images, self.size)


class Blur(nn.Module):
    """The mean of every window (Li and Li 2017, section 5), or a Gaussian one."""

    random = False

    def __init__(self, weights: Tensor) -> None:
        super().__init__()
        self.register_buffer("weights", weights, persistent=False)
        self.weights: Tensor

    def forward(self, images: Tensor) -> Tensor:
        """Return the blurred images."""
        return blur(images, self.weights)


class Tv(nn.Module):
    """Pixels left out at random, and filled in with the least total variation (Guo et al. 2018, section 3.2)."""

    def __init__(self, config: TvOptions) -> None:
        super().__init__()
        self.config = config

    @property
    def random(self) -> bool:
        """Which pixels are left out is drawn anew in every pass."""
        return self.config.drop > 0

    def forward(self, images: Tensor) -> Tensor:
        """Return the images filled in; every channel of every pixel is left out, or not, for itself."""
        mask = (uniform_like(images) >= self.config.drop).to(images.dtype) if self.random else torch.ones_like(images)
        return minimise(images, mask, self.config.weight, self.config.steps).clamp(0, 1)


class ResizePad(nn.Module):
    """A random size, at a random place on black (Xie et al. 2018, section 3.1).

    The paper enlarges images of 299 pixels to 299 ... 330 and pads them to 331. What comes out here must be as large
    as what came in, so an image takes the same share of it: it is shrunk to 299/331 ... 1 of its side and padded back.
    Nearest pixels, as in the authors' code.
    """

    random = True

    def __init__(self, smallest: float) -> None:
        super().__init__()
        self.smallest = smallest

    def forward(self, images: Tensor) -> Tensor:
        """Return the images, each resized and placed by draws of its own."""
        height, width = images.shape[2:]
        least = max(round(self.smallest * height), 1)
        rows = least + _pick(images, max(height - least, 1))
        columns = (rows * width).div(height, rounding_mode="floor").clamp_min(1)
        top, left = _pick(images, height - rows + 1), _pick(images, width - columns + 1)
        down, right = _places(height, rows, top), _places(width, columns, left)
        inside = ((down >= 0) & (down < height))[:, :, None] & ((right >= 0) & (right < width))[:, None, :]
        each = torch.arange(len(images), device=images.device)[:, None, None]
        found = images[each, :, down.clamp(0, height - 1)[:, :, None], right.clamp(0, width - 1)[:, None, :]]
        return (found * inside[..., None]).movedim(3, 1)


class Noise(nn.Module):
    """Gaussian noise, clipped to [0,1] (Cohen et al. 2019, without the vote: that is `--passes` and `--certify`).

    The paper does not clip. What a classifier makes of clipped noise is a classifier of noise all the same, so that the
    certificate holds for it.

    Attributes:
        smoothing_sigma: the standard deviation: see `defend.stages.Purifier`.
    """

    def __init__(self, sigma: float) -> None:
        super().__init__()
        self.smoothing_sigma = sigma

    @property
    def random(self) -> bool:
        """Noise makes passes differ."""
        return self.smoothing_sigma > 0

    def forward(self, images: Tensor) -> Tensor:
        """Return the noisy images."""
        return (images + self.smoothing_sigma * normal_like(images)).clamp(0, 1)


def _pick(images: Tensor, count: Tensor | int) -> Tensor:
    """Draw a whole number from 0 ... count - 1 for every image: int64 [B]."""
    return (uniform_per_image(images).double() * count).long()  # in single precision it may round up to the count


def _places(length: int, size: Tensor, start: Tensor) -> Tensor:
    """Return which pixel of the image every one of `length` pixels shows, [B,length]; outside 0 ... length - 1 none.

    The image takes `size` of them from `start` on.
    """
    place = torch.arange(length, device=size.device) - start[:, None]
    source = (place * length).div(size[:, None], rounding_mode="floor")
    return torch.where((place >= 0) & (place < size[:, None]), source, -1)


def usual_depth(depth: int | None, task: Task, other: int) -> int:
    """Return a bit depth that was asked for, or the paper's: 1 on MNIST, whose pixels are all but black or white."""
    return depth or (1 if task.dataset == "mnist" else other)


def build_jpeg(config: JpegOptions, _: Task) -> Jpeg:
    """Build `jpeg`."""
    return Jpeg(config)


def build_bits(config: BitsOptions, task: Task) -> Bits:
    """Build `bits`."""
    return Bits(usual_depth(config.depth, task, other=4))


def build_median(config: MedianOptions, _: Task) -> Median:
    """Build `median`."""
    return Median(config.size)


def build_blur(config: BlurOptions, _: Task) -> Blur:
    """Build `blur`."""
    return Blur(gaussian(config.size, config.sigma if config.kernel == "gaussian" else float("inf")))


def build_tv(config: TvOptions, _: Task) -> Tv:
    """Build `tv`."""
    return Tv(config)


def build_resize_pad(config: ResizePadOptions, _: Task) -> ResizePad:
    """Build `resize_pad`."""
    return ResizePad(config.smallest)


def build_noise(config: NoiseOptions, _: Task) -> Noise:
    """Build `noise`."""
    return Noise(config.sigma)
