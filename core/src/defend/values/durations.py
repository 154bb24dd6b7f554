"""Spans of time as users write them: "90s", "10m", "1.5h". Imports no torch."""

from __future__ import annotations

import math

from defend.errors import ConfigError

UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0}


def parse_duration(text: str) -> float:
    """Return the seconds of a span of time.

    Raises:
        ConfigError: it is none.
    """
    text = str(text)  # a caller in Python may pass anything
    number, unit = text.strip()[:-1], UNITS.get(text.strip()[-1:])
    try:
        seconds = float(number) * (unit or math.nan)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise ConfigError(f"budget {text!r} is no span of time: expected a number and s, m or h, for example 10m")
    return seconds


def check_duration(text: str | None) -> str | None:
    """Return a span of time as it was written, if it is one; None where there is none."""
    if text is not None:
        parse_duration(text)
    return text


def say_duration(seconds: float) -> str:
    """Return seconds in the words of a person: "8 s", "12 min", "3.5 h"."""
    if seconds < 100:
        return f"{max(round(seconds), 1)} s"
    return f"{seconds / 60:.0f} min" if seconds < 100 * 60 else f"{seconds / 3600:.1f} h"
