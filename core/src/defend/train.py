"""How a stage describes its training: modules, optimisers, losses. Core runs it.

`fit` and `FitSettings`, with which a plugin's tests run a training, are those of `defend.training.loop`.
"""

from __future__ import annotations

import abc
import importlib
import sys
import types
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import attrs
import torch
from torch import Tensor, nn

from defend.boundary.copies import copy_module
from defend.datasets.base import Batch, ImageDataset
from defend.randomness import permutation


@attrs.frozen
class Loss:
    """One optimisation step: minimise `value` with the optimiser named `optimiser`.

    It and `metrics` are logged as means of an epoch, each over the steps that it was yielded in.
    """

    optimiser: str
    value: Tensor
    metrics: Mapping[str, Tensor] = attrs.field(factory=dict)


@attrs.frozen
class Optimiser:
    """An optimiser and, if wanted, its schedule, stepped after every optimisation step."""

    optimizer: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LRScheduler | None = None


class Training(abc.ABC):
    """What a stage says of its training; the loop is core's.

    Args:
        stage: the module whose weights are kept.
        modules: every network that is trained, by name, part of `stage` or not. `fit` may wrap them (for
            several processes), so `losses` must call `self.modules[name](...)`.
        epochs, batch_size: length and size; the batch is shared out between processes.
        frozen: networks that the losses use and nothing trains, by name: `fit` brings them to the device, in
            eval mode and without parameter gradients.

    `records` are modules, by name, of what `score` and `losses` remember of the training's course, in buffers: kept on
    the CPU and in checkpoints, and not taken back to the best epoch. One that a checkpoint lacks stays as it is.
    `fpr` is the false-positive rate that `finish` calibrates for, None where it calibrates nothing: too few held-out
    images to show it are told before the first step.
    `epoch` is the epoch at hand, counted from 0, for a training that goes in stages. A `data` that takes long tells
    `making` how many of its images are made: (done, in all).
    """

    def __init__(
        self,
        stage: nn.Module,
        modules: dict[str, nn.Module],
        *,
        epochs: int,
        batch_size: int,
        frozen: dict[str, nn.Module] | None = None,
    ) -> None:
        self.stage, self.modules, self.frozen = stage, modules, frozen or {}
        self.epochs, self.batch_size = epochs, batch_size
        self.epoch = 0
        self.records: dict[str, nn.Module] = {}
        self.fpr: float | None = None
        self.making: Callable[[int, int], None] = lambda done, total: None

    @abc.abstractmethod
    def optimisers(self, steps: int) -> dict[str, Optimiser]:
        """Return the optimisers by name, for a training of `steps` batches."""

    @abc.abstractmethod
    def losses(self, batch: Batch) -> Iterator[Loss]:
        """Yield the losses of a batch. Each is minimised before the generator goes on, so a GAN yields twice."""

    def data(self, dataset: ImageDataset, device: torch.device) -> ImageDataset:
        """Return what is trained on (its train split): by default the data set itself."""
        return dataset

    def epoch_size(self, epoch: int, size: int) -> int:
        """Return how many of the `size` training images an epoch takes; by default all."""
        return size

    def order(self, epoch: int, size: int, seed: int) -> Tensor:
        """Return which training images an epoch takes, and in which order: int64 [epoch_size]."""
        return permutation(size, seed=seed, stream=f"epoch/{epoch}")

    def score(self, dataset: ImageDataset, device: torch.device) -> float | None:
        """Judge the weights after an epoch (eval mode, no gradients), higher is better, never by the test split.

        Where it returns numbers, the weights of the best epoch are kept; None keeps the last.
        """
        return None

    def finish(self, dataset: ImageDataset, device: torch.device) -> dict[str, float]:
        """Calibrate and measure once training has ended (modules in eval mode); return figures for the card."""
        return {}


def copy_to_tune(victim: nn.Module) -> nn.Module:
    """Return a copy of a victim for a fine-tuner to train: what its owner froze, normalisation constants too, stays so.

    Where every parameter is frozen, as a victim that is only asked may be, all those of a float type learn.
    """
    tuned = copy_module(victim)
    if not any(parameter.requires_grad for parameter in tuned.parameters()):
        for parameter in tuned.parameters():
            parameter.requires_grad_(parameter.is_floating_point())
    return tuned


class _Page(types.ModuleType):
    """This page, which can be called: `defend.train("purifier", "dae", data, victim=model)`."""

    def __call__(self, *arguments: Any, **others: Any) -> Any:
        """Train a part; see `defend.session.prepare.train`."""
        return importlib.import_module("defend.session.prepare").train(*arguments, **others)


sys.modules[__name__].__class__ = _Page

_LAZY = dict.fromkeys(("FitSettings", "fit"), "defend.training.loop")  # above this page, imported when asked for


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_LAZY[name]), name)
