"""PuVAE's networks C and D (Table 6), its loss, and the reconstruction error.

Symbols are the paper's: y a label, z the latent vector, x_hat a reconstruction, e* the least error over
all labels, t the threshold. m and s are the encoder's two heads; s, a softplus, is used as log-variance.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from defend import Task
from defend.errors import ConfigError
from defend_puvae_detect.config import PuvaeOptions
from defend_puvae_detect.layers import Crop, LabelledLinear, SameConv2d, SameConvTranspose2d, keras_initial_values

LATENT, FASHION_LATENT, COLOUR_LATENT = 32, 128, 1024
LEAST_S = 1e-6  # below it e^s - 1 would round to nothing, whose logarithm the authors' KL takes
GRID = tuple(hundredths / 100 for hundredths in range(5, 26))


class Reconstruction(NamedTuple):
    """What the VAE makes of M images: m and s [M,z], and the logits [M,C,H,W] whose sigmoid is x_hat."""

    m: Tensor
    s: Tensor
    logits: Tensor


class ConditionalVae(nn.Module):
    """An encoder of an image and a label, and a decoder of z and the same label (Table 6, C or D).

    Args:
        layout: "c" or "d".
        shape: (channels, height, width); c is 28x28 in the paper and d 32x32. Other sizes start the decoder from
            the smallest grid that reaches them, and crop the last rows and columns.
        classes: number of labels.
        width, hidden, latent: channels, neurons and dimensions of z. C has 27,844,161 parameters with 32, 1024, 32
            for (1, 28, 28) and 10 classes; D has 45,148,138 with 32, 1024, 1024 for (3, 32, 32).
    """

    def __init__(
        self, layout: str, shape: tuple[int, int, int], classes: int, width: int, hidden: int, latent: int
    ) -> None:
        super().__init__()
        self.classes, self.latent = classes, latent
        build = _layout_c if layout == "c" else _layout_d
        self.trunk, self.rest, start, self.decoder = build(shape, width, hidden)
        _, height, breadth = shape
        self.first = LabelledLinear(width * height * breadth, classes, hidden)
        self.m, self.s = nn.Linear(hidden, latent), nn.Linear(hidden, latent)
        self.start = LabelledLinear(latent, classes, start)
        keras_initial_values(self)

    def stem(self, images: Tensor) -> Tensor:
        """Return what no label changes of the first fully connected layer, [B,hidden]: nearly all of the encoder."""
        return self.first.unlabelled(self.trunk(images).flatten(1))

    def reconstruct(self, stem: Tensor, labels: Tensor, noise: Tensor) -> Reconstruction:
        """Encode and decode.

        Args:
            stem: [M,hidden], see `stem`.
            labels: int64 [M].
            noise: e, [M,z]; z = m + exp(s/2) e.
        """
        hidden = self.rest(self.first.labelled(stem, labels))
        m, s = F.relu(self.m(hidden)), F.softplus(self.s(hidden))
        z = m + (s / 2).exp() * noise
        return Reconstruction(m, s, self.decoder(self.start(z, labels)))

    def forward(self, images: Tensor, labels: Tensor, noise: Tensor) -> Reconstruction:
        """Reconstruct images [B,C,H,W] for one label each; see `reconstruct`."""
        return self.reconstruct(self.stem(images), labels, noise)

    def reconstruct_all(self, stem: Tensor, noise: Tensor) -> Tensor:
        """Return x_hat for every label, [B,N,C,H,W] in [0,1], in one pass.

        Args:
            stem: [B,hidden].
            noise: e, [B,N,z].
        """
        labels = torch.arange(self.classes, device=stem.device).repeat(len(stem))
        made = self.reconstruct(stem.repeat_interleave(self.classes, 0), labels, noise.flatten(0, 1))
        every: Tensor = made.logits.sigmoid().unflatten(0, (-1, self.classes))
        return every


def _layout_c(shape: tuple[int, int, int], width: int, hidden: int) -> tuple[nn.Module, nn.Module, int, nn.Module]:
    """Return C's trunk, what follows its first layer, the decoder's first neurons, and what follows those."""
    channels, height, breadth = shape
    rows, columns = (max(math.ceil((size - 20) / 8), 1) for size in (height, breadth))  # a grid of g becomes 8 g + 20
    trunk = nn.Sequential()
    for given in (channels, width, width):
        trunk.extend([SameConv2d(given, width, 7, dilation=2), nn.ReLU()])
    rest = nn.Sequential(nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU())
    start = hidden // 2
    decoder = nn.Sequential(
        nn.ReLU(),
        nn.Unflatten(1, (start, rows, columns)),
        nn.ConvTranspose2d(start, width, 7, stride=2),
        nn.ReLU(),
        SameConvTranspose2d(width, width, 7, stride=2),
        nn.ReLU(),
        SameConvTranspose2d(width, width, 7, stride=2),
        nn.ReLU(),
        SameConvTranspose2d(width, channels, 3),
        Crop(height, breadth),
    )
    return trunk, rest, start * rows * columns, decoder


def _layout_d(shape: tuple[int, int, int], width: int, hidden: int) -> tuple[nn.Module, nn.Module, int, nn.Module]:
    """Return D's parts, see `_layout_c`."""
    channels, height, breadth = shape
    rows, columns = (math.ceil(size / 2) for size in (height, breadth))
    trunk = nn.Sequential(SameConv2d(channels, channels, 2), nn.ReLU())
    for given in (channels, width, width):
        trunk.extend([SameConv2d(given, width, 2, dilation=2), nn.ReLU()])
    decoder = nn.Sequential(
        nn.ReLU(),
        nn.Linear(hidden, width * rows * columns),
        nn.ReLU(),
        nn.Unflatten(1, (width, rows, columns)),
        SameConvTranspose2d(width, width, 2),
        nn.ReLU(),
        SameConvTranspose2d(width, width, 2),
        nn.ReLU(),
        nn.ConvTranspose2d(width, width, 3, stride=2),
        nn.ReLU(),
        nn.Conv2d(width, channels, 2),
        Crop(height, breadth),
    )
    return trunk, nn.ReLU(), hidden, decoder


