"""One row of a run: what is planned, and what is recorded of every image."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import attrs
import torch
from torch import Tensor

from defend.attacks.sight import Seen
from defend.stages import Attack
from defend.values import Threat

EXAMPLES = 4  # images kept for the pictures: so many where the defence failed, and so many where it held
REJECTED = -1


@attrs.frozen
class PlannedRow:
    """One row to evaluate: an attack under a threat, on the images at `keys` of the test split.

    `attack` is None for the clean row. `steps` is what the table shows. The arm `attacked` is what the attack
    faces; the arms in `judges` give their verdicts. `variant` and `headline` are as in `defend.values.Row`. `aim` is
    the score below which an attacker who knows the detector wants to stay. `carry` is what rows of the same attack at
    several budgets have in common, and the arm that says who is fooled: those images are taken over to the next larger
    budget, which holds them too; never where the attacked arm is random. `recipe` names the attack with all its
    options, for the store of adversarial batches; a row without one is never stored.
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
    recipe: str = ""


@attrs.frozen
class ArmRecord:
    """What one arm said of every image of a row: tensors [N] on the CPU.

    `passes` is what a random arm predicted in each of several passes, [N,P], `REJECTED` where it rejected; the first
    is `predicted`. None where it was asked once.
    """

    predicted: Tensor
    confidence: Tensor
    accepted: Tensor
    score: Tensor
    passes: Tensor | None = None


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
        return Example(
            self.clean[some], self.attacked[some], self.labels[some], self.keys[some],
            {name: images[some] for name, images in self.purified.items()},
            {name: labels[some] for name, labels in self.predicted.items()},
            {name: flags[some] for name, flags in self.accepted.items()},
        )  # fmt: skip


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
    """

    keys: Tensor
    labels: Tensor
    arms: Mapping[str, ArmRecord]
    linf: Tensor
    l2: Tensor
    overshoot: Tensor
    queries: Tensor | None
    attack_seconds: float
    judge_seconds: Mapping[str, float]
    judge_ms: Mapping[str, float]
    example: Example
    failures: int
    fooled: tuple[Tensor, Tensor] | None = None
    reused: int = 0
    seen: Seen | None = None


@attrs.frozen
class RowRecord:
    """Everything recorded of a row, per image, in the order of `keys`; the columns are those of `Part`."""

    plan: PlannedRow
    keys: Tensor
    labels: Tensor
    arms: Mapping[str, ArmRecord]
    linf: Tensor
    l2: Tensor
    attack_seconds: float
    judge_seconds: Mapping[str, float]
    judge_ms: Mapping[str, float]
    example: Example
    partial: bool
    overshoot: Tensor
    queries: Tensor | None = None
    reused: int = 0
    seen: Seen | None = None


def merge(parts: Sequence[Part]) -> Part:
    """Put parts one after another. Of their examples the first failures and the first others are kept."""

    def arm(name: str) -> ArmRecord:
        said = [part.arms[name] for part in parts]
        return ArmRecord(
            predicted=torch.cat([one.predicted for one in said]),
            confidence=torch.cat([one.confidence for one in said]),
            accepted=torch.cat([one.accepted for one in said]),
            score=torch.cat([one.score for one in said]),
            passes=_joined([one.passes for one in said]),
        )

    example, failures = _examples(parts)
    fooled = [part.fooled for part in parts if part.fooled is not None]
    arms = tuple(parts[0].arms)
    return Part(
        keys=torch.cat([part.keys for part in parts]),
        labels=torch.cat([part.labels for part in parts]),
        arms={name: arm(name) for name in arms},
        linf=torch.cat([part.linf for part in parts]),
        l2=torch.cat([part.l2 for part in parts]),
        overshoot=torch.cat([part.overshoot for part in parts]),
        queries=_joined([part.queries for part in parts]),
        attack_seconds=sum(part.attack_seconds for part in parts),
        judge_seconds={name: sum(part.judge_seconds[name] for part in parts) for name in arms},
        # the first batch also pays for warming up, so cost is that of the fastest batch an image
        judge_ms={name: min(part.judge_ms[name] for part in parts) for name in arms},
        example=example,
        failures=failures,
        fooled=(torch.cat([keys for keys, _ in fooled]), torch.cat([images for _, images in fooled]))
        if fooled else None,
        reused=sum(part.reused for part in parts),
        seen=Seen.joined([part.seen for part in parts]),
    )  # fmt: skip


def record_of(plan: PlannedRow, parts: Sequence[Part], partial: bool) -> RowRecord:
    """Return the record of a row from its parts; partial also where images are missing."""
    whole = merge(parts)
    return RowRecord(
        plan, whole.keys, whole.labels, whole.arms, whole.linf, whole.l2, whole.attack_seconds, whole.judge_seconds,
        whole.judge_ms, whole.example, partial or len(whole.keys) < len(plan.keys), whole.overshoot, whole.queries,
        whole.reused, whole.seen,
    )  # fmt: skip


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
        self.parts.append(attrs.evolve(kept, fooled=None))
        return kept


def _joined(column: Sequence[Tensor | None]) -> Tensor | None:
    there = [value for value in column if value is not None]
    return torch.cat(there) if len(there) == len(column) else None


def _examples(parts: Sequence[Part]) -> tuple[Example, int]:
    """Take the first failures of all parts, then the first others; return how many are failures."""
    failed = [part.example.at(range(part.failures)) for part in parts]
    others = [part.example.at(range(part.failures, len(part.example.keys))) for part in parts]
    wrong, held = (_cat(each) for each in (failed, others))
    count = min(len(wrong.keys), EXAMPLES)
    return _cat([wrong.at(range(count)), held.at(range(min(len(held.keys), EXAMPLES)))]), count


def _cat(examples: Sequence[Example]) -> Example:
    def stacked(pick: Callable[[Example], Tensor]) -> Tensor:
        return torch.cat([pick(example) for example in examples])

    def by_arm(pick: Callable[[Example], Mapping[str, Tensor]]) -> dict[str, Tensor]:
        return {name: torch.cat([pick(example)[name] for example in examples]) for name in pick(examples[0])}

    return Example(
        clean=stacked(lambda example: example.clean),
        attacked=stacked(lambda example: example.attacked),
        labels=stacked(lambda example: example.labels),
        keys=stacked(lambda example: example.keys),
        purified=by_arm(lambda example: example.purified),
        predicted=by_arm(lambda example: example.predicted),
        accepted=by_arm(lambda example: example.accepted),
    )


def restrict(record: RowRecord, names: Mapping[str, str]) -> RowRecord:
    """Keep some of a record's arms, under new names: `names` maps the new ones to the recorded ones."""
    known = {new: old for new, old in names.items() if old in record.arms}
    return attrs.evolve(
        record,
        arms={new: record.arms[old] for new, old in known.items()},
        judge_seconds={new: record.judge_seconds[old] for new, old in known.items()},
        judge_ms={new: record.judge_ms[old] for new, old in known.items()},
        example=attrs.evolve(
            record.example,
            purified={new: record.example.purified[old] for new, old in known.items()},
            predicted={new: record.example.predicted[old] for new, old in known.items()},
            accepted={new: record.example.accepted[old] for new, old in known.items()},
        ),
    )


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
