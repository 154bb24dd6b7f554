"""Shares of images in percent: rounded, and never to what they are not. Imports no torch."""

from __future__ import annotations

NOISE = 1e-12
"""Of floats: what is this near to a number is that number."""
MOST = 12
"""Digits that tell any two shares apart that differ by more than `NOISE`."""


def in_percent(share: float, digits: int = 1, sign: str = "") -> str:
    """Return a fraction in percent, such as "61.2"; with more digits where these say 0 or 100 and it is not that.

    Args:
        share: a fraction, or a difference of two.
        digits: after the point, at least.
        sign: "+" shows that of positive ones too.
    """
    for end in (0.0, 1.0, -1.0):
        if abs(share - end) <= NOISE:
            return f"{100 * end:{sign}.{digits}f}"
    said = f"{100 * share:{sign}.{digits}f}"
    while digits < MOST and abs(float(said)) in (0.0, 100.0):
        digits += 1
        said = f"{100 * share:{sign}.{digits}f}"
    return said


def tell_apart(one: float, other: float) -> tuple[str, str]:
    """Return two fractions in percent, with as many digits as tell the smaller from the larger."""
    digits = 1
    said = in_percent(one), in_percent(other)
    while abs(one - other) > NOISE and said[0] == said[1] and digits < MOST:
        digits += 1
        said = in_percent(one, digits), in_percent(other, digits)
    return said
