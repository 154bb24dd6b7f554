"""What an attack faces: a model it may query and differentiate, with the randomness taken care of.

What comes back is looked at here, on the images that are really attacked: a gradient that is absent, zero or not finite
is written down (`defend.attacks.sight`), and one that is not finite is taken again a hair inside the box
(`defend.attacks.mending`).

One long class: whatever an attack asks, it asks with the same seed, draws, precision and record of what it saw.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import attrs
import torch
from torch import Tensor, nn

from defend.attacks.mending import Blindness, differentiate, fill, find_lost, mend
from defend.attacks.objectives import Objective, Steady, cross_entropy, leading_spread, scale_to_usual
from defend.attacks.sight import Ball, Halves, Sight
from defend.boundary.answers import ensure_bounded
from defend.boundary.given import name_of
from defend.errors import ContractError
from defend.randomness import APART, ATTACKER, keyed
from defend.util.memory import fit_batch

HAIR = 2.0**-10  # a quarter of a grey level: where a gradient is taken that is not finite on the box's edge
LOOK_EVERY = 16
"""On a device that must be waited for, it is asked so often whether a gradient was not finite; at the first two looks
too, as many attacks come to the box's edge with their first step."""
CPU_BATCH = 64  # images at once: a resnet18 on 32x32 takes 1.27 times as long for each of 256


@attrs.frozen
class Slope:
    """A gradient [B,C,H,W] at some images, the loss [B] and the logits [B,K] there (means over draws).

    `votes` is what the target predicted in each of several draws, int64 [D,B]; None of a single one.
    """

    gradient: Tensor
    loss: Tensor
    logits: Tensor
    votes: Tensor | None = None


Aims = Callable[[Tensor, Tensor, Tensor], Sequence[Tensor]]
"""(logits [B,K], detector scores [B], labels [B]) to numbers [B] each, every one to be differentiated.

Of two the first is of the class and the second of the detector's score.
"""


@attrs.frozen
class Slopes:
    """One gradient [B,C,H,W] an aim; logits [B,K] and detector scores [B] of the same pass (means over draws).

    `share` is in how many of the draws the image was misclassified with a score below the detector's own threshold,
    and `strict` with one below `Target.wanted`, [B] in [0,1] each.
    """

    gradients: list[Tensor]
    logits: Tensor
    scores: Tensor
    share: Tensor
    strict: Tensor


