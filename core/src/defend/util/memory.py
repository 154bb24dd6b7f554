"""How much memory is held, and whether it ran out, so that fewer images at a time may still fit."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    import torch

    from defend.datasets.base import Batch

T = TypeVar("T")

SIGNS = ("cannot allocate memory", "failed to map segment", "bad alloc", "bad_alloc", "can't start new thread")
"""What those say that meet a limit of memory: the loader of a library, C++, threads."""
CPU_PIXELS = 16 * 224 * 224
"""At once on a CPU: FGSM on a resnet18 at 224 px peaks at 1.94 GB with 64 images, at 1.51 with 16, in the same time."""


def fit_batch(images: int, pixels: int, device: torch.device) -> int:
    """Return how many of the images, of so many pixels each, are worked on at once: on a CPU few large ones."""
    return images if device.type != "cpu" else min(images, max(CPU_PIXELS // max(pixels, 1), 1))


def release_freed() -> None:
    """Give memory that was freed back to the system, where glibc would keep it (`malloc_trim(3)`); nothing elsewhere.

    Clean and noise rows of 256 images of 224 px on a resnet18 peak at 1.42 GB without it, at 1.21 and 1.29 with it, in
    the same time.
    """
    trim = _trim()
    if trim is not None:
        trim(0)


@functools.cache
def _trim() -> Callable[[int], object] | None:
    try:
        trim: Callable[[int], object] = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):  # another C library, or Windows
        return None
    return trim


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


class Fitting:
    """How many images are worked on at a time: fewer large ones on a CPU; halved, and kept so, when memory runs out.

    `size` of them, where `wanted` were asked for, of so many `pixels` each.
    """

    def __init__(self, wanted: int, pixels: int, device: torch.device) -> None:
        self.size, self._wanted, self._device = fit_batch(wanted, pixels, device), wanted, device

    def work(self, batch: Batch, work: Callable[[Batch], T]) -> Iterator[T]:
        """Do some work on a batch, in pieces of `size` images; yield what it gives for each, in their order."""
        waiting = batch.split(self.size)
        while waiting:
            part = waiting.pop(0)
            try:
                yield work(part)
            except (RuntimeError, MemoryError) as error:
                self.halve(len(part.keys), error)
                waiting = part.split(self.size) + waiting
            if self.size < self._wanted:  # a batch is much of the memory there is
                release_freed()

    def halve(self, tried: int, error: BaseException) -> None:
        """Take half of the images that were `tried`, and let go of what is held in vain.

        Raises:
            BaseException: the error, where it is not of memory, or one image alone is too much.
        """
        if tried <= 1 or not out_of_memory(error):
            raise error
        # kept for what is to come, which would run out of memory as this did
        self.size = max(tried // 2, 1)
        if self._device.type == "cuda":
            import torch

            torch.cuda.empty_cache()


def restart_peak(device: torch.device) -> None:
    """Begin to look for the most memory that is held from here on; see `peak_memory`."""
    if device.type == "cuda":
        import torch

        torch.cuda.reset_peak_memory_stats(device)
        return
    with contextlib.suppress(OSError):  # where the system has no such file, or does not let it be written
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory(device: torch.device) -> int | None:
    """Return the most bytes held since `restart_peak`: of the GPU, or by this process. None where nothing tells."""
    if device.type == "cuda":
        import torch

        return torch.cuda.max_memory_allocated(device)
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return None
