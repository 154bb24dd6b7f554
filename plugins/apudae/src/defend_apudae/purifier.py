"""The purifier stage: the equations of `model.py` as a module with weights."""

from __future__ import annotations

from typing import Any

import attrs
import torch
from torch import Tensor, nn

from defend import Task
from defend_apudae.config import ApudaeOptions
from defend_apudae.frozen import FrozenAutoencoder
from defend_apudae.model import purify
from defend_apudae.networks import DenoisingAutoencoder

GREY_DEPTH, COLOUR_DEPTH = 5, 15
FEWER_STEPS = 3


class ApudaePurifier(nn.Module):
    """Images [B,C,H,W] in [0,1] to purified images of the same shape and range.

    Attributes:
        dae: the autoencoder.
        mu, sigma: mean and standard deviation of the summed squared reconstruction error on held-out
            clean images, set by training and kept with the weights.
    """

    mu: Tensor
    sigma: Tensor

    def __init__(self, dae: DenoisingAutoencoder | FrozenAutoencoder, config: ApudaeOptions) -> None:
        super().__init__()
        self.dae, self.config = dae, config
        self.register_buffer("mu", torch.tensor(0.0))
        self.register_buffer("sigma", torch.tensor(1.0))

    @property
    def random(self) -> bool:
        """F and G draw random numbers."""
        return self.config.variant in ("F", "G")

    def forward(self, images: Tensor) -> Tensor:
        """Purify; see `defend_apudae.model.purify`."""
        if self.config.variant == "direct":
            direct: Tensor = self.dae(images)
            return direct.clamp(0, 1)
        sigma = self.sigma if self.config.sigma is None else torch.full_like(self.sigma, self.config.sigma)
        return purify(images, self.dae, self.mu, sigma, self.config)

    def prepared(self) -> ApudaePurifier:
        """Return the same purifier for evaluation, faster: the updates' gradients are written out by hand."""
        if self.config.variant == "direct" or isinstance(self.dae, FrozenAutoencoder):
            return self
        return self._with(self.config, FrozenAutoencoder(self.dae))

    def denoiser(self) -> nn.Module:
        """Return what was trained to take noise away: the autoencoder, as the direct output shows it."""
        config: Any = self.config
        return self._with(attrs.evolve(config, variant="direct"))

    def surrogates(self) -> dict[str, nn.Module]:
        """Return what an attacker may differentiate instead: the plain autoencoder, and fewer steps of the same."""
        if self.config.variant == "direct":
            return {}
        config: Any = self.config
        ways = {"autoencoder": attrs.evolve(config, variant="direct")}
        if config.steps > FEWER_STEPS:
            ways[f"{FEWER_STEPS} steps"] = attrs.evolve(config, steps=FEWER_STEPS)
        return {name: self._with(config) for name, config in ways.items()}

    def _with(self, config: ApudaeOptions, dae: FrozenAutoencoder | None = None) -> ApudaePurifier:
        other = ApudaePurifier(dae or self.dae, config)
        other.mu, other.sigma = self.mu, self.sigma
        return other.eval()


def build(config: ApudaeOptions, task: Task) -> ApudaePurifier:
    """Build the purifier for a task; untrained until weights are loaded."""
    depth = config.depth or (GREY_DEPTH if task.channels == 1 else COLOUR_DEPTH)
    return ApudaePurifier(DenoisingAutoencoder(task.channels, depth, config.width), config)
