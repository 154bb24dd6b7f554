"""The detector stage: the error of the closest reconstruction, e*; an image is rejected if e* >= t."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from defend import Task
from defend_puvae_detect.config import PuvaeOptions
from defend_puvae_detect.model import ConditionalVae, network_for, reconstruction_error
from defend_puvae_detect.purifier import PuvaePurifier, closest


class PuvaeDetector(nn.Module):
    """(images, purified) [B,C,H,W] to reconstruction errors [B], in the unit of the option `score`.

    Args:
        network: the VAE, the same as the purifier's.
        config: the options.
        reuse: take `purified` for the reconstruction instead of computing one, see `beside`.

    Attributes:
        threshold: t, set by the purifier's training. Infinite before: nothing is rejected.
    """

    threshold: Tensor

    def __init__(self, network: ConditionalVae, config: PuvaeOptions, reuse: bool = False) -> None:
        super().__init__()
        self.network, self.config, self.reuse = network, config, reuse
        self.register_buffer("threshold", torch.tensor(math.inf))

    @property
    def random(self) -> bool:
        """Noise on z makes passes differ; where the reconstruction is the purifier's, so is the noise."""
        return self.config.z_noise > 0 and not self.reuse

    def forward(self, images: Tensor, purified: Tensor) -> Tensor:
        """Return e* of every image; differentiable through both."""
        restored = purified if self.reuse else closest(self.network, images, self.config)
        return reconstruction_error(images, restored, self.config.score)

    def beside(self, purifier: nn.Module | None) -> PuvaeDetector:
        """Return the detector to use behind a purifier: one that reuses its reconstruction, if it is the same VAE.

        The same are options and tensors. The returned detector holds the purifier's network, not a second one.
        """
        same = (
            isinstance(purifier, PuvaePurifier)
            and purifier.config == self.config
            and _same_tensors(purifier.network, self.network)
        )
        if same == self.reuse:
            return self
        network = purifier.network if isinstance(purifier, PuvaePurifier) and same else self.network
        other = PuvaeDetector(network, self.config, reuse=same)
        other.threshold = self.threshold
        if hasattr(self, "stage_name"):
            other.stage_name = self.stage_name
        return other


def _same_tensors(first: nn.Module, second: nn.Module) -> bool:
    if first is second:
        return True
    ours, theirs = first.state_dict(), second.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key].to(ours[key])) for key in ours)


def build(config: PuvaeOptions, task: Task) -> PuvaeDetector:
    """Build the detector for a task; untrained until weights are loaded."""
    return PuvaeDetector(network_for(config, task), config)
