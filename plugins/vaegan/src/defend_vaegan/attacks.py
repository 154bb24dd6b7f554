"""An adaptive attack on this purifier: PGD that passes its search straight through (BPDA, Athalye et al. 2018).

The paper has none. Unrolled sign steps give a rough gradient; taking them for the identity gives a smoother one, and
on the shipped weights the stronger attack (README).
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from defend.attacks.iterated import Pgd
from defend.errors import ConfigError
from defend_vaegan.config import StraightOptions
from defend_vaegan.purifier import VaeganPurifier


def through_autoencoder(module: nn.Module, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Objective: the defence's own cross-entropy [B] and logits, with `VaeganPurifier.straight` for its gradient.

    Raises:
        ConfigError: the defence has another purifier, or none.
    """
    victim, purifier = getattr(module, "victim", None), getattr(module, "purifier", None)
    if not isinstance(victim, nn.Module) or not isinstance(purifier, VaeganPurifier):
        name = getattr(purifier, "stage_name", "none")
        raise ConfigError(f"the attack vaegan_straight needs --purifier vaegan, and the purifier is {name!r}")
    logits: Tensor = victim(purifier.straight(images))
    return F.cross_entropy(logits, labels, reduction="none"), logits


def build(config: StraightOptions) -> Pgd:
    """Build the attack."""
    return Pgd(config, through_autoencoder)
