"""What a stage needs that takes gradients inside its own forward pass, and must itself be differentiable."""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from defend.errors import ContractError
from defend.randomness import mark, resumed

TINY_WIDTH = 1e-12  # of an image of zeros, so that nothing is divided by zero
SLOPE_WIDTH = 1.0  # of the tanh that stands for sign in the backward pass, in mean absolute values
SEGMENT = 5
STRAYED = 1e-2  # of a state's mean size: by how much a step computed again may differ, as rounding turns some signs

State = tuple[Tensor, ...]
Step = Callable[[int, State, bool], State]
"""(number of the step, state, whether to stay differentiable) to the next state; draws through `defend.randomness`."""

_naive: contextvars.ContextVar[list[int] | None] = contextvars.ContextVar("defend_whole_graph", default=None)
_images: contextvars.ContextVar[State] = contextvars.ContextVar("defend_images", default=())


@contextlib.contextmanager
def inner_gradients(images: Tensor) -> Iterator[tuple[Tensor, bool]]:
    """Let a forward pass differentiate, whatever surrounds it: gradients on, off, or inference mode.

    Yields:
        The images to start from, and whether the result must stay differentiable with respect to them: gradients
        are on outside and the images require them. If not, the images come detached, and every step may detach.
    """
    outer = torch.is_grad_enabled() and images.requires_grad
    with torch.inference_mode(False), torch.enable_grad():
        start = images.clone() if images.is_inference() else images
        token = _images.set((start,) if outer else ())
        try:
            yield (start if outer else start.detach()), outer
        finally:
            _images.reset(token)


def unroll(step: Step, state: State, steps: int, *, attached: bool, segment: int = SEGMENT) -> State:
    """Apply `step` many times; where `attached`, differentiable with respect to the state it starts from.

    The graph of no more than `segment` steps exists at a time: of the steps before the last segment only the states
    between segments are kept, and the backward pass computes each segment again, with the same random draws
    (Chen et al. 2016, arXiv:1604.06174). Memory then grows by one state a segment only, and time by less than one pass
    without a graph. The gradient is exact. It can be taken once, though `step` itself may differentiate; and it goes to
    the state alone, not to parameters that `step` closes over. Whatever depends on the images belongs into the state,
    the images themselves too: `step` gets back what it returned for it.

    Where nothing that the steps start from depends on the images, as a latent at zeros, the graph of all steps is kept,
    so that images which `step` closes over have their gradient; with the images in the state it takes the memory of a
    few steps. Every floating-point value that an attached step is given requires a gradient. Masks and counts may be
    part of the state; they have none.

    Raises:
        ContractError: in the backward pass, where the state depends on the images, and `step` closes over another
            tensor that does, or gives another result when it is computed again, as it keeps numbers elsewhere: its
            share of the gradient would be lost, and what an attacker cannot see looks like robustness. A step that
            begins to do so later has a gradient that is not a number.
    """
    calls = _naive.get()
    if calls is not None:
        calls.append(steps)
    early = 0
    if attached and calls is None and steps > segment:
        source = _find_leaves(_images.get() or state)
        known = {id(leaf) for leaf in source}
        # else no backward pass to the images would come by, and see what the step closes over
        if any(id(leaf) in known for leaf in _find_leaves(state)):
            # the last segment keeps its graph: the backward pass begins there and would only make it again
            early = steps - segment
    if early:
        state = _Segments.apply(step, early, segment, source, *state)
    elif attached:
        state = tuple(_differentiable(value) for value in state)
    for number in range(early, steps):
        state = step(number, state, attached)
    return state


def _differentiable(value: Tensor) -> Tensor:
    """Return a value that a step can differentiate with respect to; masks and counts as they are."""
    return value if value.requires_grad or not value.is_floating_point() else value.detach().requires_grad_()


@contextlib.contextmanager
def whole_graph() -> Iterator[list[int]]:
    """Make `unroll` keep the graph of every step within the block: the naive gradient, to hold its own against.

    Yields:
        The number of steps of each call of `unroll`, as they are made.
    """
    calls: list[int] = []
    token = _naive.set(calls)
    try:
        yield calls
    finally:
        _naive.reset(token)


def _find_leaves(tensors: Iterable[Tensor]) -> list[Tensor]:
    """Return what tensors were computed from, as far as autograd knows: leaves that want a gradient."""
    found = {id(one): one for one in tensors if one.requires_grad and one.grad_fn is None}
    waiting = [one.grad_fn for one in tensors if one.grad_fn is not None]
    seen = set(waiting)
    while waiting:
        node = waiting.pop()
        if (leaf := getattr(node, "variable", None)) is not None:
            found[id(leaf)] = leaf
        for after, _ in node.next_functions:
            if after is not None and after not in seen:
                seen.add(after)
                waiting.append(after)
    return list(found.values())


_compared: set[tuple[object, int]] = set()
"""Steps, and how many of them, that once gave the same result when they were computed again."""


