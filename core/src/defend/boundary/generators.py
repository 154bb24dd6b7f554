"""The generators that any code may draw from unasked: torch's, Python's and numpy's."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor


def read_states(device: torch.device) -> tuple[Any, ...]:
    """Return where the generators stand, that of a GPU too; see `same_states`."""
    on_device = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
    return torch.get_rng_state(), on_device, random.getstate(), np.random.get_state()


def same_states(before: Sequence[Any], after: Sequence[Any]) -> bool:
    """Whether nothing was drawn between two looks of `read_states`."""

    def alike(one: Any, other: Any) -> bool:
        if isinstance(one, Tensor):
            return torch.equal(one, other)
        if isinstance(one, np.ndarray):
            return bool(np.array_equal(one, other))
        if isinstance(one, tuple):
            return all(map(alike, one, other))
        return bool(one == other)

    return all(map(alike, before, after))


@contextlib.contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seed the generators for a block, and put them back."""
    kept, theirs = random.getstate(), np.random.get_state()
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed % 2**32)
        try:
            yield
        finally:
            random.setstate(kept)
            np.random.set_state(theirs)
