"""The host's side of an attack: it runs it, checks what comes back, and clips it to the budget."""

from __future__ import annotations

import torch
from torch import Tensor

from defend.attacks.target import Target
from defend.errors import ContractError
from defend.stages import Attack


def craft(
    attack: Attack, target: Target, images: Tensor, labels: Tensor, *, eps: float | Tensor, keys: Tensor | None = None
) -> Tensor:
    """Run an attack and hold its result to the contract.

    Args:
        attack: from a registry or built by hand.
        target: what to attack.
        images: [B,C,H,W] in [0,1].
        labels: int64 [B].
        eps: one budget, or one an image [B].
        keys: int64 [B], each image's identity for random draws; the place in the batch if None.

    Raises:
        ContractError: another shape than the images', or numbers that are not finite.
    """
    budgets = torch.as_tensor(eps, dtype=images.dtype, device=images.device).expand(len(images))
    identity = torch.arange(len(images), device=images.device) if keys is None else keys
    images = images.detach()
    adversarial = attack(target, images, labels, eps=budgets, keys=identity)
    return enforce(adversarial, images, budgets + getattr(attack, "excess", 0.0), attack.norm, type(attack).__name__)


def enforce(adversarial: Tensor, images: Tensor, eps: Tensor, norm: str, name: str) -> Tensor:
    """Check shape and finiteness, clip to the eps-ball (L-inf only) and to [0,1].

    Raises:
        ContractError: naming the attack.
    """
    if not isinstance(adversarial, Tensor) or adversarial.shape != images.shape:
        got = f"shape {list(adversarial.shape)}" if isinstance(adversarial, Tensor) else type(adversarial).__name__
        raise ContractError(f"attack {name} returned {got}, expected images of shape {list(images.shape)}")
    adversarial = adversarial.detach()
    bad = (~torch.isfinite(adversarial)).flatten(1).any(1)
    if bad.any():
        raise ContractError(f"attack {name} returned {int(bad.sum())} of {len(bad)} images that are not finite")
    if norm == "linf":
        adversarial = project_linf(adversarial, images, eps)
    return adversarial.clamp(0, 1)


def project_linf(candidate: Tensor, images: Tensor, eps: Tensor) -> Tensor:
    """Clip to within eps [B] of the images, then to [0,1]."""
    radius = eps.view(-1, 1, 1, 1)
    return torch.minimum(torch.maximum(candidate, images - radius), images + radius).clamp_(0, 1)
