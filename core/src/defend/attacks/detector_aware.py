"""Attacks that know the detector: an image must end misclassified and accepted, within an L-inf budget."""

from __future__ import annotations

import abc
from collections.abc import Callable

import torch
from torch import Tensor

from defend.attacks.balls import project_linf, unit
from defend.attacks.objectives import log_odds, steady_odds
from defend.attacks.options import DetectorAwareOptions, JointOptions
from defend.attacks.target import Aims, Slopes, Target
from defend.errors import ConfigError
from defend.randomness import keyed, uniform_like

Direction = Callable[[Slopes, Tensor], Tensor]
"""(gradients of one pass, who is misclassified, bool [B]) to what the next step ascends, [B,C,H,W]."""


class DetectorAware(abc.ABC):
    """Projected sign steps in directions made of the classifier's and the detector's gradient.

    Of all points seen, the image itself among them, it keeps the one that fools most draws of a random defence
    (misclassified and accepted, as it is judged; of equals with a score below what the attacker wants); else the
    misclassified one with the lowest score; while there is none, the one with the highest loss: the log-odds against
    the label (`defend.attacks.objectives.log_odds`), which rise as the cross-entropy does and never lose their
    gradient. It is left alone once misclassified with a score below what the attacker wants (`target.threshold`, else
    the detector's own), but never against a random defence. There the best point of each pass, and the one that it
    ended in, are asked about again with draws that chose none of them.
    """

    norm = "linf"

    def __init__(self, config: DetectorAwareOptions, name: str) -> None:
        self._config, self._name = config, name

    @abc.abstractmethod
    def _passes(self, target: Target) -> list[tuple[Aims, Direction]]:
        """Return what to differentiate and where to go, one a pass of `steps` steps."""

    def __call__(self, target: Target, images: Tensor, labels: Tensor, *, eps: Tensor, keys: Tensor) -> Tensor:
        """See `defend.stages.Attack`.

        Raises:
            ConfigError: what is attacked has no detector.
        """
        if getattr(target.module, "detector", None) is None:
            raise ConfigError(
                f"attack {self._name} is made against a detector, and what it attacks has none: "
                "add one (--detector) or choose an attack for the adaptive threat, such as pgd"
            )
        config = self._config
        wanted = target.wanted
        size = 2.5 * eps / config.steps if config.step_size is None else torch.full_like(eps, config.step_size)
        best = _Best(images)
        everyone = torch.arange(len(images), device=images.device)
        # an image that is misclassified and accepted as it is needs no attack
        judge = f"{self._name}/judge"
        best.record(everyone, images, target.scores(images, labels, keys, judge), labels)
        for restart in range(config.restarts):
            for number, (aims, direction) in enumerate(self._passes(target)):
                left = everyone if target.random else best.open(wanted)
                if len(left) == 0:
                    return best.images
                some, budget, identity = images[left], eps[left], keys[left]
                stream = f"{self._name}/{restart}/{number}"
                start = some
                if config.random_start:
                    with keyed(identity, seed=target.seed, stream=f"{stream}/start"):
                        start = some + uniform_like(some, -1, 1) * budget.view(-1, 1, 1, 1)
                    start = project_linf(start, some, budget)
                found, last = self._climb(
                    target, some, start, labels[left], budget, identity, size[left], aims, direction, wanted, stream
                )
                if not target.random:
                    best.merge(left, found)
                    continue
                # the draws that a climb chose its candidate by flatter it, so all passes are compared by others
                for candidates in (found.images, last):
                    best.record(
                        left, candidates, target.scores(candidates, labels[left], identity, judge), labels[left]
                    )
        return best.images

    def _climb(
        self,
        target: Target,
        images: Tensor,
        start: Tensor,
        labels: Tensor,
        eps: Tensor,
        keys: Tensor,
        size: Tensor,
        aims: Aims,
        direction: Direction,
        wanted: Tensor,
        stream: str,
    ) -> tuple[_Best, Tensor]:
        """Return the best of a pass, and the points [B,C,H,W] that it ended in (of those still climbing)."""
        steps = self._config.steps
        every = target.compact_every or (1 if images.device.type == "cpu" else max(steps // 4, 1))
        best, place = _Best(start), torch.arange(len(images), device=images.device)
        current = start
        for step in range(steps):
            slopes = target.slopes(current, labels, keys, f"{stream}/{step}", aims)
            best.record(place, current, slopes, labels)
            wrong = slopes.logits.argmax(1) != labels
            ahead = torch.sign(direction(slopes, wrong)) * size.view(-1, 1, 1, 1)
            current = project_linf(current + ahead, images, eps)
            if not target.random and (step + 1) % every == 0:
                keep = ~(wrong & (slopes.scores < wanted))
                # an image that is misclassified and accepted is left there: that point is recorded already
                if not keep.any():
                    return best, current
                place, current, images, labels = place[keep], current[keep], images[keep], labels[keep]
                eps, keys, size = eps[keep], keys[keep], size[keep]
        # the loop records where each step begins, so the last point is still missing
        best.record(place, current, target.scores(current, labels, keys, f"{stream}/{steps}"), labels)
        return best, current


class _Best:
    """The best candidate of every image so far.

    One that fools more draws at the detector's own threshold is better, as there it is judged; of two that fool as many
    there, one that fools more below the stricter one that the attacker wants. Of two alike in both, any misclassified
    one is better than one that is not, of two misclassified ones the one with the lower score, and of two others that
    with the higher loss.
    """

    def __init__(self, images: Tensor) -> None:
        self.images = images.clone()
        self.wrong = torch.zeros(len(images), dtype=torch.bool, device=images.device)
        self.share = torch.full((len(images),), -1.0, device=images.device)
        self.strict = torch.full((len(images),), -1.0, device=images.device)
        self.score = torch.full((len(images),), torch.inf, device=images.device)
        self.loss = torch.full((len(images),), -torch.inf, device=images.device)

    def record(self, place: Tensor, images: Tensor, said: Slopes, labels: Tensor) -> None:
        """Take candidates for the images at `place` [n] in, where they are better."""
        loss, wrong = log_odds(said.logits, labels), said.logits.argmax(1) != labels
        self._take(place, images, wrong, said.share, said.strict, said.scores, loss)

    def merge(self, place: Tensor, other: _Best) -> None:
        """Take the best of another pass over the images at `place` in."""
        self._take(place, other.images, other.wrong, other.share, other.strict, other.score, other.loss)

    def open(self, wanted: Tensor) -> Tensor:
        """Return the places of those not yet misclassified with a score below `wanted`."""
        return (~(self.wrong & (self.score < wanted))).nonzero()[:, 0]

    def _take(
        self,
        place: Tensor,
        images: Tensor,
        wrong: Tensor,
        share: Tensor,
        strict: Tensor,
        score: Tensor,
        loss: Tensor,
    ) -> None:
        was, most, strictest = self.wrong[place], self.share[place], self.strict[place]
        lowest, highest = self.score[place], self.loss[place]
        better = torch.where(wrong & was, score < lowest, torch.where(wrong | was, wrong, loss > highest))
        better = torch.where(strict == strictest, better, strict > strictest)
        better = torch.where(share == most, better, share > most)
        self.images[place] = torch.where(better.view(-1, 1, 1, 1), images, self.images[place])
        self.wrong[place] = torch.where(better, wrong, was)
        self.share[place] = torch.where(better, share, most)
        self.strict[place] = torch.where(better, strict, strictest)
        self.score[place] = torch.where(better, score, lowest)
        self.loss[place] = torch.where(better, loss, highest)


class Joint(DetectorAware):
    """Ascend loss - weight * score / threshold, one pass for each weight.

    The score is divided by the size of the threshold that the attacker wants, so that a weight means the same for
    every detector; by 1 where that is zero or infinite.
    """

    def __init__(self, config: JointOptions) -> None:
        if not config.weights:
            raise ConfigError("pgd_joint: weights is empty: expected at least one number, for example 0,1,10")
        super().__init__(config, "pgd_joint")
        self._weights = config.weights

    def _passes(self, target: Target) -> list[tuple[Aims, Direction]]:
        size = target.wanted.abs()
        scale = torch.where(torch.isfinite(size) & (size > 0), size, torch.ones_like(size))

        def ascend(weight: float) -> tuple[Aims, Direction]:
            # apart, so that the one's gradient does not pass for the other's where that is missing
            return (
                lambda logits, scores, labels: [steady_odds(logits, labels), -weight * scores / scale],
                lambda slopes, wrong: slopes.gradients[0] + slopes.gradients[1],
            )

        return [
            ascend(weight) if weight else (_of_class, lambda slopes, wrong: slopes.gradients[0])
            for weight in self._weights
        ]


def _of_class(logits: Tensor, _: Tensor, labels: Tensor) -> list[Tensor]:
    return [steady_odds(logits, labels)]


class Selective(DetectorAware):
    """Ascend the loss of an image still classified right, else descend its score (Bryniarski et al. 2021).

    Against a random defence each draw decides by its own logits which of the two it does.
    """

    def __init__(self, config: DetectorAwareOptions) -> None:
        super().__init__(config, "pgd_selective")

    def _passes(self, target: Target) -> list[tuple[Aims, Direction]]:
        def aims(logits: Tensor, scores: Tensor, labels: Tensor) -> list[Tensor]:
            return [torch.where(logits.argmax(1) != labels, -scores, steady_odds(logits, labels))]

        return [(aims, lambda slopes, wrong: slopes.gradients[0])]


class Orthogonal(DetectorAware):
    """As `Selective`, with each gradient's part along the other taken away (Bryniarski et al. 2021).

    To first order a step against the one then leaves the other as it is. In L-inf the step is the sign of what is left,
    as in their code.
    """

    def __init__(self, config: DetectorAwareOptions) -> None:
        super().__init__(config, "pgd_orthogonal")

    def _passes(self, target: Target) -> list[tuple[Aims, Direction]]:
        def direction(slopes: Slopes, wrong: Tensor) -> Tensor:
            classifier, detector = slopes.gradients
            return torch.where(wrong.view(-1, 1, 1, 1), without(detector, classifier), without(classifier, detector))

        return [(lambda logits, scores, labels: [steady_odds(logits, labels), -scores], direction)]


def without(vectors: Tensor, other: Tensor) -> Tensor:
    """Return the part of each image's vector [B,C,H,W] that is orthogonal to the other's; all of it beside zero."""
    flat, along = vectors.flatten(1), unit(other).flatten(1)
    rest: Tensor = (flat - (flat * along).sum(1, keepdim=True) * along).view_as(vectors)
    return rest


def joint(config: JointOptions) -> Joint:
    """Build PGD on both losses together."""
    return Joint(config)


def selective(config: DetectorAwareOptions) -> Selective:
    """Build selective PGD."""
    return Selective(config)


def orthogonal(config: DetectorAwareOptions) -> Orthogonal:
    """Build orthogonal PGD."""
    return Orthogonal(config)
