"""The purifier stage: the networks of `model.py` and the mode of purification, as a module with weights."""

from __future__ import annotations

from typing import Any

import attrs
import torch
from torch import Tensor, nn

from defend import Task
from defend_vaegan.config import VaeganOptions
from defend_vaegan.model import VaeGan, climb, search, straight_through


class VaeganPurifier(nn.Module):
    """Images [B,C,H,W] in [0,1] to purified images of the same shape and range.

    Attributes:
        networks: encoder, decoder and discriminator.
    """

    def __init__(self, networks: VaeGan, config: VaeganOptions) -> None:
        super().__init__()
        self.networks, self.config = networks, config

    @property
    def random(self) -> bool:
        """Restarts in the latent beyond the first begin at random."""
        return self.config.mode == "latent" and self.config.restarts > 1

    def forward(self, images: Tensor) -> Tensor:
        """Purify; see `defend_vaegan.model.climb` and `search`."""
        networks, mode = self.networks, self.config.mode
        if mode == "latent":
            return networks.decode(search(images, networks, self.config))
        return networks.reconstruct(climb(images, networks, self.config) if mode == "disc_grad" else images)

    def surrogates(self) -> dict[str, nn.Module]:
        """Return what an attacker may differentiate instead of the climb or the search: the plain autoencoder."""
        if self.config.mode == "recon":
            return {}
        config: Any = self.config
        return {"autoencoder": VaeganPurifier(self.networks, attrs.evolve(config, mode="recon")).eval()}

    def straight(self, images: Tensor) -> Tensor:
        """Return what `forward` returns; backwards only the autoencoder is seen, not the search before it.

        disc_grad: the climb is the identity. latent: the z that was found is mu(x).
        """
        networks, mode = self.networks, self.config.mode
        if mode == "recon":
            return networks.reconstruct(images)
        with torch.no_grad():
            found = (search if mode == "latent" else climb)(images, networks, self.config)
        if mode == "latent":
            return networks.decode(straight_through(networks.encode(images), found))
        return networks.reconstruct(straight_through(images, found))


def build(config: VaeganOptions, task: Task) -> VaeganPurifier:
    """Build the purifier for a task; untrained until weights are loaded."""
    networks = VaeGan(task.channels, task.height, task.width, config.latent, config.width)
    return VaeganPurifier(networks, config)
