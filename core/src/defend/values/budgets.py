"""How large a perturbation may be, as users write it: "8/255", "0.03", or several."""

from __future__ import annotations

from typing import Any

from defend.errors import ConfigError
from defend.options import fraction


def parse_eps(value: Any) -> float:
    """Read a perturbation budget in [0,1] units: "8/255", "0.03" or 0.03.

    Raises:
        ConfigError: not a number, 0 or negative, or above 1 ("8" is asked back as 8/255).
    """
    try:
        eps = fraction(value)
    except ValueError as error:
        raise ConfigError(f"eps {value!r} is not {error}") from None
    if 1 < eps <= 255 and "/" not in str(value):
        raise ConfigError(f"eps {value!r} is above 1, and images are in [0,1]: did you mean {value}/255?")
    if eps == 0:  # every row would be of unattacked images, and read as robustness
        raise ConfigError(f"eps {value!r} allows no attack: expected above 0, for example 8/255 or 0.03")
    if not 0 < eps <= 1:
        raise ConfigError(f"eps {value!r} is out of range: expected 0 to 1, for example 8/255 or 0.03")
    return eps


def parse_sweep(values: Any) -> tuple[float, ...]:
    """Read several budgets: "2/255,4/255", or a list of what `parse_eps` reads; ascending, each once."""
    parts = values.split(",") if isinstance(values, str) else values
    if not isinstance(parts, (list, tuple, set, frozenset)):
        raise ConfigError(f"sweep {values!r} is not a list of budgets: expected for example 2/255,4/255")
    return tuple(sorted({parse_eps(part.strip() if isinstance(part, str) else part) for part in parts}))
