"""By image, right or not: what rows leave, pair by pair, and when a difference is more than chance."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import attrs
from torch import Tensor

from defend.records.rows import RowRecord
from defend.util.statistics import mcnemar
from defend.values.threats import DEFENDED

TAIL = 0.5 * math.erfc(math.sqrt(2))
"""The chance of a normal deviate more than two standard errors above its mean. With few images a count is not normal,
so the checks compare exact chances with this one instead of differences with standard errors."""
Outcomes = Mapping[int, bool]
"""By image: whether the defence was right, or whether it held."""


def right(record: RowRecord, arm: str = DEFENDED) -> Outcomes:
    """Return by image whether an arm predicted the label and accepted: `accuracy` of the report."""
    said = record.arms[arm]
    return _outcomes(record, (said.predicted == record.labels) & said.accepted)


def find_classified(record: RowRecord, arm: str = DEFENDED) -> Outcomes:
    """Return by image whether an arm predicted the label, rejected or not: what an attack on the classifier left."""
    return _outcomes(record, record.arms[arm].predicted == record.labels)


def find_held(record: RowRecord, arm: str = DEFENDED) -> Outcomes:
    """Return by image whether an arm was not fooled. Fooled is accepted and misclassified: what attackers are after."""
    said = record.arms[arm]
    return _outcomes(record, (said.predicted == record.labels) | ~said.accepted)


def _outcomes(record: RowRecord, which: Tensor) -> Outcomes:
    return dict(zip(record.keys.tolist(), which.tolist(), strict=True))


def worst_of(outcomes: Sequence[Outcomes]) -> Outcomes:
    """Return by image whether all agree on True, among those that judged it."""
    found: dict[int, bool] = {}
    for each in outcomes:
        for key, ok in each.items():
            found[key] = found.get(key, True) and ok
    return found


def share(outcomes: Outcomes) -> float:
    """Return the share that is True; 0 of none."""
    return sum(outcomes.values()) / max(len(outcomes), 1)


@attrs.frozen
class Paired:
    """Two outcomes on the images common to both: shares, and how many images only one got right."""

    n: int
    first: float
    second: float
    only_first: int
    only_second: int

    @property
    def exceeds(self) -> bool:
        """Whether the first is above the second by more than two standard errors (McNemar's test, exact)."""
        return self.only_first > self.only_second and mcnemar(self.only_first, self.only_second) / 2 < TAIL


def compare(first: Outcomes, second: Outcomes) -> Paired:
    """Compare two outcomes image by image."""
    common = first.keys() & second.keys()
    n = max(len(common), 1)
    return Paired(
        len(common),
        sum(first[key] for key in common) / n,
        sum(second[key] for key in common) / n,
        sum(first[key] and not second[key] for key in common),
        sum(second[key] and not first[key] for key in common),
    )


def chance_of_at_least(successes: int, n: int, p: float) -> float:
    """Return P(X >= successes) of a binomial X with n trials of probability p in (0,1)."""
    odds, log_n = math.log(p) - math.log1p(-p), math.lgamma(n + 1) + n * math.log1p(-p)
    terms = (
        math.exp(log_n - math.lgamma(k + 1) - math.lgamma(n - k + 1) + k * odds)
        for k in range(max(successes, 0), n + 1)
    )
    return min(math.fsum(terms), 1.0)


def chance_of_at_most(successes: int, n: int, p: float) -> float:
    """Return P(X <= successes) of a binomial X with n trials of probability p in (0,1)."""
    return chance_of_at_least(n - successes, n, 1 - p)


def rejections(count: int, n: int, fpr: float, held_out: int) -> tuple[float, float]:
    """Return the chances of at most and of at least `count` rejections of n clean images like the held-out ones.

    The threshold stands above all but fpr * held_out of the held-out scores, so the share that it really rejects is
    Beta(fpr * held_out + 1, (1 - fpr) * held_out) distributed, and the count beta-binomial.
    """
    above, below = fpr * held_out + 1, max((1 - fpr) * held_out, 1.0)

    def log_beta(a: float, b: float) -> float:
        return math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)

    chances = [
        math.exp(log_beta(k + above, n - k + below) - log_beta(above, below) - log_beta(k + 1, n - k + 1)) / (n + 1)
        for k in range(n + 1)
    ]
    return math.fsum(chances[: count + 1]), math.fsum(chances[count:])


def beyond(outcomes: Outcomes, p: float) -> bool:
    """Whether more are True than a share p explains, by more than two standard errors."""
    return chance_of_at_least(sum(outcomes.values()), len(outcomes), p) < TAIL
