"""What is in files, by hash: read once, and remembered as long as nothing about the files changes."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from defend.errors import DataError, WriteError
from defend.util.cores import count_granted
from defend.util.files import cache_dir, make_folder, sweep, write_bytes

SIZE = 32  # bytes of a SHA-256
BLOCK = 1024  # files handed to the threads at a time
MOST_THREADS = 8
# Bytes of a file from which on threads gain: those of fewer spend more time taking turns (`python -m benchmarks
# small_files`, two cores: 3 kB 0.05 ms in one thread and 0.17 in several, 400 kB 0.41 and 0.38).
LARGE = 256 * 2**10
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

    def make() -> bytes:
        return b"".join(map(hash_file, paths) if total < LARGE * len(paths) else _hash_in_threads(paths))

    return make() if total < REMEMBERED else remember(about.hexdigest(), len(paths), make)


def remember(about: str, count: int, make: Callable[[], bytes]) -> bytes:
    """Return so many digests, 32 bytes each, from the user's cache, or make them and keep them there.

    `about` is a SHA-256, in hexadecimal, of all that decides them.
    """
    kept = cache_dir() / "hashes" / about
    with contextlib.suppress(OSError):
        # it ends with a hash of the rest, so that a damaged one is not believed
        known = kept.read_bytes()
        if len(known) == SIZE * count + SIZE and hashlib.sha256(known[:-SIZE]).digest() == known[-SIZE:]:
            return known[:-SIZE]
    whole = make()
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


def _hash_in_threads(paths: Sequence[Path]) -> Iterator[bytes]:
    with ThreadPoolExecutor(min(MOST_THREADS, count_granted())) as pool:
        for start in range(0, len(paths), BLOCK):
            yield from pool.map(hash_file, paths[start : start + BLOCK])


def hash_file(path: Path) -> bytes:
    """Return the SHA-256 of a file's content, 32 bytes.

    Raises:
        DataError: it cannot be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").digest()
    except OSError as error:
        raise DataError(f"image {str(path)!r} cannot be read: {error.strerror}") from None
