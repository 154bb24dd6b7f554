"""What a stage answers: looked at in every pass, unwrapped, and held to its contract.

In a pass the type and shape alone are looked at (`logits_of`, `pixels_of`, `scores_of`), so that a gradient loop never
waits for the device.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from defend.boundary.calls import Calling
from defend.boundary.given import TOLERANCE, WAITING, kind_of, name_of, own
from defend.errors import ContractError, StageError

OF_TYPES = re.compile(r"dtype|(scalar|input|weight|bias) type", re.IGNORECASE)
"""What torch says where two tensors are of different types."""


def ask(stage: str, module: nn.Module, *images: Tensor) -> Any:
    """Return what a stage answers to copies of images [B,C,H,W]; what it raises names it (`Calling`).

    `stage` is what it is to the host, for example "purifier".
    """
    if _is_traced(images[0]):
        return module(*(own(each, module) for each in images))
    try:
        with Calling(f"{stage} {name_of(module)}", "forward", *images):
            return module(*(own(each, module) for each in images))
    except StageError as error:
        if cure := _cure_type(error, module, images[0]):
            raise StageError(f"{error}: {cure}") from error.__cause__
        raise


def _cure_type(error: StageError, module: nn.Module, images: Tensor) -> str:
    """Say what to do where weights of another type refused single precision; "" where that was not the cause.

    Images are not rounded for them: a network that can take them may well cast them itself, after normalising.
    """
    kind = kind_of(module)
    refused = images.dtype == torch.float32 and kind not in (None, torch.float32)
    if not (refused and OF_TYPES.search(str(error.__cause__))):
        return ""
    what = str(kind).removeprefix("torch.")
    return f"its weights are {what}, and images float32: pass model.float(), or cast the images in its forward"


def logits_of(answer: Any, images: Tensor, victim: object) -> Tensor:
    """Return a victim's answer to images [B,C,H,W] as logits [B,K], of at least single precision.

    An object with `logits`, a mapping that holds "logits", and a tuple or list whose first element they are (others
    beside them are left) are unwrapped; [B,K,1,1] is flattened.

    Raises:
        ContractError: it is something else; what came.
    """
    logits = unwrap(answer)
    if isinstance(logits, Tensor) and logits.ndim > 2 and all(size == 1 for size in logits.shape[2:]):
        logits = logits.flatten(1)
    if _is_traced(images):
        return logits.float() if isinstance(logits, Tensor) and logits.dtype in (torch.half, torch.bfloat16) else logits
    who, wanted = f"victim {name_of(victim)}", "expected float logits [B,classes]"
    if not isinstance(logits, Tensor):
        raise ContractError(f"{who} returned {_said(answer)}, {wanted}, or an object or dict whose `logits` they are")
    if not logits.is_floating_point():
        raise ContractError(f"{who} returned {logits.dtype}, {wanted}: logits, not classes")
    count = images.shape[0]  # not len, which a tracer takes for a constant
    if logits.shape in ((count,), (count, 1)):
        raise ContractError(
            f"{who} returned {list(logits.shape)}, one number an image, {wanted}: return two logits, "
            "for example torch.stack([-z, z], 1)"
        )
    if logits.ndim != 2 or logits.shape[0] != count:
        raise ContractError(f"{who} returned {list(logits.shape)} for {count} images, {wanted}")
    asked = WAITING.get()
    if asked is not None and asked.victim is victim and asked.classes is None:
        asked.note_classes(logits.shape[1])
    return logits if logits.dtype in (torch.float32, torch.float64) else logits.float()


def _is_traced(images: Tensor) -> bool:
    """Whether a graph is being made, in which a question about a size would fix it."""
    return torch.compiler.is_compiling() or isinstance(images.shape[0], torch.SymInt)


def unwrap(answer: Any) -> Any:
    """Return what is in an answer in the place of logits, see `logits_of`; the answer itself where there is nothing."""
    for _ in range(3):  # a tuple may hold an object; nobody nests deeper
        if isinstance(answer, Tensor):
            break
        if hasattr(answer, "logits"):
            answer = answer.logits
        elif isinstance(answer, Mapping) and "logits" in answer:
            answer = answer["logits"]
        elif isinstance(answer, (tuple, list)) and answer:
            answer = answer[0]
        else:
            break
    return answer


def _said(answer: Any) -> str:
    keys = f" with {', '.join(map(str, answer))[:80] or 'nothing'}" if isinstance(answer, Mapping) else ""
    return f"{type(answer).__name__}{keys}"


def pixels_of(purified: Any, images: Tensor, purifier: object, stage: str = "purifier") -> Tensor:
    """Return a purifier's answer to images [B,C,H,W]: of their shape and type.

    Raises:
        ContractError: no tensor of floats, or another shape.
    """
    if _is_traced(images):
        return purified  # type: ignore[no-any-return]
    if not isinstance(purified, Tensor) or purified.shape != images.shape:
        got = list(purified.shape) if isinstance(purified, Tensor) else _said(purified)
        raise ContractError(f"{stage} {name_of(purifier)} returned {got}, expected shape {list(images.shape)}")
    if not purified.is_floating_point():
        raise ContractError(f"{stage} {name_of(purifier)} returned {purified.dtype}, expected floats in [0,1]")
    return purified if purified.dtype == images.dtype else purified.to(images.dtype)


def check_pixels(purified: Tensor, purifier: object) -> Tensor:
    """Hold a purifier's output to its contract: finite, within [0,1]; rounding outside is clipped.

    Raises:
        ContractError: it is not.
    """
    if purified.numel() == 0:
        return purified
    low, high = torch.stack(torch.aminmax(purified)).tolist()
    if not (abs(low) < torch.inf and abs(high) < torch.inf):
        raise ContractError(f"purifier {name_of(purifier)} returned numbers that are not finite (NaN or infinite)")
    one_off = torch.finfo(purified.dtype).eps  # a bound that is itself rounded to the purifier's precision
    slack = max(TOLERANCE, one_off) + one_off
    if low < -slack or high > 1 + slack:
        raise ContractError(
            f"purifier {name_of(purifier)} returned values from {low:.6g} to {high:.6g}, expected [0,1]: "
            "clamp its output"
        )
    return purified.clamp(0, 1)


def scores_of(score: Any, images: Tensor, detector: object) -> Tensor:
    """Return a detector's answer: one score an image, [B], of at least single precision.

    Raises:
        ContractError: something else; what came.
    """
    if _is_traced(images):
        return score  # type: ignore[no-any-return]
    who, wanted = f"detector {name_of(detector)}", f"must return one finite score an image, [{images.shape[0]}]"
    if not isinstance(score, Tensor):
        raise ContractError(f"{who} {wanted}; it returned {_said(score)}")
    if score.shape != images.shape[:1]:
        raise ContractError(f"{who} {wanted}; it returned {list(score.shape)}")
    if not score.is_floating_point():
        raise ContractError(f"{who} {wanted}, as floats; it returned {score.dtype}")
    return score if score.dtype in (torch.float32, torch.float64) else score.float()


def check_scores(score: Tensor, detector: object) -> Tensor:
    """Return scores [B] that are finite.

    Raises:
        ContractError: some are not.
    """
    bad = int((~torch.isfinite(score)).sum())
    if bad:
        raise ContractError(
            f"detector {name_of(detector)} must return one finite score an image; {bad} of {len(score)} are not finite "
            "(NaN or infinite)"
        )
    return score


def threshold_of(detector: nn.Module) -> Tensor:
    """Return a detector's threshold, a number.

    Raises:
        ContractError: it has none, or something that is no number.
    """
    held: Any = getattr(detector, "threshold", None)
    try:
        threshold = torch.as_tensor(held)
    except (TypeError, ValueError, RuntimeError):
        threshold = torch.empty(0)
    if threshold.numel() != 1 or threshold.is_complex() or bool(threshold.isnan()):
        got = "none" if held is None else f"{held!r}"[:60]
        raise ContractError(
            f"detector {name_of(detector)} must have one number as its `threshold`; it has {got}: make it an nn.Module "
            'with self.register_buffer("threshold", torch.tensor(float("inf"))), and set it with --fpr or '
            "defend.calibrate"
        )
    return threshold


class Answering(nn.Module):
    """Any network as the host may ask it: on copies of the images, its answer unwrapped to logits [B,K].

    Attributes that it lacks are the network's.
    """

    bounded = True

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module
        self.training = bool(getattr(module, "training", False))

    def forward(self, images: Tensor) -> Tensor:
        """Return logits [B,K] of images [B,C,H,W]."""
        return logits_of(ask("victim", self.module, images), images, self.module)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name.startswith("__"):  # how the network itself is copied, and its like
                raise
            return getattr(super().__getattr__("module"), name)


def ensure_bounded(module: nn.Module) -> nn.Module:
    """Return a module that keeps to this contract: itself where it does (`bounded`), else behind `Answering`."""
    return module if getattr(module, "bounded", False) else Answering(module)
