"""The evaluation loop: craft once, judge with every arm, record every image.

Rows run one after another, so that an interrupted run keeps the finished ones. Every random draw is
keyed by image, so batch size and order change nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TypeVar

import attrs
import torch
from torch import Tensor

from defend.attacks.host import craft
from defend.attacks.target import Target
from defend.datasets.base import Batch, ImageDataset
from defend.defence import Defence, Screening
from defend.randomness import keyed
from defend.stages import Attack
from defend.values import Threat, Verdict

EXAMPLES = 4  # images kept for the pictures: so many where the defence failed, and so many where it held
REJECTED = -1
T = TypeVar("T")


@attrs.frozen
class PlannedRow:
    """One row to evaluate: an attack under a threat, on the images at `keys` of the test split.

    `attack` is None for the clean row. `steps` is what the table shows. The arm `attacked` is what the attack
    faces; the arms in `judges` give their verdicts. `variant` and `headline` are as in `defend.values.Row`. `aim` is
    the score below which an attacker who knows the detector wants to stay. `carry` is what rows of the same attack at
    several budgets have in common, and the arm that says who is fooled: those images are taken over to the next larger
    budget, which holds them too; never where the attacked arm is random.
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


@attrs.frozen
class RowRecord:
    """Everything recorded of a row, per image, in the order of `keys`; `linf` and `l2` are distances.

    `overshoot` is how far beyond budget or box the attack's raw result was before it was clipped, `queries` how often
    the attack asked, if it counts. `judge_seconds` is what each arm's judging took in all, `judge_ms` an image's share
    of its fastest batch.
    """

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


@attrs.frozen(kw_only=True)
class Settings:
    """How to evaluate: nothing here changes a result except `seed`, `draws` and `crafting`.

    Attributes:
        batch_size: images at a time; halved, and kept so, when memory runs out.
        draws: passes an adaptive attacker averages over when the defence is random.
        passes: how often a random arm is asked.
        crafting: a dtype for autocast while crafting, or None.
        progress: called with the number of images just finished.
    """

    device: torch.device
    seed: int = 0
    batch_size: int = 64
    draws: int = 20
    passes: int = 1
    crafting: torch.dtype | None = None
    progress: Callable[[int], None] = lambda images: None


