"""An adaptive attack on this purifier: PGD that passes its search straight through (BPDA, Athalye et al. 2018).

The paper has none. Unrolled sign steps give a rough gradient; taking them for the identity gives a smoother one, and
on the shipped weights the stronger attack (README).
"""

from __future__ import annotations

from torch import Tensor, nn

from defend.attacks.iterated import Pgd
from defend.attacks.objectives import choose_cross_entropy
from defend.boundary.given import own
from defend.defence import Defence
from defend.errors import ConfigError
from defend_vaegan.config import StraightOptions
from defend_vaegan.purifier import VaeganPurifier


def ask_straight(module: nn.Module, images: Tensor) -> Tensor:
    """Return the defence's own logits [B,K] of images [B,C,H,W], with `VaeganPurifier.straight` for their gradient.

    Raises:
        ConfigError: the defence has another purifier, or none.
    """
    purifier = getattr(module, "purifier", None)
    if not isinstance(module, Defence) or not isinstance(purifier, VaeganPurifier):
        name = getattr(purifier, "stage_name", "none")
        raise ConfigError(f"the attack vaegan_straight needs --purifier vaegan, and the purifier is {name!r}")
    return module.classify(purifier.straight(own(images, purifier)))


def build(config: StraightOptions) -> Pgd:
    """Build the attack."""
    return Pgd(config, choose_cross_entropy(config.logit_scale, ask_straight))
