"""The header of a safetensors file: what its writer said of it. Read without torch, and without the tensors."""

from __future__ import annotations

import struct
from typing import BinaryIO

from defend.util.documents import parse_json

MOST_BYTES = 100_000_000  # safetensors' own limit of a header


def length_of(start: bytes) -> int:
    """Return the length in bytes of the header that follows a file's first eight bytes; 0 where these are not there."""
    return int(struct.unpack("<Q", start[:8])[0]) if len(start) >= 8 else 0


def read_metadata(file: BinaryIO) -> dict[str, str]:
    """Return the texts that a file's writer put beside its tensors; {} where it put none.

    Raises:
        ValueError: there is no such header; the message goes on after "FILE is".
        OSError: the file cannot be read.
    """
    start = file.read(8)
    length = length_of(start)
    try:
        # the shortest header is {}
        if not 2 <= length <= MOST_BYTES:
            raise ValueError
        header = parse_json(file.read(length))
    except ValueError:
        pickled = start[:2] == b"PK" or start[:1] == b"\x80"
        guess = " (it looks like a pickle, which is never loaded)" if pickled else ""
        raise ValueError(f"not a safetensors file, or cut short{guess}") from None
    metadata = header.get("__metadata__") if isinstance(header, dict) else None
    return metadata if isinstance(metadata, dict) else {}
