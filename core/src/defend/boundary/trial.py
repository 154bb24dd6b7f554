"""One look at what a stage answers, before anything depends on it."""

from __future__ import annotations

import math
from typing import Any

import attrs
import torch
from torch import nn

from defend.boundary.answers import ask
from defend.boundary.generators import read_states, same_states, seeded
from defend.errors import DefendError
from defend.util.tensors import device_of


def complete_modes(module: nn.Module) -> None:
    """Say of parts that have no mode that they are in eval mode: a frozen TorchScript module forgets it."""
    for part in module.modules():
        if not hasattr(part, "training"):
            part.training = False


@attrs.frozen
class Trial:
    """What a module answered, None where it failed; and whether it drew from torch's, Python's or numpy's generator."""

    answer: Any
    drew: bool


@torch.no_grad()
def try_out(stage: str, module: nn.Module, shape: tuple[int, int, int], seed: int = 0, *, rough: bool = False) -> Trial:
    """Ask a module about two images of a shape (channels, height, width), in eval mode.

    They rise from dark to bright and back, so that what flips or shifts them is seen; `rough` ones are noise, as what
    draws only where it suspects an attack leaves smooth images alone. A detector is given the smooth ones beside them.

    Its modes and all draws outside stay as they were. Where it fails, whoever uses it will be told how.
    """
    where = device_of(module)
    modes = [(part, part.training) for part in module.modules()]
    rising = torch.linspace(0.2, 0.8, math.prod(shape), device=where)
    smooth = torch.stack([rising, rising.flip(0)]).view(2, *shape)
    noise = torch.rand(2, *shape, generator=torch.Generator().manual_seed(0)).to(where)
    images = [noise if rough else smooth, smooth][: 2 if stage == "detector" else 1]
    with seeded(seed, where):
        before = read_states(where)
        try:
            module.eval()  # what it returns is not asked: a user's `train` may return nothing
            answer = ask(stage, module, *images)
        except DefendError:
            answer = None
        finally:
            for part, mode in modes:
                part.training = mode
        return Trial(answer, not same_states(before, read_states(where)))
