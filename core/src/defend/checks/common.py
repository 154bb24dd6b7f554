"""What the checks share: what they look at, how they word what they find, and when a difference is more than chance."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any, Literal

import attrs
import torch
from torch import Tensor, nn

from defend.defence import Defence
from defend.randomness import keyed
from defend.rows import RowRecord
from defend.statistics import mcnemar
from defend.threats import DEFENDED, UNDEFENDED
from defend.values import Calibration

Level = Literal["basic", "full"]
Status = Literal["pass", "warn", "fail", "skip"]

INFORMED = ("adaptive", "bpda", "detector-aware")
"""Threats whose attacker differentiates the defence: the white-box rows."""
LESS_INFORMED = ("oblivious", "transfer", "query", "noise")
TAIL = 0.5 * math.erfc(math.sqrt(2))
"""The chance of a normal deviate more than two standard errors above its mean. With few images a count is not normal,
so the checks compare exact chances with this one instead of differences with standard errors."""
SAME_EPS = 1e-6
PACK = 128  # images in one forward pass of a probe, draws included


@attrs.frozen
class Promise:
    """The accuracy on clean test images that a weights' card gives, and whether these images are of the same data."""

    accuracy: float
    same_data: bool = True


@attrs.frozen(kw_only=True)
class Subject:
    """A prepared defence (frozen, in eval mode) and some test images, for the checks that query it.

    Attributes:
        defence: the whole that was attacked.
        undefended: the bare victim.
        images: float32 [N,C,H,W] in [0,1], on the defence's device; about 8 for `basic`, 50 for `full`.
        labels: int64 [N], on the same device.
        keys: int64 [N], the images' places in the test split.
        eps: the L-inf budget of the run.
        seed: of the run, which also decides a random defence's draws.
        draws: passes that the run's adaptive attackers average over.
        steps: of the PGD that `full` probes with; its own ten times as many.
        classes: how many.
        calibration: how the detector's threshold was set, None if unknown.
        promise: what the card of the victim's weights gives, None if nothing.
    """

    defence: Defence
    undefended: Defence
    images: Tensor
    labels: Tensor
    keys: Tensor
    eps: float
    classes: int
    seed: int = 0
    draws: int = 20
    steps: int = 20
    calibration: Calibration | None = None
    promise: Promise | None = None

    def part(self, which: slice) -> Subject:
        """Return the same with some of the images."""
        return attrs.evolve(self, images=self.images[which], labels=self.labels[which], keys=self.keys[which])


@attrs.frozen
class Case:
    """What a check is given: finished rows, what it may query (None: nothing), and how much it may spend."""

    records: Sequence[RowRecord]
    subject: Subject | None
    level: Level

    @cached_property
    def clean(self) -> RowRecord | None:
        """The row without an attack."""
        return next((record for record in self.records if record.plan.threat.kind == "none"), None)

    @cached_property
    def informed_kinds(self) -> tuple[str, ...]:
        """The threats that count as white-box: the oblivious one too, where victim and defence are the same."""
        kinds = {record.plan.threat.kind for record in self.records}
        bare = kinds.isdisjoint(INFORMED) and all(same_answers(record) for record in self.records)
        return (*INFORMED, "oblivious") if bare else INFORMED

    def of(self, kinds: Iterable[str]) -> list[RowRecord]:
        """Return the attacked rows of some threats with the run's own budget."""
        wanted = set(kinds)
        return [
            record
            for record in self.records
            if record.plan.threat.kind in wanted and record.plan.headline and record.plan.threat.eps is not None
        ]

    @property
    def full(self) -> Subject | None:
        """What may be queried at length; None below level `full`."""
        return self.subject if self.level == "full" else None


def same_answers(record: RowRecord) -> bool:
    """Whether the defence answers exactly as the bare victim does, and accepts everything."""
    bare, whole = record.arms[UNDEFENDED], record.arms[DEFENDED]
    return (
        torch.equal(bare.predicted, whole.predicted)
        and torch.equal(bare.confidence, whole.confidence)
        and bool(whole.accepted.all())
    )


# Wording


@attrs.frozen
class Finding:
    """A check's outcome, before it has a name and a number."""

    status: Status
    detail: str
    numbers: Mapping[str, Any] = attrs.field(factory=dict)


