"""What an attack faces: a model it may query and differentiate, with the randomness taken care of."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import attrs
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from defend.randomness import keyed

CPU_BATCH = 64  # images at once: a resnet18 on 32x32 takes 1.27 times as long for each of 256

Objective = Callable[[nn.Module, Tensor, Tensor], tuple[Tensor, Tensor]]
"""(module, images [B,C,H,W], labels [B]) to (loss [B] that an untargeted attack raises, logits [B,K])."""


def cross_entropy(module: nn.Module, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The usual objective: cross-entropy of the module's logits, a number an image."""
    logits = module(images)
    return F.cross_entropy(logits, labels, reduction="none"), logits


def scaled_cross_entropy(scale: float) -> Objective:
    """Return the cross-entropy of logits that are multiplied by `scale`; the logits returned are the module's own."""
    if scale == 1:
        return cross_entropy

    def objective(module: nn.Module, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        logits = module(images)
        return F.cross_entropy(scale * logits, labels, reduction="none"), logits

    return objective


@attrs.frozen
class Slope:
    """A gradient [B,C,H,W] at some images, the loss [B] and the logits [B,K] there (means over draws)."""

    gradient: Tensor
    loss: Tensor
    logits: Tensor


Aims = Callable[[Tensor, Tensor, Tensor], Sequence[Tensor]]
"""(logits [B,K], detector scores [B], labels [B]) to numbers [B] each, every one to be differentiated."""


@attrs.frozen
class Slopes:
    """One gradient [B,C,H,W] an aim; logits [B,K] and detector scores [B] of the same pass (means over draws)."""

    gradients: list[Tensor]
    logits: Tensor
    scores: Tensor


class Target:
    """A model under attack.

    Args:
        module: images in [0,1] to logits; a victim, or a whole `Defence`.
        seed: of the attacker's own draws, which are never the defender's.
        draws: passes that gradient and logits are averaged over where the module is random
            (expectation over transformation, Athalye et al. 2018), packed into one batch.
        precision: a dtype for autocast while crafting, or None.
        compact_every: drop images already fooled from the batch after so many steps. Finding them
            waits for the device: free on a CPU, so every step there; rarer on a GPU.
        threshold: the score below which an attacker who knows the detector wants an image to end, where that is
            stricter than the detector's own; None takes the detector's.

    Attributes:
        queries: int64 [B], how often each image of the last batch was shown to the model, in the batch's order,
            from an attack that counts; else None. `defend.attacks.host.craft` resets it.
        overshoot: [B], how far beyond budget or box the last result was before `craft` clipped it; None at first.
        shown: the float type that the module is shown images in, whatever the attack computes in; None leaves it.
            `craft` sets it, as attacks on images of half precision compute in float32, where small steps add up.
    """

    queries: Tensor | None = None
    overshoot: Tensor | None = None
    shown: torch.dtype | None = None

    def __init__(
        self,
        module: nn.Module,
        *,
        seed: int = 0,
        draws: int = 1,
        precision: torch.dtype | None = None,
        compact_every: int | None = None,
        threshold: float | None = None,
    ) -> None:
        self.module, self.seed, self.precision, self.threshold = module, seed, precision, threshold
        self.random = bool(getattr(module, "random", False))
        self.draws = draws if self.random else 1
        self.compact_every = compact_every

    def slope(
        self,
        images: Tensor,
        labels: Tensor,
        keys: Tensor,
        step: int | str,
        objective: Objective = cross_entropy,
        full: bool = False,
    ) -> Slope:
        """Return the gradient of the objective with respect to `images`, with its loss and logits.

        `step` names the draws: another step sees other draws, the same step the same. Where the module lets no
        gradient through, it is zero: the attack is blind, and `defend.checks` says so. `full` is full precision,
        whatever the target's own.
        """
        pieces = [
            self._slope(some, own, whose, step, objective, full)
            for some, own, whose in self._pieces(images, labels, keys)
        ]
        if len(pieces) == 1:
            return pieces[0]
        columns = ([getattr(piece, name) for piece in pieces] for name in ("gradient", "loss", "logits"))
        return Slope(*(torch.cat(column) for column in columns))

    def _pieces(self, *columns: Tensor) -> Iterator[tuple[Tensor, ...]]:
        """Cut a large batch up on a CPU, where more than `CPU_BATCH` images at once are slower an image, not faster."""
        images = columns[0]
        most = max(CPU_BATCH // self.draws, 1)
        count = 1 if images.device.type != "cpu" else max(-(-len(images) // most), 1)
        size = max(-(-len(images) // count), 1)
        return zip(*(column.split(size) for column in columns), strict=True)

    def _slope(
        self, images: Tensor, labels: Tensor, keys: Tensor, step: int | str, objective: Objective, full: bool
    ) -> Slope:
        source = images.detach().requires_grad_()
        with torch.enable_grad(), self._surroundings(source, keys, step, full=full):
            loss, logits = objective(self.module, self._repeat(source), self._repeat(labels))
            loss, logits = loss.float(), logits.float()
            gradient = _gradient(loss.sum() / self.draws, source)
        return Slope(gradient, self._mean(loss.detach()), self._mean(logits.detach()))

    def slopes(self, images: Tensor, labels: Tensor, keys: Tensor, step: int | str, aims: Aims) -> Slopes:
        """Return the gradients of several aims, of logits and detector scores, from one forward pass.

        In full precision always, as scores are held against a threshold. An aim that does not depend on the images
        (a detector that always says the same) has a gradient of zeros. `step` as in `slope`.
        """
        source = images.detach().requires_grad_()
        with torch.enable_grad(), self._surroundings(source, keys, step, full=True):
            logits, scores = self._ask(self._repeat(source))
            values = aims(logits.float(), scores.float(), self._repeat(labels))
            gradients = [_gradient(value.sum() / self.draws, source, more=True) for value in values]
        return Slopes(gradients, self._mean(logits.detach().float()), self._mean(scores.detach().float()))

    @torch.no_grad()
    def logits(self, images: Tensor, keys: Tensor, step: int | str) -> Tensor:
        """Return logits [B,K], the mean over draws, always in full precision."""
        with self._surroundings(images, keys, step, full=True):
            return self._mean(self.module(self._repeat(images)).float())

    @torch.no_grad()
    def scores(self, images: Tensor, keys: Tensor, step: int | str) -> tuple[Tensor, Tensor]:
        """Return logits [B,K] and detector scores [B], means over draws, in full precision."""
        with self._surroundings(images, keys, step, full=True):
            logits, scores = self._ask(self._repeat(images))
            return self._mean(logits.float()), self._mean(scores.float())

    @torch.no_grad()
    def answer(self, images: Tensor, keys: Tensor, step: int | str, draws: int | None = None) -> tuple[Tensor, Tensor]:
        """Return what an attacker sees who only asks: logits [B,K] (mean over draws) and who is accepted, bool [B].

        In full precision. Accepted means a score below the detector's own threshold, in most of the draws where
        the module is random; everything is accepted where there is no detector. `draws` is 1 for an attacker who
        gets one answer a query; None means the target's own number.
        """
        count = self.draws if draws is None or not self.random else draws
        with self._surroundings(images, keys, step, full=True, draws=count):
            packed = self._repeat(images, count)
            detector = getattr(self.module, "detector", None)
            if detector is None:
                logits = self.module(packed)
                accepted = torch.ones(len(images), dtype=torch.bool, device=images.device)
            else:
                logits, scores = self._ask(packed)
                accepted = self._mean((scores < detector.threshold).float(), count) > 0.5
            return self._mean(logits.float(), count), accepted

    def _ask(self, images: Tensor) -> tuple[Tensor, Tensor]:
        module: Any = self.module
        logits, scores = module.answer(images)
        return logits, scores

    def _surroundings(
        self, images: Tensor, keys: Tensor, step: int | str, full: bool = False, draws: int | None = None
    ) -> contextlib.AbstractContextManager[None]:
        stack = contextlib.ExitStack()
        count = draws or self.draws
        packed = (
            keys
            if count == 1
            else (keys[None] + torch.arange(count, device=keys.device)[:, None] * (1 << 40)).flatten()
        )
        stack.enter_context(keyed(packed, seed=self.seed, stream=f"attacker/{step}"))
        if self.precision is not None and not full:
            stack.enter_context(torch.autocast(images.device.type, self.precision))
        return stack  # type: ignore[return-value]

    def _repeat(self, values: Tensor, draws: int | None = None) -> Tensor:
        count = draws or self.draws
        if self.shown is not None and values.is_floating_point():
            values = values.to(self.shown)
        return values if count == 1 else values.repeat(count, *(1,) * (values.ndim - 1))

    def _mean(self, values: Tensor, draws: int | None = None) -> Tensor:
        count = draws or self.draws
        return values if count == 1 else values.unflatten(0, (count, -1)).mean(0)


def _gradient(value: Tensor, source: Tensor, more: bool = False) -> Tensor:
    """Differentiate a number; zeros where it does not depend on the source. With `more` to come, the graph stays."""
    if not value.requires_grad:
        return torch.zeros_like(source)
    (gradient,) = torch.autograd.grad(value, source, retain_graph=more, allow_unused=True)
    return torch.zeros_like(source) if gradient is None else gradient
