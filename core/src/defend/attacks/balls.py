"""What an attack may change: balls in L-inf and L2 within the box [0,1], starts in them and the steepest way up.

Images are [B,C,H,W] in [0,1]; a radius is one number an image, [B], in the norm, "linf" or "l2".
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from defend.randomness import normal_like, uniform_like, uniform_per_image

HALVES = (torch.float16, torch.bfloat16)
ROUNDINGS, SHORTER = 4, 0.998  # tries to round an L2 change of half precision without leaving its ball, and by how much


def usual_l2(eps: float, numbers: int) -> float:
    """Return the L2 budget that goes with an L-inf one: a quarter of the longest change of so many numbers."""
    return eps * math.sqrt(numbers) / 4


def clip(candidate: Tensor, images: Tensor, eps: Tensor, norm: str) -> Tensor:
    """Clip to within eps [B] of the images in the norm, then to [0,1]; an infinite budget clips to [0,1] alone."""
    return project_l2(candidate, images, eps) if norm == "l2" else project_linf(candidate, images, eps)


def project_linf(candidate: Tensor, images: Tensor, eps: Tensor) -> Tensor:
    """Clip to within eps [B] of the images, then to [0,1]; images of half precision as `towards` says."""
    if images.dtype in HALVES:
        return towards(project_linf(candidate.float(), images.float(), eps.float()), images)
    radius = wide(eps)
    return torch.minimum(torch.maximum(candidate, images - radius), images + radius).clamp_(0, 1)


def project_l2(candidate: Tensor, images: Tensor, eps: Tensor) -> Tensor:
    """Shorten the difference to at most eps [B] in L2, then clip to [0,1], which only shortens it further.

    Images of half precision are rounded to the nearest as long as that stays within, else as `towards` says.
    """
    if images.dtype in HALVES:
        return _project_l2_halves(candidate.float(), images, eps.float())
    difference = candidate - images
    length = lengths(difference)
    share = wide(torch.where(length > eps, eps / length, torch.ones_like(length)))
    inside = torch.where(share < 1, images + share * difference, candidate)  # what is inside stays as it is, to the bit
    return inside.clamp(0, 1)


def _project_l2_halves(candidate: Tensor, images: Tensor, eps: Tensor) -> Tensor:
    origin = images.float()
    exact = project_l2(candidate, origin, eps)
    # `towards` always stays within, but shortens more than it must, so it comes last
    for _ in range(ROUNDINGS):
        length = lengths(exact.to(images.dtype).float() - origin)
        over = length > eps
        if not bool(over.any()):
            return exact.to(images.dtype)
        exact = torch.where(wide(over), origin + wide(SHORTER * eps / length) * (exact - origin), exact)
    return torch.where(wide(over), towards(exact, images), exact.to(images.dtype))


def towards(exact: Tensor, images: Tensor) -> Tensor:
    """Round float32 points [B,C,H,W] in [0,1] to the half precision of `images`, never away from them.

    To the nearest would leave the ball that a point lies in: by a grey level a pixel in bfloat16.
    """
    rounded = exact.to(images.dtype) + 0.0  # no -0: from 0 up, numbers are ordered as their bits are
    beyond = (rounded.float() - images.float()).abs() > (exact - images.float()).abs()
    # one step of the bits is the next number of that type
    back = torch.where(beyond, (images.float() - rounded.float()).sign(), 0).to(torch.int16)
    return (rounded.view(torch.int16) + back).view(images.dtype)


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
    """Scale every image's direction [B,C,H,W] to length 1 in L2, however tiny or huge; one of no length stays."""
    scaled, _ = scale_exactly(directions)
    length = scaled.flatten(1).norm(dim=1)
    return (scaled / wide(torch.where(length > 0, length, 1))).to(directions.dtype)


def lengths(directions: Tensor) -> Tensor:
    """Return the L2 length [B] of every image's numbers [B,...], float32 at least; squares lose none of it."""
    scaled, size = scale_exactly(directions)
    length: Tensor = scaled.flatten(1).norm(dim=1) * size
    return length


def measure(changes: Tensor, norm: str) -> Tensor:
    """Return how long changes [B,...] are in the norm, [B]."""
    return lengths(changes) if norm == "l2" else changes.flatten(1).abs().amax(1)


def measure_slope(gradient: Tensor, norm: str) -> Tensor:
    """Return the dual norm of gradients [B,...], [B]: how much rises what has them, with a change of length 1."""
    return lengths(gradient) if norm == "l2" else gradient.flatten(1).abs().sum(1)


def scale_exactly(directions: Tensor) -> tuple[Tensor, Tensor]:
    """Divide every image's numbers [B,...] by a power of two [B] that leaves the largest of them between 1 and 2.

    So no square overflows or vanishes, and everything else is as without, to the bit.
    """
    values = at_least_float32(directions)
    largest = values.flatten(1).abs().amax(1)
    size = torch.where((largest > 0) & largest.isfinite(), largest / (2 * torch.frexp(largest).mantissa), 1)
    return values / size.view(-1, *(1,) * (values.ndim - 1)), size


def at_least_float32(values: Tensor) -> Tensor:
    """Widen numbers of half precision, whose sums and squares mean little."""
    return values.float() if values.dtype in HALVES else values


def wide(values: Tensor) -> Tensor:
    """View numbers [B] as [B,1,1,1]."""
    return values.view(-1, 1, 1, 1)
