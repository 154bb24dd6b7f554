"""Whether answers are right more often than answers that know nothing of the images would be."""

from __future__ import annotations

from typing import Literal

import attrs
from torch import Tensor

from defend.checks.outcomes import TAIL, chance_of_at_least
from defend.util.statistics import wilson


@attrs.frozen
class Guessing:
    """How answers to clean images stand to chance.

    Chance is the agreement of labels and answers that only share how often each class occurs, as in Cohen's kappa
    (1960): 1/K with K even classes, and for an answer that is always the same the share of its class.

    Attributes:
        right: how many answers are right.
        n: of how many.
        chance: the share that would be right by chance.
    """

    right: int
    n: int
    chance: float

    @property
    def accuracy(self) -> float:
        """The share that is right; 0 of none."""
        return self.right / max(self.n, 1)

    @property
    def ci95(self) -> tuple[float, float]:
        """Its Wilson 95 % interval."""
        return wilson(self.right, self.n)

    @property
    def beats_chance(self) -> bool:
        """Whether more are right than chance leaves open."""
        if self.ci95[0] > self.chance:
            return True
        return 0 < self.chance < 1 and chance_of_at_least(self.right, self.n, self.chance) < TAIL

    @property
    def status(self) -> Literal["pass", "warn", "fail"]:
        """What a check says of it: few images prove little, and only what they rule out fails."""
        if self.beats_chance:
            return "pass"
        # not even halfway from chance to perfection is left open
        return "fail" if self.ci95[1] < (1 + self.chance) / 2 else "warn"


def find_guessing(answers: Tensor, labels: Tensor) -> Guessing:
    """Compare answers with labels, whole numbers [N] each; an answer that is no class (a rejection) is never right."""
    n = len(labels)
    pairs = ((labels == label, answers == label) for label in labels.unique().tolist())
    chance = sum(float(there.sum()) * float(said.sum()) / n**2 for there, said in pairs)
    return Guessing(int((answers == labels).sum()), n, chance)
