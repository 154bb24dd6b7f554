"""What is in files, by hash: read once, in threads, and remembered as long as nothing about the files changes."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from defend.errors import DataError, WriteError
from defend.util.cores import count_granted
from defend.util.files import cache_dir, make_folder, sweep, write_bytes

SIZE = 32  # bytes of a SHA-256
BLOCK = 1024  # files handed to the threads at a time
MOST_THREADS = 8
REMEMBERED = 64 * 2**20  # bytes from which on reading them again would take long enough to be felt


def digests_of(paths: Sequence[Path]) -> bytes:
    """Return the SHA-256 of each file's content, 32 bytes each, in order.

    Of many bytes they are kept in the user's cache, for as long as no file's place, size, or time of change is another.

    Raises:
        DataError: a file that cannot be read; the message names it.
    """
    about, total = hashlib.sha256(), 0
    for path in paths:
        size, state = _state(path)
        total += size
        about.update(os.fsencode(path) + f"\0{state}\n".encode())
    kept = cache_dir() / "hashes" / about.hexdigest() if total >= REMEMBERED else None
    if kept is not None:
        with contextlib.suppress(OSError):
            # it ends with a hash of the rest, so that a damaged one is not believed
            known = kept.read_bytes()
            if len(known) == SIZE * len(paths) + SIZE and hashlib.sha256(known[:-SIZE]).digest() == known[-SIZE:]:
                return known[:-SIZE]
    found = bytearray()
    with ThreadPoolExecutor(min(MOST_THREADS, count_granted())) as pool:
        for start in range(0, len(paths), BLOCK):
            for digest in pool.map(_digest, paths[start : start + BLOCK]):
                found += digest
    whole = bytes(found)
    if kept is not None:
        # a cache that cannot be written costs the next run time, and this one nothing
        with contextlib.suppress(WriteError):
            make_folder(kept.parent)
            sweep(kept.parent)
            write_bytes(kept, whole + hashlib.sha256(whole).digest())
    return whole


def _state(path: Path) -> tuple[int, str]:
    try:
        about = path.stat()
    except OSError as error:
        raise DataError(f"image {str(path)!r} cannot be read: {error.strerror}") from None
    # the time of change too, which nobody can set back
    return about.st_size, f"{about.st_dev} {about.st_ino} {about.st_size} {about.st_mtime_ns} {about.st_ctime_ns}"


def _digest(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").digest()
    except OSError as error:
        raise DataError(f"image {str(path)!r} cannot be read: {error.strerror}") from None
