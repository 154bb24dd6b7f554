"""One batch that is kept: a safetensors file whose metadata holds a SHA-256 of the whole file.

A damaged one is noticed. Listing and checking entries imports no torch.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import attrs

from defend.util.header import length_of, read_metadata

if TYPE_CHECKING:
    from torch import Tensor


FORMAT = "1"
FORMAT_ENTRY, ACCOUNT, CHECKSUM = "defend.store", "defend.account", "defend.sha256"
BLANK = b"0" * 64  # stands in the checksum's place while it is computed
CHECKSUM_PLACE = re.compile(rb'"defend\.sha256"\s*:\s*"([0-9a-f]{64})"')  # quotes within a JSON text are escaped


@attrs.frozen
class StoredBatch:
    """One batch that is kept: its key, size in bytes, last use (seconds since 1970), and what `put` was told of it.

    `about` is empty where the file's header cannot be read.
    """

    key: str
    bytes: int
    used: float
    about: Mapping[str, Any]


def to_bytes(key: str, tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> bytes:
    """Return the file of a batch: its tensors, and an account of them with a checksum over everything."""
    from safetensors.torch import save

    copies = {name: tensor.detach().cpu().clone() for name, tensor in tensors.items()}
    # safetensors keeps contiguous tensors alone, and a tensor's layout decides how results are rounded
    strides = {name: list(tensor.stride()) for name, tensor in copies.items()}
    known = json.dumps({"key": key, "strides": strides, "about": dict(about)}, sort_keys=True)
    data = save(
        {name: tensor.contiguous() for name, tensor in copies.items()},
        metadata={FORMAT_ENTRY: FORMAT, ACCOUNT: known, CHECKSUM: BLANK.decode()},
    )
    place = CHECKSUM_PLACE.search(data)
    assert place is not None
    start, end = place.span(1)
    return b"".join((data[:start], hashlib.sha256(data).hexdigest().encode(), data[end:]))


def read_account(data: bytes, key: str) -> dict[str, Any] | None:
    """Return a file's own account of itself if every byte is as it was written under that key, else None."""
    # in the header alone, as tensors may hold any bytes
    place = CHECKSUM_PLACE.search(data, 8, min(8 + length_of(data), len(data)))
    if place is None:
        return None
    start, end = place.span(1)
    digest = hashlib.sha256(data[:start])
    digest.update(BLANK)
    digest.update(memoryview(data)[end:])
    if digest.hexdigest().encode() != place[1]:
        return None
    known = _account(io.BytesIO(data))
    return known if known is not None and known["key"] == key else None


def _account(file: BinaryIO) -> dict[str, Any] | None:
    """Return what `put` wrote into a header: key, strides, about; None where it is damaged or of another format."""
    try:
        metadata = read_metadata(file)
        known: Any = json.loads(metadata[ACCOUNT])
        fits = (
            metadata[FORMAT_ENTRY] == FORMAT and isinstance(known["about"], dict) and {"key", "strides"} <= set(known)
        )
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    return known if fits else None


def read_tensors(data: bytes, strides: Mapping[str, list[int]]) -> dict[str, Tensor] | None:
    """Read the tensors of a file that is whole; None where the installed safetensors cannot."""
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        stored = load(data)
    except (SafetensorError, KeyError):
        return None
    return {
        name: torch.empty_strided(tensor.shape, strides[name], dtype=tensor.dtype).copy_(tensor)
        for name, tensor in stored.items()
    }


def read_about(path: Path) -> dict[str, Any]:
    """Read what was told of an entry from its header alone; nothing where that is damaged."""
    try:
        with path.open("rb") as file:
            known = _account(file)
    except OSError:
        return {}
    return {} if known is None else dict(known["about"])
