"""One batch that is kept: a safetensors file that notices damage (`defend.util.sealed`).

Listing and checking entries imports no torch.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import attrs

from defend.util.documents import parse_json
from defend.util.header import read_metadata
from defend.util.sealed import is_whole, to_sealed

if TYPE_CHECKING:
    from torch import Tensor


FORMAT = "1"
FORMAT_ENTRY, ACCOUNT = "defend.store", "defend.account"


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
    copies = {name: tensor.detach().cpu().clone() for name, tensor in tensors.items()}
    # safetensors keeps contiguous tensors alone, and a tensor's layout decides how results are rounded
    strides = {name: list(tensor.stride()) for name, tensor in copies.items()}
    known = json.dumps({"key": key, "strides": strides, "about": dict(about)}, sort_keys=True)
    return to_sealed(
        {name: tensor.contiguous() for name, tensor in copies.items()}, {FORMAT_ENTRY: FORMAT, ACCOUNT: known}
    )


def read_account(data: bytes, key: str) -> dict[str, Any] | None:
    """Return a file's own account of itself if every byte is as it was written under that key, else None."""
    known = _account(io.BytesIO(data)) if is_whole(data) else None
    return known if known is not None and known["key"] == key else None


def _account(file: BinaryIO) -> dict[str, Any] | None:
    """Return what `put` wrote into a header: key, strides, about; None where it is damaged or of another format."""
    try:
        metadata = read_metadata(file)
        known: Any = parse_json(metadata[ACCOUNT])
        fits = (
            metadata[FORMAT_ENTRY] == FORMAT and isinstance(known["about"], dict) and {"key", "strides"} <= set(known)
        )
    except (ValueError, TypeError, KeyError):
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
