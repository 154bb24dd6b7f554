"""Whether a training's networks take channels-last weights: tried on copies, before anything is placed."""

from __future__ import annotations

import contextlib
import random
import warnings
from collections.abc import Iterator, Mapping

import numpy as np
import torch
from torch import Tensor, nn

from defend.assembly.prepare import cause_of
from defend.boundary.copies import copy_module
from defend.randomness import keyed
from defend.stages import Task
from defend.util.tensors import device_of

IMAGES = 2  # batch norm wants several while it trains


def find_unfit(networks: Mapping[str, nn.Module], task: Task) -> str:
    """Say which network does not work with channels-last weights, and why; "" where none is known not to.

    Known it is of a network that takes images [B,C,H,W], and of weights of five dimensions. What takes something else,
    as a decoder does, is not tried, and neither is what cannot be copied. No random numbers are drawn.
    """
    generator = torch.Generator().manual_seed(0)
    sample = torch.rand(IMAGES, task.channels, task.height, task.width, generator=generator)
    for name, network in networks.items():
        if any(tensor.dim() > 3 for tensor in (*network.parameters(), *network.buffers())):
            with contextlib.suppress(Exception), _undisturbed():  # classes refuse to be copied in many ways
                trial = copy_module(network)
                if why := _try(trial, sample):
                    return f"{name}: {why}"
    return ""


def _try(trial: nn.Module, sample: Tensor) -> str:
    """Bring a copy into channels-last; say what then fails that worked before, "" where nothing does."""
    place = device_of(trial)
    working = [mode for mode in (False, True) if _fails(trial, mode, sample.to(place)) is None]
    try:
        trial.to(memory_format=torch.channels_last)
    except RuntimeError as error:
        return cause_of(error)
    failed = (_fails(trial, mode, sample.to(place)) for mode in working)
    return next((cause_of(error) for error in failed if error is not None), "")


def _fails(network: nn.Module, training: bool, images: Tensor) -> Exception | None:
    """Return what a network raises on images [B,C,H,W], training or not; None where it answers."""
    network.train(training)
    try:
        with torch.no_grad(), keyed(torch.arange(len(images), device=images.device), seed=0, stream="layout"):
            network(images)
    except Exception as error:  # whatever a network of another kind makes of images
        return error
    return None


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """Put everybody's random numbers back, and say nothing of what a trial warns of."""
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)
