"""Attacked images as they travel: 256 levels a number, and still within their budget."""

from __future__ import annotations

import torch
from torch import Tensor

from defend.attacks.balls import ROUNDINGS, SHORTER, lengths, wide

LEVELS = 255
SLACK = 1e-4  # levels: what float32 makes of a budget of whole levels


def round_to_levels(attacked: Tensor, images: Tensor, eps: float | None, norm: str) -> Tensor:
    """Round attacked images [B,C,H,W] in [0,1] to uint8, to the nearest levels within the budget of the clean ones.

    Where a number of an image that is not itself of 8 bits has no level within the budget, it is the nearest of all.
    """
    exact, origin = LEVELS * attacked.float(), LEVELS * images.float()
    nearest = exact.round()
    if eps is not None and norm == "l2":
        nearest = _within_l2(exact, origin, LEVELS * eps)
    elif eps is not None:
        low, high = (origin - LEVELS * eps - SLACK).ceil(), (origin + LEVELS * eps + SLACK).floor()
        nearest = torch.where(low <= high, torch.minimum(torch.maximum(nearest, low), high), nearest)
    return nearest.clamp(0, LEVELS).to(torch.uint8)


def _within_l2(exact: Tensor, origin: Tensor, radius: float) -> Tensor:
    """Round [B,C,H,W], all in levels, shortening what would leave the ball until it does not."""
    candidate = exact
    for _ in range(ROUNDINGS):
        rounded = candidate.round()
        length = lengths(rounded - origin)
        over = length > radius + SLACK
        if not bool(over.any()):
            return rounded
        share = SHORTER * radius / length.clamp_min(SLACK)
        candidate = torch.where(wide(over), origin + wide(share) * (candidate - origin), candidate)
    # towards the clean image: no longer than before, if that is itself of 8 bits
    inwards = torch.where(exact > origin, exact.floor(), exact.ceil())
    return torch.where(wide(lengths(candidate.round() - origin) > radius + SLACK), inwards, candidate.round())
