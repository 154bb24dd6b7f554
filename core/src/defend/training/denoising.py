"""How well a purifier takes plain noise away, beside doing nothing and beside a blur: figures for its card.

A denoiser that is worse than a fixed blur of the noisy image, or than the noisy image itself, was not trained well
enough to be measured as a defence: what it leaves of an attack is no finding about the method.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from defend.datasets.base import ImageDataset
from defend.defence import Defence
from defend.randomness import keyed, normal_like
from defend.util.fp32 import ieee_fp32
from defend.weights.card import Card

SIGMAS = (8, 15, 25, 50)
"""Deviations of the noise, in 255ths: a sign attack of eps 8/255 is as large as noise of 8, one of 0.1 of 25."""
IMAGES, BATCH = 128, 64
COLOUR, GREY = 8, 25
"""The scale that a purifier is held to where it claims no other, in 255ths: the usual eps, 8/255 and 0.1."""


@ieee_fp32()
@torch.no_grad()
def measure_denoising(purifier: nn.Module, dataset: ImageDataset, device: torch.device) -> dict[str, float]:
    """Return PSNR in dB on `IMAGES` held-out images with noise of every sigma, clipped to [0,1] as attacked ones are.

    "val_psnr_8" of what the purifier makes of noise of 8/255, "val_psnr_8_noisy" of the noisy images themselves, and
    "val_psnr_8_blur" of these under a 3x3 binomial blur; each of the mean squared error over all images.

    Raises:
        ContractError: the purifier's images are of another shape, not finite, or not in [0,1].
    """
    denoiser = getattr(purifier, "denoiser", None)
    shield = Defence(nn.Identity(), denoiser() if callable(denoiser) else purifier)
    keys = dataset.keys("val", min(IMAGES, len(dataset.labels("val"))), seed=0)
    errors: dict[str, list[Tensor]] = {}
    for batch in dataset.batches("val", keys, BATCH, device):
        for sigma in SIGMAS:
            with keyed(batch.keys, seed=0, stream=f"denoising/{sigma}"):
                noisy = (batch.images + sigma / 255 * normal_like(batch.images)).clamp(0, 1)
                made = {"": shield.purify(noisy), "_noisy": noisy, "_blur": blur(noisy)}
            for which, images in made.items():
                error = (images - batch.images).square().flatten(1).mean(1)
                errors.setdefault(f"val_psnr_{sigma}{which}", []).append(error.double())
    return {name: psnr(torch.cat(parts)) for name, parts in errors.items()}


def psnr(errors: Tensor) -> float:
    """Return the PSNR in dB of squared errors [N] of images in [0,1]; 100 where there is no error to speak of."""
    return -10 * math.log10(max(float(errors.mean()), 1e-10))


def blur(images: Tensor) -> Tensor:
    """Blur images [B,C,H,W] by the fixed 3x3 binomial kernel, edges repeated."""
    row = images.new_tensor((0.25, 0.5, 0.25))
    kernel = (row[:, None] * row).expand(images.shape[1], 1, 3, 3)
    return F.conv2d(F.pad(images, (1, 1, 1, 1), mode="replicate"), kernel, groups=images.shape[1])


def find_fault(card: Card, sigma: int | None = None) -> str:
    """Say in a line that a purifier's weights do not denoise as well as a blur, or as doing nothing; "" where they do.

    Args:
        card: that of the weights.
        sigma: the scale that the purifier claims, one of `SIGMAS`; None: `COLOUR` or `GREY`, as its images are.
    """
    at = sigma or (GREY if card.task().channels == 1 else COLOUR)
    names = [f"val_psnr_{at}{which}" for which in ("", "_noisy", "_blur")]
    missing = [name for name in names if name not in card.figures]
    if missing:
        return f"its card has no {missing[0]}, which every training measures now: train it anew"
    purified, noisy, blurred = (card.figures[name] for name in names)
    if purified >= max(noisy, blurred):
        return ""
    return (
        f"of noise of {at}/255 it leaves a PSNR of {purified:.1f} dB, where the noisy image has {noisy:.1f} and a 3x3 "
        f"blur of it {blurred:.1f}: it does not denoise at the scale that it claims; train it for longer"
    )
