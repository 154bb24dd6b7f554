"""What a GPU computes fp32 in. Since Ampere torch lets cuDNN's convolutions round their inputs to TF32, 10 bits.

A training may: its gradients need no more. What is measured is measured in IEEE fp32. torch's settings are the whole
process's, so both are set for a block and put back after it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch

ADDRESSED: tuple[tuple[str, str], ...] = (("cuda", "matmul"), ("cudnn", "conv"), ("cudnn", "rnn"))
TOUCHED = (*ADDRESSED, ("mkldnn", "matmul"))  # the last by the setting for all matrix products


@contextlib.contextmanager
def ieee_fp32() -> Iterator[None]:
    """Compute fp32 as IEEE has it, on GPUs too."""
    with _rounding(False):
        yield


@contextlib.contextmanager
def fast_fp32(device: torch.device) -> Iterator[None]:
    """On CUDA round to TF32, and let cuDNN try which algorithm is fastest for each shape; elsewhere change nothing."""
    if device.type != "cuda":
        yield
        return
    benchmark = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = True
    try:
        with _rounding(True):
            yield
    finally:
        torch.backends.cudnn.benchmark = benchmark


@contextlib.contextmanager
def _rounding(tf32: bool) -> Iterator[None]:
    kept = list(_keep())
    try:
        torch.set_float32_matmul_precision("high" if tf32 else "highest")
        torch.backends.cudnn.allow_tf32 = tf32
        for place in ADDRESSED:
            if _has(*place):  # where they say "none", these follow a setting for everything
                _operation(*place).fp32_precision = "tf32" if tf32 else "ieee"
        yield
    finally:
        for put_back in kept:
            put_back()


def _keep() -> Iterator[Callable[[], None]]:
    """Yield what puts each setting back, the older ones first, as they also write the newer ones (torch 2.9)."""
    with contextlib.suppress(RuntimeError):  # whoever set the newer ones may not read the older ones
        matmul = torch.get_float32_matmul_precision()
        yield lambda: torch.set_float32_matmul_precision(matmul)
    with contextlib.suppress(RuntimeError):
        cudnn = torch.backends.cudnn.allow_tf32
        yield lambda: setattr(torch.backends.cudnn, "allow_tf32", cudnn)
    for place in TOUCHED:
        if _has(*place):
            operation = _operation(*place)
            precision = operation.fp32_precision
            yield lambda operation=operation, precision=precision: setattr(operation, "fp32_precision", precision)  # type: ignore[misc]


def _operation(backend: str, name: str) -> Any:
    return getattr(getattr(torch.backends, backend), name)


def _has(backend: str, name: str) -> bool:
    """Whether this torch has a setting for an operation of its own."""
    return hasattr(getattr(getattr(torch.backends, backend, None), name, None), "fp32_precision")
