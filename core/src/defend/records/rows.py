"""One row of a run: what is planned, and what is recorded of every image."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import attrs
import torch
from torch import Tensor

from defend.records.seen import Seen
from defend.stages import Attack
from defend.values.threats import Threat

EXAMPLES = 4  # images kept for the pictures: so many where the defence failed, and so many where it held
REJECTED = -1
COLUMNS = ("keys", "labels", "linf", "l2", "overshoot")  # that every part has, a tensor each
EXAMPLE, OF_ARMS = ("clean", "attacked", "labels", "keys"), ("purified", "predicted", "accepted")  # of an `Example`


@attrs.frozen
class PlannedRow:
    """One row to evaluate: an attack under a threat, on the images at `keys` of the test split.

    `attack` is None for the clean row. `steps` is what the table shows. The arm `attacked` is what the attack
    faces; the arms in `judges` give their verdicts. `variant` and `headline` are as in a report's `Row`. `aim` is
    the score below which an attacker who knows the detector wants to stay. `carry` is what rows of the same attack at
    several budgets have in common, and the arm that says who is fooled: those images are taken over to the next larger
    budget, which holds them too; never where the attacked arm is random. `identity` names the attack with all its
    options, for the store of adversarial batches; a row without one is never stored. `made_of` is as in a report's
    `Row`, "" where it cannot be told. `chance` is what a row that tells the worth of a random defence's draws knows of
    them: `KNOWN_DRAWS`, `ONE_DRAW`, or "" of any other.
    `forward_passes` is what the attack asks of an image at most, by which the time left is told.
    """

    name: str
    threat: Threat
    attack: Attack | None
    keys: Tensor
    steps: int | None
    attacked: str
    judges: tuple[str, ...]
    variant: str = ""
    headline: bool = True
    aim: float | None = None
    carry: tuple[str, str] | None = None
    identity: str = ""
    made_of: str = ""
    chance: str = ""
    forward_passes: int = 1


@attrs.frozen
class ArmRecord:
    """What one arm said of every image of a row: tensors [N] on the CPU.

    `passes` is what a random arm predicted in each of several passes, [N,P], `REJECTED` where it rejected; the first
    is `predicted`. None where it was asked once. `distance` is, of an attack that minimises it, the smallest one found
    at which the arm fails: 0 where it fails on the clean image already, infinite where nothing was found. An arm that
    is right about what was found within the row's eps has none, whatever it makes of the clean image.
    """

    predicted: Tensor
    confidence: Tensor
    accepted: Tensor
    score: Tensor
    passes: Tensor | None = None
    distance: Tensor | None = None


@attrs.frozen
class Example:
    """A few images of a row for the picture, [M,C,H,W]: first those that the row's last arm got wrong, then others.

    Of each arm: what its victim saw, [M,C,H,W], what it predicted [M], and whether it accepted [M].
    """

    clean: Tensor
    attacked: Tensor
    labels: Tensor
    keys: Tensor
    purified: Mapping[str, Tensor]
    predicted: Mapping[str, Tensor]
    accepted: Mapping[str, Tensor]

    def at(self, places: Sequence[int]) -> Example:
        """Return some of the images, in the order of `places`."""
        some = torch.tensor(places, dtype=torch.int64)
        return _of_columns([self], lambda columns: columns[0][some])


@attrs.frozen(kw_only=True)
class Part:
    """What was recorded of some images of a row, per image: [N] on the CPU.

    Attributes:
        linf, l2: distances between the attacked and the clean images.
        overshoot: how far beyond budget or box the attack's raw result was before it was clipped.
        queries: how often the attack asked, if it counts.
        attack_seconds: what crafting took.
        judge_seconds: what each arm's judging took in all.
        judge_ms: an image's share of each arm's fastest batch.
        example, failures: the images for the picture, of which so many, the first ones, are failures.
        fooled: of a row that carries over: which images are fooled, and what fooled them [F,C,H,W].
        reused: how many attacked images came from the store.
        seen: what the attack saw of each image; None of a row without one, or where nothing was written down.
        attacked: the attacked images in 8 bits, uint8 [N,C,H,W], within the budget; None where nobody wants them.
    """

    keys: Tensor
    labels: Tensor
    arms: Mapping[str, ArmRecord]
    linf: Tensor
    l2: Tensor
    overshoot: Tensor
    attack_seconds: float
    judge_seconds: Mapping[str, float]
    judge_ms: Mapping[str, float]
    example: Example
    failures: int = 0
    queries: Tensor | None = None
    fooled: tuple[Tensor, Tensor] | None = None
    reused: int = 0
    seen: Seen | None = None
    attacked: Tensor | None = None


@attrs.frozen(kw_only=True)
class RowRecord(Part):
    """All parts of a planned row as one, in the order of `keys`; `partial` where some of its images are missing."""

    plan: PlannedRow
    partial: bool


def merge(parts: Sequence[Part]) -> Part:
    """Put parts one after another. Of their examples the first failures and the first others are kept."""

    def arm(name: str) -> ArmRecord:
        said = [part.arms[name] for part in parts]
        return ArmRecord(
            predicted=torch.cat([one.predicted for one in said]),
            confidence=torch.cat([one.confidence for one in said]),
            accepted=torch.cat([one.accepted for one in said]),
            score=torch.cat([one.score for one in said]),
            passes=_join([one.passes for one in said]),
            distance=_join([one.distance for one in said]),
        )

    example, failures = _examples(parts)
    fooled = [part.fooled for part in parts if part.fooled is not None]
    arms = tuple(parts[0].arms)
    return Part(
        **{name: torch.cat([getattr(part, name) for part in parts]) for name in COLUMNS},
        arms={name: arm(name) for name in arms},
        queries=_join_queries(parts),
        attack_seconds=sum(part.attack_seconds for part in parts),
        judge_seconds={name: sum(part.judge_seconds[name] for part in parts) for name in arms},
        # the first batch also pays for warming up, so cost is that of the fastest batch an image
        judge_ms={name: min(part.judge_ms[name] for part in parts) for name in arms},
        example=example,
        failures=failures,
        fooled=(torch.cat([keys for keys, _ in fooled]), torch.cat([images for _, images in fooled]))
        if fooled
        else None,
        reused=sum(part.reused for part in parts),
        seen=Seen.join([part.seen for part in parts]),
        attacked=_join([part.attacked for part in parts]),
    )


def record_of(plan: PlannedRow, parts: Sequence[Part], partial: bool) -> RowRecord:
    """Return the record of a row from its parts; partial also where images are missing."""
    whole = merge(parts)
    partial = partial or len(whole.keys) < len(plan.keys)
    return RowRecord(plan=plan, partial=partial, **attrs.asdict(whole, recurse=False))


class Trimmed:
    """The parts of a row so far, without the example images that no picture will show: memory does not grow by them."""

    def __init__(self) -> None:
        self.parts: list[Part] = []
        self._missing = [EXAMPLES, EXAMPLES]  # failures, others

    def add(self, part: Part) -> Part:
        """Add the next part, and return what is kept of it."""
        wrong, others = range(part.failures), range(part.failures, len(part.example.keys))
        places = [*wrong[: self._missing[0]], *others[: self._missing[1]]]
        failures = min(len(wrong), self._missing[0])
        self._missing = [self._missing[0] - failures, self._missing[1] - (len(places) - failures)]
        kept = attrs.evolve(part, example=part.example.at(places), failures=failures)
        # what fooled an image is kept in the journal, for larger budgets of a run that goes on; the row needs it no
        # more
        self.parts.append(attrs.evolve(kept, fooled=None))
        return kept


def _join(column: Sequence[Tensor | None]) -> Tensor | None:
    there = [value for value in column if value is not None]
    return torch.cat(there) if len(there) == len(column) else None


def _join_queries(parts: Sequence[Part]) -> Tensor | None:
    """Join the counts; of a batch that smaller budgets had fooled whole, nothing was asked."""
    if all(part.queries is None for part in parts):
        return None
    return torch.cat(
        [torch.zeros(len(part.keys), dtype=torch.int64) if part.queries is None else part.queries for part in parts]
    )


def _examples(parts: Sequence[Part]) -> tuple[Example, int]:
    """Take the first failures of all parts, then the first others; return how many are failures."""
    failed = [part.example.at(range(part.failures)) for part in parts]
    others = [part.example.at(range(part.failures, len(part.example.keys))) for part in parts]
    wrong, held = (_of_columns(each, torch.cat) for each in (failed, others))
    count = min(len(wrong.keys), EXAMPLES)
    kept = [wrong.at(range(count)), held.at(range(min(len(held.keys), EXAMPLES)))]
    return _of_columns(kept, torch.cat), count


def _of_columns(examples: Sequence[Example], work: Callable[[list[Tensor]], Tensor]) -> Example:
    """Make one example of several: `work` makes a column of theirs."""

    def by_arm(name: str) -> dict[str, Tensor]:
        columns = [getattr(example, name) for example in examples]
        return {arm: work([column[arm] for column in columns]) for arm in columns[0]}

    columns: dict[str, Any] = {name: work([getattr(example, name) for example in examples]) for name in EXAMPLE}
    columns |= {name: by_arm(name) for name in OF_ARMS}
    return Example(**columns)


def restrict(record: RowRecord, names: Mapping[str, str]) -> RowRecord:
    """Keep some of a record's arms, under new names: `names` maps the new ones to the recorded ones."""
    known = {new: old for new, old in names.items() if old in record.arms}

    def kept(holder: object, columns: Iterable[str]) -> dict[str, Any]:
        return {name: {new: getattr(holder, name)[old] for new, old in known.items()} for name in columns}

    example = attrs.evolve(record.example, **kept(record.example, OF_ARMS))
    return attrs.evolve(record, **kept(record, ("arms", "judge_seconds", "judge_ms")), example=example)


def find_clean(records: Iterable[RowRecord]) -> RowRecord | None:
    """Return the row of unattacked images, None where there is none."""
    return next((record for record in records if record.plan.threat.kind == "none"), None)


def right(record: RowRecord, arm: str) -> Tensor:
    """Return bool [N]: which images an arm classified right, and accepted."""
    said = record.arms[arm]
    return (said.predicted == record.labels) & said.accepted


def worst_case(
    records: Iterable[RowRecord], arm: str, judged: Callable[[RowRecord, str], Tensor] = right
) -> tuple[Tensor, Tensor]:
    """Return (keys of the images that every row judged, whether each was `judged` right in all rows)."""
    alive: dict[int, bool] = {}
    common: set[int] | None = None
    for record in records:
        good = judged(record, arm).tolist()
        keys = record.keys.tolist()
        for key, ok in zip(keys, good, strict=True):
            alive[key] = alive.get(key, True) and ok
        common = set(keys) if common is None else common & set(keys)
    kept = sorted(common or ())
    return torch.tensor(kept, dtype=torch.int64), torch.tensor([alive[key] for key in kept], dtype=torch.bool)