class Target:
    """A model under attack.

    Args:
        module: images in [0,1] to logits; a victim, or a whole `Defence`. What is no `Defence` stands behind
            `defend.boundary.answers.Answering`, which unwraps and checks its answers.
        seed: of the attacker's own draws, which are never the defender's.
        draws: passes that gradient and logits are averaged over where the module is random
            (expectation over transformation, Athalye et al. 2018), packed into one batch.
        precision: a dtype for autocast while crafting, or None.
        compact_every: drop images already fooled from the batch after so many steps. Finding them
            waits for the device: free on a CPU, so every step there; rarer on a GPU.
        threshold: the score below which an attacker who knows the detector wants an image to end, where that is
            stricter than the detector's own; None takes the detector's.
        known: the stream of the draws that the module will be judged with, for an attacker who knows them: to her it
            is not random. Her seed is the judge's. "" where she does not.

    Attributes:
        queries: int64 [B], how often each image of the last batch was shown to the model, in the batch's order,
            from an attack that counts; else None. `defend.attacks.host.craft` resets it.
        overshoot: [B], how far beyond budget or box the last result was before `craft` clipped it; None at first.
        sight: what was seen of each image of the last batch that `craft` attacked; None outside of it.
        classes: how many the module tells apart, once `craft` has seen an answer.
        others: images [N,C,H,W] that the attacker has of her own, or None: a run gives held-out ones to an attack
            whose attribute `begins_elsewhere` is true.
        differentiated: whether a library's attack has taken a gradient, see `defend.attacks.adapters.library`.
        shown: the float type that the module is shown images in, whatever the attack computes in; None leaves it.
            `craft` sets it, as attacks on images of half precision compute in float32, where small steps add up. What
            is shown is what `craft` would return, or an attack would believe in points that are then rounded away.

    Raises:
        ContractError: the module was built inside `torch.inference_mode()`, where nothing can be differentiated.
    """

    queries: Tensor | None = None
    overshoot: Tensor | None = None
    sight: Sight | None = None
    classes: int | None = None
    shown: torch.dtype | None = None
    differentiated: bool = False
    others: Tensor | None = None

    def __init__(
        self,
        module: nn.Module,
        *,
        seed: int = 0,
        draws: int = 1,
        precision: torch.dtype | None = None,
        compact_every: int | None = None,
        threshold: float | None = None,
        known: str = "",
    ) -> None:
        self.module, self.seed, self.precision, self.threshold = ensure_bounded(module), seed, precision, threshold
        self.random, self._known = bool(getattr(module, "random", False)) and not known, known
        self.draws = draws if self.random else 1
        self.compact_every = compact_every
        self._suspicious, self._looks = False, 0
        self._lost: Tensor | bool = False
        if isinstance(module, nn.Module) and any(parameter.is_inference() for parameter in module.parameters()):
            raise ContractError(
                f"{type(module).__name__} was built inside torch.inference_mode(), so its gradient cannot be taken: "
                "build it outside, or under torch.no_grad()"
            )

    @property
    def _who(self) -> str:
        """Of what the module is made, for errors of its backward pass."""
        parts = [(name, getattr(self.module, name, None)) for name in ("purifier", "detector", "victim")]
        named = [f"{name} {name_of(part)}" for name, part in parts if part is not None]
        return ", ".join(named) or f"victim {name_of(self.module)}"

    def watch(self, keys: Tensor, labels: Tensor, ball: Ball | None = None, halves: Halves | None = None) -> None:
        """Begin to write down what is seen of the images at `keys` [B], whose true labels [B] these are.

        A look that fools outside of the `ball` does not count, where there is one. `halves` are the images, if they are
        of half precision.
        """
        self.sight, self._suspicious, self._looks, self._lost = Sight(keys, labels, ball, halves), False, 0, False

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
        votes = [piece.votes for piece in pieces if piece.votes is not None]
        gradient, loss, said = (torch.cat(column) for column in columns)
        return Slope(gradient, loss, said, torch.cat(votes, 1) if votes else None)

    def _pieces(self, *columns: Tensor) -> Iterator[tuple[Tensor, ...]]:
        """Cut a batch up on a CPU: more than `CPU_BATCH` at once are slower an image, and large ones fill memory."""
        images = columns[0]
        most = max(fit_batch(CPU_BATCH, images.shape[2:].numel(), images.device) // self.draws, 1)
        count = 1 if images.device.type != "cpu" else max(-(-len(images) // most), 1)
        size = max(-(-len(images) // count), 1)
        return zip(*(column.split(size) for column in columns), strict=True)

    def _slope(
        self,
        images: Tensor,
        labels: Tensor,
        keys: Tensor,
        step: int | str,
        objective: Objective,
        full: bool,
        judged: bool,
    ) -> Slope:
        packed, steady = self._repeat(labels), objective if isinstance(objective, Steady) else None

        def look(source: Tensor) -> tuple[Tensor, Tensor, list[Tensor | None]]:
            loss, logits = objective(self.module, self._packed(source, keys), packed)
            loss, logits = loss.float(), logits.float()
            if steady:
                loss = steady.number(logits * self._usual_scale(keys, logits)[:, None], packed)
            value = self._weigh(loss, steady) if steady else loss.sum() / self.draws
            return loss.detach(), logits.detach(), [differentiate(value, source, self._who)]

        (loss, logits, found), blind = self._look(look, images, keys, step, full)
        said = self._mean(logits)
        self._note(keys, found, blind, logits=said if judged else None, points=images)
        mean = self._mean_of_logs(steady.log_loss(loss)) if steady else self._mean(loss)
        votes = logits.argmax(1).unflatten(0, (self.draws, -1)) if self.draws > 1 else None
        return Slope(fill(found[0], images), mean, said, votes)

    def _usual_scale(self, keys: Tensor, logits: Tensor) -> Tensor:
        """Return what an image's logits are multiplied by, [D*B]: of the first look at it, so that losses compare."""
        spread = self._mean(leading_spread(logits))
        scale = scale_to_usual(spread)
        if self.sight is not None:
            scale = self.sight.first_scale(keys, scale, (spread > 0) & spread.isfinite())
        return self._repeat(scale)

    def _weigh(self, number: Tensor, steady: Steady) -> Tensor:
        """Return a number whose gradient is that of the loss's mean over draws, scaled image by image."""
        if self.draws == 1:
            return number.sum()
        # less the largest, as all weights round to zero where the label leads in every draw
        share = steady.log_weight(number.detach()).unflatten(0, (self.draws, -1))
        total: Tensor = (number * (share - share.amax(0)).exp().flatten()).sum() / self.draws
        return total

    def _mean_of_logs(self, logs: Tensor) -> Tensor:
        """Return, of the logarithms of a loss [D*B], that of its mean over draws, [B]."""
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

        def take(at: Tensor) -> tuple[Tensor, Tensor, list[Tensor | None]]:
            source = at.detach().requires_grad_()
            with torch.enable_grad(), self._surroundings(source, keys, step, full=full):
                return look(source)

        first, second, found = take(images)
        none = torch.zeros(len(images), dtype=torch.bool, device=images.device)
        blind = Blindness(none, none)
        lost = find_lost(found, none)
        self._looks += 1
        # between them what is lost is noted where it is, and nobody waits
        if images.device.type == "cpu" or self._suspicious or self._is_due():
            # one question for now and before
            self._suspicious = self._suspicious or bool(lost.any() | self._lost)
            if self._suspicious and bool(lost.any()):
                # of the same step, so with the same draws
                found, blind = mend(found, take(images.clamp(HAIR, 1 - HAIR))[2])
        else:
            self._lost, blind = lost.any() | self._lost, Blindness(lost, none)
            found = [None if one is None else one.nan_to_num(0, 0, 0) for one in found]
        return (first, second, found), blind

    def _is_due(self) -> bool:
        return self._looks == 2 or self._looks % LOOK_EVERY == 1

    def _note(
        self,
        keys: Tensor,
        found: list[Tensor | None],
        blind: Blindness,
        logits: Tensor | None = None,
        fooled: Tensor | None = None,
        points: Tensor | None = None,
        needed: Sequence[Tensor] = (),
    ) -> None:
        if self.sight is None:
            return
        there = [gradient for gradient in found if gradient is not None]
        one = there[0] if there else None
        if there and len(found) > 1:
            one = _sees(found, needed)[:, None]
        self.sight.note(
            keys,
            gradient=one,
            absent=not there,
            broken=blind.broken,
            mended=blind.mended,
            logits=logits,
            fooled=fooled,
            points=points,
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
                logits, scores = self._ask(self._packed(source, keys))
                values = aims(logits.float(), scores.float(), packed)
                gradients = [differentiate(value.sum() / self.draws, source, self._who, more=True) for value in values]
                return logits.detach().float(), scores.detach().float(), gradients

            (logits, scores, found), blind = self._look(look, images, keys, step, full=True)
            said, scored = self._mean(logits), self._mean(scores)
            wrong, accepted = said.argmax(1) != labels, scored < self.wanted
            self._note(keys, found, blind, fooled=wrong & accepted, points=images, needed=(~wrong, ~accepted))
        shares = self._shares_fooled(logits, scores, packed)
        return Slopes([fill(gradient, images) for gradient in found], said, scored, *shares)

    def _shares_fooled(self, logits: Tensor, scores: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        wrong = logits.argmax(1) != labels
        own, wanted = (self._mean((wrong & (scores < bound)).float()) for bound in (self._own, self.wanted))
        return own, wanted

    @torch.no_grad()
    def logits(self, images: Tensor, keys: Tensor, step: int | str) -> Tensor:
        """Return logits [B,K], the mean over draws, always in full precision."""
        with self._surroundings(images, keys, step, full=True):
            return self._mean(self.module(self._packed(images, keys)).float())

    @torch.no_grad()
    def judge(
        self, images: Tensor, labels: Tensor, keys: Tensor, step: int | str, noted: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Return logits [B,K], the mean over draws, and in how many draws each is misclassified, [B] in [0,1].

        `noted` is for an attack that ends where it is answered, and takes no gradient there: it is written down.
        """
        with self._surroundings(images, keys, step, full=True):
            each = self.module(self._packed(images, keys)).float()
            said, share = self._mean(each), self._mean((each.argmax(1) != self._repeat(labels)).float())
        if noted and self.sight is not None:
            self.sight.note(keys, logits=said, points=images)
        return said, share

    @torch.no_grad()
    def votes(self, images: Tensor, keys: Tensor, step: int | str) -> Tensor:
        """Return what is predicted in each of the draws, int64 [D,B], in full precision."""
        with self._surroundings(images, keys, step, full=True):
            votes: Tensor = self.module(self._packed(images, keys)).float().argmax(1).unflatten(0, (self.draws, -1))
            return votes

    @torch.no_grad()
    def scores(self, images: Tensor, labels: Tensor, keys: Tensor, step: int | str) -> Slopes:
        """Return what `slopes` does of no aim, from a pass without a graph, in full precision."""
        with self._surroundings(images, keys, step, full=True):
            logits, scores = (said.float() for said in self._ask(self._packed(images, keys)))
            shares = self._shares_fooled(logits, scores, self._repeat(labels))
            return Slopes([], self._mean(logits), self._mean(scores), *shares)

    @torch.no_grad()
    def answer(self, images: Tensor, keys: Tensor, step: int | str, draws: int | None = None) -> tuple[Tensor, Tensor]:
        """Return what an attacker sees who only asks: logits [B,K] (mean over draws) and who is accepted, bool [B].

        In full precision. Accepted means a score below the detector's own threshold, in most of the draws where
        the module is random; everything is accepted where there is no detector. `draws` is 1 for an attacker who
        gets one answer a query; None means the target's own number.
        """
        count = self.draws if draws is None or not self.random else draws
        with self._surroundings(images, keys, step, full=True, draws=count):
            packed = self._packed(images, keys, count)
            detector = getattr(self.module, "detector", None)
            if detector is None:
                logits = self.module(packed)
                accepted = torch.ones(len(images), dtype=torch.bool, device=images.device)
            else:
                logits, scores = self._ask(packed)
                accepted = self._mean((scores < detector.threshold).float(), count) > 0.5
            said = self._mean(logits.float(), count)
        if self.sight is not None:
            fooled = (said.argmax(1) != self.sight.labels_of(keys)) & accepted
            self.sight.note(keys, logits=None, fooled=fooled, points=images)
        return said, accepted

    @property
    def wanted(self) -> Tensor:
        """The score below which an attacker who knows the detector wants an image to end; infinite without one."""
        return self._own if self.threshold is None else torch.full_like(self._own, self.threshold)

    @property
    def _own(self) -> Tensor:
        return torch.as_tensor(getattr(getattr(self.module, "detector", None), "threshold", torch.inf)).float()

    def _ask(self, images: Tensor) -> tuple[Tensor, Tensor]:
        module: Any = self.module
        logits, scores = module.answer(images)
        return logits, scores

    def drawing(self, images: Tensor, keys: Tensor, step: str, draws: int) -> contextlib.AbstractContextManager[None]:
        """Inside, the module has the draws of a step of the attacker: `draws` of each of the images at `keys` [B]."""
        return self._surroundings(images, keys, step, full=True, draws=draws)

    def _surroundings(
        self, images: Tensor, keys: Tensor, step: int | str, full: bool = False, draws: int | None = None
    ) -> contextlib.AbstractContextManager[None]:
        stack = contextlib.ExitStack()
        count = draws or self.draws
        # keys are mostly places in a split, so draws that lie 2**40 apart never meet another image's
        packed = (
            keys
            if count == 1
            else (keys[None] + torch.arange(count, device=keys.device)[:, None] * (1 << APART)).flatten()
        )
        stack.enter_context(keyed(packed, seed=self.seed, stream=self._known or f"{ATTACKER}{step}"))
        if self.precision is not None and not full:
            stack.enter_context(torch.autocast(images.device.type, self.precision))
        return stack  # type: ignore[return-value]

    def show(self, images: Tensor, keys: Tensor | None) -> Tensor:
        """Return images [B,C,H,W] in the type that the module is shown; backwards the rounding is passed straight.

        Those at `keys` [B] as `craft` would return them. None are nobody's, and rounded to the nearest.
        """
        if self.shown is None:
            return images
        nearest = images.to(self.shown)
        if keys is None or self.sight is None:
            return nearest
        returned = self.sight.round(images.detach(), keys)
        return nearest if returned is None else nearest + (returned - nearest.detach())

    def _packed(self, images: Tensor, keys: Tensor, draws: int | None = None) -> Tensor:
        return self._repeat(self.show(images, keys), draws)

    def _repeat(self, values: Tensor, draws: int | None = None) -> Tensor:
        count = draws or self.draws
        return values if count == 1 else values.repeat(count, *(1,) * (values.ndim - 1))

    def _mean(self, values: Tensor, draws: int | None = None) -> Tensor:
        count = draws or self.draws
        return values if count == 1 else values.unflatten(0, (count, -1)).mean(0)


def _sees(found: Sequence[Tensor | None], needed: Sequence[Tensor]) -> Tensor:
    """Return bool [B]: who has a gradient for each aim that is not reached yet; one does not make up for another."""
    lacking = [
        open_ if gradient is None else open_ & ~gradient.flatten(1).any(1)
        for gradient, open_ in zip(found, needed, strict=True)
    ]
    return ~torch.stack(lacking).any(0)


def _usable(values: Tensor) -> Tensor:
    """Return a tensor that autograd may keep: a copy of one that was made in inference mode."""
    return values.clone() if values.is_inference() else values
