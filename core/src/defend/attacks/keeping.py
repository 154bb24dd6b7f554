"""Of what an attack that averages over draws meets on its way, what it keeps: the image that fools most of them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from defend.attacks.balls import wide
from defend.attacks.goals import Goal
from defend.attacks.target import Slope, Target

HALF = 0.5  # of the draws: what fools as many counts as a point across the boundary
FEWEST, PARTS = 3, 100  # questions about the same point: so many, or a part of all queries
SURE = (HALF, 0.75, 1.0)  # shares of the draws of which the nearest points are kept until the end


def count_repeats(draws: int, queries: int) -> int:
    """Return how often an attacker who gets one answer a query asks about the same point, of so many queries in all.

    As often as the target has draws; but each time no more than a hundredth of the queries, unless that is under three.
    """
    return min(draws, max(FEWEST, queries // PARTS))


class Keeper:
    """The images of a climb that fool most draws so far; of those that fool as many, the ones with the higher loss.

    It costs no pass: the draws are those that the gradients were averaged over.
    """

    def __init__(self, start: Tensor) -> None:
        self.images = start
        self._share, self._loss = start.new_full((len(start),), -1), start.new_full((len(start),), -torch.inf)

    def take(self, images: Tensor, slope: Slope, goal: Goal, loss: Tensor) -> None:
        """Take iterates [B,C,H,W] in, with what was seen of them and the loss [B] that is to be raised."""
        assert slope.votes is not None
        share = goal.share(slope.votes).to(self._share.dtype)
        better = (share > self._share) | ((share == self._share) & (loss > self._loss))
        self.images = torch.where(wide(better), images, self.images)
        self._share, self._loss = torch.where(better, share, self._share), torch.where(better, loss, self._loss)


def choose(target: Target, goal: Goal, first: Tensor, second: Tensor, keys: Tensor, step: str) -> Tensor:
    """Return of two candidates [B,C,H,W] the one that fools more of as many new draws, the same; the second of equals.

    The draws that a climb chose its candidate by flatter it: of many iterates the luckiest was taken.
    """
    before, after = (goal.share(target.votes(images, keys, step)) for images in (first, second))
    return torch.where(wide(before > after), first, second)


class Nearest:
    """Of a search for the smallest change, the nearest points that fool half, three quarters and all of the draws.

    For the first alone many points compete, and of these the nearest is the luckiest; the others stand by until new
    draws have decided. It costs a pass for each of the three in the end, and none before.
    """

    def __init__(self, images: Tensor) -> None:
        self._points = [images.clone() for _ in SURE]
        self._far = [torch.full_like(images[:, 0, 0, 0], torch.inf) for _ in SURE]

    def take(self, images: Tensor, distance: Tensor, share: Tensor) -> None:
        """Take points [B,C,H,W] in, with how far they are and how many of the draws they fool, [B] each."""
        for level, least in enumerate(SURE):
            better = (share >= least) & (distance < self._far[level])
            self._points[level] = torch.where(wide(better), images, self._points[level])
            self._far[level] = torch.where(better, distance, self._far[level])

    def choose(
        self,
        target: Target,
        goal: Goal,
        images: Tensor,
        keys: Tensor,
        step: str,
        enough: float = HALF,
        cut: Callable[[Tensor], Tensor] = lambda points: points,
    ) -> Tensor:
        """Return the nearest point that fools `enough` of new draws, the same for all, or what fools most of them.

        Args:
            target, goal, keys, step: as of every attack; `step` names the draws.
            images: what comes back where no point was found, [B,C,H,W].
            enough: a share of the draws; 1 is the point that fools most, however far.
            cut: what is done to points before they are judged, such as clipping to a budget.
        """
        found, most = images, torch.full_like(self._far[0], -1.0)
        for points, far in zip(self._points, self._far, strict=True):
            shown = cut(points)
            share = goal.share(target.votes(shown, keys, step)).to(most.dtype)
            better = far.isfinite() & (most < enough) & (share > most)
            found, most = torch.where(wide(better), shown, found), torch.where(better, share, most)
        return found


class Best:
    """Of several candidates of each image the one that fools most draws; of those that fool as many, the least margin.

    Args:
        images: [N,C,H,W], the first candidates.
        share: in how many of the draws each fools, [N] in [0,1].
        margin: the label's logit less the largest other, [N].

    Attributes:
        images: [N,C,H,W], the best so far.
    """

    def __init__(self, images: Tensor, share: Tensor, margin: Tensor) -> None:
        self.images, self._share, self._margin = images.clone(), share.clone(), margin.clone()

    def take(self, place: Tensor, images: Tensor, share: Tensor, margin: Tensor, allowed: Tensor | None = None) -> None:
        """Take in candidates of the images at `place` [B]; of these only who is `allowed`, bool [B], if not None."""
        most, least = self._share[place], self._margin[place]
        better = (share > most) | ((share == most) & (margin < least))
        better = better if allowed is None else better & allowed
        self.images[place] = torch.where(wide(better), images, self.images[place])
        self._share[place] = torch.where(better, share, most)
        self._margin[place] = torch.where(better, margin, least)


class Attempts:
    """What several starts of an attack found of each image.

    An image that is fooled needs no other start; where there are several draws, only one of which all are fooled, and
    of several starts the one counts that fools most of them. Else the last counts.

    Attributes:
        images: [N,C,H,W], the best so far.
        left: int64 [M], the places of images that need another start.
    """

    def __init__(self, target: Target, goal: Goal, images: Tensor, keys: Tensor, restarts: int, name: str) -> None:
        self._target, self._goal, self._keys, self._restarts, self._name = target, goal, keys, restarts, name
        self.images, self.left = images, torch.arange(len(images), device=images.device)
        self._share = images.new_full((len(images),), -1)

    def add(self, restart: int, found: Tensor) -> None:
        """Take in what a start found of the images that were left."""
        left, aim, last = self.left, self._goal.part(self.left), restart + 1 == self._restarts
        if self._target.draws > 1 and self._restarts > 1:
            # the same draws for every start, so that they compare
            votes = self._target.votes(found, self._keys[left], f"{self._name}/judge")
            share = aim.share(votes).to(self._share.dtype)
            better = share > self._share[left]
            self.images = self.images.index_copy(0, left[better], found[better])
            self._share = self._share.index_copy(0, left[better], share[better])
            self.left = left[share < 1]
            return
        self.images = self.images.index_copy(0, left, found)
        if not last:
            logits = self._target.logits(found, self._keys[left], f"{self._name}/judge/{restart}")
            self.left = left[~aim.reached(logits)]
