"""What a stage says of its training, checked where it is said: an error names the stage, its method, and what came."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from defend.boundary.calls import Calling
from defend.errors import ContractError, DefendError, StageError
from defend.train import Loss, Optimiser, Training


class TrainedError(ContractError):
    """A stage failed when its weights were trained, or partly: these are worth keeping."""


@contextlib.contextmanager
def blame(who: str, method: str, *, trained: bool = False) -> Iterator[None]:
    """Let what a block raises say whose it is, see `Calling`; `trained` where there are weights by then.

    Raises:
        StageError: the block raised something; TrainedError, and of errors in words too, where `trained`.
    """
    try:
        with Calling(who, f"{method}()"):
            yield
    except DefendError as error:
        if not trained:
            raise
        said = str(error) if isinstance(error, StageError) else f"{who} failed in {method}(): {error}"
        raise TrainedError(said) from error


def check_lengths(training: Training, who: str, images: int) -> list[int]:
    """Return how many images each epoch takes.

    Raises:
        ContractError: no epochs, no images, or a number that is none.
    """
    for name in ("epochs", "batch_size"):
        value = getattr(training, name)
        if type(value) is not int or value < 1:
            raise ContractError(f"{who} has {name}={value!r}: expected a whole number of at least 1")
    if images < 1:
        raise ContractError(f"{who} has no images to train on: its data() has an empty training split")
    sizes = []
    for epoch in range(training.epochs):
        with blame(who, "epoch_size"):
            size = training.epoch_size(epoch, images)
        if type(size) is not int or size < 1:
            raise ContractError(
                f"{who}: epoch_size({epoch}, {images}) returned {size!r}: expected how many images, at least 1"
            )
        sizes.append(size)
    return sizes


def check_order(order: Any, who: str, epoch: int, wanted: int, images: int) -> Tensor:
    """Return an epoch's order, int64 on the CPU.

    Raises:
        ContractError: it is of another type, too short, or names images that are not there.
    """
    what = f"{who}: order() of epoch {epoch + 1}"
    whole = isinstance(order, Tensor) and order.ndim == 1 and order.dtype in (torch.int64, torch.int32)
    if not whole:
        got = f"{order.dtype} {list(order.shape)}" if isinstance(order, Tensor) else type(order).__name__
        raise ContractError(f"{what} is {got}: expected int64 [{wanted}], which images the epoch takes")
    if len(order) < wanted:
        raise ContractError(f"{what} has {len(order)} images, and epoch_size() says {wanted}")
    low, high = (int(bound) for bound in torch.aminmax(order))
    if low < 0 or high >= images:
        raise ContractError(f"{what} names image {low if low < 0 else high}: expected 0 to {images - 1}")
    placed: Tensor = order.to("cpu", torch.int64)
    return placed


def check_optimisers(optimisers: Any, who: str) -> Mapping[str, Optimiser]:
    """Return a training's optimisers.

    Raises:
        ContractError: they are no dictionary of `Optimiser`s, or there are none.
    """
    if not isinstance(optimisers, Mapping) or not optimisers:
        got = "none" if isinstance(optimisers, Mapping) else type(optimisers).__name__
        raise ContractError(f"{who}: optimisers() returned {got}: expected a dictionary of defend.train.Optimiser")
    for name, one in optimisers.items():
        held = one.optimizer if isinstance(one, Optimiser) else one
        if not isinstance(one, Optimiser) or not isinstance(held, torch.optim.Optimizer):
            raise ContractError(
                f"{who}: optimiser {name!r} is {type(held).__name__}: expected a defend.train.Optimiser of one of "
                "torch.optim"
            )
    return optimisers


def check_loss(loss: Any, who: str, optimisers: Sequence[str]) -> Loss:
    """Return a loss that one of the optimisers can minimise.

    Raises:
        ContractError: it is no Loss, names no optimiser, or has no single number with a gradient.
    """
    if not isinstance(loss, Loss):
        raise ContractError(f"{who}: losses() yielded {type(loss).__name__}: expected a defend.train.Loss")
    if loss.optimiser not in optimisers:
        raise ContractError(f"{who}: a loss names optimiser {loss.optimiser!r}, which is none of {sorted(optimisers)}")
    what = f"{who}: the loss of optimiser {loss.optimiser!r}"
    value: Any = loss.value
    if not isinstance(value, Tensor) or value.numel() != 1 or not value.is_floating_point():
        got = f"{value.dtype} {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise ContractError(f"{what} is {got}: expected one number, a tensor of floats")
    if not value.requires_grad:
        raise ContractError(f"{what} has no gradient: it depends on nothing that is trained, or was detached")
    for name, metric in loss.metrics.items():
        as_number(metric, f"{who}: metric {name!r}")
    return loss


def check_figures(figures: Any) -> dict[str, float]:
    """Return what a stage measured when it was trained.

    Raises:
        ContractError: it is no dictionary of numbers, or one is not finite.
    """
    if not isinstance(figures, Mapping):
        raise ContractError(f"it returned {type(figures).__name__}: expected a dictionary of figures")
    return {str(name): finite(value, f"figure {name!r}") for name, value in figures.items()}


def finite(value: Any, what: str) -> float:
    """Return a number.

    Raises:
        ContractError: it is none, or not finite.
    """
    number = float(as_number(value, what))
    if not math.isfinite(number):
        raise ContractError(f"{what} is {number}: expected a finite number")
    return number


def as_number(value: Any, what: str) -> Tensor:
    """Return a number as a tensor; nothing is asked of its device.

    Raises:
        ContractError: it is none.
    """
    if isinstance(value, Tensor):
        good = value.numel() == 1 and not value.is_complex()
        number = value.detach()
    else:
        try:  # numpy's too
            number = torch.tensor(float(value), dtype=torch.float64)
            good = not isinstance(value, str)
        except (TypeError, ValueError):
            good = False
    if not good:
        got = f"{value.dtype} {list(value.shape)}" if isinstance(value, Tensor) else repr(value)[:60]
        raise ContractError(f"{what} is {got}: expected one number")
    return number.reshape(())
