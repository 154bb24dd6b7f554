"""Rounding, and two stand-ins for its derivative, which is zero wherever it exists."""

from __future__ import annotations

from torch import Tensor


def round_straight(values: Tensor) -> Tensor:
    """Return the nearest whole numbers; backwards the identity (Athalye et al. 2018, arXiv:1802.00420, section 4.1)."""
    return values.round().detach() + (values - values.detach())


def round_softly(values: Tensor) -> Tensor:
    """Return round(v) + (v - round(v))^3 (Shin and Song 2017): near whole numbers where v is, with a slope between."""
    whole = values.round().detach()
    return whole + (values - whole) ** 3
