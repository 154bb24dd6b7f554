"""A pretend accelerator for tests: the CPU's numbers under another device's name, on which no two devices mix.

What CUDA refuses is refused, and what CUDA waits for is counted: each time the host asks for a number that is on the
device, and each copy either way, with the line of ours that caused it. It tells nothing of speed, streams, autocast or
pinned memory. It stands on what torch offers to backends written in Python, which older versions lack: `available`.
"""

from __future__ import annotations

import collections
import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map

try:
    from torch.utils.backend_registration import _DummyBackendModule
    from torch.utils.backend_registration import _setup_privateuseone_for_python_backend as _setup
except ImportError:
    _DummyBackendModule, _setup = object, None

available = _setup is not None
NAME = "pretend"
ASKS = {"_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero", "_unique2", "unique_consecutive"}
COPIES = {"_to_copy", "copy_", "copy", "lift_fresh", "_copy_from"}
INDEXES = {"index", "index_put", "index_put_", "_index_put_impl_"}  # which take a host's places along


@attrs.define
class Seen:
    """What was seen: by line, how often the host waited, and copied to the device."""

    waits: collections.Counter[str] = attrs.field(factory=collections.Counter)
    copies: collections.Counter[str] = attrs.field(factory=collections.Counter)


_seen = Seen()


class Backend(_DummyBackendModule):
    """What torch asks of a backend."""

    def is_available(self) -> bool:
        return True

    def device_count(self) -> int:
        return 1

    def current_device(self) -> int:
        return 0

    def synchronize(self, device: Any = None) -> None:
        """Everything is done at once."""

    def manual_seed_all(self, seed: int) -> None:
        """All draws are the CPU's."""


class There(Tensor):
    """A tensor on the device; `held` is where its numbers are."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> There:
        there: There = Tensor._make_wrapper_subclass(
            cls,
            held.size(),
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=torch.device(NAME, 0),
        )
        return there

    def __init__(self, held: Tensor) -> None:
        self.held = held

    def __repr__(self) -> str:  # type: ignore[override]
        return f"There({self.held})"

    def tolist(self) -> Any:
        _seen.waits[f"tolist, {_line()}"] += 1
        return self.held.tolist()

    def numpy(self, *_: Any, **__: Any) -> Any:
        raise TypeError(f"can't convert {NAME} device type tensor to numpy. Use Tensor.cpu()")

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _compute(function, args, kwargs or {})


class Placing(TorchDispatchMode):
    """While it is on, what is made for the device is made there."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if _named(kwargs) or any(isinstance(each, There) for each in tree_leaves((args, kwargs))):
            return _compute(function, args, kwargs)
        return function(*args, **kwargs)


def _named(kwargs: dict[str, Any]) -> bool:
    return kwargs.get("device") is not None and torch.device(kwargs["device"]).type == NAME


def _line() -> str:
    """Return the nearest line of ours."""
    frame = sys._getframe(1)
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        if "src" in path.parts:
            return f"{path.parent.name}/{path.name}:{frame.f_lineno}"
        frame = frame.f_back  # type: ignore[assignment]
    return "elsewhere"


def _compute(function: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    name = function._schema.name.partition("::")[2]
    leaves = [each for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)]
    there = [each for each in leaves if isinstance(each, There)]
    # a number in a tensor of its own may stand beside tensors of any device
    here = [each for each in leaves if not isinstance(each, There) and each.ndim]
    if there and here and name not in COPIES | INDEXES:
        raise RuntimeError(f"Expected all tensors to be on the same device, found {NAME} and cpu ({name}, {_line()})")
    given = kwargs.get("device")
    leaves_it = name == "_to_copy" and given is not None and torch.device(given).type == "cpu"
    by_mask = name in INDEXES and any(
        isinstance(each, There) and each.dtype == torch.bool for each in tree_leaves(args[1])
    )
    if there and (name in ASKS or leaves_it or by_mask):
        _seen.waits[f"{name}, {_line()}"] += 1
    comes = (name == "_to_copy" and not there and _named(kwargs)) or (
        name == "copy_" and isinstance(args[0], There) != isinstance(args[1], There)
    )
    if comes or (there and here and name in INDEXES):
        _seen.copies[f"{name}, {_line()}"] += 1
    plain_args, plain_kwargs = tree_map(lambda each: each.held if isinstance(each, There) else each, (args, kwargs))
    if given is not None:
        plain_kwargs["device"] = torch.device("cpu")
    answer = function(*plain_args, **plain_kwargs)
    if name == "_local_scalar_dense":
        return answer
    if _named(kwargs) if given is not None else there:
        answer = tree_map(
            lambda each: There(each) if isinstance(each, Tensor) and not isinstance(each, There) else each, answer
        )
    if function._schema.is_mutable and isinstance(answer, Tensor):
        return return_and_correct_aliasing(function, args, kwargs, answer)
    return answer


def _register() -> None:
    """Make the device known to torch, once a process."""
    assert _setup is not None
    _setup(NAME, backend_module=Backend())
    library = torch.library.Library("aten", "IMPL")

    def empty(size: Any, dtype: Any = None, memory_format: Any = None, **_: Any) -> Tensor:
        return There(torch.empty(size, dtype=dtype, memory_format=memory_format or torch.contiguous_format))

    def copy(source: Any, target: Any, non_blocking: bool = False) -> Any:
        _seen.copies[f"copy, {_line()}"] += 1
        (getattr(target, "held", target)).copy_(getattr(source, "held", source))
        return target

    def number(value: Any) -> Any:
        _seen.waits[f"_local_scalar_dense, {_line()}"] += 1
        return value.held.item()

    library.impl(
        "empty_strided",
        lambda size, stride, dtype=None, **_: There(torch.empty_strided(size, stride, dtype=dtype)),
        "PrivateUse1",
    )
    library.impl("empty.memory_format", empty, "PrivateUse1")
    library.impl("_copy_from", copy, "PrivateUse1")
    library.impl("_local_scalar_dense", number, "PrivateUse1")
    _kept.append(library)  # what it has registered goes with it


_kept: list[Any] = []


@contextlib.contextmanager
def watch() -> Iterator[tuple[torch.device, Seen]]:
    """Yield the device, and what is seen of it in the block."""
    global _seen
    if not _kept:
        _register()
    before, _seen = _seen, Seen()
    try:
        with Placing():
            yield torch.device(NAME, 0), _seen
    finally:
        _seen = before