class Evaluator:
    """Runs rows over a data set.

    Args:
        arms: "undefended", "defended", ..., by name, prepared (frozen, on the device).
        dataset: whose test split is judged.
        settings: see `Settings`.
    """

    def __init__(self, arms: Mapping[str, Defence], dataset: ImageDataset, settings: Settings) -> None:
        self._arms, self._dataset, self._settings = arms, dataset, settings
        self.batch_size = settings.batch_size
        self._fooled: dict[str, dict[int, Tensor]] = {}

    def row(self, plan: PlannedRow) -> RowRecord | None:
        """Evaluate one row. Ctrl-C ends it: what was finished comes back marked partial, None if nothing."""
        settings = self._settings
        attacked_arm = self._arms[plan.attacked] if plan.attack is not None else None
        target = None
        if attacked_arm is not None:
            target = Target(
                attacked_arm,
                seed=settings.seed,
                draws=settings.draws,
                # a purifier is never attacked in reduced precision: its rounding would hide the gradient
                precision=settings.crafting if attacked_arm.purifier is None else None,
                threshold=plan.aim,
            )
        parts: list[_Part] = []
        partial = False
        try:
            for batch in self._dataset.batches("test", plan.keys, self.batch_size, settings.device):
                for piece in self._pieces(batch, lambda part: self._judge(part, plan, target)):
                    parts.append(piece)
                    settings.progress(len(piece.keys))
        except KeyboardInterrupt:
            partial = True
        return _join(plan, parts, partial) if parts else None

    def _pieces(self, batch: Batch, work: Callable[[Batch], T]) -> Iterator[T]:
        """Do the work on a batch, in halves when memory runs out."""
        waiting = list(_split(batch, self.batch_size))
        while waiting:
            part = waiting.pop(0)
            try:
                yield work(part)
            except RuntimeError as error:
                if len(part.keys) == 1 or not _out_of_memory(error):
                    raise
                self.batch_size = max(len(part.keys) // 2, 1)
                if self._settings.device.type == "cuda":
                    torch.cuda.empty_cache()
                waiting = list(_split(part, self.batch_size)) + waiting

    def _judge(self, batch: Batch, plan: PlannedRow, target: Target | None) -> _Part:
        images = batch.images
        start = self._now()
        made = _Made(images, images.new_zeros(len(images)), None)
        if plan.attack is not None and target is not None:
            made = self._craft(plan, plan.attack, target, batch)
        attacked = made.images
        crafted = self._now()
        verdicts, passes, seconds = self._verdicts(plan.judges, attacked, batch.keys)
        arms = {
            name: ArmRecord(
                said.labels.cpu(), said.confidence.cpu(), said.accepted.cpu(), said.score.cpu(), passes.get(name)
            )
            for name, said in verdicts.items()
        }
        difference = (attacked - images).flatten(1)
        last = arms[plan.judges[-1]]
        held = (last.predicted == batch.labels.cpu()) & last.accepted
        failures = (~held).nonzero()[:EXAMPLES, 0]
        some = torch.cat([failures, held.nonzero()[:EXAMPLES, 0]])
        there = some.to(images.device)
        if plan.carry is not None and target is not None and not target.random:
            self._keep_fooled(plan.carry, arms, batch, attacked)
        return _Part(
            keys=batch.keys.cpu(),
            labels=batch.labels.cpu(),
            arms=arms,
            linf=difference.abs().amax(1).cpu(),
            l2=difference.square().sum(1).sqrt().cpu(),
            attack_seconds=crafted - start,
            judge_seconds=seconds,
            overshoot=made.overshoot.cpu(),
            queries=None if made.queries is None else made.queries.cpu(),
            wrong=len(failures),
            example=Example(
                images[there].cpu(), attacked[there].cpu(), batch.labels[there].cpu(), batch.keys[there].cpu(),
                {name: said.purified[there].cpu() for name, said in verdicts.items()},
                {name: said.predicted[some] for name, said in arms.items()},
                {name: said.accepted[some] for name, said in arms.items()},
            ),
        )  # fmt: skip

    def _craft(self, plan: PlannedRow, attack: Attack, target: Target, batch: Batch) -> _Made:
        """Attack the images of a batch that no smaller budget has fooled."""
        known = self._fooled.get(plan.carry[0], {}) if plan.carry is not None else {}
        if not known:
            images = craft(attack, target, batch.images, batch.labels, eps=plan.threat.eps, keys=batch.keys)
            assert target.overshoot is not None
            return _Made(images, target.overshoot, target.queries)
        done = [place for place, key in enumerate(batch.keys.tolist()) if key in known]
        left = [place for place, key in enumerate(batch.keys.tolist()) if key not in known]
        made = _Made(batch.images.clone(), batch.images.new_zeros(len(batch.images)), None)
        if done:
            before = torch.stack([known[int(batch.keys[place])] for place in done])
            made.images[done] = before.to(batch.images.device)
        if left:
            images, labels, keys = batch.images[left], batch.labels[left], batch.keys[left]
            made.images[left] = craft(attack, target, images, labels, eps=plan.threat.eps, keys=keys)
            assert target.overshoot is not None
            made.overshoot[left] = target.overshoot
            if target.queries is not None:
                queries = target.queries.new_zeros(len(batch.images))
                queries[left] = target.queries
                made = attrs.evolve(made, queries=queries)
        return made

    def _keep_fooled(
        self, carry: tuple[str, str], arms: Mapping[str, ArmRecord], batch: Batch, attacked: Tensor
    ) -> None:
        name, arm = carry
        wrong = (arms[arm].predicted != batch.labels.cpu()) & arms[arm].accepted
        kept = self._fooled.setdefault(name, {})
        for place in wrong.nonzero()[:, 0].tolist():
            kept[int(batch.keys[place])] = attacked[place].cpu()

    def _verdicts(
        self, names: tuple[str, ...], attacked: Tensor, keys: Tensor
    ) -> tuple[dict[str, Verdict], dict[str, Tensor], dict[str, float]]:
        """Ask arms; what two of them have in common, purifier and detector or everything, is computed once."""
        screened: dict[tuple[int, int], tuple[Screening, float]] = {}
        known: dict[tuple[int, int, int], tuple[Verdict, float]] = {}
        answers: dict[str, tuple[Verdict, float]] = {}
        for name in names:
            arm = self._arms[name]
            before = (id(arm.purifier), id(arm.detector))
            whole = (*before, id(arm.victim))
            if before not in screened:
                begin = self._now()
                with keyed(keys, seed=self._settings.seed, stream="defender"):
                    screening = arm.screen(attacked)
                screened[before] = screening, self._now() - begin
            if whole not in known:
                screening, spent = screened[before]
                begin = self._now()
                with keyed(keys, seed=self._settings.seed, stream="victim"):
                    verdict = arm.judge(attacked, screening)
                known[whole] = verdict, spent + self._now() - begin
            answers[name] = known[whole]
        seconds = {name: took for name, (_, took) in answers.items()}
        verdicts = {name: said for name, (said, _) in answers.items()}
        return verdicts, self._more_passes(verdicts, attacked, keys), seconds

    def _more_passes(self, verdicts: Mapping[str, Verdict], attacked: Tensor, keys: Tensor) -> dict[str, Tensor]:
        """Ask random arms again, each pass with draws of its own."""
        if self._settings.passes == 1:
            return {}
        found = {}
        for name, first in verdicts.items():
            arm = self._arms[name]
            if not arm.random:
                continue
            said = [first.labels.where(first.accepted, REJECTED)]
            for number in range(1, self._settings.passes):
                with keyed(keys, seed=self._settings.seed, stream=f"defender/pass/{number}"):
                    verdict = arm.judge(attacked)
                said.append(verdict.labels.where(verdict.accepted, REJECTED))
            found[name] = torch.stack(said, 1).cpu()
        return found

    def _now(self) -> float:
        if self._settings.device.type == "cuda":
            torch.cuda.synchronize(self._settings.device)  # once a batch and stage, outside the attack's loop
        return time.perf_counter()


@attrs.frozen
class _Made:
    """What an attack made of a batch."""

    images: Tensor
    overshoot: Tensor
    queries: Tensor | None


@attrs.frozen(kw_only=True)
class _Part:
    """The record of one batch; `wrong` of its examples, the first ones, are failures."""

    keys: Tensor
    labels: Tensor
    arms: dict[str, ArmRecord]
    linf: Tensor
    l2: Tensor
    overshoot: Tensor
    queries: Tensor | None
    attack_seconds: float
    judge_seconds: dict[str, float]
    example: Example
    wrong: int


def _join(plan: PlannedRow, parts: list[_Part], partial: bool) -> RowRecord:
    def arm(name: str) -> ArmRecord:
        said = [part.arms[name] for part in parts]
        return ArmRecord(
            predicted=torch.cat([one.predicted for one in said]),
            confidence=torch.cat([one.confidence for one in said]),
            accepted=torch.cat([one.accepted for one in said]),
            score=torch.cat([one.score for one in said]),
            passes=_joined([one.passes for one in said]),
        )

    count = sum(len(part.keys) for part in parts)
    # the first batch also pays for warming up, so cost is that of the fastest batch an image
    judge_ms = {name: min(1000 * part.judge_seconds[name] / len(part.keys) for part in parts) for name in parts[0].arms}
    return RowRecord(
        plan=plan,
        keys=torch.cat([part.keys for part in parts]),
        labels=torch.cat([part.labels for part in parts]),
        arms={name: arm(name) for name in parts[0].arms},
        linf=torch.cat([part.linf for part in parts]),
        l2=torch.cat([part.l2 for part in parts]),
        attack_seconds=sum(part.attack_seconds for part in parts),
        judge_seconds={name: sum(part.judge_seconds[name] for part in parts) for name in judge_ms},
        judge_ms=judge_ms,
        example=_examples(parts),
        partial=partial or count < len(plan.keys),
        overshoot=torch.cat([part.overshoot for part in parts]),
        queries=_joined([part.queries for part in parts]),
    )


def _joined(column: Sequence[Tensor | None]) -> Tensor | None:
    there = [value for value in column if value is not None]
    return torch.cat(there) if len(there) == len(column) else None


def _examples(parts: Sequence[_Part]) -> Example:
    """Take the first failures of all batches, then the first others."""
    places: list[tuple[Example, int]] = []
    for failures in (True, False):
        found = [
            (part.example, place)
            for part in parts
            for place in (range(part.wrong) if failures else range(part.wrong, len(part.example.keys)))
        ]
        places += found[:EXAMPLES]

    def stacked(pick: Callable[[Example], Tensor]) -> Tensor:
        return torch.stack([pick(example)[place] for example, place in places])

    def by_arm(pick: Callable[[Example], Mapping[str, Tensor]]) -> dict[str, Tensor]:
        columns = {name: [pick(example)[name][place] for example, place in places] for name in parts[0].arms}
        return {name: torch.stack(column) for name, column in columns.items()}

    return Example(
        clean=stacked(lambda example: example.clean),
        attacked=stacked(lambda example: example.attacked),
        labels=stacked(lambda example: example.labels),
        keys=stacked(lambda example: example.keys),
        purified=by_arm(lambda example: example.purified),
        predicted=by_arm(lambda example: example.predicted),
        accepted=by_arm(lambda example: example.accepted),
    )


def _split(batch: Batch, size: int) -> Iterator[Batch]:
    columns = (batch.images.split(size), batch.labels.split(size), batch.keys.split(size))
    return (Batch(*part) for part in zip(*columns, strict=True))


def _out_of_memory(error: RuntimeError) -> bool:
    from accelerate.utils.memory import should_reduce_batch_size

    return should_reduce_batch_size(error)


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
    records: Sequence[RowRecord], arm: str, judged: Callable[[RowRecord, str], Tensor] = right
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