class Findings:
    """Collects what the parts of a check found; the worst decides, and is said first."""

    def __init__(self) -> None:
        self._found: list[tuple[Status, str]] = []
        self.numbers: dict[str, Any] = {}

    def add(self, status: Status, text: str) -> None:
        """One part found this."""
        self._found.append((status, text))

    def finding(self) -> Finding:
        """Return the whole: what a part could not judge is said only where nothing else is."""
        order: tuple[Status, ...] = ("fail", "warn", "pass", "skip")
        there = {status for status, _ in self._found}
        status: Status = next((each for each in order if each in there), "skip")
        loud = ("fail", "warn") if status in ("fail", "warn") else (status,)
        texts = [text for level in loud for found, text in self._found if found == level]
        return Finding(status, "; ".join(texts), self.numbers)


def plain(value: Any) -> Any:
    """Return a value as JSON can hold it: numbers that are not finite become None, tuples lists."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def percent(share: float) -> str:
    """Return "12.5 %"."""
    return f"{100 * share:.1f} %"


def title(record: RowRecord) -> str:
    """Return a row's name in lists, "attack/threat"."""
    variant = f":{record.plan.variant}" if record.plan.variant else ""
    return f"{record.plan.name}/{record.plan.threat.kind}{variant}"


# Images

Outcomes = Mapping[int, bool]
"""By image: whether the defence was right, or whether it held."""


def right(record: RowRecord, arm: str = DEFENDED) -> Outcomes:
    """Return by image whether an arm predicted the label and accepted: `accuracy` of the report."""
    said = record.arms[arm]
    return _outcomes(record, (said.predicted == record.labels) & said.accepted)


def classified(record: RowRecord, arm: str = DEFENDED) -> Outcomes:
    """Return by image whether an arm predicted the label, rejected or not: what an attack on the classifier left."""
    return _outcomes(record, record.arms[arm].predicted == record.labels)


def held(record: RowRecord, arm: str = DEFENDED) -> Outcomes:
    """Return by image whether an arm was not fooled. Fooled is accepted and misclassified: what attackers are after."""
    said = record.arms[arm]
    return _outcomes(record, (said.predicted == record.labels) | ~said.accepted)


def _outcomes(record: RowRecord, which: Tensor) -> Outcomes:
    return dict(zip(record.keys.tolist(), which.tolist(), strict=True))


def worst_of(outcomes: Sequence[Outcomes]) -> Outcomes:
    """Return by image whether all agree on True, among those that judged it."""
    found: dict[int, bool] = {}
    for each in outcomes:
        for key, ok in each.items():
            found[key] = found.get(key, True) and ok
    return found


def by_key(subject: Subject, which: Tensor) -> Outcomes:
    """Return a bool [N] of a subject's images by image."""
    return dict(zip(subject.keys.tolist(), which.tolist(), strict=True))


def share(outcomes: Outcomes) -> float:
    """Return the share that is True; 0 of none."""
    return sum(outcomes.values()) / max(len(outcomes), 1)


# Chance


@attrs.frozen
class Paired:
    """Two outcomes on the images common to both: shares, and how many images only one got right."""

    n: int
    first: float
    second: float
    only_first: int
    only_second: int

    @property
    def exceeds(self) -> bool:
        """Whether the first is above the second by more than two standard errors (McNemar's test, exact)."""
        return self.only_first > self.only_second and mcnemar(self.only_first, self.only_second) / 2 < TAIL


def paired(first: Outcomes, second: Outcomes) -> Paired:
    """Compare two outcomes image by image."""
    common = first.keys() & second.keys()
    n = max(len(common), 1)
    return Paired(
        len(common),
        sum(first[key] for key in common) / n,
        sum(second[key] for key in common) / n,
        sum(first[key] and not second[key] for key in common),
        sum(second[key] and not first[key] for key in common),
    )


def chance_of_at_least(successes: int, n: int, p: float) -> float:
    """Return P(X >= successes) of a binomial X with n trials of probability p in (0,1)."""
    odds, log_n = math.log(p) - math.log1p(-p), math.lgamma(n + 1) + n * math.log1p(-p)
    terms = (
        math.exp(log_n - math.lgamma(k + 1) - math.lgamma(n - k + 1) + k * odds)
        for k in range(max(successes, 0), n + 1)
    )
    return min(math.fsum(terms), 1.0)


