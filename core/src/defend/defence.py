"""Purifier, detector and victim composed: an ordinary module that any attack library can attack."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import attrs
import torch
from torch import Tensor, nn

from defend.errors import ContractError
from defend.values import Verdict

TOLERANCE = 1e-5  # rounding that a purifier may leave outside [0,1]; it is clipped


@attrs.frozen
class Screening:
    """What comes before the victim: purified images [B,C,H,W], the detector's scores [B], who is accepted [B]."""

    purified: Tensor
    score: Tensor
    accepted: Tensor


class PurifierSequence(nn.Module):
    """Several purifiers, one after the other; none may change the shape."""

    def __init__(self, purifiers: Sequence[nn.Module]) -> None:
        super().__init__()
        self.purifiers = nn.ModuleList(purifiers)
        self.stage_name = ",".join(_name(purifier) for purifier in purifiers)

    @property
    def random(self) -> bool:
        """Whether any of them draws random numbers."""
        return any(bool(getattr(purifier, "random", False)) for purifier in self.purifiers)

    def forward(self, images: Tensor) -> Tensor:
        """Purify [B,C,H,W] by all of them."""
        for purifier in self.purifiers:
            images = _purified(purifier, images)
        return images


class Defence(nn.Module):
    """A victim behind an optional purifier and detector.

    Args:
        victim: images [B,C,H,W] in [0,1] to logits [B,classes]; normalisation inside.
        purifier: images to images of the same shape and range, or None.
        detector: (images, purified) to scores [B], with a `threshold`, or None.

    `defence(images)` returns logits and is differentiable end to end. The module starts in eval mode.
    """

    def __init__(self, victim: nn.Module, purifier: nn.Module | None = None, detector: nn.Module | None = None) -> None:
        super().__init__()
        beside = getattr(detector, "beside", None)
        self.victim, self.purifier = victim, purifier
        self.detector: nn.Module | None = beside(purifier) if callable(beside) else detector
        self.eval()

    @property
    def random(self) -> bool:
        """Whether two passes over the same images may differ."""
        return any(bool(getattr(stage, "random", False)) for stage in (self.purifier, self.detector, self.victim))

    def purify(self, images: Tensor) -> Tensor:
        """Return what the victim will see, [B,C,H,W]; the images themselves without a purifier.

        Raises:
            ContractError: the purifier changed the shape.
        """
        if self.purifier is None:
            return images
        return _purified(self.purifier, images)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits [B,classes] of images [B,C,H,W] in [0,1]; rejection is `judge`'s business."""
        logits: Tensor = self.victim(self.purify(images))
        return logits

    def answer(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits [B,classes] and the detector's scores [B] (zeros without one), both differentiable."""
        purified = self.purify(images)
        score = images.new_zeros(len(images)) if self.detector is None else self.detector(images, purified)
        return self.victim(purified), score

    @torch.no_grad()
    def screen(self, images: Tensor) -> Screening:
        """Purify and score, without gradients: all that comes before the victim.

        Raises:
            ContractError: the purifier returned another shape, numbers that are not finite, or values
                outside [0,1]; or the detector something else than one finite score an image.
        """
        images = images.detach()
        purified = check_purified(self.purify(images), self.purifier)
        if self.detector is None:
            score = torch.zeros(len(images), device=images.device)
            return Screening(purified, score, torch.ones(len(images), dtype=torch.bool, device=images.device))
        score = self.detector(images, purified)
        if score.shape != (len(images),) or not torch.isfinite(score).all():
            raise ContractError(
                f"detector {_name(self.detector)} must return one finite score an image, [{len(images)}]; "
                f"it returned {list(score.shape)}"
            )
        threshold: Any = self.detector.threshold
        return Screening(purified, score, score < threshold)

    @torch.no_grad()
    def judge(self, images: Tensor, screening: Screening | None = None) -> Verdict:
        """Return the defence's full answer, without gradients.

        `screening` is what `screen` returned for these images, where another defence with the same purifier
        and detector has already been asked.

        Raises:
            ContractError: as `screen`; or the victim's logits are not finite.
        """
        seen = screening or self.screen(images)
        logits = self.victim(seen.purified).float()
        if not torch.isfinite(logits).all():
            raise ContractError(f"victim {_name(self.victim)} returned logits that are not finite")
        probability, labels = logits.softmax(1).max(1)
        return Verdict(labels, probability, seen.accepted, seen.score, seen.purified, logits)


def _purified(purifier: nn.Module, images: Tensor) -> Tensor:
    purified: Tensor = purifier(images)
    if not isinstance(purified, Tensor) or purified.shape != images.shape:
        got = list(purified.shape) if isinstance(purified, Tensor) else type(purified).__name__
        raise ContractError(f"purifier {_name(purifier)} returned {got}, expected shape {list(images.shape)}")
    return purified


def check_purified(purified: Tensor, purifier: nn.Module | None) -> Tensor:
    """Hold a purifier's output to its contract: finite, within [0,1]; rounding outside is clipped."""
    if purifier is None or purified.numel() == 0:
        return purified
    low, high = torch.aminmax(purified)
    if not (torch.isfinite(low) and torch.isfinite(high)):
        raise ContractError(f"purifier {_name(purifier)} returned numbers that are not finite (NaN or infinite)")
    if low < -TOLERANCE or high > 1 + TOLERANCE:
        raise ContractError(
            f"purifier {_name(purifier)} returned values from {float(low):.6g} to {float(high):.6g}, expected [0,1]: "
            "clamp its output"
        )
    return purified.clamp(0, 1)


def _name(module: nn.Module) -> str:
    """The stage's name, which the builder leaves on the module, or the class's."""
    return str(getattr(module, "stage_name", type(module).__name__))
