"""What an attack aims at: away from the true or the predicted label, or towards a chosen class."""

from __future__ import annotations

import attrs
from torch import Tensor

from defend.attacks.balls import steepest, wide
from defend.attacks.options import GoalOptions
from defend.attacks.target import Target


@attrs.frozen
class Goal:
    """Labels [B] to leave (`sign` +1) or to reach (`sign` -1)."""

    labels: Tensor
    sign: int

    def reached(self, logits: Tensor) -> Tensor:
        """Return bool [B]: which predictions are what the attack wants."""
        predicted = logits.argmax(1)
        return predicted != self.labels if self.sign > 0 else predicted == self.labels

    def part(self, which: Tensor) -> Goal:
        """Return the goal of some of the images."""
        return Goal(self.labels[which], self.sign)


def choose_goal(config: GoalOptions, target: Target, images: Tensor, labels: Tensor, keys: Tensor) -> Goal:
    """Turn the options into labels; all but leaving the true ones costs a forward pass."""
    if config.target == "none" and config.labels == "true":
        return Goal(labels, 1)
    logits = target.logits(images, keys, "goal")
    if config.target == "none":
        return Goal(logits.argmax(1), 1)
    if config.target == "least_likely":
        return Goal(logits.argmin(1), -1)
    base = labels if config.labels == "true" else logits.argmax(1)
    return Goal((base + 1) % logits.shape[1], -1)


def step_along(gradient: Tensor, goal: Goal, size: Tensor, norm: str = "linf") -> Tensor:
    """Return a step of length `size` [B] in the norm, up the gradient, downhill for a targeted goal."""
    return steepest(gradient, norm) * wide(goal.sign * size)


def confirm(fooled: Tensor, target: Target, goal: Goal, images: Tensor, keys: Tensor, step: str) -> Tensor:
    """Ask in full precision about the images [B,C,H,W] that reduced precision calls `fooled` [B]; bool [B].

    Judged in full precision, a few of them still are right. Where the target is attacked in full precision, nothing
    is asked.
    """
    if target.precision is None:
        return fooled
    maybe = fooled.nonzero()[:, 0]
    if len(maybe) == 0:
        return fooled
    certain = goal.part(maybe).reached(target.logits(images[maybe], keys[maybe], step))
    return fooled.index_copy(0, maybe, certain)
