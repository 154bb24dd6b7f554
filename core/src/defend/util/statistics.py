"""Intervals and tests for counts of images: what every figure of a report stands on. Imports no torch."""

from __future__ import annotations

import math
from collections.abc import Sequence

Z95 = 1.959963984540054


def wilson(successes: int, n: int, z: float = Z95) -> tuple[float, float]:
    """Return the Wilson score interval of a proportion (Wilson 1927); (0, 1) for n = 0."""
    if n == 0:
        return 0.0, 1.0
    share = successes / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    # the ends are 0 and 1 to the bit, which rounding would miss
    low = 0.0 if successes == 0 else max(centre - half, 0.0)
    high = 1.0 if successes == n else min(centre + half, 1.0)
    return low, high


def mcnemar(only_first: int, only_second: int) -> float:
    """Return the two-sided exact p value of McNemar's test (McNemar 1947; exact: binomial, p = 1/2).

    Args:
        only_first, only_second: how many images only the first, or only the second, got right.
    """
    discordant, fewer = only_first + only_second, min(only_first, only_second)
    if only_first == only_second:  # as two tails would count the middle twice
        return 1.0
    # in whole numbers: how many of the 2**n ways are as uneven. scipy's own takes seconds to import, and every run asks
    ways = tail = 1
    for place in range(fewer):
        ways = ways * (discordant - place) // (place + 1)
        tail += ways
    return tail / (1 << discordant - 1)


def paired_interval(only_first: int, only_second: int, n: int) -> tuple[float, float]:
    """Return the 95 % interval of a difference of paired proportions, second less first, within [-1,1].

    The Wald interval after one image more on either side of the disagreement (Bonett and Price 2012, "Adjusted Wald
    confidence interval for a difference of binomial proportions based on paired data"). Unlike the plain one it has a
    width where nothing differs, and its coverage does not fall far below 95 % down to 20 images.
    """
    first, second = (only_first + 1) / (n + 2), (only_second + 1) / (n + 2)
    centre = second - first
    half = Z95 * math.sqrt((first + second - centre**2) / (n + 2))
    return max(centre - half, -1.0), min(centre + half, 1.0)


def holm(p_values: Sequence[float]) -> list[float]:
    """Return the p values adjusted for their number (Holm 1979), in the order given.

    However many of the differences are none, and however the tests depend on each other, the chance that any of
    those comes out below 0.05 is at most 0.05.
    """
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    adjusted = [0.0] * len(p_values)
    highest = 0.0
    for place, index in enumerate(order):
        highest = max(highest, min(1.0, (len(order) - place) * p_values[index]))
        adjusted[index] = highest
    return adjusted


def lower_bound(successes: int, n: int, alpha: float) -> float:
    """Return the one-sided lower bound of a proportion at confidence 1 - alpha (Clopper and Pearson 1934)."""
    from scipy.stats import binomtest  # its import takes a second: only where it is needed

    return float(binomtest(successes, n, alternative="greater").proportion_ci(1 - alpha, method="exact").low)


def at_least(successes: int, n: int, chance: float) -> float:
    """Return the chance of so many successes or more in n trials that succeed by `chance` each (binomial)."""
    from scipy.stats import binomtest  # its import takes a second: only where it is needed

    return float(binomtest(successes, n, chance, alternative="greater").pvalue)


def exact_interval(successes: int, n: int, confidence: float) -> tuple[float, float]:
    """Return the two-sided interval of a proportion that covers at least so often (Clopper and Pearson 1934)."""
    from scipy.stats import binomtest  # its import takes a second: only where it is needed

    found = binomtest(successes, n).proportion_ci(confidence, method="exact")
    return float(found.low), float(found.high)
