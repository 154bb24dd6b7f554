"""The same network, faster: frozen, batch norm folded, channels-last, tiny maps as matrix products.

In fp32, on the shipped victim, none of 2,000 predictions (500 digits, four rows) differed from the plain network's.
"""

from __future__ import annotations

import contextlib
import random
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from defend.assembly.matrices import find_small_maps, multiply_small_maps
from defend.boundary.answers import ask, unwrap
from defend.boundary.calls import Calling, say_cause
from defend.boundary.copies import copy_module
from defend.boundary.given import name_of
from defend.defence import Defence, PurifierSequence
from defend.errors import StageError
from defend.randomness import keyed

M = TypeVar("M", bound=nn.Module)
Answers = Mapping[int, Tensor]
"""What a stage answers, by the size of the batch."""
FOLD_TOLERANCE = 1e-3
LEFT_OUT = "left_out"  # of what was done: what could not be had, and why
MOST_MOVED = 1e-3  # on average, of a pixel or a score: sign steps answer to rounding, a few pixels by a whole step


def prepare(defence: Defence, precision: str, sample: Tensor) -> tuple[Defence, dict[str, str]]:
    """Return a frozen copy of a defence for evaluation, and what was done to it.

    A purifier or detector that has a method `prepared()` is replaced by what that returns; in others every batch norm
    is folded that follows its layer in an `nn.Sequential`. No figure needs any of this. So what fails, or answers
    otherwise than the stage itself, is left out, and the account says why.

    Args:
        defence: left as it is; only a stage that cannot be copied is frozen itself.
        precision: "exact" freezes only; "fp32" and "bf16" also fold and prepare the stages and use channels-last.
        sample: a few images [B,C,H,W]; of every stage, what was made faster is kept only if it agrees on them, on one
            of them alone, and on more than there are.
    """
    left_out = []
    answers: dict[str, Answers] = {}  # of the stages that were asked already, so that none is asked twice
    ready, why = _frozen(defence)
    done = {"victim": "as built", "layout": "contiguous"}
    if why:
        left_out.append(f"no copy was made, the stages themselves are frozen ({why})")
    if precision != "exact":
        ready.victim, done["victim"], why = fold_victim(ready.victim, sample)
        left_out += [f"victim: {why}"] if why else []
        # how many batches of images each takes: a detector is also given what was purified
        for name, count in (("purifier", 1), ("detector", 2)):
            stage = getattr(ready, name)
            if isinstance(stage, nn.Module):
                faster, why, found = _prepare(stage, count, sample)
                setattr(ready, name, faster)
                answers |= {name: found} if found else {}
                left_out += [f"{name}: {why}"] if why else []
                if faster is not stage:
                    done[name] = "prepared"
        why = _channels_last(ready, sample, answers)
        left_out += [why] if why else []
        done["layout"] = "contiguous" if why else "channels_last"
        ready.victim, why = _multiply(ready.victim, sample)
        left_out += [why] if why else []
    return ready, done | ({LEFT_OUT: "; ".join(left_out)} if left_out else {})


def _frozen(defence: Defence) -> tuple[Defence, str]:
    """Return a frozen copy in eval mode and "", or the defence itself, frozen, and why it cannot be copied."""
    why = ""
    try:
        ready = copy_module(defence)
    except Exception as error:  # classes refuse in many ways
        ready, why = defence, cause_of(error)
    return ready.eval().requires_grad_(False), why


def cause_of(error: Exception) -> str:
    """Return one short line that says what went wrong."""
    known = error.__cause__ if isinstance(error, StageError) and error.__cause__ is not None else error
    return say_cause(known)[:160]


def fold_victim(victim: nn.Module, sample: Tensor) -> tuple[nn.Module, str, str]:
    """Return a victim with its batch norm folded, or itself; what was done; and why no more, in words for a report."""
    try:
        folded, done, why = _fold(victim, sample)
    except Exception as error:  # whatever the victim does to its layers
        folded, done, why = victim, False, f"batch norm was not folded ({cause_of(error)})"
    return folded, "batch norm folded" if done else "as built", why


