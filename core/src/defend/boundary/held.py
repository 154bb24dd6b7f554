"""What an attack, a pass or a check may not leave changed: modes, gradients' flags, hooks, buffers, weights."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.parameter import is_lazy

from defend.boundary.given import name_of
from defend.errors import ContractError

MARKS = ("stage_name", "random")
"""What the host writes on a stage that a user gave."""
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


@contextlib.contextmanager
def eval_mode(module: nn.Module) -> Iterator[None]:
    """Put a module into eval mode for a block, and every part of it back afterwards.

    Warns where it was in training mode and has parts that behave differently there (dropout, batch statistics).
    """
    modes = [(part, part.training) for part in module.modules()]
    training = [part for part, mode in modes if mode]
    if not training:
        yield
        return
    if moves_in_training(module):
        warnings.warn(
            f"{name_of(module)} is in training mode, where dropout and batch statistics move its answers: it is held "
            "in eval mode meanwhile, and put back afterwards; call .eval() yourself to say so",
            stacklevel=4,
        )
    module.eval()
    try:
        yield
    finally:
        for part, mode in modes:
            part.training = mode


def moves_in_training(module: nn.Module) -> bool:
    """Whether it is in training mode and has parts that behave differently there: dropout, batch statistics."""
    return any(part.training and isinstance(part, (_NormBase, _DropoutNd)) for part in module.modules())


@contextlib.contextmanager
def as_before(module: nn.Module, who: str, *, closely: bool = False) -> Iterator[None]:
    """Leave a module as it was before the block: modes, gradients' flags, hooks, buffers; and torch's gradient mode.

    Parameters are frozen within, so that no backward pass of the block leaves gradients in them.

    Args:
        module: the whole that the block may touch.
        who: what runs in the block, for the error.
        closely: look at what the weights hold, not at their version counters alone, which miss writing through `.data`.

    Raises:
        ContractError: it changed weights, which nobody keeps a copy of.
    """
    modes = [(part, part.training) for part in module.modules()]
    hooks = [(held, held.copy()) for part, _ in modes for name in HOOKS if (held := getattr(part, name)) is not None]
    weights = [(weight, weight.requires_grad, weight.grad) for weight in module.parameters()]
    content = _content(module, closely)
    buffers = [
        (part, name, buffer, buffer.detach().clone())
        for part, _ in modes
        for name, buffer in part._buffers.items()
        if buffer is not None
    ]
    for weight, _, _ in weights:
        # autograd lets nobody set the flag of a weight that was computed from others
        if weight.requires_grad and weight.is_leaf:
            weight.requires_grad_(False)
    try:
        with torch.set_grad_enabled(torch.is_grad_enabled()):
            yield
    finally:
        for part, mode in modes:
            part.training = mode
        for held, kept in hooks:
            if held != kept:
                held.clear()
                held.update(kept)
        for weight, needed, grad in weights:
            if weight.is_leaf:
                weight.requires_grad_(needed)
            if weight.grad is not grad:
                weight.grad = grad
        for part, name, buffer, kept in buffers:
            _put_back(part, name, buffer, kept)
    if content != _content(module, closely):
        raise ContractError(f"{who} changed weights of {name_of(module)}: it may not")


@contextlib.contextmanager
def lent(module: nn.Module) -> Iterator[None]:
    """Let the host use a module itself for a block, and give it back as it was lent.

    Modes, gradients' flags, where its tensors lie and how, and what the host sets on a stage. What the weights hold is
    not looked at, see `as_before`.
    """
    # what TorchScript compiled is copied, and a lazy weight is nothing yet
    parts = [part for part in module.modules() if not isinstance(part, torch.jit.ScriptModule)]
    modes = [part.training for part in parts]
    marks = [{name: vars(part)[name] for name in MARKS if name in vars(part)} for part in parts]
    tensors = [{**part._parameters, **part._buffers} for part in parts]
    there = [weight for weight in module.parameters() if not is_lazy(weight)]
    weights = [(weight, weight.data, weight.requires_grad) for weight in there]
    try:
        yield
    finally:
        for part, mode, marked, held in zip(parts, modes, marks, tensors, strict=True):
            part.training = mode
            for name in MARKS:
                if name in marked:
                    setattr(part, name, marked[name])
                elif name in vars(part):
                    delattr(part, name)
            for name, tensor in held.items():
                kept = part._parameters if name in part._parameters else part._buffers
                if kept.get(name) is not tensor:
                    kept[name] = tensor  # type: ignore[assignment]
        for weight, data, needed in weights:
            if weight.data_ptr() != data.data_ptr() or weight.stride() != data.stride():
                weight.data = data
            if weight.is_leaf:
                weight.requires_grad_(needed)


def find_moved_buffers(module: nn.Module, kept: dict[str, Tensor]) -> list[str]:
    """Return the names of the buffers that are no longer as `kept`."""
    return [name for name, buffer in module.named_buffers() if name in kept and not torch.equal(buffer, kept[name])]


@torch.no_grad()
def _put_back(part: nn.Module, name: str, buffer: Tensor, kept: Tensor) -> None:
    # a tensor made in inference mode cannot be written to outside of it
    if buffer.is_inference():
        part._buffers[name] = kept
        return
    if isinstance(part, torch.jit.ScriptModule):  # it hands its buffers out as new objects every time
        if getattr(part, name).data_ptr() != buffer.data_ptr():
            setattr(part, name, buffer)
    elif part._buffers.get(name) is not buffer:
        part._buffers[name] = buffer
    if not torch.equal(buffer, kept):
        buffer.copy_(kept)


@torch.no_grad()
def _content(module: nn.Module, closely: bool) -> tuple[list[int], list[float]]:
    """Return the weights' version counters, and closely also their sums and lengths: passes over all of them."""
    weights = [weight.detach() for weight in module.parameters() if weight.numel()]
    # tensors made in inference mode have no version counter
    versions = [-1 if weight.is_inference() else weight._version for weight in weights]
    if not closely or not weights:
        return versions, []
    # of whole numbers torch knows no length
    weights = [weight if weight.is_floating_point() or weight.is_complex() else weight.double() for weight in weights]
    sums = torch.stack([part for weight in weights for part in (weight.sum().float(), weight.norm().float())])
    # a NaN is unlike itself, and would look like a change
    return versions, sums.nan_to_num().tolist()
