"""What the host is handed, and hands on: images, labels, budgets and keys, checked before anything is attacked.

Checking asks the device for its numbers once. A stage gets a copy (`own`), so that one that writes into what it is
handed changes nobody else's images.
"""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Iterator

import attrs
import torch
from torch import Tensor, nn

from defend.errors import ConfigError, DataError

TOLERANCE = 1e-5  # rounding that may lie outside [0,1]; it is clipped


def name_of(module: object) -> str:
    """Return the stage's name, which the builder leaves on the module, or the class's."""
    return str(getattr(module, "stage_name", type(module).__name__))


UNDO = "undo the normalisation, which belongs into the victim"


def as_images(images: Tensor, undo: str = UNDO) -> Tensor:
    """Return images [B,C,H,W] that are what the contract says: floats, finite, in [0,1]; rounding outside is clipped.

    Args:
        undo: what to try where they look normalised.

    Raises:
        DataError: they are not; what to do.
    """
    check_type(images)
    if images.ndim != 4:
        cure = ": pass images[None]" if images.ndim == 3 else ""
        raise DataError(f"images have shape {list(images.shape)}, expected [B,C,H,W]{cure}")
    if images.numel() == 0:
        return images
    low, high = torch.stack(torch.aminmax(images.detach())).tolist()
    # half precision rounds by more than the tolerance
    slack = TOLERANCE + torch.finfo(images.dtype).eps
    if not (abs(low) < torch.inf and abs(high) < torch.inf):
        bad = int((~torch.isfinite(images)).flatten(1).any(1).sum())
        raise DataError(f"{bad} of {len(images)} images are not finite (NaN or infinite), expected [0,1]")
    if low < -slack or high > 1 + slack:
        cure = "divide by 255" if high > 2 and low >= 0 else undo
        raise DataError(f"images reach from {low:.6g} to {high:.6g}, expected [0,1]: {cure}")
    return images if low >= 0 and high <= 1 else images.clamp(0, 1)


def check_type(images: Tensor) -> None:
    """Refuse what is no tensor of floats, without asking the device for its numbers.

    Raises:
        DataError: it is none; what to do.
    """
    if not isinstance(images, Tensor):
        raise DataError(f"images are {type(images).__name__}, expected a tensor of floats [B,C,H,W] in [0,1]")
    if not images.is_floating_point():
        cure = "images.float() / 255, where they are 0 to 255"
        raise DataError(f"images are {images.dtype}, expected floats [B,C,H,W] in [0,1]: pass {cure}")


def as_labels(labels: Tensor, images: Tensor) -> Tensor:
    """Return labels as int64 [B] on the images' device, each at least 0. `Asked` checks them against the classes.

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
    """A victim whose first answer tells how many classes there are; the labels are checked against that.

    Attributes:
        victim: whose answers.
        highest: the highest label that it is attacked with.
        classes: how many logits it answered with; None before it was asked.
    """

    victim: object
    highest: int
    classes: int | None = None

    def note_classes(self, classes: int) -> None:
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


WAITING: contextvars.ContextVar[Asked | None] = contextvars.ContextVar("asked", default=None)


@contextlib.contextmanager
def compare_labels(asked: Asked) -> Iterator[None]:
    """Within the block, check the labels against the victim's first answer, which saves a pass of its own."""
    token = WAITING.set(asked)
    try:
        yield
    finally:
        WAITING.reset(token)


def own(images: Tensor, stage: nn.Module) -> Tensor:
    """Return a copy for a stage to do with as it likes; gradients go through.

    Images of double or half precision are cast where the stage's weights are of another type. A copy is made, as a
    tensor's version counter does not tell of writing through `.data` or numpy.
    """
    if images.dtype != torch.float32:
        kind = kind_of(stage)
        if kind is not None and kind != images.dtype:
            return images.to(kind)
    return images.clone()


def kind_of(stage: nn.Module) -> torch.dtype | None:
    """Return the type of a stage's first floating weight, None of one that has none."""
    weights = stage.parameters() if isinstance(stage, nn.Module) else ()  # a function has none
    return next((weight.dtype for weight in weights if weight.is_floating_point()), None)
