"""What an attack may change: balls in L-inf and L2 within the box [0,1], starts in them and the steepest way up.

Images are [B,C,H,W] in [0,1]; a radius is one number an image, [B], in the norm, "linf" or "l2".
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from defend.randomness import normal_like, uniform_like, uniform_per_image

SHORTEST = 1e-12


def usual_l2(eps: float, numbers: int) -> float:
    """Return the L2 budget that goes with an L-inf one: a quarter of the longest change of so many numbers."""
    return eps * math.sqrt(numbers) / 4


def clip(candidate: Tensor, images: Tensor, eps: Tensor, norm: str) -> Tensor:
    """Clip to within eps [B] of the images in the norm, then to [0,1]; an infinite budget clips to [0,1] alone."""
    return project_l2(candidate, images, eps) if norm == "l2" else project_linf(candidate, images, eps)


def project_linf(candidate: Tensor, images: Tensor, eps: Tensor) -> Tensor:
    """Clip to within eps [B] of the images, then to [0,1]."""
    radius = wide(eps)
    return torch.minimum(torch.maximum(candidate, images - radius), images + radius).clamp_(0, 1)


def project_l2(candidate: Tensor, images: Tensor, eps: Tensor) -> Tensor:
    """Shorten the difference to at most eps [B] in L2, then clip to [0,1], which only shortens it further."""
    difference = candidate - images
    length = difference.flatten(1).norm(dim=1)
    share = wide(torch.where(length > eps, eps / length, torch.ones_like(length)))
    inside = torch.where(share < 1, images + share * difference, candidate)  # what is inside stays as it is, to the bit
    return inside.clamp(0, 1)


def random_start(images: Tensor, eps: Tensor | float, norm: str) -> Tensor:
    """Draw a start in the ball of one radius, or of one an image, not yet cut by the box.

    Uniform in L-inf; in L2 any direction, at a distance that is uniform up to eps.
    """
    radius = eps if isinstance(eps, Tensor) else images.new_full((len(images),), eps)  # filled there, not copied over
    if norm == "linf":
        return images + uniform_like(images, -1, 1) * wide(radius)
    distance = uniform_per_image(images).to(images.dtype) * radius
    return images + wide(distance) * unit(normal_like(images))


def steepest(gradient: Tensor, norm: str) -> Tensor:
    """Return the change of length 1 in the norm that a gradient [B,C,H,W] says raises most: its sign, or its unit."""
    return unit(gradient) if norm == "l2" else gradient.sign()


def unit(directions: Tensor) -> Tensor:
    """Scale every image's direction [B,C,H,W] to length 1 in L2; one of no length stays as it is."""
    length: Tensor = directions.flatten(1).norm(dim=1).clamp_min(SHORTEST)
    return directions / wide(length)


def wide(values: Tensor) -> Tensor:
    """View numbers [B] as [B,1,1,1]."""
    return values.view(-1, 1, 1, 1)