class _Segments(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, step: Step, steps: int, segment: int, source: list[Tensor], *state: Tensor) -> State:
        kept: list[Tensor] = []
        marks = []
        with torch.enable_grad():  # a step may differentiate, and torch turns gradients off in here
            state = tuple(value.detach() for value in state)
            for number in range(steps):
                if number % segment == 0:
                    kept += state
                    marks.append(mark(state[0].device))
                state = tuple(value.detach() for value in step(number, state, False))
        ctx.save_for_backward(*kept, *state)
        ctx.plan = step, steps, segment, marks, {id(leaf) for leaf in source}
        return state

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *outer: Tensor) -> tuple[Any, ...]:
        step, steps, segment, marks, source = ctx.plan
        width = len(outer)
        gradients: Sequence[Tensor | None] = outer
        strayed = torch.zeros((), dtype=torch.bool, device=ctx.saved_tensors[0].device)
        for place in reversed(range(len(marks))):
            with torch.enable_grad(), resumed(marks[place]):
                given = [_differentiable(value.detach()) for value in ctx.saved_tensors[place * width :][:width]]
                state: State = tuple(given)
                for number in range(place * segment, min((place + 1) * segment, steps)):
                    state = step(number, state, True)
            if any(id(leaf) in source for leaf in _find_leaves(state)):
                raise ContractError(
                    "unroll: a step uses a tensor that depends on the images and is no part of its state, so that "
                    "its share of the gradient would be lost: carry it in the state, and return it with every step"
                )
            after = ctx.saved_tensors[(place + 1) * width :][:width]
            strayed = strayed | _differ(state, after)
            both = zip(state, gradients, strict=True)
            pairs = [(made, slope) for made, slope in both if made.requires_grad and slope is not None]
            floats = [value for value in given if value.requires_grad]
            found = torch.autograd.grad([m for m, _ in pairs], floats, [s for _, s in pairs], allow_unused=True)
            slopes = iter(torch.zeros_like(v) if s is None else s for v, s in zip(floats, found, strict=True))
            gradients = [next(slopes) if value.requires_grad else None for value in given]
        known = getattr(step, "__code__", type(step)), steps
        if known not in _compared:  # once, as the host waits for the answer
            if bool(strayed):
                raise ContractError(
                    "unroll: a step computed again gives another result, so the gradient would be that of something "
                    "else: it keeps numbers outside of its state, or draws by itself; carry them in the state, and "
                    "draw with defend.randomness"
                )
            _compared.add(known)
        # from then on without waiting: a row tells of gradients that are not finite, and not of wrong ones
        told = (None if slope is None else slope.masked_fill(strayed, torch.nan) for slope in gradients)
        return (None, None, None, None, *told)


@torch.no_grad()
def _differ(found: State, expected: Sequence[Tensor]) -> Tensor:
    """Return whether states are plainly not the same, bool []; a sign step that rounding turned at a pixel is not."""
    pairs = [(one, other) for one, other in zip(found, expected, strict=True) if one.is_floating_point()]
    apart = [(one - other).abs().mean() > STRAYED * other.abs().mean() for one, other in pairs]
    return torch.stack([each.to(expected[0].device) for each in apart]).any()


class _SmoothSign(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        ctx.save_for_backward(values)
        return values.sign()

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> Tensor:
        (values,) = ctx.saved_tensors
        width = (SLOPE_WIDTH * values.abs().flatten(1).mean(1)).clamp_min(TINY_WIDTH).view(-1, 1, 1, 1)
        slope: Tensor = outer[0] * (1 - torch.tanh(values / width).square()) / width
        return slope


def smooth_sign(values: Tensor) -> Tensor:
    """sign(v) of [B,C,H,W] forwards; backwards the slope of tanh(v/w), w the mean absolute value of the image.

    The true derivative of sign is zero wherever it exists, so an attack that differentiates it to the letter never
    learns how a purifier with sign steps answers a change of the image: gradient masking, not robustness.
    """
    smooth: Tensor = _SmoothSign.apply(values)
    return smooth


class _Watch(TorchFunctionMode):
    """Notices every backward pass that Python code asks for."""

    seen = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen = self.seen or func in (torch.autograd.grad, torch.autograd.backward, Tensor.backward)
        return func(*args, **(kwargs or {}))


def differentiates_inside(module: nn.Module, images: Tensor) -> bool:
    """Whether one forward pass over images [B,C,H,W], gradients off, takes gradients by itself.

    Such a module optimises at test time, which attacks made for plain networks do not foresee (Croce et al. 2022,
    arXiv:2202.13711). A part with an attribute `optimises` that is true is taken at its word. Random draws outside
    stay as they were.
    """
    if any(getattr(part, "optimises", False) for part in module.modules()):
        return True
    devices = [images.device] if images.device.type == "cuda" else []
    with torch.random.fork_rng(devices), torch.no_grad(), _Watch() as watch:
        module(images)
    return bool(watch.seen)