def chance_of_at_most(successes: int, n: int, p: float) -> float:
    """Return P(X <= successes) of a binomial X with n trials of probability p in (0,1)."""
    return chance_of_at_least(n - successes, n, 1 - p)


def rejections(count: int, n: int, fpr: float, held_out: int) -> tuple[float, float]:
    """Return the chances of at most and of at least `count` rejections of n clean images like the held-out ones.

    The threshold stands above all but fpr * held_out of the held-out scores, so the share that it really rejects is
    Beta(fpr * held_out + 1, (1 - fpr) * held_out) distributed, and the count beta-binomial.
    """
    above, below = fpr * held_out + 1, max((1 - fpr) * held_out, 1.0)

    def log_beta(a: float, b: float) -> float:
        return math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)

    chances = [
        math.exp(log_beta(k + above, n - k + below) - log_beta(above, below) - log_beta(k + 1, n - k + 1)) / (n + 1)
        for k in range(n + 1)
    ]
    return math.fsum(chances[: count + 1]), math.fsum(chances[count:])


def beyond(outcomes: Outcomes, p: float) -> bool:
    """Whether more are True than a share p explains, by more than two standard errors."""
    return chance_of_at_least(sum(outcomes.values()), len(outcomes), p) < TAIL


# Asking


class Known(nn.Module):
    """A defence with its draws known: those of the evaluation's own judgement, keyed by image and seed.

    So it is deterministic where its randomness goes through `defend.randomness`, and `random` is False. Takes the
    images at `keys`, or several rounds of all of them, [R*N,C,H,W].
    """

    random = False
    bounded = True

    def __init__(self, defence: Defence, keys: Tensor, seed: int) -> None:
        super().__init__()
        self.defence, self.keys, self.seed = defence, keys, seed

    def purify(self, images: Tensor) -> Tensor:
        """Return what the victim sees of [R*N,C,H,W]."""
        with keyed(self._keys(images), seed=self.seed, stream="defender"):
            return self.defence.purify(images)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits [R*N,K]."""
        purified = self.purify(images)
        with keyed(self._keys(images), seed=self.seed, stream="victim"):
            return self.defence.classify(purified)

    def scores(self, images: Tensor) -> Tensor:
        """Return the detector's scores [R*N], differentiable."""
        assert self.defence.detector is not None
        with keyed(self._keys(images), seed=self.seed, stream="defender"):
            return self.defence.rate(images, self.defence.purify(images))

    def _keys(self, images: Tensor) -> Tensor:
        return self.keys.repeat(len(images) // len(self.keys))


def known(subject: Subject) -> Known:
    """Return a subject's defence with its draws known."""
    return Known(subject.defence, subject.keys, subject.seed)


@torch.no_grad()
def judged(subject: Subject, images: Tensor) -> Tensor:
    """Return bool [N]: which of a subject's images, changed or not, the defence classifies as labelled.

    The detector is left out: the attacks of these checks do not aim at it, and what it happens to reject would hide
    what they did.
    """
    found = []
    for place in range(0, len(images), PACK):
        some = slice(place, place + PACK)
        with keyed(subject.keys[some], seed=subject.seed, stream="defender"):
            screening = subject.defence.screen(images[some])
        with keyed(subject.keys[some], seed=subject.seed, stream="victim"):
            verdict = subject.defence.judge(images[some], screening)
        found.append(verdict.labels == subject.labels[some])
    return torch.cat(found)


def margin(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the largest other logit less the label's, [B]: above 0 is misclassified, and it never saturates."""
    own = torch.nn.functional.one_hot(labels, logits.shape[1]).bool()
    return logits.masked_fill(own, -torch.inf).amax(1) - logits[own]


class NoGradientError(Exception):
    """The images have no gradient: what is between them and the output cannot be differentiated."""


def gradient(values: Tensor, images: Tensor) -> Tensor:
    """Return the gradient of the sum of `values` with respect to images.

    Raises:
        NoGradientError: there is none.
    """
    if not values.requires_grad:
        raise NoGradientError("the output carries no gradient: something between it and the images detaches")
    (found,) = torch.autograd.grad(values.sum(), images, allow_unused=True)
    if found is None:
        raise NoGradientError("the output does not depend on the images in autograd: something between them detaches")
    return found
