"""What an attack saw of each image: how often it looked, when it had no gradient, when it first saw it fooled."""

from __future__ import annotations

import attrs
import torch
from torch import Tensor

COLUMNS = ("looks", "answers", "absent", "zero", "broken", "mended", "judged", "first_blind", "fooled_at")


@attrs.frozen
class Seen:
    """What an attack saw of each image: int32 [N] each, looks numbered from 1, 0 for never.

    Attributes:
        looks: how often the image was looked at: gradients, or answers of an attack that only asks.
        answers: looks that asked for no gradient.
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
    answers: Tensor
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
    def differentiated(self) -> Tensor:
        """Looks that asked for a gradient, [N]; an attack made of several may ask for answers as well."""
        return self.looks - self.answers

    @property
    def never(self) -> Tensor:
        """Images whose gradient was asked for and never usable, bool [N]."""
        return (self.differentiated > 0) & (self.blind >= self.differentiated)

    @property
    def mostly(self) -> Tensor:
        """Images without a usable gradient at half of the looks that asked for one, or more, bool [N]."""
        return (self.differentiated > 0) & (2 * self.blind >= self.differentiated)

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
    def join(cls, parts: list[Seen | None]) -> Seen | None:
        """Return the images of several parts one after another; None where one is unknown."""
        known = [part for part in parts if part is not None]
        if len(known) < len(parts) or not known:
            return None
        return cls(*(torch.cat(column) for column in zip(*(part.columns() for part in known), strict=True)))
