"""The fast minimum-norm attack, FMN (Pintor et al. 2021, arXiv:2102.12827): each image's smallest change that fools."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from defend.attacks.balls import clip, measure, measure_slope, wide
from defend.attacks.goals import Goal, choose_goal, settle, step_along
from defend.attacks.keeping import HALF, Nearest
from defend.attacks.objectives import margin
from defend.attacks.options import FmnOptions
from defend.attacks.target import Target

LAST_STEP, LAST_GAMMA = 0.01, 0.001  # a share of the first step; and the last gamma


def anneal(first: float, last: float, progress: float) -> float:
    """Return a number that falls from the first to the last as half a cosine, at a share of the way."""
    return last + (first - last) * (1 + math.cos(math.pi * progress)) / 2


class FastMinimumNorm:
    """Climb the margin of the other classes in a ball that shrinks while the image fools, and widens while it does not.

    Before an image has ever fooled, its ball reaches at least as far as the slope says that the boundary is. In L-inf a
    step goes along the gradient's sign, and is a share of the ball's radius: the published steps, of a length in L2,
    find less through a purifier. What comes back is the nearest point that fooled, however far, and the image itself
    where none did. Of several draws a point must fool half, and of the nearest the one comes back that does so of new
    draws too (`defend.attacks.keeping.Nearest`); of a random target's single draw it must fool with another once more.
    """

    minimal = nearest = strays = True

    def __init__(self, config: FmnOptions, norm: str) -> None:
        self._config, self.norm = config, norm

    def __call__(self, target: Target, images: Tensor, labels: Tensor, *, eps: Tensor, keys: Tensor) -> Tensor:
        """See `defend.stages.Attack`."""
        config = self._config
        goal = choose_goal(config, target, images, labels, keys)
        current, nearest = images, images
        farthest = measure(torch.maximum(images, 1 - images), self.norm)
        radius, best = torch.full_like(eps, torch.inf), farthest
        ever = torch.zeros_like(labels, dtype=torch.bool)
        keeper = Nearest(images) if target.draws > 1 else None
        for step in range(config.steps):
            size = anneal(config.step_size, LAST_STEP * config.step_size, step / config.steps)
            gamma = anneal(config.first_gamma, LAST_GAMMA, step / config.steps)
            # the nearest point lies on the boundary, where rounding would decide
            slope = target.slope(current, goal.labels, keys, f"fmn/{step}", margin, full=True)
            distance = measure(current - images, self.norm)
            if keeper is None or slope.votes is None:
                ahead = goal.reached(slope.logits) & (goal.sign * slope.loss > 0)
                fooled = self._sure(ahead, target, goal, current, keys, step)
            else:
                share = goal.share(slope.votes)
                # who is fooled as it is by luck would have no ball left to search
                fooled = share >= (HALF if step else 1.0)
                keeper.take(current, distance, share)
            better = fooled & (distance <= best)
            ever = ever | fooled
            best = torch.where(better, distance, best)
            nearest = torch.where(wide(better), current, nearest)
            steepness = measure_slope(slope.gradient, self.norm)
            to_boundary = torch.where(steepness > 0, slope.loss.abs() / steepness, torch.inf)
            # also before it ever fooled: on the boundary is not across it, and the box cuts off of what the ball allows
            wider = torch.where(radius.isfinite(), radius * (1 + gamma), 0)
            outside = torch.where(ever, wider, torch.maximum(wider, distance + to_boundary))
            radius = torch.where(fooled, torch.minimum(radius * (1 - gamma), best), outside)
            radius = torch.minimum(radius, farthest).to(images.dtype)
            length = size * radius if self.norm == "linf" else torch.full_like(radius, size)
            moved = current + step_along(slope.gradient, goal, length, self.norm)
            current = clip(moved, images, radius, self.norm)
        if keeper is not None:
            nearest = keeper.choose(target, goal, images, keys, "fmn/choose")
        return settle(goal, target, images, nearest, labels, keys, "fmn")

    def _sure(self, fooled: Tensor, target: Target, goal: Goal, images: Tensor, keys: Tensor, step: int) -> Tensor:
        if target.random and bool(fooled.any()):
            return fooled & goal.reached(target.logits(images, keys, f"fmn/{step}/again"))
        return fooled


def linf(config: FmnOptions) -> FastMinimumNorm:
    """Build the L-inf attack."""
    return FastMinimumNorm(config, "linf")


def l2(config: FmnOptions) -> FastMinimumNorm:
    """Build the L2 attack."""
    return FastMinimumNorm(config, "l2")