def _prepare(stage: nn.Module, count: int, sample: Tensor) -> tuple[nn.Module, str, Answers]:
    """Return a faster form of a stage, or the stage itself and why nothing faster was taken, "" if there was nothing.

    The two must agree on the sample; what the faster form answered comes last, nothing where there is none. `count` is
    how many batches of images a stage takes: a detector takes two.
    """
    if isinstance(stage, PurifierSequence):
        parts = [_prepare(part, count, sample) for part in stage.purifiers]
        why = "; ".join(dict.fromkeys(reason for _, reason, _ in parts if reason))
        same = all(new is old for (new, _, _), old in zip(parts, stage.purifiers, strict=True))
        return (stage if same else PurifierSequence([new for new, _, _ in parts])), why, {}
    own = getattr(stage, "prepared", None)
    try:
        with Calling(f"stage {name_of(stage)}", "prepared"):
            faster: nn.Module = own() if callable(own) else fold_sequences(stage)
        if faster is stage:
            return stage, "", {}
        faster.eval()
        faster.requires_grad_(False)
        known = _answers(_scratch(stage), count, sample)
        found = _answers(_scratch(faster), count, sample, tuple(known))
        if not _close(known, found, scores=count > 1):
            return stage, "a faster form answered otherwise and was left out", {}
        # the name under which errors tell of it is set by the host, and no `prepared()` knows it
        if hasattr(stage, "stage_name"):
            faster.stage_name = stage.stage_name
    except Exception as error:
        return stage, f"a faster form was left out ({cause_of(error)})", {}
    return faster, "", found


def _channels_last(ready: Defence, sample: Tensor, answers: Mapping[str, Answers]) -> str:
    """Bring a defence's weights into channels-last; where a stage does not work like that, undo it and say why.

    `answers` of stages as they are, by their names in the defence; of the others they are asked.
    """
    trial = _scratch(ready)  # a stage may count its passes, or keep what it sees
    stages = [
        (name, stage, count)
        for name, count in (("victim", 1), ("purifier", 1), ("detector", 2))
        if isinstance(stage := getattr(trial, name), nn.Module)
    ]
    # to go back to: `Module.to` changes tensors in place, one after the other, and may fail halfway
    lay = [(tensor, tensor.data) for tensor in (*ready.parameters(), *ready.buffers())]
    try:
        before = [answers.get(name) or _answers(stage, count, sample) for name, stage, count in stages]
        trial.to(memory_format=torch.channels_last)
        for (_, stage, count), known in zip(stages, before, strict=True):
            if not _close(known, _answers(stage, count, sample, tuple(known)), scores=count > 1):
                raise ArithmeticError("it answered otherwise")
        ready.to(memory_format=torch.channels_last)
    except Exception as error:  # a view of what no longer lies in one piece, weights of five dimensions
        for tensor, data in lay:
            tensor.data = data
        return f"channels-last was left out ({cause_of(error)})"
    return ""


def _multiply(victim: nn.Module, sample: Tensor) -> tuple[nn.Module, str]:
    """Return a victim whose convolutions over tiny maps are matrix products, see `matrices`, or itself.

    Second comes why nothing came of it where it might have, "" otherwise.
    """
    try:
        small = find_small_maps(_scratch(victim), sample)
        if not small:
            return victim, ""
        faster = copy_module(victim)
        multiply_small_maps(faster, small)
        known = _answers(_scratch(victim), 1, sample)
        found = _answers(_scratch(faster), 1, sample, tuple(known))
        far = any(
            not torch.allclose(one, found[size], atol=FOLD_TOLERANCE * float(one.abs().max()), rtol=0)
            for size, one in known.items()
        )
    except Exception as error:  # whatever the victim does to its layers
        return victim, f"victim: tiny maps were not multiplied ({cause_of(error)})"
    return (victim, "victim: tiny maps were not multiplied, as the output moved") if far else (faster, "")


