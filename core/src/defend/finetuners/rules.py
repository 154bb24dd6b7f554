"""The equations of adversarial training beyond cross-entropy: losses, weights moved or averaged, when one step fails.

[Z] Zhang et al. 2019, arXiv:1901.08573; [MA] Wang et al. 2020, "Improving adversarial robustness requires revisiting
misclassified examples" (ICLR) and its code; [AW] Wu, Xia and Wang 2020, arXiv:2004.05884; [F] Wong, Rice and Kolter
2020, arXiv:2001.03994; [S] Shafahi et al. 2019, arXiv:1904.12843; [G] Gowal et al. 2020, arXiv:2010.03593.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import get_ema_multi_avg_fn

FALL = 0.2  # of the accuracy under PGD within one training: the paper's code stops there [F]
STAYS = 0.1  # what the accuracy under one step may lose meanwhile
APART = 2.0  # how many times as many images stand one step as stand PGD


def divergence(reference: Tensor, logits: Tensor) -> Tensor:
    """Return KL(softmax(reference) || softmax(logits)) of logits [B,K], in nats: [B]."""
    pair = logits.log_softmax(1), reference.log_softmax(1)
    return F.kl_div(*pair, log_target=True, reduction="none").sum(1)


def steady_divergence(reference: Tensor, logits: Tensor) -> Tensor:
    """Return numbers [B] whose gradient by logits [B,K] is that of `divergence`, of another length an image.

    That gradient is q - p with p, q the softmax of reference and logits, and float32 rounds it to zero where both are
    certain of a class. Here both are divided by the largest probability of the other classes, and the entry of that
    class is what makes the sum zero, as it is in q - p. Where p itself is certain to rounding it is that class alone,
    so what is raised is the cross-entropy with it. The numbers themselves mean nothing.
    """
    before, after = reference.detach().float().log_softmax(1), logits.detach().float().log_softmax(1)
    own = F.one_hot(before.argmax(1), before.shape[1]).bool()
    before, after = before.masked_fill(own, -torch.inf), after.masked_fill(own, -torch.inf)
    certain = before.logsumexp(1, keepdim=True) < math.log(torch.finfo(before.dtype).eps / 2)
    before = before.masked_fill(certain, -torch.inf)
    largest = torch.maximum(before, after).amax(1, keepdim=True)
    slope = (after - largest).exp() - (before - largest).exp()
    slope = torch.where(own, -slope.sum(1, keepdim=True), slope)
    return (slope * logits.float()).sum(1)


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


@torch.no_grad()
def average_weights(average: nn.Module, learner: nn.Module, decay: float, step: int) -> None:
    """Move an average of weights towards those that learn, after step number `step` (from 1) [G].

    a <- d a + (1 - d) w with d = min(decay, (1 + step) / (10 + step)), so that the weights of the beginning do not stay
    in it. Batch norm's statistics are averaged too, and its counts are the learner's.
    """
    state, now = (dict(each.state_dict(keep_vars=True)) for each in (average, learner))
    # what is tied has several names, and is moved once
    floats = list({id(value): name for name, value in state.items() if value.is_floating_point()}.values())
    share = min(decay, (1 + step) / (10 + step))
    get_ema_multi_avg_fn(share)([state[name] for name in floats], [now[name] for name in floats], step)
    for name in (name for name, value in state.items() if not value.is_floating_point()):
        state[name].copy_(now[name])


class Perturbation(nn.Module):
    """The change of each place in a batch that free adversarial training goes on with, from batch to batch [S].

    A buffer, so that an interrupted training goes on with it too.
    """

    def __init__(self, batch_size: int, shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.register_buffer("values", torch.zeros(batch_size, *shape))

    values: Tensor

    @torch.no_grad()
    def apply_to(self, images: Tensor, eps: float, left: int) -> Tensor:
        """Return images [B,C,H,W] changed by at most eps and within [0,1]; the first `left` as they are."""
        change = self.values[: len(images)].clamp(-eps, eps)
        change[:left] = 0
        return (images + change).clamp(0, 1)

    @torch.no_grad()
    def step(self, gradient: Tensor, eps: float) -> None:
        """Go on by eps along the sign of the loss's gradient [B,C,H,W], within eps (algorithm 1)."""
        some = self.values[: len(gradient)]
        some.add_(gradient.sign(), alpha=eps).clamp_(-eps, eps)


class Overfitting(nn.Module):
    """Watches for catastrophic overfitting to one step: PGD wins again while one step still does not [F].

    Where PGD was never withstood it cannot fall: there it is that one step alone is withstood, see `misleads`.

    In buffers, so that a training that is resumed knows its earlier epochs; as numbers of double precision, which come
    back from them as they were.
    """

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("figures", torch.zeros(2, dtype=torch.float64))
        self.register_buffer("epochs", torch.zeros(2, dtype=torch.int64))

    figures: Tensor
    epochs: Tensor

    @property
    def best(self) -> tuple[float, float]:
        """Accuracies under PGD and under one step, of the epoch that stood PGD best so far."""
        pgd, single = self.figures.tolist()
        return pgd, single

    @property
    def since(self) -> int:
        """The epoch, from 1, in which it was first seen; 0 for never."""
        return int(self.epochs[0])

    @property
    def noted(self) -> int:
        """How many epochs were looked at."""
        return int(self.epochs[1])

    @torch.no_grad()
    def note(self, epoch: int, pgd: float, single: float) -> bool:
        """Take an epoch's accuracies, of as many images each time; return whether it is the first that overfits."""
        best = self.best
        fell = pgd < best[0] - FALL and single > best[1] - STAYS
        first = not self.since and (fell or misleads(pgd, single))
        if first:
            self.epochs[0] = epoch
        self.epochs[1] += 1
        self.figures.copy_(torch.tensor(max(best, (pgd, single)), dtype=torch.float64))
        return first


def misleads(pgd: float, single: float) -> bool:
    """Whether weights stand one step and not PGD, as overfitted ones do, whatever came before."""
    return single - pgd > FALL and single > APART * pgd
