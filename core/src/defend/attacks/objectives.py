"""What gradient attacks climb: the cross-entropy, differences of logits and of probabilities.

Where a softmax is in a loss, float32 rounds its gradient to zero once it is saturated; the forms of attacks of many
steps do not (`Steady`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import attrs
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from defend.attacks.balls import at_least_float32

Objective = Callable[[nn.Module, Tensor, Tensor], tuple[Tensor, Tensor]]
"""(module, images [B,C,H,W], labels [B]) to (loss [B] that an untargeted attack raises, logits [B,K])."""
Ask = Callable[[nn.Module, Tensor], Tensor]
"""(module, images [B,C,H,W]) to the logits [B,K] that a loss is of."""


def ask_whole(module: nn.Module, images: Tensor) -> Tensor:
    """Return a module's own logits [B,K] of images [B,C,H,W]."""
    logits: Tensor = module(images)
    return logits


def cross_entropy(module: nn.Module, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The usual objective: cross-entropy of the module's logits, a number an image."""
    logits = module(images)
    return F.cross_entropy(logits, labels, reduction="none"), logits


def unscaled_odds(module: nn.Module, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The log-odds against the label: the cross-entropy's signs and directions, however saturated the softmax is.

    For crafting that is to be the literal attack wherever that sees anything; `steady_cross_entropy` differs from it
    where logits are of unusual size, as `Target.slope` scales them. Of one draw: a mean over several is no loss's.
    """
    logits = module(images)
    return log_odds(logits.float(), labels), logits


@attrs.frozen
class Steady:
    """A loss for attacks of many steps: the same ascent, and never zero because a softmax is saturated.

    What is differentiated is a number that rises and falls as the loss does. That changes the gradient's length alone,
    which makes no difference to a sign step or to one of unit length; but the loss's own gradient is rounded to zero in
    float32 where the label's logit is far ahead. `defend.attacks.target.Target.slope` knows such objectives: over
    several draws it averages the loss, and scales logits of unusual size, see `steady_odds`.

    Attributes:
        number: (logits [B,K], labels [B]) to what is differentiated, [B].
        log_loss: that number to the logarithm of the loss.
        log_weight: that number to the logarithm of the loss's slope by it.
        ask: whose logits the loss is of.
    """

    number: Callable[[Tensor, Tensor], Tensor]
    log_loss: Callable[[Tensor], Tensor]
    log_weight: Callable[[Tensor], Tensor]
    ask: Ask = ask_whole

    def __call__(self, module: nn.Module, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """See `Objective`; the loss is the number."""
        logits = self.ask(module, images)
        return self.number(logits.float(), labels), logits


LEADING = 5  # logits of an image that an attack has to do with
SPREAD = (10.0, 40.0)  # of an image's leading logits: what a usual network has


def steady_odds(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the log-odds against the label, [B], of logits [B,K] whose leading ones spread as a usual network's do.

    With tiny logits all other classes count alike in the cross-entropy, with huge ones only the largest does. An
    attack's success would then depend on a factor that changes no prediction. Logits of usual spread stay as they are.
    Only the gradient is of use: the factor is taken anew at every point, so values at two points do not compare.
    """
    return log_odds(logits * scale_to_usual(leading_spread(logits))[:, None], labels)


def leading_spread(logits: Tensor) -> Tensor:
    """Return how far the leading logits of an image lie apart, [B]: the largest of [B,K] less the fifth largest.

    Those behind have no say: a class that is never meant, at -1e4, would make the spread, and a scale that is taken
    from that would leave nothing of the differences that decide.
    """
    leading = logits.detach().topk(min(LEADING, logits.shape[1]), 1).values
    return leading[:, 0] - leading[:, -1]


def scale_to_usual(spread: Tensor) -> Tensor:
    """Return what logits of such a spread [B] are multiplied by to have a usual one, [B]; 1 where they do, or none."""
    spread = spread.detach()
    usable = (spread > 0) & torch.isfinite(spread)
    return torch.where(usable, spread.clamp(*SPREAD) / torch.where(usable, spread, 1), 1)


def log_odds(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the log of the odds against the label, [B], from logits [B,K]: it rises and falls as the cross-entropy."""
    own = F.one_hot(labels, logits.shape[1]).bool()
    return logits.masked_fill(own, -torch.inf).logsumexp(1) - logits.gather(1, labels[:, None])[:, 0]


def scaled_cross_entropy(scale: float, ask: Ask = ask_whole) -> Objective:
    """Return the cross-entropy of logits that are multiplied by `scale`; those returned are as they were answered."""
    if scale == 1 and ask is ask_whole:
        return cross_entropy

    def objective(module: nn.Module, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        logits = ask(module, images)
        return F.cross_entropy(scale * logits, labels, reduction="none"), logits

    return objective


def log_odds_of_margin(logits: Tensor, labels: Tensor) -> Tensor:
    """Return log((1 + m) / (1 - m)), [B], of the probability margin m = max p_i - p_y, i not y, of logits [B,K].

    With o the largest other class, 1 + m is all other probabilities and p_o, 1 - m all but p_o and p_y, over the same
    sum: so neither end of the margin's range is rounded to.
    """
    own = F.one_hot(labels, logits.shape[1]).bool()
    others = logits.masked_fill(own, -torch.inf)
    largest, which = others.max(1)
    but_largest = logits.masked_fill(F.one_hot(which, logits.shape[1]).bool(), -torch.inf)
    above = torch.logaddexp(others.logsumexp(1), largest)
    # gathered, not masked: how many a mask selects, the host would wait to be told
    return above - torch.logaddexp(but_largest.logsumexp(1), logits.gather(1, labels[:, None])[:, 0])


def _log_softplus(odds: Tensor) -> Tensor:
    # log(log(1 + exp(o))), which is o where exp(o) is lost beside 1; there the other branch may be the log of zero,
    # hence the clamp
    return torch.where(odds < -20, odds, F.softplus(odds).clamp_min(1e-30).log())


steady_cross_entropy = Steady(log_odds, _log_softplus, F.logsigmoid)
"""The cross-entropy log(1 + exp(o)), by its log-odds against the label, o = log sum_{i != y} exp(z_i) - z_y."""

probability_margin = Steady(log_odds_of_margin, F.logsigmoid, lambda odds: F.logsigmoid(odds) + F.logsigmoid(-odds))
"""The probability margin max p_i - p_y (Xie et al. 2024, arXiv:2411.15210, PMA), raised by one, by its log-odds."""


def choose_cross_entropy(scale: float | None, ask: Ask = ask_whole) -> Objective:
    """Return the cross-entropy of what is asked: its steady form, or the literal one of logits times a scale."""
    return attrs.evolve(steady_cross_entropy, ask=ask) if scale is None else scaled_cross_entropy(scale, ask)


def margin(module: nn.Module, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The difference of logits, max z_i - z_y, i not y (Carlini and Wagner 2017); positive is fooled."""
    logits = module(images)
    return _compare(logits, labels)[0], logits


def targeted_margin(module: nn.Module, images: Tensor, pairs: Tensor) -> tuple[Tensor, Tensor]:
    """The difference of two logits, z_y - z_t, which falls as t is neared; `pairs` as of `targeted_ratio`."""
    logits = module(images)
    aim, own = at_least_float32(logits).gather(1, pairs).unbind(1)
    return own - aim, logits


def difference_of_logits_ratio(module: nn.Module, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """DLR (Croce and Hein 2020, eq. 6): -(z_y - max z_i) / (z_1 - z_3), i not y, z_1 >= z_2 >= z_3.

    No shift or scale of logits changes it. It needs three classes. With two the ratio would be 1 or -1 and its slope
    zero, so there the difference alone is the loss, -(z_y - z_i): it rises exactly where the margin falls, and steps do
    not depend on its scale.
    """
    logits = module(images)
    difference, ordered = _compare(logits, labels)
    if logits.shape[1] == 2:
        return difference, logits
    return _ratio(difference, ordered[:, 0] - ordered[:, 2]), logits


def targeted_ratio(module: nn.Module, images: Tensor, pairs: Tensor) -> tuple[Tensor, Tensor]:
    """Targeted DLR (eq. 7) with the sign turned, so that falling is nearing: (z_y - z_t) / (z_1 - (z_3 + z_4) / 2).

    It needs four classes. With three the denominator is z_1 - (z_2 + z_3) / 2, which, unlike z_1 - z_3, leaves a
    slope where y and t are the first and the last; with two it is 1.

    Args:
        module, images: as of every objective.
        pairs: int64 [B,2], the class t to reach and the class y to leave.
    """
    logits = module(images)
    values = at_least_float32(logits)
    ordered = values.sort(1, descending=True).values
    aim, own = values.gather(1, pairs).unbind(1)
    if logits.shape[1] == 2:
        return own - aim, logits
    low = ordered[:, 1:3] if logits.shape[1] == 3 else ordered[:, 2:4]
    return _ratio(own - aim, ordered[:, 0] - low.mean(1)), logits


def measure_margin(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the label's logit less the largest other, [B]; negative is fooled."""
    return -_compare(logits, labels)[0]


def _compare(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return the largest other logit less the label's, [B], and all [B,K] in falling order."""
    values = at_least_float32(logits)
    ordered, order = values.sort(1, descending=True)
    own = values.gather(1, labels[:, None])[:, 0]
    return torch.where(order[:, 0] == labels, ordered[:, 1], ordered[:, 0]) - own, ordered


def _ratio(difference: Tensor, spread: Tensor) -> Tensor:
    """Divide; where the spread is zero, the logits in it are equal, and the difference is returned as it is."""
    return difference / torch.where(spread < torch.finfo(spread.dtype).tiny, torch.ones_like(spread), spread)


LOSSES: Mapping[str, Objective] = {
    "ce": steady_cross_entropy,
    "dlr": difference_of_logits_ratio,
    "margin": margin,
    "pm": probability_margin,
}
"""By the names that users type."""
OF_PAIRS: Mapping[Objective, Objective] = {difference_of_logits_ratio: targeted_ratio, margin: targeted_margin}
"""What stands in for a loss where the class to leave is known beside the one to reach; it is to fall."""
