"""The host's side of an attack: it runs it, checks what comes back, and clips it to the budget."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from defend.attacks.target import Target
from defend.errors import ConfigError, ContractError
from defend.stages import Attack


def craft(
    attack: Attack,
    target: Target,
    images: Tensor,
    labels: Tensor,
    *,
    eps: float | Tensor | None,
    keys: Tensor | None = None,
) -> Tensor:
    """Run an attack and hold its result to the contract.

    Afterwards `target.overshoot` [B] says how far each raw result was outside its budget (in the attack's norm) or
    the box [0,1], whichever is larger, before it was clipped; and `target.queries` is what the attack counted, or None.

    Args:
        attack: from a registry or built by hand.
        target: what to attack.
        images: [B,C,H,W] in [0,1].
        labels: int64 [B].
        eps: one budget, or one an image [B], in the attack's norm. An attack that minimises the distance
            (`attack.minimal` is true) has none: whatever is given, it gets infinite budgets.
        keys: int64 [B], each image's identity for random draws; the place in the batch if None.

    Raises:
        ConfigError: no budget for an attack that needs one.
        ContractError: another shape than the images', or numbers that are not finite.
    """
    name = type(attack).__name__
    if getattr(attack, "minimal", False):
        eps = torch.inf
    elif eps is None:
        raise ConfigError(f"eps is None for attack {name}: expected its {attack.norm} budget, for example 8/255")
    budgets = torch.as_tensor(eps, dtype=images.dtype, device=images.device).expand(len(images))
    identity = torch.arange(len(images), device=images.device) if keys is None else keys
    images = images.detach()
    target.queries = None
    adversarial = attack(target, images, labels, eps=budgets, keys=identity)
    allowed = budgets + getattr(attack, "excess", 0.0)
    adversarial = _checked(adversarial, images, name)
    target.overshoot = overshoot(adversarial, images, allowed, attack.norm)
    return clip(adversarial, images, allowed, attack.norm)


def usual_l2(eps: float, numbers: int) -> float:
    """Return the L2 budget that goes with an L-inf one: a quarter of the longest change of so many numbers."""
    return eps * math.sqrt(numbers) / 4


def enforce(adversarial: Tensor, images: Tensor, eps: Tensor, norm: str, name: str) -> Tensor:
    """Check shape and finiteness, clip to the ball of eps [B] in the norm ("linf" or "l2") and to [0,1].

    Raises:
        ContractError: naming the attack.
    """
    return clip(_checked(adversarial, images, name), images, eps, norm)


def overshoot(adversarial: Tensor, images: Tensor, eps: Tensor, norm: str) -> Tensor:
    """Return how far each image is outside its budget or outside [0,1], whichever is larger: [B], 0 if inside."""
    difference = (adversarial - images).flatten(1)
    distance = difference.norm(dim=1) if norm == "l2" else difference.abs().amax(1)
    flat = adversarial.flatten(1)
    outside = torch.maximum(-flat.amin(1), flat.amax(1) - 1)
    return torch.maximum(distance - eps, outside).clamp_min(0).abs()  # no -0


def clip(adversarial: Tensor, images: Tensor, eps: Tensor, norm: str) -> Tensor:
    """Clip to within eps [B] of the images in the norm, then to [0,1]; an infinite budget clips to [0,1] alone."""
    return project_l2(adversarial, images, eps) if norm == "l2" else project_linf(adversarial, images, eps)


def project_linf(candidate: Tensor, images: Tensor, eps: Tensor) -> Tensor:
    """Clip to within eps [B] of the images, then to [0,1]."""
    radius = eps.view(-1, 1, 1, 1)
    return torch.minimum(torch.maximum(candidate, images - radius), images + radius).clamp_(0, 1)


def project_l2(candidate: Tensor, images: Tensor, eps: Tensor) -> Tensor:
    """Shorten the difference to at most eps [B] in L2, then clip to [0,1], which only shortens it further."""
    difference = candidate - images
    length = difference.flatten(1).norm(dim=1)
    share = torch.where(length > eps, eps / length, torch.ones_like(length)).view(-1, 1, 1, 1)
    inside = torch.where(share < 1, images + share * difference, candidate)  # what is inside stays as it is, to the bit
    return inside.clamp(0, 1)


def _checked(adversarial: Tensor, images: Tensor, name: str) -> Tensor:
    if not isinstance(adversarial, Tensor) or adversarial.shape != images.shape:
        got = f"shape {list(adversarial.shape)}" if isinstance(adversarial, Tensor) else type(adversarial).__name__
        raise ContractError(f"attack {name} returned {got}, expected images of shape {list(images.shape)}")
    adversarial = adversarial.detach()
    bad = (~torch.isfinite(adversarial)).flatten(1).any(1)
    if bad.any():
        raise ContractError(f"attack {name} returned {int(bad.sum())} of {len(bad)} images that are not finite")
    return adversarial
