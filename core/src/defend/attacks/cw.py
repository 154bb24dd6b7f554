"""Carlini and Wagner's L2 attack (2017), with a binary search for the constant of every image."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from defend.attacks.balls import project_linf
from defend.attacks.goals import Goal, choose_goal, settle
from defend.attacks.keeping import HALF, Nearest
from defend.attacks.objectives import Objective, leading_spread
from defend.attacks.options import CwOptions
from defend.attacks.target import Target

BETAS = (0.9, 0.999)
TINY = 1e-8
EDGE = math.tanh(1.5)  # of [-1,1]: beyond it tanh space would hardly slope, and 0 and 1 lie at infinity
LARGEST_CONST = 1e10  # foolbox's bound too
USUAL_SPREADS = (0.1, 1e3)  # of an image's leading logits: what the published constants suit
TYPICAL_SPREAD = 10.0


def margin(goal: Goal, confidence: float) -> Objective:
    """Return the objective whose fall to zero means success: max(margin + confidence, 0)."""

    def objective(module: nn.Module, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        logits = module(images)
        return (lag(goal, logits, labels) + confidence).clamp_min(0), logits

    return objective


def lag(goal: Goal, logits: Tensor, labels: Tensor) -> Tensor:
    """Return by how much logits [B,K] miss the goal, [B]; below 0 is reached."""
    chosen = logits.gather(1, labels[:, None])[:, 0]
    one_hot = F.one_hot(labels, logits.shape[1]).bool()
    other = logits.masked_fill(one_hot, -torch.inf).amax(1)
    return goal.sign * (chosen - other)


def usual_scale(logits: Tensor) -> Tensor:
    """Return the factor for each image's logits [B,K] that makes the published constants suit them: [B].

    It is 1 for the logits of a usual network. With logits a million times as large, the margin would outweigh the
    distance from the first constant on, and the images found would lie far away. With logits a millionth as large, the
    distance would outweigh the margin up to the last constant, and none would be found.
    """
    spread = leading_spread(logits)
    low, high = USUAL_SPREADS
    usual = ((spread >= low) & (spread < high)) | ~(spread > 0) | ~spread.isfinite()
    return torch.where(usual, torch.ones_like(spread), TYPICAL_SPREAD / spread)


class Space:
    """Tanh space of images [B,C,H,W], in which a pixel at 0 or 1 is not at infinity.

    A pixel beyond `EDGE` stands for one at it, and is as far from it in the image wherever that moves: it begins where
    tanh has a slope, and with no change at all. Other pixels are as published.

    Attributes:
        start: [B,C,H,W], where the images are.
    """

    def __init__(self, images: Tensor) -> None:
        signed = 2 * images - 1
        inside = signed.clamp(-EDGE, EDGE)
        self.start = torch.atanh(inside)
        self._beyond = (signed - inside) / 2
        self._low = -torch.atanh(1 - 2 * self._beyond.clamp_max(0).abs())
        self._high = torch.atanh(1 - 2 * self._beyond.clamp_min(0))

    def place(self, points: Tensor) -> Tensor:
        """Return the images in [0,1] that points are."""
        return ((torch.tanh(points) + 1) / 2 + self._beyond).clamp(0, 1)

    def clamp(self, points: Tensor) -> Tensor:
        """Return points whose images are within [0,1] without being cut there."""
        return torch.maximum(torch.minimum(points, self._high), self._low)


class CarliniWagner:
    """Minimise ||x' - x||^2 + c * margin in tanh space with Adam; c grows tenfold until it works, then bisects.

    Where an image's logits are of an unusual size, c begins and ends as much higher or lower (`usual_scale`).
    Pixels near 0 and 1 are moved from where tanh has a slope (`Space`).

    With `clip="linf"` the perturbation found is clipped to eps, which is what Kalaria et al. 2022 report; with
    "none" it is left as it is and no eps applies. Of several draws a point must fool half (by the confidence on
    average); of the nearest that do so by more or less, that which fools most of new draws once it is clipped comes
    back, and with "none" the nearest that fools half of them.
    """

    def __init__(self, config: CwOptions) -> None:
        self._config = config
        self.norm = "linf" if config.clip == "linf" else "l2"
        self.minimal = config.clip == "none"
        self.strays = not self.minimal

    def __call__(self, target: Target, images: Tensor, labels: Tensor, *, eps: Tensor, keys: Tensor) -> Tensor:
        """See `defend.stages.Attack`. Images that are never fooled come back unchanged."""
        config = self._config
        goal = choose_goal(config, target, images, labels, keys)
        objective = margin(goal, config.confidence)
        space = Space(images)
        suited = usual_scale(target.logits(images, keys, "cw/scale")).to(eps.dtype)
        constant = config.initial_const * suited
        low, high = torch.zeros_like(eps), torch.full_like(eps, torch.inf)
        best, best_distance = images.clone(), torch.full_like(eps, torch.inf)
        keeper = Nearest(images) if target.draws > 1 else None
        for search in range(config.binary_search_steps):
            point = space.start.clone()
            first, second = torch.zeros_like(point), torch.zeros_like(point)
            fooled_here = torch.zeros_like(eps, dtype=torch.bool)
            for step in range(1, config.steps + 1):
                # from the image itself, to the bit: one that is wrong as it is comes back as it is
                current = images if step == 1 else space.place(point)
                # the smallest distance lies on the boundary, where rounding would decide
                slope = target.slope(current, goal.labels, keys, f"cw/{search}/{step}", objective, full=True)
                distance = (current - images).square().flatten(1).sum(1)
                # of several draws the loss is zero where it is in each, so no lucky one leads the search
                fooled = goal.reached(slope.logits) & (slope.loss <= 0)
                if keeper is None and target.random:
                    # a single draw is lucky somewhere on the way; at the image itself no other could undercut it
                    sure = step > 1 and goal.reached(target.logits(current, keys, f"cw/{search}/{step}/again"))
                    fooled = fooled & sure
                if keeper is not None and slope.votes is not None:
                    share = goal.share(slope.votes)
                    if config.confidence:
                        share = share * (lag(goal, slope.logits, goal.labels) <= -config.confidence)
                    keeper.take(current, distance, share)
                better = fooled & (distance < best_distance)
                best_distance = torch.where(better, distance, best_distance)
                best = torch.where(better.view(-1, 1, 1, 1), current, best)
                fooled_here |= fooled
                # the target differentiates by the image; tanh's own slope, the next line, does the rest
                by_image = 2 * (current - images) + constant.view(-1, 1, 1, 1) * slope.gradient
                gradient = by_image * (1 - torch.tanh(point).square()) / 2
                first.lerp_(gradient, 1 - BETAS[0])
                second.lerp_(gradient.square(), 1 - BETAS[1])
                scale = (second / (1 - BETAS[1] ** step)).sqrt_().add_(TINY)
                point = space.clamp(point - config.rate * (first / (1 - BETAS[0] ** step)) / scale)
            high = torch.where(fooled_here, torch.minimum(high, constant), high)
            low = torch.where(fooled_here, low, torch.maximum(low, constant))
            # no constant has worked yet where high is infinite, so there is nothing to bisect
            middle = torch.where(torch.isinf(high), constant * 10, (low + high) / 2)
            constant = torch.minimum(middle, LARGEST_CONST * suited)
        within = self.norm == "linf"

        def cut(points: Tensor) -> Tensor:
            return project_linf(points, images, eps) if within else points

        if keeper is None:
            found = cut(best)
        else:
            found = keeper.choose(target, goal, images, keys, "cw/choose", enough=1.0 if within else HALF, cut=cut)
        return settle(goal, target, images, found, labels, keys, "cw")


def build(config: CwOptions) -> CarliniWagner:
    """Build CW."""
    return CarliniWagner(config)
