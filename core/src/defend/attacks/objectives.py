"""What gradient attacks climb: the cross-entropy, and the log-odds that never round to a gradient of zero."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Objective = Callable[[nn.Module, Tensor, Tensor], tuple[Tensor, Tensor]]
"""(module, images [B,C,H,W], labels [B]) to (loss [B] that an untargeted attack raises, logits [B,K])."""


def cross_entropy(module: nn.Module, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The usual objective: cross-entropy of the module's logits, a number an image."""
    logits = module(images)
    return F.cross_entropy(logits, labels, reduction="none"), logits


def steady_cross_entropy(module: nn.Module, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The cross-entropy for attacks of many steps: the same ascent, and never zero because a softmax is saturated.

    The loss is the log-odds against the label, o = log sum_{i != y} exp(z_i) - z_y. The cross-entropy is
    log(1 + exp(o)), and its gradient is sigmoid(o) times that of o. The factor changes the gradient's length alone,
    which makes no difference to a sign step or to one of unit length; but float32 rounds it to zero where the label's
    logit is far ahead. `Target.slope` knows this objective: over several draws it weighs them as the cross-entropy
    does. Logits of unusual size are scaled, see `steady_odds`.
    """
    logits = module(images)
    return log_odds(logits.float(), labels), logits


SPREAD = (10.0, 40.0)  # of an image's logits, largest less least: what a usual network has


def steady_odds(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the log-odds against the label, [B], of logits [B,K] whose spread is that of a usual network.

    With tiny logits all other classes count alike in the cross-entropy, with huge ones only the largest does. An
    attack's success would then depend on a factor that changes no prediction. Logits of usual spread stay as they are.
    Only the gradient is of use: the factor is taken anew at every point, so values at two points do not compare.
    """
    return log_odds(logits * scale_to_usual(logits.amax(1) - logits.amin(1))[:, None], labels)


def scale_to_usual(spread: Tensor) -> Tensor:
    """Return what logits of such a spread [B] are multiplied by to have a usual one, [B]; 1 where they do, or none."""
    spread = spread.detach()
    usable = (spread > 0) & torch.isfinite(spread)
    return torch.where(usable, spread.clamp(*SPREAD) / torch.where(usable, spread, 1), 1)


def log_odds(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the log of the odds against the label, [B], from logits [B,K]: it rises and falls as the cross-entropy."""
    own = F.one_hot(labels, logits.shape[1]).bool()
    return logits.masked_fill(own, -torch.inf).logsumexp(1) - logits.gather(1, labels[:, None])[:, 0]


def scaled_cross_entropy(scale: float) -> Objective:
    """Return the cross-entropy of logits that are multiplied by `scale`; the logits returned are the module's own."""
    if scale == 1:
        return cross_entropy

    def objective(module: nn.Module, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        logits = module(images)
        return F.cross_entropy(scale * logits, labels, reduction="none"), logits

    return objective
