"""Several victims as one, by the mean of their logits: a source whose images come over to more victims than each's."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn


class Averaged(nn.Module):
    """The mean of several victims' logits (an ensemble in logits, Dong et al. 2018, section 3.3)."""

    def __init__(self, victims: Iterable[nn.Module]) -> None:
        super().__init__()
        self.victims = nn.ModuleList(victims)
        self.random = any(bool(getattr(victim, "random", False)) for victim in self.victims)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits [B,K]."""
        return torch.stack([victim(images) for victim in self.victims]).mean(0)
