"""What an attack faces: a model it may query and differentiate, with the randomness taken care of."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import attrs
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from defend.randomness import keyed

Objective = Callable[[nn.Module, Tensor, Tensor], tuple[Tensor, Tensor]]
"""(module, images [B,C,H,W], labels [B]) to (loss [B] that an untargeted attack raises, logits [B,K])."""


def cross_entropy(module: nn.Module, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The usual objective: cross-entropy of the module's logits, a number an image."""
    logits = module(images)
    return F.cross_entropy(logits, labels, reduction="none"), logits


@attrs.frozen
class Slope:
    """A gradient [B,C,H,W] at some images, the loss [B] and the logits [B,K] there (means over draws)."""

    gradient: Tensor
    loss: Tensor
    logits: Tensor


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
    """

    def __init__(
        self,
        module: nn.Module,
        *,
        seed: int = 0,
        draws: int = 1,
        precision: torch.dtype | None = None,
        compact_every: int | None = None,
    ) -> None:
        self.module, self.seed, self.precision = module, seed, precision
        self.random = bool(getattr(module, "random", False))
        self.draws = draws if self.random else 1
        self.compact_every = compact_every

    def slope(
        self, images: Tensor, labels: Tensor, keys: Tensor, step: int | str, objective: Objective = cross_entropy
    ) -> Slope:
        """Return the gradient of the objective with respect to `images`, with its loss and logits.

        `step` names the draws: another step sees other draws, the same step the same.
        """
        source = images.detach().requires_grad_()
        with torch.enable_grad(), self._surroundings(source, keys, step):
            loss, logits = objective(self.module, self._repeat(source), self._repeat(labels))
            loss, logits = loss.float(), logits.float()
            (gradient,) = torch.autograd.grad(loss.sum() / self.draws, source)
        return Slope(gradient, self._mean(loss.detach()), self._mean(logits.detach()))

    @torch.no_grad()
    def logits(self, images: Tensor, keys: Tensor, step: int | str) -> Tensor:
        """Return logits [B,K], the mean over draws, always in full precision."""
        with self._surroundings(images, keys, step, full=True):
            return self._mean(self.module(self._repeat(images)).float())

    def _surroundings(
        self, images: Tensor, keys: Tensor, step: int | str, full: bool = False
    ) -> contextlib.AbstractContextManager[None]:
        stack = contextlib.ExitStack()
        packed = (
            keys
            if self.draws == 1
            else (keys[None] + torch.arange(self.draws, device=keys.device)[:, None] * (1 << 40)).flatten()
        )
        stack.enter_context(keyed(packed, seed=self.seed, stream=f"attacker/{step}"))
        if self.precision is not None and not full:
            stack.enter_context(torch.autocast(images.device.type, self.precision))
        return stack  # type: ignore[return-value]

    def _repeat(self, values: Tensor) -> Tensor:
        return values if self.draws == 1 else values.repeat(self.draws, *(1,) * (values.ndim - 1))

    def _mean(self, values: Tensor) -> Tensor:
        return values if self.draws == 1 else values.unflatten(0, (self.draws, -1)).mean(0)
