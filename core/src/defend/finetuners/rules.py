"""The equations of adversarial training beyond cross-entropy: TRADES' and MART's losses, AWP, and when one step fails.

[Z] Zhang et al. 2019, arXiv:1901.08573; [MA] Wang et al. 2020, "Improving adversarial robustness requires revisiting
misclassified examples" (ICLR) and its code; [AW] Wu, Xia and Wang 2020, arXiv:2004.05884; [F] Wong, Rice and Kolter
2020, arXiv:2001.03994.
"""

from __future__ import annotations

from collections.abc import Mapping

import attrs
import torch
from torch import Tensor
from torch.nn import functional as F

FALL = 0.2  # of the accuracy under PGD within one training: the paper's code stops there [F]
STAYS = 0.1  # what the accuracy under one step may lose meanwhile
APART = 2.0  # how many times as many images stand one step as stand PGD


def divergence(reference: Tensor, logits: Tensor) -> Tensor:
    """Return KL(softmax(reference) || softmax(logits)) of logits [B,K], in nats: [B]."""
    pair = logits.log_softmax(1), reference.log_softmax(1)
    return F.kl_div(*pair, log_target=True, reduction="none").sum(1)


def mart(clean: Tensor, robust: Tensor, labels: Tensor, weight: float) -> Tensor:
    """Return MART's loss [B] of logits [B,K] on clean and on adversarial images [MA].

    With p of the clean logits and q of the adversarial ones: -log q_y - log(1 - max_{k != y} q_k), the "boosted
    cross-entropy", and `weight` * KL(p || q) * (1 - p_y), so that images which are misclassified clean count more.
    """
    own = F.one_hot(labels, robust.shape[1]).bool()
    nearest = F.one_hot(robust.detach().masked_fill(own, -torch.inf).argmax(1), robust.shape[1]).bool()
    # log(1 - q_k) without taking 1 - q_k, which rounds to 0 where q_k is near 1
    rest = robust.masked_fill(nearest, -torch.inf).logsumexp(1) - robust.logsumexp(1)
    # gathered, not masked: how many a mask selects, the host would wait to be told
    doubt = 1 - clean.softmax(1).gather(1, labels[:, None])[:, 0]
    return F.cross_entropy(robust, labels, reduction="none") - rest + weight * divergence(clean, robust) * doubt


def raise_weights(weights: Mapping[str, Tensor], slopes: Mapping[str, Tensor], size: float) -> dict[str, Tensor]:
    """Return weights moved up the loss by `size` of their own length, tensor by tensor [AW].

    w + size * ||w|| * g / ||g||. As in its code, tensors of one dimension (biases, norms) and those of no slope stay,
    and are not returned. What is returned is a function of the weights whose derivative is one, as the shift counts
    as constant.
    """
    moved = {}
    for name, slope in slopes.items():
        weight, length = weights[name], slope.norm()
        if weight.ndim > 1:
            share = torch.where(length > 0, size * weight.detach().norm() / length, 0.0)
            moved[name] = weight + share * slope
    return moved


@attrs.define
class Overfitting:
    """Watches for catastrophic overfitting to one step: PGD wins again while one step still does not [F].

    Attributes:
        best: accuracies under PGD and under one step, of the epoch that stood PGD best so far.
        since: the epoch, from 1, in which it was first seen; 0 for never.

    A training that is resumed knows no earlier epochs: what falls is then held against those that follow.
    """

    best: tuple[float, float] = (0.0, 0.0)
    since: int = 0

    def note(self, epoch: int, pgd: float, single: float) -> bool:
        """Take an epoch's accuracies, of as many images each time; return whether it is the first that overfits."""
        first = not self.since and pgd < self.best[0] - FALL and single > self.best[1] - STAYS
        if first:
            self.since = epoch
        self.best = max(self.best, (pgd, single))
        return first


def misleads(pgd: float, single: float) -> bool:
    """Whether weights stand one step and not PGD, as overfitted ones do, whatever came before."""
    return single - pgd > FALL and single > APART * pgd
