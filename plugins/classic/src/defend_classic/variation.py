"""Total variation minimisation (Guo et al. 2018, section 3.2): pixels are left out, and filled in as smoothly as goes.

    minimise over z:  1/2 ||m (z - x)||^2 + w TV(z)

m is 0 where a pixel was left out, else 1. TV is the paper's: the sum of the L2 norms of the differences between every
two neighbouring rows, and every two neighbouring columns, of every channel. The half square is that of the authors'
code; the paper writes the norm itself.
"""

from __future__ import annotations

import torch
from torch import Tensor

from defend.gradients import State, unroll

# Their product is 1/8, as the squared norm of the differences is below 8. The duals are no longer than w, pixels as far
# apart as 1, so pixels take the longer steps: 50 come as near to the minimum of digits as 200 of equal length.
PIXEL_STEP, DUAL_STEP = 10 / 8**0.5, 0.1 / 8**0.5


def minimise(images: Tensor, mask: Tensor, weight: float, steps: int) -> Tensor:
    """Return z [B,C,H,W] after so many primal-dual steps (Chambolle and Pock 2011, algorithm 1).

    Args:
        images: x, [B,C,H,W].
        mask: m, of the same shape.
        weight: w.
        steps: of the solver, which starts from the kept pixels on black.

    It is differentiable with respect to the images, once (`defend.gradients.unroll`).
    """

    def step(_: int, state: State, __: bool) -> State:
        kept, z, ahead, rows, columns = state
        rows = _shrunk(rows + DUAL_STEP * ahead.diff(dim=2), 3, weight)
        columns = _shrunk(columns + DUAL_STEP * ahead.diff(dim=3), 2, weight)
        new = (z + PIXEL_STEP * (kept + _spread(rows, 2) + _spread(columns, 3))) / (1 + PIXEL_STEP * mask)
        return kept, new, 2 * new - z, rows, columns

    kept = mask * images
    start = kept
    state = (kept, start, start, torch.zeros_like(start.diff(dim=2)), torch.zeros_like(start.diff(dim=3)))
    attached = torch.is_grad_enabled() and images.requires_grad
    return unroll(step, state, steps, attached=attached)[1]


def cost(z: Tensor, images: Tensor, mask: Tensor, weight: float) -> Tensor:
    """Return what is minimised, of every image: [B]."""
    variation: Tensor = z.diff(dim=2).norm(dim=3).flatten(1).sum(1) + z.diff(dim=3).norm(dim=2).flatten(1).sum(1)
    return (mask * (z - images)).square().flatten(1).sum(1) / 2 + weight * variation


def _shrunk(dual: Tensor, dim: int, radius: float) -> Tensor:
    """Return the nearest vectors along `dim` that are no longer than `radius`."""
    length = dual.square().sum(dim, keepdim=True).clamp_min(max(radius, 1e-12) ** 2).sqrt()
    return dual * (radius / length)


def _spread(dual: Tensor, dim: int) -> Tensor:
    """Return the negative transpose of `diff`: what every pixel gets from the differences on its two sides."""
    edge = torch.zeros_like(dual.narrow(dim, 0, 1))
    return torch.cat([dual, edge], dim) - torch.cat([edge, dual], dim)
