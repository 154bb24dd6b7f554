"""Writes down what an attack sees: how often it looked at an image, when it had no gradient, when it was first fooled.

An attack that cannot see leaves an image right, which looks like robustness. So every look is written down where the
attacker differentiates (`defend.attacks.target.Target`), on the images that are really attacked.
"""

from __future__ import annotations

import attrs
import torch
from torch import Tensor

from defend.attacks.balls import clip, measure
from defend.records.seen import Seen

ROUNDING = 1e-6  # what clipping to a budget leaves beyond it


@attrs.frozen
class Ball:
    """What an attack is held to that looks beyond it on its way: within `eps` [N] of `images` in the norm."""

    images: Tensor
    eps: Tensor
    norm: str

    def holds(self, points: Tensor, place: Tensor) -> Tensor:
        """Return bool [B]: which points [B,C,H,W] are within, of the images at `place` [B]."""
        return measure(points - self.images[place], self.norm) <= self.eps[place] + ROUNDING


@attrs.frozen
class Halves:
    """The images under attack [N,C,H,W] of half precision, to whose type `craft` rounds: within `eps` [N] of them."""

    images: Tensor
    eps: Tensor
    norm: str

    def round(self, points: Tensor, place: Tensor, known: Tensor) -> Tensor:
        """Return points [B,C,H,W] as `craft` would return them, to the nearest if they are beyond the budget already.

        They are of the images at `place` [B]; where those are not `known`, bool [B], nothing says what the budget is.
        """
        images, eps = self.images[place], self.eps[place]
        inside = known & (measure(points - images.float(), self.norm) <= eps + ROUNDING)
        return clip(points.to(images.dtype), images, torch.where(inside, eps, torch.inf), self.norm)


class Sight:
    """Writes an attack's looks down, by the keys of the images that are attacked. It never waits for the device.

    Args:
        keys: int64 [N], of the images under attack, each once.
        labels: int64 [N], the true ones: who predicts another is fooled.
        ball: where a look has to be for that; None for an attack that keeps to its budget all the way.
        halves: the images, where they are of half precision and the attack's are not.
    """

    def __init__(self, keys: Tensor, labels: Tensor, ball: Ball | None = None, halves: Halves | None = None) -> None:
        self._sorted, self._order = keys.sort()
        self._labels, self._ball, self._halves = labels, ball, halves
        self.seen = Seen.nothing(len(keys), keys.device)
        self._scale = torch.zeros(len(keys), device=keys.device)

    def note(
        self,
        keys: Tensor,
        *,
        gradient: Tensor | None = None,
        absent: bool = False,
        broken: Tensor | None = None,
        mended: Tensor | None = None,
        fooled: Tensor | None = None,
        logits: Tensor | None = None,
        points: Tensor | None = None,
    ) -> None:
        """Write down one look at the images at `keys` [B]; keys that are not under attack are passed over.

        One key several times is as many looks, and what happened in one of them happened in the last.

        Args:
            keys: which images.
            gradient: [B,C,H,W], finite; None for a look that asked for answers alone.
            absent: there was no gradient at all.
            broken, mended: bool [B], see `Seen`.
            fooled: bool [B], who was fooled; from `logits` [B,K] if None.
            logits: what was attacked said, or None where it was not asked.
            points: what was looked at, [B,C,H,W].
        """
        seen = self.seen
        place, known = self._places(keys)
        one = known.to(torch.int32)
        seen.looks.index_add_(0, place, one)
        now = seen.looks[place]
        blind = torch.zeros_like(known)
        if gradient is None and not absent:
            seen.answers.index_add_(0, place, one)
        if absent:
            seen.absent.index_add_(0, place, one)
            blind = known
        elif gradient is not None:
            none = torch.zeros_like(known) if broken is None else broken
            zero = ~none & ~gradient.flatten(1).any(1)
            seen.zero.index_add_(0, place, (zero & known).to(torch.int32))
            seen.broken.index_add_(0, place, (none & known).to(torch.int32))
            if mended is not None:
                seen.mended.index_add_(0, place, (mended & known).to(torch.int32))
            blind = (zero | none) & known
        if fooled is None and logits is not None:
            fooled = logits.argmax(1) != self._labels[place]
        if fooled is not None and self._ball is not None and points is not None:
            fooled = fooled & self._ball.holds(points, place)
        if fooled is not None:
            seen.judged.index_add_(0, place, one)
        for column, happened in ((seen.first_blind, blind), (seen.fooled_at, fooled)):
            if happened is not None:
                first = torch.where(happened & known & (column[place] == 0), now, column[place])
                column.scatter_reduce_(0, place, first.to(column.dtype), "amax")

    def first_scale(self, keys: Tensor, scale: Tensor, told: Tensor) -> Tensor:
        """Return the scale [B] that was first given for each image at `keys` [B]: `scale` [B] the first time.

        It is kept where it was `told`, bool [B], by logits that differ: equal ones have no scale.
        """
        place, _ = self._places(keys)
        kept = self._scale[place]
        chosen = torch.where(kept > 0, kept, scale.to(kept.dtype))
        self._scale.scatter_(0, place, torch.where(told, chosen, kept))
        return chosen.to(scale.dtype)

    def round(self, points: Tensor, keys: Tensor) -> Tensor | None:
        """Return points [B,C,H,W] of the images at `keys` [B] as `craft` would return them, of half precision.

        None where the images are of full precision.
        """
        return None if self._halves is None else self._halves.round(points, *self._places(keys))

    def labels_of(self, keys: Tensor) -> Tensor:
        """Return the true labels [B] of the images at `keys` [B], which must be under attack."""
        return self._labels[self._places(keys)[0]]

    def _places(self, keys: Tensor) -> tuple[Tensor, Tensor]:
        """Return where the images at `keys` [B] stand among those under attack, and whether they do, bool [B]."""
        # a key above all others would be placed one beyond the end
        place = torch.searchsorted(self._sorted, keys).clamp_max(len(self._sorted) - 1)
        return self._order[place], self._sorted[place] == keys
