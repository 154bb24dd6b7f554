"""The host's side of an attack: it runs it, checks what comes back, and clips it to the budget."""

from __future__ import annotations

import torch
from torch import Tensor

from defend.attacks.balls import at_least_float32, clip, lengths
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
    exact = at_least_float32(images.detach())  # small steps are lost in half precision
    budgets = torch.as_tensor(eps, dtype=exact.dtype, device=images.device).expand(len(images))
    identity = torch.arange(len(images), device=images.device) if keys is None else keys
    images = images.detach()
    target.queries = None
    target.shown = images.dtype
    try:
        adversarial = attack(target, exact, labels, eps=budgets, keys=identity)
    finally:
        target.shown = None
    allowed = budgets + getattr(attack, "excess", 0.0)
    adversarial = _checked(adversarial, images, name)
    target.overshoot = overshoot(adversarial, exact, allowed, attack.norm)
    return clip(adversarial.to(images.dtype), images, allowed, attack.norm)


def enforce(adversarial: Tensor, images: Tensor, eps: Tensor, norm: str, name: str) -> Tensor:
    """Check shape and finiteness, clip to the ball of eps [B] in the norm ("linf" or "l2") and to [0,1].

    Raises:
        ContractError: naming the attack.
    """
    return clip(_checked(adversarial, images, name), images, eps, norm)


def overshoot(adversarial: Tensor, images: Tensor, eps: Tensor, norm: str) -> Tensor:
    """Return how far each image is outside its budget or outside [0,1], whichever is larger: [B], 0 if inside."""
    difference = (adversarial - images).flatten(1)
    distance = lengths(difference) if norm == "l2" else difference.abs().amax(1)
    flat = adversarial.flatten(1)
    outside = torch.maximum(-flat.amin(1), flat.amax(1) - 1)
    return torch.maximum(distance - eps, outside).clamp_min(0).abs()  # no -0


def _checked(adversarial: Tensor, images: Tensor, name: str) -> Tensor:
    if not isinstance(adversarial, Tensor) or adversarial.shape != images.shape:
        got = f"shape {list(adversarial.shape)}" if isinstance(adversarial, Tensor) else type(adversarial).__name__
        raise ContractError(f"attack {name} returned {got}, expected images of shape {list(images.shape)}")
    adversarial = adversarial.detach()
    bad = (~torch.isfinite(adversarial)).flatten(1).any(1)
    if bad.any():
        raise ContractError(f"attack {name} returned {int(bad.sum())} of {len(bad)} images that are not finite")
    return adversarial
