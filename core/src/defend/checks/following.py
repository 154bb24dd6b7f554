"""Check 5, what a gradient is good for: the loss followed along the attacker's own direction, from 1e-3 of eps to eps.

A gradient that is not the loss's slope may be smoothed on purpose (straight-through, a surrogate backwards, a soft
median), and then it leads to what it cannot see in the smallest differences; or it is masked, and promises what the
loss never delivers. Finite differences alone do not tell the two apart. Random directions of the same length say what
any step would have found, and promises (gradient times step) what this one should.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal

import attrs
import torch
from torch import Tensor

from defend.attacks.balls import steepest, unit
from defend.attacks.given import Replay
from defend.attacks.objectives import leading_spread, log_odds, scale_to_usual
from defend.checks.common import Case, Findings, Known, Status, Subject, gradient, percent, title
from defend.checks.outcomes import TAIL, Outcomes, find_classified, share, worst_of
from defend.randomness import keyed, normal_like, sign_like
from defend.records.rows import RowRecord
from defend.values.threats import ThreatKind

LENGTHS = (1e-3, 1e-2, 0.1, 1.0)  # of eps
STRIDE = 0.1  # from this length on: what attacks take steps of
MANIFOLD = 10.0  # of a promise: from here on a share of it says less than the loss itself
EXACT = 0.25  # of the promise that the loss may miss at the shortest length
RANDOM = (2, 96)  # random directions an image, the more the fewer images

BY_CHANCE = TAIL / 2  # two lengths are steps of an attack

Verdict = Literal["exact", "smoothed", "short-sighted", "masked"]
USEFUL = ("exact", "smoothed")
STATUS: Mapping[Verdict, Status] = {"exact": "pass", "smoothed": "pass", "short-sighted": "warn", "masked": "fail"}
MEANS: Mapping[Verdict, str] = {
    "exact": "the gradient is the slope",
    "smoothed": "the gradient is smoothed, and useful",
    "short-sighted": "the gradient leads uphill for less than a step of any attack; restart, or attack with query",
    "masked": "the gradient is masked, it promises what the loss does not deliver; attack with bpda or query",
}


@attrs.frozen
class Group:
    """The white-box rows of one norm and budget, by the strongest; `left` says who stands them all, by image.

    `row` is the strongest that attacks, which leaves least, and among equals took most steps; None where there is none.
    """

    row: RowRecord | None
    norm: str
    eps: float
    left: Outcomes

    @property
    def who(self) -> str:
        """Name the strongest row, or what is asked where there is none."""
        return "the defence itself" if self.row is None else title(self.row)


@attrs.frozen
class Followed:
    """What was found of `n` images: means at each of `LENGTHS`, in units of the log-odds against the label.

    Attributes:
        promised: gradient times step.
        found: how far the loss rose along the gradient.
        blind: how far along random directions.
        chance: how often random directions would come off as well as the gradient did, image by image.
    """

    n: int
    promised: tuple[float, ...]
    found: tuple[float, ...]
    blind: tuple[float, ...]
    chance: tuple[float, ...]

    @property
    def verdict(self) -> Verdict:
        """What the gradient is good for; definite, whatever it is of."""
        better = [
            length
            for length, found, chance in zip(LENGTHS, self.found, self.chance, strict=True)
            if found > 0 and chance < BY_CHANCE
        ]
        if not better or self.promised[0] <= 0:
            return "masked"
        if max(better) < STRIDE:
            return "short-sighted"
        return "exact" if abs(self.found[0] - self.promised[0]) <= EXACT * self.promised[0] else "smoothed"

    def say(self, those: str = "") -> str:
        """Return what was found, in words; `those` says which images they are."""
        start = f"of {self.n} images {those}".rstrip()
        if self.promised[0] <= 0:
            return f"{start}: it is zero"
        # a promise that is kept is so at the shortest length; of others it counts what an attack's steps find
        ends = (0, 3) if self.verdict in ("exact", "short-sighted") else (2, 3)
        if any(
            abs(gain[place]) > MANIFOLD * self.promised[place] for gain in (self.found, self.blind) for place in ends
        ):
            moves = [
                f"{self.found[place]:.2g} at {LENGTHS[place]:g} eps, where {self.promised[place]:.2g} was promised and "
                f"random directions find {self.blind[place]:.2g}"
                for place in ends
            ]
            return f"{start}: the loss rises by {', '.join(moves)}"
        parts = [
            f"{percent(self.found[place] / self.promised[place])} at {LENGTHS[place]:g} eps where random directions "
            f"find {percent(self.blind[place] / self.promised[place])}"
            for place in ends
        ]
        return f"{start}: the loss delivers of its promise {', '.join(parts)}"


def group_rows(case: Case) -> list[Group]:
    """Return the rows whose attacker has the exact gradient, by norm and budget; the whole defence where none is."""
    subject = case.subject
    groups: dict[tuple[str, float], list[RowRecord]] = {}

    def fits(threat: ThreatKind) -> bool:
        # a surrogate backwards is another gradient, and who aims at a detector climbs something else beside the loss
        return case.informed(threat) and threat.faces != "surrogates" and not threat.evades

    for row in case.of(fits):
        if row.plan.threat.eps:
            groups.setdefault((row.plan.threat.norm, row.plan.threat.eps), []).append(row)
    found = []
    for (norm, eps), rows in groups.items():
        # images that were there already, such as a row's in 8 bits, attack nothing anew
        attacking = [row for row in rows if not isinstance(row.plan.attack, Replay)]
        if not attacking:
            continue
        strongest = min(attacking, key=lambda row: (share(find_classified(row)), -(row.plan.steps or 0)))
        found.append(Group(strongest, norm, eps, worst_of([find_classified(row) for row in rows])))
    if found or subject is None:
        return found
    return [Group(None, "linf", subject.eps, {})]


def choose_left(records: Sequence[RowRecord], most: int) -> Tensor | None:
    """Return the keys of up to `most` images that the strongest white-box rows leave right, int64; None without any."""
    for group in group_rows(Case(records, None, "basic")):
        left = sorted(key for key, ok in group.left.items() if ok)
        if left:
            return torch.tensor(left[:most])
    return None


def follow_rows(case: Case, subject: Subject, found: Findings, disagreement: float | None) -> None:
    """Say of each white-box row what its gradient is good for; `disagreement` is with finite differences, if any."""
    verdicts: list[Verdict] = []
    pool = subject.left or subject
    for group in group_rows(case):
        left = torch.tensor([group.left.get(key, False) for key in pool.keys.tolist()])
        some = left if bool(left.any()) else torch.ones_like(left)
        images, labels, keys = (column[some.to(column.device)] for column in (pool.images, pool.labels, pool.keys))
        seen = follow(attrs.evolve(subject, images=images, labels=labels, keys=keys), group.norm, group.eps)
        verdicts.append(seen.verdict)
        found.numbers.setdefault("followed", {})[f"{group.norm} {group.eps:.4g}"] = {
            "row": group.who,
            "verdict": seen.verdict,
            "left_right": int(left.sum()),
            "lengths": LENGTHS,
            **attrs.asdict(seen),
        }
        those = "that it leaves right" if bool(left.any()) else "of which it leaves none right" if group.left else ""
        found.add(STATUS[seen.verdict], f"{group.who}: {MEANS[seen.verdict]} ({seen.say(those)})")
    if disagreement is not None and verdicts:
        worst = max(verdicts, key=list(STATUS).index)
        which = "a slope smoothed on purpose" if worst in USEFUL else "a masked slope"
        said = f"finite differences disagree with autograd (relative error {disagreement:.2g}): {which}"
        found.add(STATUS[worst], said)


def follow(subject: Subject, norm: str, eps: float) -> Followed:
    """Follow the log-odds of a subject's images along the gradient at them, and along random directions."""
    n = len(subject.images)
    images, labels = subject.images, subject.labels
    source = images.detach().requires_grad_()
    with torch.enable_grad():
        logits = Known(subject.defence, subject.keys, subject.seed)(source).float()
        # as attacks scale them, but one factor for all points of an image: the values are compared
        scale = scale_to_usual(leading_spread(logits))
        before = log_odds(logits * scale[:, None], labels)
        slope = gradient(before, source).nan_to_num()
    before = before.detach()
    count = choose_count(n)
    ways = [steepest(slope, norm), *(_random(subject, norm, number) for number in range(count))]
    promised, found, blind, chance = [], [], [], []
    for length in LENGTHS:
        points = [(images + length * eps * way).clamp(0, 1) for way in ways]
        gains = _ask(subject, points, scale) - before
        promised.append(float((slope * (points[0] - images)).flatten(1).sum(1).mean()))
        found.append(float(gains[0].mean()))
        blind.append(float(gains[1:].mean()))
        below = (gains[:1] > gains[1:]).double() + 0.5 * (gains[:1] == gains[1:]).double()
        chance.append(chance_of_ranks(float(below.sum()), n, count))
    return Followed(n, tuple(promised), tuple(found), tuple(blind), tuple(chance))


