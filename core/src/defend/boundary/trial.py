"""One look at what a stage answers, before anything depends on it."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from defend.boundary.answers import ask
from defend.errors import DefendError
from defend.util.tensors import device_of


def complete_modes(module: nn.Module) -> None:
    """Say of parts that have no mode that they are in eval mode: a frozen TorchScript module forgets it."""
    for part in module.modules():
        if not hasattr(part, "training"):
            part.training = False


@torch.no_grad()
def try_out(stage: str, module: nn.Module, shape: tuple[int, int, int], seed: int = 0) -> Any:
    """Return what a module answers to two images of a shape (channels, height, width), in eval mode.

    They rise from dark to bright and back, so that what flips or shifts them is seen.

    Its modes and all draws outside stay as they were. None where it fails: whoever uses it will be told how.
    """
    where = device_of(module)
    modes = [(part, part.training) for part in module.modules()]
    with torch.random.fork_rng([where] if where.type == "cuda" else []):
        torch.manual_seed(seed)
        try:
            rising = torch.linspace(0.2, 0.8, math.prod(shape), device=where)
            return ask(stage, module.eval(), torch.stack([rising, rising.flip(0)]).view(2, *shape))
        except DefendError:
            return None
        finally:
            for part, mode in modes:
                part.training = mode
