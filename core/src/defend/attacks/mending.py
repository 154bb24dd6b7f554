"""Gradients that are absent or not finite: how they are taken and filled in, and a note of whose they were."""

from __future__ import annotations

import attrs
import torch
from torch import Tensor

from defend.boundary.calls import Calling


@attrs.frozen
class Blindness:
    """Whose gradient was not finite: to the end (`broken`), or only at the box's edge (`mended`); bool [B]."""

    broken: Tensor
    mended: Tensor


def differentiate(value: Tensor, source: Tensor, who: str, more: bool = False) -> Tensor | None:
    """Differentiate a number; None where it does not depend on the source. With `more` to come, the graph stays.

    Raises:
        StageError: the backward pass of `who` failed.
    """
    if not value.requires_grad:
        return None
    with Calling(who, "its backward pass"):
        (gradient,) = torch.autograd.grad(value, source, retain_graph=more, allow_unused=True)
    return gradient


def find_lost(found: list[Tensor | None], none: Tensor) -> Tensor:
    """Return of which images any gradient is not finite, bool [B] where they lie; `none` where there is no gradient."""
    lost = none
    for gradient in found:
        if gradient is not None:
            lost = lost | (~torch.isfinite(gradient)).flatten(1).any(1)
    return lost


def mend(found: list[Tensor | None], inside: list[Tensor | None]) -> tuple[list[Tensor | None], Blindness]:
    """Fill what is not finite with what was found a hair inside the box; what is not finite there either is zero."""
    whole: list[Tensor | None] = []
    broken, mended = [], []
    for gradient, other in zip(found, inside, strict=True):
        if gradient is None:
            whole.append(None)
            continue
        filled = gradient if other is None else torch.where(torch.isfinite(gradient), gradient, other)
        lost = (~torch.isfinite(filled)).flatten(1).any(1)
        broken.append(lost)
        mended.append((~torch.isfinite(gradient)).flatten(1).any(1) & ~lost)
        whole.append(filled.nan_to_num(0, 0, 0))
    return whole, Blindness(torch.stack(broken).any(0), torch.stack(mended).any(0))


def fill(gradient: Tensor | None, images: Tensor) -> Tensor:
    """Return a gradient, of zeros where there is none."""
    return torch.zeros_like(images) if gradient is None else gradient
