"""`defend check`: is this a victim? What it answers to clean images, and what to do about each thing that is odd."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import attrs
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.dropout import _DropoutNd

from defend.boundary.answers import ask, logits_of
from defend.boundary.calls import Calling
from defend.boundary.given import name_of
from defend.checks.common import SIGMOID, Status, lead, squashed_by
from defend.checks.guessing import find_guessing
from defend.datasets.normalisation import MEANS, STDS
from defend.errors import DefendError
from defend.values.shares import in_percent

USUAL = {name: (MEANS[name], STDS[name]) for name in ("imagenet", "cifar10", "half")}
PLAINLY = 0.15  # more of the images right: no chance at a hundred images
ROUNDING = 1e-4


@attrs.frozen
class Finding:
    """One thing that was looked at: what was found, and what to do about it where it is odd."""

    name: str
    status: Status
    said: str
    cure: str = ""


def inspect(victim: nn.Module, images: Tensor, labels: Tensor, classes: int) -> list[Finding]:
    """Look at a victim, on clean images [B,C,H,W] in [0,1] with their labels [B]; it is left in eval mode.

    The first finding that says that it cannot be asked at all is the last.
    """
    found = [_mode(victim)]
    victim.eval()
    try:
        with torch.no_grad():
            raw = ask("victim", victim, images)
            logits = logits_of(raw, images, victim).float()
    except DefendError as error:
        return [*found, Finding("answer", "fail", str(error), "mend this first: nothing else can be looked at")]
    found.append(_answer(raw, logits, classes))
    if found[-1].status == "fail":
        return found
    looks: tuple[Callable[[nn.Module, Tensor, Tensor, Tensor], Iterator[Finding]], ...] = (
        _scale,
        _accuracy,
        _repetition,
        _batch,
        _gradient,
    )
    for look in looks:
        try:
            found += look(victim, images, labels, logits)
        except DefendError as error:
            found.append(Finding(look.__name__.strip("_"), "fail", str(error)))
    return found


def _mode(victim: nn.Module) -> Finding:
    moving = any(part.training and isinstance(part, (_NormBase, _DropoutNd)) for part in victim.modules())
    if moving:
        said = "it came in training mode, with dropout or batch statistics"
        return Finding("mode", "warn", said, "call .eval() on it; runs do so themselves")
    return Finding("mode", "pass", "nothing in it depends on training mode, or it is in eval mode")


def _answer(raw: object, logits: Tensor, classes: int) -> Finding:
    taken = "" if isinstance(raw, Tensor) else f", taken out of a {type(raw).__name__}"
    said = f"{logits.shape[1]} numbers an image{taken}"
    if logits.shape[1] != classes:
        cure = "use the data set it was trained for"
        if logits.shape[1] > classes:
            cure += ", or say which classes it knows (--classes)"
        return Finding("answer", "fail", f"{said}, and the data set has {classes} classes", cure)
    if not bool(torch.isfinite(logits).all()):
        return Finding("answer", "fail", "some answers are not finite (NaN or infinite)", "look at its weights")
    return Finding("answer", "pass", f"{said}, as many as classes")


def _scale(victim: nn.Module, images: Tensor, labels: Tensor, logits: Tensor) -> Iterator[Finding]:  # noqa: ARG001
    squashed = squashed_by(logits)
    if squashed == "softmax":
        yield Finding(
            "logits",
            "warn",
            "the answers are probabilities: they sum to 1",
            "return the numbers before the softmax; attacks follow those, and a softmax twice hides gradients",
        )
    elif squashed:
        yield Finding(
            "logits",
            "warn",
            SIGMOID,
            "return the numbers before the sigmoid; attacks follow those. Of one output all above 0 is the second "
            "class, as all is that a sigmoid answers",
        )
    else:
        yield Finding("logits", "pass", f"from {float(logits.min()):.3g} to {float(logits.max()):.3g}")


def _accuracy(victim: nn.Module, images: Tensor, labels: Tensor, logits: Tensor) -> Iterator[Finding]:
    stands = find_guessing(logits.argmax(1), labels)
    right = stands.accuracy
    said = (
        f"right on {in_percent(right, 0)} % of {len(images)} clean images; chance is {in_percent(stands.chance, 0)} %"
    )
    channels = images.shape[1]
    best, share = "", right
    with torch.no_grad():
        for name, (mean, std) in USUAL.items():
            if len(mean) not in (1, channels):
                continue
            shift, width = (torch.tensor(each, device=images.device).view(1, -1, 1, 1) for each in (mean, std))
            other = _right(logits_of(ask("victim", victim, (images - shift) / width), images, victim), labels)
            if other > share:
                best, share = f"--mean {name} --std {name}", other
        # brighter images drive a sigmoid into saturation, where it answers with one class or the other
        if not squashed_by(logits):
            other = _right(logits_of(ask("victim", victim, images * 255), images, victim), labels)
            if other > share:
                best, share = "images from 0 to 255: multiply by 255 inside its forward", other
    if share > right + PLAINLY:
        yield Finding("accuracy", "fail", f"{said}; {in_percent(share, 0)} % with {best}", f"take {best}")
    elif stands.status == "fail":
        yield Finding(
            "accuracy",
            "fail",
            said,
            "the usual causes: weights that were not loaded, normalisation (--mean, --std), another order of classes, "
            "another size of images",
        )
    elif stands.status == "warn":
        yield Finding("accuracy", "warn", f"{said}: too few images to tell them apart", "hold out more images")
    else:
        yield Finding("accuracy", "pass", said)


def _right(logits: Tensor, labels: Tensor) -> float:
    return float((logits.argmax(1) == labels).double().mean())


def _repetition(victim: nn.Module, images: Tensor, labels: Tensor, logits: Tensor) -> Iterator[Finding]:  # noqa: ARG001
    with torch.no_grad():
        again = logits_of(ask("victim", victim, images), images, victim).float()
    if torch.equal(again, logits):
        yield Finding("repetition", "pass", "the same images get the same answers")
        return
    moved = float((again - logits).abs().max())
    yield Finding(
        "repetition",
        "warn",
        f"the same images get other answers (by up to {moved:.2g})",
        "if it draws random numbers, set random = True on it, so that attacks average over them",
    )


def _batch(victim: nn.Module, images: Tensor, labels: Tensor, logits: Tensor) -> Iterator[Finding]:  # noqa: ARG001
    with torch.no_grad():
        alone = logits_of(ask("victim", victim, images[:1]), images[:1], victim).float()
    moved = float((alone - logits[:1]).abs().max())
    if float((lead(alone, logits) - lead(logits[:1], logits)).abs().max()) <= ROUNDING:
        yield Finding("batch", "pass", "an image alone gets the answer that it gets among others")
    else:
        yield Finding(
            "batch", "fail", f"an image alone gets another answer (by {moved:.2g})", "use no statistics of the batch"
        )


def _gradient(victim: nn.Module, images: Tensor, labels: Tensor, logits: Tensor) -> Iterator[Finding]:  # noqa: ARG001
    source = images.clone().requires_grad_()
    answer = logits_of(ask("victim", victim, source), source, victim).float()
    if not answer.requires_grad:
        yield Finding(
            "gradient",
            "fail",
            "no gradient reaches the images",
            "take out .detach(), torch.no_grad() and numpy",
        )
        return
    with Calling(f"victim {name_of(victim)}", "its backward pass"):
        found = torch.autograd.grad(F.cross_entropy(answer, labels, reduction="sum"), source, allow_unused=True)
    slope: Tensor | None = found[0]
    if slope is None:
        yield Finding("gradient", "fail", "the answer does not depend on the images", "look at its forward")
        return
    blind = int((slope.flatten(1).abs().amax(1) == 0).sum())
    broken = int((~torch.isfinite(slope)).flatten(1).any(1).sum())
    if broken or 2 * blind > len(images):
        what = "not finite" if broken else "zero"
        yield Finding(
            "gradient",
            "fail",
            f"it is {what} for {broken or blind} of {len(images)} images",
            "return logits, not probabilities or rounded numbers; where it must be so, add an attack without gradients",
        )
    else:
        yield Finding("gradient", "pass", f"it reaches the images; zero for {blind} of {len(images)}")
