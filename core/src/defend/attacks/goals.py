"""What an attack aims at: away from the true or the predicted label, or towards a chosen class."""

from __future__ import annotations

import attrs
from torch import Tensor

from defend.attacks.balls import steepest, wide
from defend.attacks.options import GoalOptions
from defend.attacks.target import Target
from defend.randomness import keyed, uniform_per_image


@attrs.frozen
class Goal:
    """Labels [B] to leave (`sign` +1) or to reach (`sign` -1).

    Attributes:
        own: [B], the class that a targeted attack comes from: the true one, or the predicted one for an attacker who
            does not know it; None where only leaving counts.
        wrong: bool [B], the images that were misclassified before; None where nobody asked.
        anywhere: whether a targeted attack has reached its goal wherever it has left `own` for.
    """

    labels: Tensor
    sign: int
    own: Tensor | None = None
    wrong: Tensor | None = None
    anywhere: bool = False

    def reached(self, logits: Tensor) -> Tensor:
        """Return bool [B]: which predictions are what the attack wants."""
        return self._met(logits.argmax(1))

    def share(self, votes: Tensor) -> Tensor:
        """Return in how many of the draws, predictions int64 [D,B], it is reached: [B] in [0,1]."""
        return self._met(votes).float().mean(0)

    def _met(self, predicted: Tensor) -> Tensor:
        if self.anywhere and self.own is not None:
            return predicted != self.own
        return predicted != self.labels if self.sign > 0 else predicted == self.labels

    def part(self, which: Tensor) -> Goal:
        """Return the goal of some of the images."""
        own, wrong = (None if values is None else values[which] for values in (self.own, self.wrong))
        return Goal(self.labels[which], self.sign, own, wrong, self.anywhere)


def choose_goal(config: GoalOptions, target: Target, images: Tensor, labels: Tensor, keys: Tensor) -> Goal:
    """Turn the options into labels; all but leaving the true ones costs a forward pass."""
    if config.target == "none" and config.labels == "true":
        return Goal(labels, 1)
    logits = target.logits(images, keys, "goal")
    predicted = logits.argmax(1)
    wrong = predicted != labels if config.keep_wrong else None
    own = {"true": labels, "predicted": predicted}.get(config.labels)
    if own is None:
        own = _draw_labels(logits, keys, target.seed)
    if config.target == "none":
        return Goal(own, 1, wrong=wrong)
    aim = logits.argmin(1) if config.target == "least_likely" else (own + 1) % logits.shape[1]
    # whoever knows the true label has won wherever an image has left it for; a guessed one may have been left for it,
    # and the bare formula makes for its aim
    return Goal(aim, -1, own, wrong, anywhere=config.labels == "true" and config.keep_wrong)


def _draw_labels(logits: Tensor, keys: Tensor, seed: int) -> Tensor:
    """Draw a label [B] for each image of logits [B,K], every class alike."""
    classes = logits.shape[1]
    with keyed(keys, seed=seed, stream="goal/labels"):
        drawn = uniform_per_image(logits[:, None, None]) * classes
    return drawn.long().clamp(max=classes - 1)  # a product just below the number of classes may round up to it


def settle(
    goal: Goal, target: Target, images: Tensor, found: Tensor, labels: Tensor, keys: Tensor, name: str
) -> Tensor:
    """Return what an attack found [B,C,H,W], and the images themselves where it would only do the defence a favour.

    An attack that leaves the predicted class, or makes for another one, can take a misclassified image back to its
    true class. An attacker may always leave an image as it is, so these stay.
    """
    return found if goal.wrong is None else _restore(target, images, found, labels, keys, name, goal.wrong)


def keep_wrong(target: Target, images: Tensor, found: Tensor, labels: Tensor, keys: Tensor, name: str) -> Tensor:
    """As `settle`, for an attack of any kind; asks about the images first."""
    wrong = target.logits(images, keys, f"{name}/before").argmax(1) != labels
    return _restore(target, images, found, labels, keys, name, wrong)


def _restore(
    target: Target, images: Tensor, found: Tensor, labels: Tensor, keys: Tensor, name: str, wrong: Tensor
) -> Tensor:
    place = wrong.nonzero()[:, 0]
    if len(place) == 0:
        return found
    right = target.logits(found[place], keys[place], f"{name}/after").argmax(1) == labels[place]
    return found.index_copy(0, place[right], images[place[right]].to(found.dtype))


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