def network_for(config: PuvaeOptions, task: Task) -> ConditionalVae:
    """Build the network that the options name, with Keras's initial values."""
    colour = task.channels > 1
    layout = ("d" if colour else "c") if config.network == "auto" else config.network
    usual = COLOUR_LATENT if colour else FASHION_LATENT if task.dataset == "fashion_mnist" else LATENT
    shape = (task.channels, task.height, task.width)
    return ConditionalVae(layout, shape, task.classes, config.width, config.hidden, config.latent or usual)


def reconstruction_cost(logits: Tensor, images: Tensor) -> Tensor:
    """RC: binary cross-entropy, its mean over channels summed over pixels, its mean over the batch [C]."""
    return F.binary_cross_entropy_with_logits(logits, images, reduction="none").mean(1).flatten(1).sum(1).mean()


def divergence(m: Tensor, s: Tensor, kind: str) -> Tensor:
    """KL: the mean over batch and dimensions of m^2 + e^s - s - 1 (no half), or of what the notebook computes.

    The notebook's closing parenthesis is misplaced, which makes it m^2 + e^s - log(e^s - 1) (`kind="authors"`).
    """
    if kind == "authors":
        s = s.clamp_min(LEAST_S)
        return (m.square() + s.exp() - (s + torch.log(-torch.expm1(-s)))).mean()
    return (m.square() + torch.expm1(s) - s).mean()


def reconstruction_error(images: Tensor, restored: Tensor, kind: str) -> Tensor:
    """Return the error of each image, [...], of images and reconstructions [...,C,H,W].

    `mean_pixel_rms`: the mean over pixels of the root mean square over channels, on grey images the mean absolute
    error; the paper calls it RMSE [C]. `rmse`: the root mean square over all. Without an error the slope is zero.
    """
    difference = images - restored
    if kind == "rmse":
        flat = difference.flatten(-3)
        whole: Tensor = torch.linalg.vector_norm(flat, dim=-1) / math.sqrt(flat.shape[-1])
        return whole
    root: Tensor = torch.linalg.vector_norm(difference, dim=-3) / math.sqrt(difference.shape[-3])
    return root.flatten(-2).mean(-1)


def grid_threshold(scores: Tensor, fpr: float) -> float:
    """Return the first t of .05, .06 ... .25 that rejects at most a share `fpr` of clean images' scores [N] [C].

    Raises:
        ConfigError: none does.
    """
    for t in GRID:
        if int((scores >= t).sum()) <= fpr * len(scores):
            return t
    left = float((scores >= GRID[-1]).double().mean())
    raise ConfigError(
        f"no threshold of the grid {GRID[0]} to {GRID[-1]} keeps to fpr={fpr:g}: the last rejects {left:.3g} of the "
        "clean images; train longer, or use threshold_rule=quantile"
    )
