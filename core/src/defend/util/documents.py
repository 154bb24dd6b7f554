"""JSON that comes back from a disk, where it may have been damaged: read strictly, and known by its digest."""

from __future__ import annotations

import hashlib
import json
import math
from typing import Any


def parse_json(text: str | bytes, finite: bool = False) -> Any:
    """Read JSON; with `finite`, without the NaN and the infinities that Python writes and JSON has not.

    Raises:
        ValueError: it is none, of another encoding than UTF-8, or nested too deeply; the message says which.
    """
    try:
        if finite:
            return json.loads(text, parse_constant=_refuse, parse_float=_number)
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def digest(value: Any) -> str:
    """Return a digest of plain data: the first half of a SHA-256 of it as JSON."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def _refuse(name: str) -> float:
    raise ValueError(f"{name} is no number")


def _number(text: str) -> float:
    value = float(text)
    return value if math.isfinite(value) else _refuse(text)
