"""Purifier, detector and victim composed: an ordinary module that any attack library can attack."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import attrs
import torch
from torch import Tensor, nn

from defend.boundary.answers import (
    ask,
    check_pixels,
    check_scores,
    ensure_bounded,
    logits_of,
    pixels_of,
    scores_of,
    threshold_of,
)
from defend.boundary.calls import Calling
from defend.boundary.given import as_images, check_type, name_of
from defend.boundary.held import eval_mode
from defend.errors import ContractError


@attrs.frozen
class Verdict:
    """What a defence says of a batch of images (`Defence.judge`).

    Attributes:
        labels: int64 [B], the predicted class.
        confidence: float32 [B], the softmax probability of that class.
        accepted: bool [B], False where the detector rejects.
        score: float32 [B], the detector's score; zeros without a detector.
        purified: [B,C,H,W] in [0,1], what the victim saw.
        logits: [B,classes].
    """

    labels: Tensor
    confidence: Tensor
    accepted: Tensor
    score: Tensor
    purified: Tensor
    logits: Tensor


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
        self.stage_name = ",".join(name_of(purifier) for purifier in purifiers)

    @property
    def random(self) -> bool:
        """Whether any of them draws random numbers."""
        return any(bool(getattr(purifier, "random", False)) for purifier in self.purifiers)

    def forward(self, images: Tensor) -> Tensor:
        """Purify [B,C,H,W] by all of them."""
        for purifier in self.purifiers:
            images = _purify(purifier, images)
        return images

    def screen(self, images: Tensor) -> Tensor:
        """Purify [B,C,H,W], and look at what each of them returns: the next may hide that it is no image.

        Raises:
            ContractError: one returned numbers that are not finite, or values outside [0,1]; it is named.
        """
        for purifier in self.purifiers:
            images = check_pixels(_purify(purifier, images), purifier)
        return images

    def surrogates(self) -> dict[str, nn.Module]:
        """Return what may stand for the whole backwards: each part's own surrogates, in its place.

        The others are as they are, or their first surrogate where they have one: without it they may let nothing pass.
        """
        offered = [_surrogates(purifier) for purifier in self.purifiers]
        usual = [next(iter(own.values()), part) for own, part in zip(offered, self.purifiers, strict=True)]
        return {
            f"{name_of(part)}: {name}": PurifierSequence([*usual[:place], surrogate, *usual[place + 1 :]])
            for place, (own, part) in enumerate(zip(offered, self.purifiers, strict=True))
            for name, surrogate in own.items()
        }


class Defence(nn.Module):
    """A victim behind an optional purifier and detector.

    Args:
        victim: images [B,C,H,W] in [0,1] to logits [B,classes]; normalisation inside. What answers with an object
            that has `logits`, a dict that holds "logits" or a tuple that begins with them is unwrapped.
        purifier: images to images of the same shape and range, or None.
        detector: (images, purified) to scores [B], with a `threshold`, or None.

    `defence(images)` returns logits and is differentiable end to end. The given modules themselves are part of it: it
    puts them into eval mode, and they stay there. Every stage works on copies, so that one that writes into what it
    is handed changes nothing of the caller's or of another stage.

    A pass looks at the images' type alone, as it may not wait for the device: of images outside [0,1] it answers
    whatever comes out. `judge` refuses them.

    Raises:
        ContractError: a part is no module; or the detector's `beside()` or `with_victim()` returned none.
    """

    bounded = True  # keeps to `defend.boundary` by itself

    def __init__(self, victim: nn.Module, purifier: nn.Module | None = None, detector: nn.Module | None = None) -> None:
        super().__init__()
        for stage, part in (("victim", victim), ("purifier", purifier), ("detector", detector)):
            if part is not None or stage == "victim":
                _check_part(stage, part)
        self.victim, self.purifier = victim, purifier
        self.detector: nn.Module | None = detector if detector is None else _placed(detector, victim, purifier)
        self.eval()

    @property
    def random(self) -> bool:
        """Whether two passes over the same images may differ."""
        return any(bool(getattr(stage, "random", False)) for stage in (self.purifier, self.detector, self.victim))

    def purify(self, images: Tensor) -> Tensor:
        """Return what the victim will see, [B,C,H,W]; the images themselves without a purifier.

        Raises:
            ContractError: the purifier returned no tensor of floats of the images' shape.
        """
        if self.purifier is None:
            return images
        return _purify(self.purifier, images)

    def classify(self, purified: Tensor) -> Tensor:
        """Return the victim's logits [B,classes] of what it is shown, [B,C,H,W].

        Raises:
            ContractError: it answered with something else, see `defend.boundary.answers.logits_of`.
        """
        return logits_of(ask("victim", self.victim, purified), purified, self.victim)

    def rate(self, images: Tensor, purified: Tensor) -> Tensor:
        """Return the detector's scores [B] of images and what was made of them, [B,C,H,W]; zeros without one.

        Raises:
            ContractError: it returned something else than floats [B].
        """
        if self.detector is None:
            return images.new_zeros(len(images))
        return scores_of(ask("detector", self.detector, images, purified), images, self.detector)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits [B,classes] of images [B,C,H,W] in [0,1]; rejection is `judge`'s business.

        Raises:
            DataError: the images are no tensor of floats.
        """
        check_type(images)
        return self.classify(self.purify(images))

    def answer(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits [B,classes] and the detector's scores [B] (zeros without one), both differentiable.

        Raises:
            DataError: the images are no tensor of floats.
        """
        check_type(images)
        purified = self.purify(images)
        score = self.rate(images, purified)
        return self.classify(purified), score

    @torch.no_grad()
    def screen(self, images: Tensor) -> Screening:
        """Purify and score, without gradients and in eval mode: all that comes before the victim.

        Raises:
            DataError: the images are no floats [B,C,H,W], not finite or not in [0,1].
            ContractError: the purifier returned another shape, numbers that are not finite, or values
                outside [0,1]; or the detector something else than one finite score an image.
        """
        images = as_images(images).detach()
        with eval_mode(self):
            if isinstance(self.purifier, PurifierSequence):
                purified = self.purifier.screen(images)
            elif self.purifier is not None:
                purified = check_pixels(self.purify(images), self.purifier)
            else:
                purified = self.purify(images)
            if self.detector is None:
                score = torch.zeros(len(images), device=images.device)
                return Screening(purified, score, torch.ones(len(images), dtype=torch.bool, device=images.device))
            score = check_scores(self.rate(images, purified), self.detector)
            return Screening(purified, score, score < threshold_of(self.detector).to(score.device))

    @torch.no_grad()
    def judge(self, images: Tensor, screening: Screening | None = None) -> Verdict:
        """Return the defence's full answer, without gradients and in eval mode.

        `screening` is what `screen` returned for these images, where another defence with the same purifier
        and detector has already been asked.

        Raises:
            DataError, ContractError: as `screen`; or the victim's logits are none, or not finite.
        """
        seen = screening or self.screen(images)
        with eval_mode(self):
            logits = self.classify(seen.purified).float()
        bad = int((~torch.isfinite(logits)).flatten(1).any(1).sum())
        if bad:
            raise ContractError(
                f"victim {name_of(self.victim)} returned logits that are not finite for {bad} of {len(logits)} images"
            )
        # the largest logit, as attacks have it: a softmax rounds leading ones that lie close to the same probability
        labels = logits.argmax(1)
        probability = logits.softmax(1).gather(1, labels[:, None])[:, 0]
        return Verdict(labels, probability, seen.accepted, seen.score, seen.purified, logits)


def _check_part(stage: str, part: object) -> None:
    """Refuse a part that cannot be asked about images."""
    if isinstance(part, str):
        raise ContractError(f"{stage} is {part!r}, a name: expected a module; defend.load takes names")
    if isinstance(part, type):
        raise ContractError(f"{stage} is the class {part.__name__}: expected a module, for example {part.__name__}()")
    if not callable(part):
        raise ContractError(f"{stage} is {'None' if part is None else type(part).__name__}: expected a module")


def _surrogates(purifier: nn.Module) -> dict[str, nn.Module]:
    offered: Any = getattr(purifier, "surrogates", None)
    given = offered() if callable(offered) else {}
    return dict(given) if isinstance(given, Mapping) else {}


def _purify(purifier: nn.Module, images: Tensor) -> Tensor:
    return pixels_of(ask("purifier", purifier, images), images, purifier)


def _placed(detector: nn.Module, victim: nn.Module, purifier: nn.Module | None) -> nn.Module:
    """Return what a detector wants to be used where it stands: what its `beside()` and `with_victim()` return."""
    placed = _asked(detector, "beside", purifier)
    # an identity stands where there is no victim (yet), and its answers are no logits
    return placed if isinstance(victim, nn.Identity) else _asked(placed, "with_victim", ensure_bounded(victim))


def _asked(detector: nn.Module, name: str, neighbour: nn.Module | None) -> nn.Module:
    ask_for = getattr(detector, name, None)
    if not callable(ask_for):
        return detector
    with Calling(f"detector {name_of(detector)}", name):
        chosen = ask_for(neighbour)
    if not isinstance(chosen, nn.Module):
        raise ContractError(
            f"detector {name_of(detector)}: {name}() returned {type(chosen).__name__}, expected the module to use "
            "there: return self where nothing else is needed"
        )
    return chosen
