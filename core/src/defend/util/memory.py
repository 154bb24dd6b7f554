"""Whether memory ran out, so that fewer images at a time may still fit."""

from __future__ import annotations

import errno

SIGNS = ("cannot allocate memory", "failed to map segment", "bad alloc", "bad_alloc", "can't start new thread")
"""What those say that meet a limit of memory: the loader of a library, C++, threads."""


def out_of_memory(error: BaseException) -> bool:
    """Return whether an error is that of a device, or of the CPU, that has no memory left."""
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
        return True
    if not isinstance(error, (RuntimeError, ImportError)):
        return False
    try:
        said = str(error).lower()
    except Exception:  # somebody else's error may fail at its own words
        return False
    if any(sign in said for sign in SIGNS):
        return True
    try:
        from accelerate.utils.memory import should_reduce_batch_size
    except (ImportError, MemoryError):  # which needs memory itself
        return False
    return isinstance(error, Exception) and should_reduce_batch_size(error)