def _scratch(module: M) -> M:
    """Return a copy to try things on; the module itself where it cannot be copied."""
    try:
        return copy_module(module)
    except Exception:  # classes refuse in many ways
        return module


def _close(before: Answers, after: Answers, scores: bool = False) -> bool:
    """Whether two forms answer alike: pixels and logits by their size, or by 1; `scores`, of any size, by theirs."""
    least = 0.0 if scores else 1.0
    return all(
        one.shape == after[size].shape
        and float((one - after[size]).abs().double().mean())
        <= MOST_MOVED * max(least, float(one.abs().double().mean()))
        for size, one in before.items()
    )


@torch.no_grad()
def _answers(stage: nn.Module, count: int, sample: Tensor, sizes: tuple[int, ...] | None = None) -> Answers:
    """Return what a stage answers to batches of several sizes, by size; it is given each batch `count` times.

    Without `sizes` they are the sample's own, one image, and one more than the sample. Of these, a size that the stage
    cannot take is missing, unless it is the sample's own. The draws are the same every time, and those outside stay as
    they were.
    """
    answers: dict[int, Tensor] = {}
    for size in sizes or (len(sample), 1, len(sample) + 1):
        images = sample[torch.arange(size, device=sample.device) % len(sample)]
        keys = torch.arange(size, device=images.device)
        with torch.random.fork_rng([images.device] if images.is_cuda else []), keyed(keys, seed=0, stream="prepare"):
            torch.manual_seed(0)
            try:
                answer = unwrap(ask("stage", stage, *[images] * count))
            except Exception:
                # a size that the stage itself cannot take need not work with a faster form
                if sizes or size == len(sample):
                    raise
                continue
        if not isinstance(answer, Tensor):
            raise TypeError(f"it answers with {type(answer).__name__}, expected a tensor")
        answers[size] = answer
    return answers


def fold_sequences(module: nn.Module) -> nn.Module:
    """Fold every batch norm that follows a convolution or fully connected layer in an `nn.Sequential` into it.

    A PixelShuffle may stand between. Other than `fold_batch_norm` this needs no trace, and sees only what sequences
    show. Returns a folded copy, or the module itself: if it is in training or has nothing to fold.
    """
    if module.training or not _pairs(module):
        return module
    folded = copy_module(module)
    for sequence, at, norm_at in _pairs(folded):
        _take_in(sequence[at], sequence[norm_at])
        sequence[norm_at] = nn.Identity()
    return folded


def _pairs(module: nn.Module) -> list[tuple[nn.Sequential, int, int]]:
    """Find every (sequence, place of a layer, place of the norm that can be folded into it)."""
    # a layer that stands in two places is followed by the norm in one of them alone
    uses = Counter(id(part) for _, part in module.named_modules(remove_duplicate=False))
    found = []
    for sequence in module.modules():
        # a subclass may run its parts in another order, and one of a layer may do more to its result
        if type(sequence) is not nn.Sequential:
            continue
        parts = list(sequence)
        for at, layer in enumerate(parts):
            after = parts[at + 1 : at + 3]
            # it only moves numbers: each of the norm's channels is several of the layer's
            if after and isinstance(after[0], nn.PixelShuffle):
                del after[0]
            known = type(layer) in (nn.Conv2d, nn.ConvTranspose2d, nn.Linear) and getattr(layer, "groups", 1) == 1
            if known and uses[id(layer)] == 1 and after and _has_statistics(after[0]):
                found.append((sequence, at, parts.index(after[0])))
    return found


def _has_statistics(module: nn.Module) -> bool:
    # a subclass may do more to its result, as timm's with an activation
    return type(module) in (nn.BatchNorm1d, nn.BatchNorm2d) and module.running_var is not None


