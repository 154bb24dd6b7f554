"""Safetensors files that hold a SHA-256 of all their bytes, so that any damage is noticed. Checked without torch."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

from defend.util.header import length_of

if TYPE_CHECKING:
    from torch import Tensor


CHECKSUM = "defend.sha256"
BLANK = b"0" * 64  # stands in the checksum's place while it is computed
PLACE = re.compile(rb'"defend\.sha256"\s*:\s*"([0-9a-f]{64})"')  # quotes within a JSON text are escaped


def to_sealed(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    """Return a file of tensors, which are contiguous and share no memory, and of texts, with its checksum."""
    from safetensors.torch import save

    data = save(dict(tensors), metadata={**metadata, CHECKSUM: BLANK.decode()})
    place = PLACE.search(data)
    assert place is not None
    start, end = place.span(1)
    return b"".join((data[:start], hashlib.sha256(data).hexdigest().encode(), data[end:]))


def is_sealed(data: bytes) -> bool:
    """Whether a file has a checksum."""
    return _place(data) is not None


def is_whole(data: bytes) -> bool:
    """Whether a file has a checksum, and every byte is as it was written."""
    place = _place(data)
    if place is None:
        return False
    start, end = place.span(1)
    digest = hashlib.sha256(data[:start])
    digest.update(BLANK)
    digest.update(memoryview(data)[end:])
    return digest.hexdigest().encode() == place[1]


def _place(data: bytes) -> re.Match[bytes] | None:
    # in the header alone, as tensors may hold any bytes
    return PLACE.search(data, 8, min(8 + length_of(data), len(data)))
