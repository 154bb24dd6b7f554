"""The line between the host and what others wrote: what crosses it is checked once, unwrapped, and nobody's but theirs.

What goes in is checked before an attack or a judgement (`as_images`, `as_labels`, `as_budgets`, `as_keys`), which asks
the device for its numbers once. What a stage answers is looked at in every pass (`logits_of`, `pixels_of`,
`scores_of`): its type and shape alone, so that a gradient loop never waits for the device. A stage gets a copy (`own`),
so that one that writes into what it is handed changes nobody else's images.
"""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Iterator, Mapping
from typing import Any

import attrs
import torch
from torch import Tensor, nn

from defend.errors import ConfigError, ContractError, DataError

TOLERANCE = 1e-5  # rounding that may lie outside [0,1]; it is clipped


def name_of(module: object) -> str:
    """Return the stage's name, which the builder leaves on the module, or the class's."""
    return str(getattr(module, "stage_name", type(module).__name__))


# What goes in


def as_images(images: Tensor) -> Tensor:
    """Return images [B,C,H,W] that are what the contract says: floats, finite, in [0,1]; rounding outside is clipped.

    Raises:
        DataError: they are not; what to do.
    """
    if not isinstance(images, Tensor):
        raise DataError(f"images are {type(images).__name__}, expected a tensor of floats [B,C,H,W] in [0,1]")
    if not images.is_floating_point():
        cure = "images.float() / 255, where they are 0 to 255"
        raise DataError(f"images are {images.dtype}, expected floats [B,C,H,W] in [0,1]: pass {cure}")
    if images.ndim != 4:
        cure = ": pass images[None]" if images.ndim == 3 else ""
        raise DataError(f"images have shape {list(images.shape)}, expected [B,C,H,W]{cure}")
    if images.numel() == 0:
        return images
    low, high = torch.stack(torch.aminmax(images.detach())).tolist()
    slack = TOLERANCE + torch.finfo(images.dtype).eps
    if not (abs(low) < torch.inf and abs(high) < torch.inf):
        bad = int((~torch.isfinite(images)).flatten(1).any(1).sum())
        raise DataError(f"{bad} of {len(images)} images are not finite (NaN or infinite), expected [0,1]")
    if low < -slack or high > 1 + slack:
        cure = "divide by 255" if high > 2 and low >= 0 else "undo the normalisation, which belongs into the victim"
        raise DataError(f"images reach from {low:.6g} to {high:.6g}, expected [0,1]: {cure}")
    return images if low >= 0 and high <= 1 else images.clamp(0, 1)


def as_labels(labels: Tensor, images: Tensor) -> Tensor:
    """Return labels as int64 [B] beside the images, each at least 0; how many classes there are says `Asked`.

    Raises:
        DataError: they are not; what to do.
    """
    wanted = f"expected whole numbers [{len(images)}], one class an image"
    if not isinstance(labels, Tensor):
        raise DataError(f"labels are {type(labels).__name__}, {wanted}: pass torch.as_tensor(labels)")
    if labels.ndim == 2 and labels.shape[1] > 1:
        raise DataError(f"labels have shape {list(labels.shape)}, {wanted}: pass labels.argmax(1), if they are one-hot")
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise DataError(f"labels are {labels.dtype}, {wanted}: pass labels.long()")
    if labels.shape != (len(images),):
        cure = ": pass labels.flatten()" if labels.numel() == len(images) else ""
        raise DataError(f"labels have shape {list(labels.shape)}, {wanted}{cure}")
    labels = labels.detach().to(images.device, torch.int64)
    low = int(labels.min()) if len(labels) else 0
    if low < 0:
        raise DataError(f"a label is {low}, {wanted}, from 0: leave images without a class out")
    return labels


def as_budgets(eps: float | Tensor, images: Tensor, attack: str) -> Tensor:
    """Return one finite budget of at least 0 for every image, [B], of the images' type.

    Raises:
        ConfigError: it is something else.
    """
    wanted = f"expected one number of at least 0, or one an image [{len(images)}], for example 8/255"
    if not isinstance(eps, (Tensor, int, float)) or isinstance(eps, bool):
        raise ConfigError(f"eps of attack {attack} is {eps!r}: {wanted}")
    budgets = eps.detach().to(images.device) if isinstance(eps, Tensor) else images.new_full((), eps)
    if budgets.is_complex() or budgets.dtype == torch.bool:
        raise ConfigError(f"eps of attack {attack} is {budgets.dtype}: {wanted}")
    if budgets.ndim > 1 or budgets.numel() not in (1, len(images)):
        raise ConfigError(f"eps of attack {attack} has shape {list(budgets.shape)}: {wanted}")
    budgets = budgets.to(images.dtype).expand(len(images))
    if len(budgets):
        low, high = torch.stack(torch.aminmax(budgets)).tolist()
        if not (low >= 0 and high < torch.inf):
            bad = high if low >= 0 else low
            raise ConfigError(f"eps of attack {attack} is {bad:g}: {wanted}")
    return budgets


def as_keys(keys: Tensor | None, images: Tensor) -> Tensor:
    """Return each image's identity for random draws, int64 [B]; its place in the batch if None.

    Raises:
        DataError: they are no whole numbers, or of another length.
    """
    if keys is None:
        return torch.arange(len(images), device=images.device)
    whole = isinstance(keys, Tensor) and not (keys.is_floating_point() or keys.is_complex() or keys.dtype == torch.bool)
    if not whole or keys.shape != (len(images),):
        got = f"{keys.dtype} {list(keys.shape)}" if isinstance(keys, Tensor) else type(keys).__name__
        raise DataError(f"keys are {got}, expected whole numbers [{len(images)}]")
    return keys.detach().to(images.device, torch.int64)


