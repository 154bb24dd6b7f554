"""What an attack faces: a model it may query and differentiate, with the randomness taken care of.

What comes back is looked at here, on the images that are really attacked: a gradient that is absent, zero or not finite
is written down (`defend.attacks.sight`), and one that is not finite is taken again a hair inside the box.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import attrs
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from defend.attacks.sight import Sight
from defend.boundary import answering
from defend.errors import ContractError
from defend.randomness import keyed

HAIR = 2.0**-10  # a quarter of a grey level: where a gradient is taken that is not finite on the box's edge
LOOK_EVERY = 16  # on a device that must be waited for, gradients are searched for such numbers so often
CPU_BATCH = 64  # images at once: a resnet18 on 32x32 takes 1.27 times as long for each of 256

Objective = Callable[[nn.Module, Tensor, Tensor], tuple[Tensor, Tensor]]
"""(module, images [B,C,H,W], labels [B]) to (loss [B] that an untargeted attack raises, logits [B,K])."""


def cross_entropy(module: nn.Module, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The usual objective: cross-entropy of the module's logits, a number an image."""
    logits = module(images)
    return F.cross_entropy(logits, labels, reduction="none"), logits


def steady_cross_entropy(module: nn.Module, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The cross-entropy for attacks of many steps: the same ascent, and never zero because a softmax is saturated.

    The loss is the log-odds against the label, o = log sum_{i != y} exp(z_i) - z_y. The cross-entropy is
    log(1 + exp(o)) and its gradient sigmoid(o) times that of o: another length, which neither a sign step nor one of
    unit length sees, and float32 rounds it to zero where a large logit leads. `Target.slope` knows this objective: over
    several draws it weighs them as the cross-entropy does. Logits of unusual size are scaled, see `steady_odds`.
    """
    logits = module(images)
    return log_odds(logits.float(), labels), logits


SPREAD = (10.0, 40.0)  # of an image's logits, largest less least: what a usual network has


def steady_odds(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the log-odds against the label, [B], of logits [B,K] whose spread is that of a usual network.

    Tiny logits level all other classes in the cross-entropy, and huge ones leave but the largest, so that an attack's
    success would depend on a factor that changes no prediction. Logits of usual spread stay as they are. For its
    gradient alone: the factor is an image's own at every point, so values at two points do not compare.
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
    return logits.masked_fill(own, -torch.inf).logsumexp(1) - logits[own]


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
        module: images in [0,1] to logits; a victim, or a whole `Defence`. What is no `Defence` stands behind
            `defend.boundary.Answering`, which unwraps and checks its answers.
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
        sight: what was seen of each image of the last batch that `craft` attacked; None outside of it.
        classes: how many the module tells apart, once `craft` has seen an answer.
        differentiated: whether a library's attack has taken a gradient, see `defend.attacks.adapters.library`.
        shown: the float type that the module is shown images in, whatever the attack computes in; None leaves it.
            `craft` sets it, as attacks on images of half precision compute in float32, where small steps add up.

    Raises:
        ContractError: the module was built inside `torch.inference_mode()`, where nothing can be differentiated.
    """

    queries: Tensor | None = None
    overshoot: Tensor | None = None
    sight: Sight | None = None
    classes: int | None = None
    shown: torch.dtype | None = None
    differentiated: bool = False

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
        self.module, self.seed, self.precision, self.threshold = answering(module), seed, precision, threshold
        self.random = bool(getattr(module, "random", False))
        self.draws = draws if self.random else 1
        self.compact_every = compact_every
        self._suspicious, self._looks = False, 0
        if isinstance(module, nn.Module) and any(parameter.is_inference() for parameter in module.parameters()):
            raise ContractError(
                f"{type(module).__name__} was built inside torch.inference_mode(), so its gradient cannot be taken: "
                "build it outside, or under torch.no_grad()"
            )

    def watch(self, keys: Tensor, labels: Tensor) -> None:
        """Begin to write down what is seen of the images at `keys` [B], whose true labels [B] these are."""
        self.sight, self._suspicious, self._looks = Sight(keys, labels), False, 0

    def slope(
        self,
        images: Tensor,
        labels: Tensor,
        keys: Tensor,
        step: int | str,
        objective: Objective = cross_entropy,
        full: bool = False,
        judged: bool = True,
    ) -> Slope:
        """Return the gradient of the objective with respect to `images`, with its loss and logits.

        `step` names the draws: another step sees other draws, the same step the same. The gradient is always finite:
        where the module lets none through it is zero, and where it is not finite it is taken `HAIR` inside the box,
        or zero if that does not help. The attack is blind then; `sight` has it, and `defend.checks` says so. `full` is
        full precision, whatever the target's own. `judged` is False where the objective's logits are not the target's
        own. Inference mode outside is left for it.
        """
        with torch.inference_mode(False):
            pieces = [
                self._slope(some, own, whose, step, objective, full, judged)
                for some, own, whose in self._pieces(*map(_usable, (images, labels, keys)))
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
        self, images: Tensor, labels: Tensor, keys: Tensor, step: int | str, objective: Objective, full: bool,
        judged: bool,
    ) -> Slope:  # fmt: skip
        packed, steady = self._repeat(labels), objective is steady_cross_entropy

        def look(source: Tensor) -> tuple[Tensor, Tensor, list[Tensor | None]]:
            loss, logits = objective(self.module, self._repeat(source), packed)
            loss, logits = loss.float(), logits.float()
            if steady:
                loss = log_odds(logits * self._usual_scale(keys, logits)[:, None], packed)
            value = self._weighed(loss) if steady else loss.sum() / self.draws
            return loss.detach(), logits.detach(), [_gradient(value, source)]

        (loss, logits, found), blind = self._look(look, images, keys, step, full)
        said = self._mean(logits)
        self._note(keys, found, blind, logits=said if judged else None)
        mean = self._mean_of_odds(loss) if steady else self._mean(loss)
        return Slope(_there(found[0], images), mean, said)

    def _usual_scale(self, keys: Tensor, logits: Tensor) -> Tensor:
        """Return what an image's logits are multiplied by, [D*B]: of the first look at it, so that losses compare."""
        spread = self._mean((logits.amax(1) - logits.amin(1)).detach())
        scale = scale_to_usual(spread)
        if self.sight is not None:
            scale = self.sight.first_scale(keys, scale)
        return self._repeat(scale)

    def _weighed(self, odds: Tensor) -> Tensor:
        """Return a number whose gradient is that of the cross-entropy's mean over draws, scaled image by image."""
        if self.draws == 1:
            return odds.sum()
        share = F.logsigmoid(odds.detach()).unflatten(0, (self.draws, -1))
        total: Tensor = (odds * (share - share.amax(0)).exp().flatten()).sum() / self.draws
        return total

    def _mean_of_odds(self, odds: Tensor) -> Tensor:
        """Return, of log-odds [D*B], the log of the cross-entropy's mean over draws, [B]: as steady as they are."""
        # log(log(1 + exp(o))), which is o where exp(o) is lost beside 1
        logs = torch.where(odds < -20, odds, F.softplus(odds).clamp_min(1e-30).log())
        if self.draws == 1:
            return logs
        mean: Tensor = logs.unflatten(0, (self.draws, -1)).logsumexp(0) - math.log(self.draws)
        return mean

    def _look(
        self,
        look: Callable[[Tensor], tuple[Tensor, Tensor, list[Tensor | None]]],
        images: Tensor,
        keys: Tensor,
        step: int | str,
        full: bool,
    ) -> tuple[tuple[Tensor, Tensor, list[Tensor | None]], Blindness]:
        """Differentiate once, and once more a hair inside the box for what was not finite; say what stayed so."""

        def taken(at: Tensor) -> tuple[Tensor, Tensor, list[Tensor | None]]:
            source = at.detach().requires_grad_()
            with torch.enable_grad(), self._surroundings(source, keys, step, full=full):
                return look(source)

        first, second, found = taken(images)
        none = torch.zeros(len(images), dtype=torch.bool, device=images.device)
        blind = Blindness(none, none)
        self._looks += 1
        if images.device.type == "cpu" or self._suspicious or self._looks % LOOK_EVERY == 1:
            if not all(gradient is None or bool(torch.isfinite(gradient).all()) for gradient in found):
                self._suspicious = True
                found, blind = _mended(found, taken(images.clamp(HAIR, 1 - HAIR))[2])
        else:
            found = [None if one is None else one.nan_to_num(0, 0, 0) for one in found]
        return (first, second, found), blind

    def _note(
        self,
        keys: Tensor,
        found: list[Tensor | None],
        blind: Blindness,
        logits: Tensor | None = None,
        fooled: Tensor | None = None,
    ) -> None:
        if self.sight is None:
            return
        there = [gradient for gradient in found if gradient is not None]
        one = None if not there else there[0] if len(there) == 1 else torch.cat([each.flatten(1) for each in there], 1)
        self.sight.note(
            keys, gradient=one, absent=not there, broken=blind.broken, mended=blind.mended, logits=logits, fooled=fooled
        )

    def slopes(self, images: Tensor, labels: Tensor, keys: Tensor, step: int | str, aims: Aims) -> Slopes:
        """Return the gradients of several aims, of logits and detector scores, from one forward pass.

        In full precision always, as scores are held against a threshold. An aim that does not depend on the images
        (a detector that always says the same) has a gradient of zeros. `step` as in `slope`.
        """
        with torch.inference_mode(False):
            images, labels, keys = map(_usable, (images, labels, keys))
            packed = self._repeat(labels)

            def look(source: Tensor) -> tuple[Tensor, Tensor, list[Tensor | None]]:
                logits, scores = self._ask(self._repeat(source))
                values = aims(logits.float(), scores.float(), packed)
                gradients = [_gradient(value.sum() / self.draws, source, more=True) for value in values]
                return logits.detach().float(), scores.detach().float(), gradients

            (logits, scores, found), blind = self._look(look, images, keys, step, full=True)
            said, scored = self._mean(logits), self._mean(scores)
            fooled = (said.argmax(1) != labels) & (scored < self.wanted)
            self._note(keys, found, blind, fooled=fooled)
        return Slopes([_there(gradient, images) for gradient in found], said, scored)

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
            said = self._mean(logits.float(), count)
        if self.sight is not None:
            self.sight.note(keys, logits=None, fooled=(said.argmax(1) != self.sight.labels_of(keys)) & accepted)
        return said, accepted

    @property
    def wanted(self) -> Tensor:
        """The score below which an attacker who knows the detector wants an image to end; infinite without one."""
        own = torch.as_tensor(getattr(getattr(self.module, "detector", None), "threshold", torch.inf)).float()
        return own if self.threshold is None else torch.full_like(own, self.threshold)

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


@attrs.frozen
class Blindness:
    """Whose gradient was not finite: to the end (`broken`), or only at the box's edge (`mended`); bool [B]."""

    broken: Tensor
    mended: Tensor


def _gradient(value: Tensor, source: Tensor, more: bool = False) -> Tensor | None:
    """Differentiate a number; None where it does not depend on the source. With `more` to come, the graph stays."""
    if not value.requires_grad:
        return None
    (gradient,) = torch.autograd.grad(value, source, retain_graph=more, allow_unused=True)
    return gradient


def _mended(found: list[Tensor | None], inside: list[Tensor | None]) -> tuple[list[Tensor | None], Blindness]:
    """Fill what is not finite with what was found a hair inside the box; what is not finite there either is zero."""
    whole: list[Tensor | None] = []
    broken, mended = [], []
    for gradient, other in zip(found, inside, strict=True):
        if gradient is None:
            whole.append(None)
            continue
        filled = gradient if other is None else torch.where(torch.isfinite(gradient), gradient, other)
        lost = (~torch.isfinite(filled)).flatten(1).any(1)
        broken.append(lost)
        mended.append((~torch.isfinite(gradient)).flatten(1).any(1) & ~lost)
        whole.append(filled.nan_to_num(0, 0, 0))
    return whole, Blindness(torch.stack(broken).any(0), torch.stack(mended).any(0))


def _there(gradient: Tensor | None, images: Tensor) -> Tensor:
    return torch.zeros_like(images) if gradient is None else gradient


def _usable(values: Tensor) -> Tensor:
    """Return a tensor that autograd may keep: a copy of one that was made in inference mode."""
    return values.clone() if values.is_inference() else values
