"""What the checks share: what they look at, and how they word what they find."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any, Literal

import attrs
import torch
from torch import Tensor, nn

from defend.attacks.objectives import leading_spread
from defend.checks.outcomes import Outcomes
from defend.datasets.base import Batch
from defend.defence import Defence
from defend.randomness import keyed, open_keys
from defend.records.rows import RowRecord, find_clean
from defend.values.report import Calibration, Certified
from defend.values.shares import in_percent
from defend.values.threats import DEFENDED, THREATS, UNDEFENDED, ThreatKind

Level = Literal["basic", "full"]
Status = Literal["pass", "warn", "fail", "skip"]
SAME_EPS = 1e-6
SUMS = 1e-4  # by which what a softmax answers may miss 1
SIGMOID = "all answers lie between 0 and 1, as a sigmoid's do"
FAR_BEHIND = 3.0
PACK = 128  # images in one forward pass of a probe, draws included


def lead(logits: Tensor, like: Tensor | None = None) -> Tensor:
    """Return logits [B,K] less the largest of their image, in units of what leading ones lie apart in `like` [N,K].

    What differs between two answers is then seen beside a class that is far behind, and beside an offset of all
    classes, both of which decide nothing: none is further behind than `FAR_BEHIND` of what the leading ones are.
    """
    spread = leading_spread(logits if like is None else like)
    usable = spread[(spread > 0) & torch.isfinite(spread)]
    unit = usable.median() if len(usable) else spread.new_ones(())
    least = -FAR_BEHIND * (leading_spread(logits) / unit).nan_to_num(1, 1, 1).clamp_min(1)
    return ((logits - logits.amax(1, keepdim=True)) / unit).maximum(least[:, None])


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
        behind, parts: the purifiers that it stands behind here, and what they are like, as `Calibration` has them.
        promise: what the card of the victim's weights gives, None if nothing.
        plant: whether examples are planted below level `full` too.
        left: images that the white-box rows leave right, for what is to be asked about those; None: `images`.
        pack: points near the images that are asked about at once.
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
    behind: str | None = None
    parts: Mapping[str, Mapping[str, Any]] = attrs.field(factory=dict)
    promise: Promise | None = None
    plant: bool = False
    left: Batch | None = None
    pack: int = PACK

    def part(self, which: slice) -> Subject:
        """Return the same with some of the images."""
        return attrs.evolve(self, images=self.images[which], labels=self.labels[which], keys=self.keys[which])

    def halve(self) -> Subject:
        """Return the same with half of its images, of those that are `left`, and of what is asked about at once."""
        left = None if self.left is None else self.left.split(max(len(self.left.keys) // 2, 1))[0]
        return attrs.evolve(self.part(slice(max(len(self.keys) // 2, 1))), left=left, pack=max(self.pack // 2, 1))


@attrs.frozen
class Case:
    """What a check is given: finished rows, what it may query (None: nothing), and how much it may spend.

    Also what the run certified, if it did.
    """

    records: Sequence[RowRecord]
    subject: Subject | None
    level: Level
    certified: Certified | None = None

    @cached_property
    def clean(self) -> RowRecord | None:
        """The row without an attack."""
        return find_clean(self.records)

    @cached_property
    def bare(self) -> bool:
        """Whether victim and defence are the same, as far as the rows show."""
        return not any(threat.informed for threat in self.threats.values()) and all(map(same_answers, self.records))

    @cached_property
    def threats(self) -> Mapping[str, ThreatKind]:
        """The threats that have rows, in the order of `THREATS`."""
        there = {record.plan.threat.kind for record in self.records}
        return {kind: threat for kind, threat in THREATS.items() if kind in there}

    def informed(self, threat: ThreatKind) -> bool:
        """Whether a threat counts as white-box: the victim's gradient too, where victim and defence are the same."""
        return threat.informed or (self.bare and threat.faces == "victim" and threat.knows == "gradient")

    def of(self, fits: Callable[[ThreatKind], bool], swept: bool = False) -> list[RowRecord]:
        """Return the attacked rows of the threats that fit with the run's own budget; `swept`: with any."""
        kinds = {kind for kind, threat in self.threats.items() if fits(threat)}
        rows = [row for row in self.records if row.plan.threat.kind in kinds and row.plan.threat.eps is not None]
        return [row for row in rows if swept or row.plan.headline]

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
        self._remark = ""
        self.numbers: dict[str, Any] = {}

    def add(self, status: Status, text: str) -> None:
        """One part found this."""
        self._found.append((status, text))

    def remark(self, text: str) -> None:
        """Say beside whatever is found, in the place of what was said so before."""
        self._remark = text

    def copy(self) -> Findings:
        """Return another collection of the same; a part of a check looks at what the parts before it found."""
        other = Findings()
        other.take(self)
        return other

    def take(self, other: Findings) -> None:
        """Hold what another collection holds."""
        self._found, self._remark, self.numbers = [*other._found], other._remark, copy.deepcopy(other.numbers)

    def finding(self) -> Finding:
        """Return the whole: what a part could not judge is said only where nothing else is."""
        order: tuple[Status, ...] = ("fail", "warn", "pass", "skip")
        there = {status for status, _ in self._found}
        status: Status = next((each for each in order if each in there), "skip")
        # what passed is not told beside what did not
        loud = ("fail", "warn") if status in ("fail", "warn") else (status,)
        texts = [text for level in loud for found, text in self._found if found == level]
        return Finding(status, "; ".join([*texts, *filter(None, [self._remark])]), self.numbers)


