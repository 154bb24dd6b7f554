"""The purifier stage: the reconstruction with the least error over all labels."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from defend import Task
from defend.randomness import normal_like
from defend_puvae_detect.config import PuvaeOptions
from defend_puvae_detect.model import ConditionalVae, network_for, reconstruction_error


class PuvaePurifier(nn.Module):
    """Images [B,C,H,W] in [0,1] to their closest reconstructions, of the same shape and range.

    Attributes:
        network: the VAE.
        threshold: the detector's, kept in the same weights; set by training. Infinite before.
    """

    threshold: Tensor

    def __init__(self, network: ConditionalVae, config: PuvaeOptions) -> None:
        super().__init__()
        self.network, self.config = network, config
        self.register_buffer("threshold", torch.tensor(math.inf))

    @property
    def random(self) -> bool:
        """Noise on z makes passes differ."""
        return self.config.z_noise > 0

    def forward(self, images: Tensor) -> Tensor:
        """Reconstruct for every label, keep the closest; see `closest`."""
        return closest(self.network, images, self.config)


def closest(network: ConditionalVae, images: Tensor, config: PuvaeOptions) -> Tensor:
    """Return of every image the reconstruction with the least error over all labels, [B,C,H,W].

    The stem is computed once an image, and the labels share one pass of the decoder. Where gradients are
    wanted, the label is found without, and its reconstruction alone is made again with gradients: the choice
    has no slope, so this is the gradient of gathering from all, without going back through the other labels.
    """
    stem = network.stem(images)
    noise = stem.new_zeros(len(stem), network.classes, network.latent)
    if config.z_noise > 0:
        noise = config.z_noise * normal_like(noise)
    with torch.no_grad():
        candidates = network.reconstruct_all(stem, noise)
        best = reconstruction_error(images[:, None], candidates, config.score).argmin(1)
    each = torch.arange(len(stem), device=stem.device)
    if not stem.requires_grad:
        return candidates[each, best]
    return network.reconstruct(stem, best, noise[each, best]).logits.sigmoid()


def build(config: PuvaeOptions, task: Task) -> PuvaePurifier:
    """Build the purifier for a task; untrained until weights are loaded."""
    return PuvaePurifier(network_for(config, task), config)
