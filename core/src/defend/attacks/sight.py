"""What an attack saw: of every image, how often it looked, when it had no gradient, and when it first saw it fooled.

An attack that cannot see leaves an image right, which looks like robustness. So every look is written down where the
attacker differentiates (`defend.attacks.target.Target`), on the images that are really attacked.
"""

from __future__ import annotations

import attrs
import torch
from torch import Tensor

COLUMNS = ("looks", "absent", "zero", "broken", "mended", "judged", "first_blind", "fooled_at")


@attrs.frozen
class Seen:
    """What an attack saw of each image: int32 [N] each, looks numbered from 1, 0 for never.

    Attributes:
        looks: how often the image was looked at: gradients, or answers of an attack that only asks.
        absent: looks without any gradient: what is between images and loss detaches.
        zero: looks whose gradient was exactly zero everywhere.
        broken: looks with numbers in the gradient that were not finite, and stayed so a hair inside the box.
        mended: looks with numbers that were not finite, and were a hair inside the box.
        judged: looks at which what was attacked said itself whether it was fooled; not those of an objective whose
            logits are others.
        first_blind: the first look without a usable gradient: absent, zero, or broken.
        fooled_at: the first judged look at which it was fooled.
    """

    looks: Tensor
    absent: Tensor
    zero: Tensor
    broken: Tensor
    mended: Tensor
    judged: Tensor
    first_blind: Tensor
    fooled_at: Tensor

    @property
    def blind(self) -> Tensor:
        """Looks without a usable gradient, [N]."""
        return self.absent + self.zero + self.broken

    @property
    def never(self) -> Tensor:
        """Images that were looked at, and never with a usable gradient, bool [N]."""
        return (self.looks > 0) & (self.blind >= self.looks)

    @property
    def mostly(self) -> Tensor:
        """Images without a usable gradient at half of the looks or more, bool [N]."""
        return (self.looks > 0) & (2 * self.blind >= self.looks)

    def cpu(self) -> Seen:
        """Return the same on the CPU, in one copy."""
        return Seen(*torch.stack(self.columns()).cpu())

    def columns(self) -> list[Tensor]:
        """Return all columns, in the order of `COLUMNS`."""
        return [getattr(self, name) for name in COLUMNS]

    @classmethod
    def nothing(cls, count: int, device: torch.device | None = None) -> Seen:
        """Return what is known before the first look."""
        return cls(*(torch.zeros(count, dtype=torch.int32, device=device) for _ in COLUMNS))

    @classmethod
    def joined(cls, parts: list[Seen | None]) -> Seen | None:
        """Return the images of several parts one after another; None where one is unknown."""
        known = [part for part in parts if part is not None]
        if len(known) < len(parts) or not known:
            return None
        return cls(*(torch.cat(column) for column in zip(*(part.columns() for part in known), strict=True)))


class Sight:
    """Takes an attack's looks down, by the keys of the images that are attacked. Never waits for the device.

    Args:
        keys: int64 [N], of the images under attack, each once.
        labels: int64 [N], the true ones: who predicts another is fooled.
    """

    def __init__(self, keys: Tensor, labels: Tensor) -> None:
        self._sorted, self._order = keys.sort()
        self._labels = labels
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
    ) -> None:
        """Take one look down, at the images at `keys` [B]; of others it says nothing.

        Args:
            keys: which images.
            gradient: [B,C,H,W], finite; None for a look that asked for answers alone.
            absent: there was no gradient at all.
            broken, mended: bool [B], see `Seen`.
            fooled: bool [B], who was fooled; from `logits` [B,K] if None.
            logits: what was attacked said, or None where it was not asked.
        """
        seen = self.seen
        place, known = self._places(keys)
        one = known.to(torch.int32)
        seen.looks.index_add_(0, place, one)
        now = seen.looks[place]
        blind = torch.zeros_like(known)
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
        if fooled is not None:
            seen.judged.index_add_(0, place, one)
        for column, happened in ((seen.first_blind, blind), (seen.fooled_at, fooled)):
            if happened is not None:
                first = torch.where(happened & known & (column[place] == 0), now, column[place])
                column.scatter_(0, place, first.to(column.dtype))

    def first_scale(self, keys: Tensor, scale: Tensor) -> Tensor:
        """Return what was given first for each of the images at `keys` [B]: `scale` [B] where nothing was yet."""
        place, _ = self._places(keys)
        kept = self._scale[place]
        chosen = torch.where(kept > 0, kept, scale.to(kept.dtype))
        self._scale.scatter_(0, place, chosen)
        return chosen.to(scale.dtype)

    def labels_of(self, keys: Tensor) -> Tensor:
        """Return the true labels [B] of the images at `keys` [B], which must be under attack."""
        return self._labels[self._places(keys)[0]]

    def _places(self, keys: Tensor) -> tuple[Tensor, Tensor]:
        """Return where the images at `keys` [B] stand among those under attack, and whether they do, bool [B]."""
        place = torch.searchsorted(self._sorted, keys).clamp_max(len(self._sorted) - 1)
        return self._order[place], self._sorted[place] == keys