def plain(value: Any) -> Any:
    """Return a value as JSON can hold it: numbers that are not finite become None, tuples lists."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def squashed_by(logits: Tensor) -> str:
    """Return what a victim's answers [B,K], of two or more images, look as if they ended in: softmax, sigmoid, or "".

    Of a binary classifier with one output z, which the host shows as (-z/2, z/2), it is z that is looked at.
    """
    one = logits.shape[1] == 2 and torch.equal(logits[:, 0], -logits[:, 1])
    said = 2 * logits[:, 1:] if one else logits
    if len(said) < 2 or not bool(((said >= 0) & (said <= 1)).all()) or not bool(said.any()):
        return ""
    return "softmax" if bool(((said.sum(1) - 1).abs() < SUMS).all()) and not one else "sigmoid"


def percent(share: float) -> str:
    """Return "12.5 %", see `in_percent`."""
    return f"{in_percent(share)} %"


def title(record: RowRecord) -> str:
    """Return a row's name in lists, "attack/threat"."""
    variant = f":{record.plan.variant}" if record.plan.variant else ""
    return f"{record.plan.name}/{record.plan.threat.kind}{variant}"


def by_key(subject: Subject, which: Tensor) -> Outcomes:
    """Return a bool [N] of a subject's images by image."""
    return dict(zip(subject.keys.tolist(), which.tolist(), strict=True))


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
        around = open_keys()  # whoever attacks may show a part of the images at a time
        if around is not None and len(around) == len(images):
            return around
        return self.keys.repeat(len(images) // len(self.keys))


def know_draws(subject: Subject) -> Known:
    """Return a subject's defence with its draws known."""
    return Known(subject.defence, subject.keys, subject.seed)


@torch.no_grad()
def judge(subject: Subject, images: Tensor) -> Tensor:
    """Return bool [N]: which of a subject's images, changed or not, the defence classifies as labelled.

    The detector is left out: the attacks of these checks do not aim at it, and what it happens to reject would hide
    what they did.
    """
    found = []
    for place in range(0, len(images), subject.pack):
        some = slice(place, place + subject.pack)
        with keyed(subject.keys[some], seed=subject.seed, stream="defender"):
            screening = subject.defence.screen(images[some])
        with keyed(subject.keys[some], seed=subject.seed, stream="victim"):
            verdict = subject.defence.judge(images[some], screening)
        found.append(verdict.labels == subject.labels[some])
    return torch.cat(found)


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
