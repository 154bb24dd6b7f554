"""Whether memory ran out, so that fewer images at a time may still fit."""

from __future__ import annotations


def out_of_memory(error: Exception) -> bool:
    """Return whether an error is that of a device, or of the CPU, that has no memory left."""
    from accelerate.utils.memory import should_reduce_batch_size

    return should_reduce_batch_size(error)