@attrs.define
class Asked:
    """A victim whose answers are waited for, to hold labels against: how many classes it has told apart so far.

    Attributes:
        victim: whose answers.
        highest: the highest label that it is attacked with.
        classes: how many logits it answered with; None before it was asked.
    """

    victim: object
    highest: int
    classes: int | None = None

    def told(self, classes: int) -> None:
        """Note how many classes the victim tells apart.

        Raises:
            DataError: a label is none of them.
        """
        self.classes = classes
        if self.highest >= classes:
            raise DataError(
                f"a label is {self.highest}, expected 0 to {classes - 1}: victim {name_of(self.victim)} tells "
                f"{classes} classes apart"
            )


_asked: contextvars.ContextVar[Asked | None] = contextvars.ContextVar("asked", default=None)


@contextlib.contextmanager
def labelled(asked: Asked) -> Iterator[None]:
    """Within the block, the first answer of the victim is held against the labels, at no pass of its own."""
    token = _asked.set(asked)
    try:
        yield
    finally:
        _asked.reset(token)


# What a stage is handed


def own(images: Tensor, stage: nn.Module) -> Tensor:
    """Return a copy for a stage to do with as it likes; gradients go through.

    Images of double or half precision are cast where the stage's weights are of another type. The version counter of a
    tensor would tell of most writing, but not of that through `.data` or numpy.
    """
    if images.dtype != torch.float32:
        kind = _kind(stage)
        if kind is not None and kind != images.dtype:
            return images.to(kind)
    return images.clone()


def _kind(stage: nn.Module) -> torch.dtype | None:
    """Return the type of a stage's first floating weight, None of one that has none."""
    return next((weight.dtype for weight in stage.parameters() if weight.is_floating_point()), None)


# What a stage answers


def logits_of(answer: Any, images: Tensor, victim: object) -> Tensor:
    """Return a victim's answer to images [B,C,H,W] as logits [B,K], of at least single precision.

    An object with `logits`, a mapping that holds "logits", and a tuple or list whose first element they are (others
    beside them are left) are unwrapped; [B,K,1,1] is flattened.

    Raises:
        ContractError: it is something else; what came.
    """
    logits = unwrapped(answer)
    if _traced(images):
        return logits.float() if isinstance(logits, Tensor) and logits.dtype in (torch.half, torch.bfloat16) else logits
    who, wanted = f"victim {name_of(victim)}", "expected float logits [B,classes]"
    if not isinstance(logits, Tensor):
        raise ContractError(f"{who} returned {_said(answer)}, {wanted}, or an object or dict whose `logits` they are")
    if not logits.is_floating_point():
        raise ContractError(f"{who} returned {logits.dtype}, {wanted}: logits, not classes")
    if logits.ndim > 2 and all(size == 1 for size in logits.shape[2:]):
        logits = logits.flatten(1)
    count = images.shape[0]  # not len, which a tracer takes for a constant
    if logits.shape in ((count,), (count, 1)):
        raise ContractError(
            f"{who} returned {list(logits.shape)}, one number an image, {wanted}: return two logits, "
            "for example torch.stack([-z, z], 1)"
        )
    if logits.ndim != 2 or logits.shape[0] != count:
        raise ContractError(f"{who} returned {list(logits.shape)} for {count} images, {wanted}")
    asked = _asked.get()
    if asked is not None and asked.victim is victim and asked.classes is None:
        asked.told(logits.shape[1])
    return logits if logits.dtype in (torch.float32, torch.float64) else logits.float()


def _traced(images: Tensor) -> bool:
    """Whether a graph is being made, in which a question about a size would fix it."""
    return torch.compiler.is_compiling() or isinstance(images.shape[0], torch.SymInt)


def unwrapped(answer: Any) -> Any:
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
    if _traced(images):
        return purified  # type: ignore[no-any-return]
    if not isinstance(purified, Tensor) or purified.shape != images.shape:
        got = list(purified.shape) if isinstance(purified, Tensor) else _said(purified)
        raise ContractError(f"{stage} {name_of(purifier)} returned {got}, expected shape {list(images.shape)}")
    if not purified.is_floating_point():
        raise ContractError(f"{stage} {name_of(purifier)} returned {purified.dtype}, expected floats in [0,1]")
    return purified if purified.dtype == images.dtype else purified.to(images.dtype)


def checked_pixels(purified: Tensor, purifier: object) -> Tensor:
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
    if _traced(images):
        return score  # type: ignore[no-any-return]
    who, wanted = f"detector {name_of(detector)}", f"must return one finite score an image, [{images.shape[0]}]"
    if not isinstance(score, Tensor):
        raise ContractError(f"{who} {wanted}; it returned {_said(score)}")
    if score.shape != images.shape[:1]:
        raise ContractError(f"{who} {wanted}; it returned {list(score.shape)}")
    if not score.is_floating_point():
        raise ContractError(f"{who} {wanted}, as floats; it returned {score.dtype}")
    return score if score.dtype in (torch.float32, torch.float64) else score.float()


def checked_scores(score: Tensor, detector: object) -> Tensor:
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
        raise ContractError(f"detector {name_of(detector)} must have one number as its `threshold`; it has {got}")
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
        return logits_of(self.module(own(images, self.module)), images, self.module)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("module"), name)


def answering(module: nn.Module) -> nn.Module:
    """Return a module that keeps to this contract: itself where it does (`bounded`), else behind `Answering`."""
    return module if getattr(module, "bounded", False) else Answering(module)
