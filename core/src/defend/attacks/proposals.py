"""What the Square Attack proposes (Andriushchenko et al. 2020, arXiv:1912.00049): starts, and changes of one window.

Every draw is an image's own: call these inside `defend.randomness.keyed`.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from defend.attacks.balls import project_l2, project_linf, unit, wide
from defend.randomness import sign_like, uniform_like, uniform_per_image

TILES = 5  # bumps along each side of the L2 attack's first perturbation
SMALLEST = 3  # side of the L2 attack's windows, in pixels


def bump(side: int) -> Tensor:
    """Return the L2 attack's bump [side,side] of length 1, the paper's eta: two halves of opposite sign.

    Each half is largest at its middle and falls off with the distance d from there as the sum over k from d to n of
    1 / (k + 1)^2, with n half its longer side.
    """
    top = _half(side // 2, side)
    whole = torch.cat((top, -_half(side - side // 2, side)))
    eta: Tensor = whole / whole.norm()
    return eta


def _half(height: int, width: int) -> Tensor:
    down = (torch.arange(height) - height // 2).abs()
    across = (torch.arange(width) - width // 2).abs()
    terms = 1 / torch.arange(1, max(height, width) // 2 + 2, dtype=torch.float32).square()
    tails = terms.flip(0).cumsum(0).flip(0)
    half = tails[torch.maximum(down[:, None], across[None])]
    return half / half.norm() if half.numel() else half


def stripes(images: Tensor, eps: Tensor) -> Tensor:
    """Return the L-inf attack's start: every column of every channel moved by +eps or -eps [B]."""
    sign = sign_like(images[:, :, :1, :])
    return project_linf(images + sign * wide(eps), images, eps)


def propose_linf(images: Tensor, points: Tensor, eps: Tensor, share: float) -> Tensor:
    """Set one square of each channel to +eps or -eps from the image (algorithm 2); `share` of the pixels.

    A draw that would change nothing (common with one channel) turns one channel's sign, where the published code
    draws again until something changes.
    """
    batch, channels, height, width = images.shape
    side = min(max(round((share * height * width) ** 0.5), 1), height, width)
    top, left = _corner(images, side)
    window = _window(top, left, side, images)
    sign = sign_like(images[:, :, :1, :1])
    turn = F.one_hot(_integer(images, channels), channels).view(batch, channels, 1, 1).bool()

    def move(signs: Tensor) -> Tensor:
        return torch.where(window, project_linf(images + signs * wide(eps), images, eps), points)

    proposed = move(sign)
    same = (proposed == points).flatten(1).all(1)
    return torch.where(wide(same), move(torch.where(turn, -sign, sign)), proposed)


def tiles(images: Tensor, eps: Tensor) -> Tensor:
    """Return the L2 attack's start: a grid of bumps, of random sign a channel, of length eps [B] in all."""
    batch, channels, height, width = images.shape
    side = max(min(height, width) // TILES, 1)
    rows, columns = height // side, width // side
    shape = bump(side).to(images)
    turned = uniform_like(images.new_zeros(batch, 1, rows, 1, columns, 1)) < 0.5
    sign = sign_like(images.new_zeros(batch, channels, rows, 1, columns, 1))
    grid = torch.where(turned, shape.T.view(1, 1, 1, side, 1, side), shape.view(1, 1, 1, side, 1, side)) * sign
    delta = torch.zeros_like(images)
    above, before = (height - rows * side) // 2, (width - columns * side) // 2
    delta[:, :, above : above + rows * side, before : before + columns * side] = grid.reshape(
        batch, channels, rows * side, columns * side
    )
    return _scale(images, delta, eps)


def propose_l2(images: Tensor, points: Tensor, eps: Tensor, share: float) -> Tensor:
    """Move the change of one window into another, on top of a new bump there (algorithm 3); `share` of the pixels.

    The new bump gets, channel by channel, the length of what was in both windows and what the budget eps [B] had left.
    """
    batch, channels, height, width = images.shape
    side = max(round((share * height * width) ** 0.5), SMALLEST)
    side = min(side + (side % 2 == 0), height, width)  # odd, as in the published code
    # in an image under 3 pixels a side: single pixels, as with larger windows half of all changes are out of reach
    side = side if side >= SMALLEST else 1
    delta = points - images
    to, source = _corner(images, side), _corner(images, side)
    window = _window(*to, side, images)
    both = window | _window(*source, side, images)
    there = _cut(delta, *to, side)
    spare = (eps.square() - delta.square().flatten(1).sum(1)).clamp_min(0) / channels
    length = (spare[:, None] + (delta.square() * both).flatten(2).sum(2)).sqrt()

    shape = bump(side).to(images)
    turned = wide(uniform_per_image(images) < 0.5)
    fresh = torch.where(turned, shape.T, shape) * sign_like(images[:, :, :1, :1])
    fresh = _unit_channels(_unit_channels(there) + fresh) * length.view(batch, channels, 1, 1)
    return _scale(images, _paste(torch.where(both, 0, delta), fresh, *to), eps)


def _scale(images: Tensor, delta: Tensor, eps: Tensor) -> Tensor:
    """Add a change scaled to the length eps [B]; the box may shorten it."""
    return project_l2(images + wide(eps) * unit(delta), images, eps)


def _unit_channels(windows: Tensor) -> Tensor:
    """Scale each channel of windows [B,C,H,W] to length 1 in L2; one of zeros stays."""
    return unit(windows.flatten(0, 1)[:, None]).view_as(windows)


def _integer(images: Tensor, below: int) -> Tensor:
    """Draw a whole number from 0 to below - 1 for each image, int64 [B]."""
    return uniform_per_image(images, 0, below).long().clamp_max(below - 1)


def _corner(images: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """Draw the top left corner of a window for each image, int64 [B] each."""
    height, width = images.shape[2:]
    return _integer(images, height - side + 1), _integer(images, width - side + 1)


def _window(top: Tensor, left: Tensor, side: int, images: Tensor) -> Tensor:
    """Return bool [B,1,H,W]: what lies in each image's window."""
    rows = torch.arange(images.shape[2], device=images.device) - top[:, None]
    columns = torch.arange(images.shape[3], device=images.device) - left[:, None]
    inside = ((rows >= 0) & (rows < side))[:, :, None] & ((columns >= 0) & (columns < side))[:, None, :]
    return inside[:, None]


def _places(images: Tensor, top: Tensor, left: Tensor, side: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the indices of every pixel of every window: image, channel, row, column, for [B,C,side,side]."""
    span = torch.arange(side, device=images.device)
    return (
        torch.arange(len(images), device=images.device).view(-1, 1, 1, 1),
        torch.arange(images.shape[1], device=images.device).view(1, -1, 1, 1),
        (top[:, None] + span).view(len(images), 1, -1, 1),
        (left[:, None] + span).view(len(images), 1, 1, -1),
    )


def _cut(images: Tensor, top: Tensor, left: Tensor, side: int) -> Tensor:
    return images[_places(images, top, left, side)]


def _paste(images: Tensor, windows: Tensor, top: Tensor, left: Tensor) -> Tensor:
    pasted = images.clone()
    pasted[_places(images, top, left, windows.shape[-1])] = windows
    return pasted
