"""PGD that stops when it walks in circles (Doldo et al. 2025, arXiv:2503.19347), and answers as if it had not."""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor

TRAVEL = 4.0  # budgets that all steps together go: no shorter climb was ever seen to come back to a point
LEAST_GAP, SHARE = 4, 4  # a point is kept for so many steps, or for this part of those before it


class Cycles:
    """Finds climbs that are where they have been, and says after which step each may stop.

    A step that depends on nothing but the point makes what follows the same again. So after a cycle of p steps, the
    steps that are left modulo p end where all of them would. One point an image is kept, exactly, and another now and
    then (Brent 1980): a cycle of up to a quarter of the steps before it is found. Who stops leaves the batch,
    which may round the others otherwise, as wherever images are dropped.
    """

    def __init__(self, points: Tensor, steps: int) -> None:
        self._kept, self._since, self._steps = points, 0, steps
        self._last = torch.full((len(points),), steps, device=points.device)

    def over(self, points: Tensor, step: int) -> Tensor:
        """Take in where the climbs stand before a step, from 0; return who may stop there, bool [B]."""
        gap = step - self._since
        if gap > 0:
            same = (points == self._kept).flatten(1).all(1) & (self._last == self._steps)
            self._last = torch.where(same, step + (self._steps - step) % gap, self._last)
        if gap >= max(LEAST_GAP, self._since // SHARE):
            self._kept, self._since = points, step
        return self._last <= step

    def part(self, keep: Tensor) -> Self:
        """Return what is known of some of the climbs."""
        self._kept, self._last = self._kept[keep], self._last[keep]
        return self