@torch.no_grad()
def _take_in(layer: Any, norm: Any) -> None:
    """Let a layer scale and shift as the norm after it does; with a PixelShuffle a norm's channel is several of its."""
    weight, transposed = layer.weight, isinstance(layer, nn.ConvTranspose2d)
    outputs = weight.shape[1 if transposed else 0]
    scale = (norm.running_var + norm.eps).rsqrt() * (1 if norm.weight is None else norm.weight)
    shift = (0 if norm.bias is None else norm.bias) - norm.running_mean * scale
    scale, shift = (value.repeat_interleave(outputs // len(value)) for value in (scale, shift))
    shape = [1] * weight.dim()
    shape[1 if transposed else 0] = outputs
    layer.weight = nn.Parameter(weight * scale.view(shape), requires_grad=False)
    layer.bias = nn.Parameter(shift if layer.bias is None else layer.bias * scale + shift, requires_grad=False)


def fold_batch_norm(module: nn.Module, sample: Tensor) -> tuple[nn.Module, bool]:
    """Fold every batch norm that follows a convolution into it, where torch.fx can trace the module.

    Returns the folded copy and True, or the module itself and False: if it cannot be traced, has
    nothing to fold, or, folded, does not work or moves its output by more than 1e-3 of its largest value.
    """
    folded, done, _ = _fold(module, sample)
    return folded, done


@torch.no_grad()
def _fold(module: nn.Module, sample: Tensor) -> tuple[nn.Module, bool, str]:
    """As `fold_batch_norm`, and why norms were left."""
    from torch.fx.experimental.optimization import fuse

    norms = _count_norms(module)
    if norms == 0:
        return module, False, ""
    if getattr(module, "random", False):
        return module, False, "batch norm was not folded, as the victim is random"
    try:
        with warnings.catch_warnings(), _drawn() as drawn:
            warnings.simplefilter("ignore")
            folded = fuse(module)
    except Exception as error:  # fx refuses in many ways; the unfolded module is as right
        return module, False, f"batch norm was not folded ({cause_of(error)})"
    if _count_norms(folded) == norms:
        return module, False, ""
    if drawn:  # a trace goes one way where the victim chooses, and would go that way for ever
        return module, False, "batch norm was not folded, as the victim draws random numbers"
    before = unwrap(ask("victim", _scratch(module), sample))
    try:
        after = unwrap(ask("victim", _scratch(folded), sample))
    except Exception as error:  # a layer whose weight is computed before every pass has no room for a folded one
        return module, False, f"batch norm was not folded ({cause_of(error)})"
    if not isinstance(before, Tensor) or not isinstance(after, Tensor):
        return module, False, "batch norm was not folded, as the answer is no tensor"
    if not torch.allclose(before, after, atol=FOLD_TOLERANCE * float(before.abs().max()), rtol=0):
        return module, False, "batch norm was not folded, as the output moved"
    # torch.fx returns a module of a class of its own, without the attributes of the victim's
    for name in ("random", "stage_name"):
        if hasattr(module, name):
            setattr(folded, name, getattr(module, name))
    folded.eval()
    return folded.requires_grad_(False), True, ""


@contextlib.contextmanager
def _drawn() -> Iterator[list[str]]:
    """Yield a list that says, after the block, whose random numbers were drawn in it; they are put back."""
    found: list[str] = []
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        before = torch.get_rng_state()
        try:
            yield found
        finally:
            found += ["torch"] * (not torch.equal(before, torch.get_rng_state()))
            found += ["Python"] * (random.getstate() != python)
            found += ["numpy"] * (str(np.random.get_state()) != str(numpy))
            random.setstate(python)
            np.random.set_state(numpy)


def _count_norms(module: nn.Module) -> int:
    return sum(isinstance(part, nn.BatchNorm2d) for part in module.modules())
