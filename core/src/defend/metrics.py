"""Figures from per-image records: pure functions of tensors."""

from __future__ import annotations

import math

from torch import Tensor

from defend.values import Arm

Z95 = 1.959963984540054


def wilson(successes: int, n: int, z: float = Z95) -> tuple[float, float]:
    """Return the Wilson score interval of a proportion (Wilson 1927); (0, 1) for n = 0."""
    if n == 0:
        return 0.0, 1.0
    share = successes / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    low = 0.0 if successes == 0 else max(centre - half, 0.0)
    high = 1.0 if successes == n else min(centre + half, 1.0)
    return low, high


def arm(predicted: Tensor, labels: Tensor, accepted: Tensor, attacked: bool) -> Arm:
    """Return one arm's figures.

    Args:
        predicted, labels: int64 [N].
        accepted: bool [N]; a rejected image counts as wrong in `accuracy`.
        attacked: on attacked images a rejection counts as right in `accuracy_with_credit`.
    """
    n = len(labels)
    right = (predicted == labels) & accepted
    credited = right | ~accepted if attacked else right
    return Arm(
        accuracy=_share(right),
        ci95=wilson(int(right.sum()), n),
        rejected=_share(~accepted),
        accuracy_with_credit=_share(credited),
    )


def _share(which: Tensor) -> float:
    return float(which.double().mean()) if len(which) else 0.0