def choose_count(n: int) -> int:
    """Return how many random directions tell a gradient from chance on n images, though one of them beats it once."""
    fewest, most = RANDOM
    return next((count for count in range(fewest, most) if (n + 1) / (count + 1) ** n < BY_CHANCE), most)


def chance_of_ranks(total: float, n: int, others: int) -> float:
    """Return how often n ranks among `others` random ones, 0 to `others` each, sum to `total` or more by chance."""
    counts = [1.0]
    for _ in range(n):
        wider = [0.0] * (len(counts) + others)
        for place, count in enumerate(counts):
            for rank in range(others + 1):
                wider[place + rank] += count / (others + 1)
        counts = wider
    return min(math.fsum(counts[math.floor(total) :]), 1.0)


@torch.no_grad()
def _ask(subject: Subject, points: Sequence[Tensor], scale: Tensor) -> Tensor:
    """Return the log-odds [W,N] at points W times [N,C,H,W], of logits times `scale` [N], with the judge's draws."""
    n = len(subject.images)
    at_once = max(subject.pack // n, 1)
    whole, found = Known(subject.defence, subject.keys, subject.seed), []
    for place in range(0, len(points), at_once):
        some = points[place : place + at_once]
        logits = whole(torch.cat(list(some))).float() * scale.repeat(len(some))[:, None]
        found.append(log_odds(logits, subject.labels.repeat(len(some))).view(len(some), n))
    return torch.cat(found)


def _random(subject: Subject, norm: str, number: int) -> Tensor:
    with keyed(subject.keys, seed=subject.seed, stream=f"check/follow/{number}"):
        return sign_like(subject.images) if norm == "linf" else unit(normal_like(subject.images))
