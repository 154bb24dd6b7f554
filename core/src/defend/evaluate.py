"""The evaluation loop: craft once, judge with every arm, record every image.

Rows run one after another, so that an interrupted run keeps the finished ones. Every random draw is
keyed by image, so batch size and order change nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
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

EXAMPLES = 6
T = TypeVar("T")


@attrs.frozen
class PlannedRow:
    """One row to evaluate: an attack under a threat, on the images at `keys` of the test split.

    `attack` is None for the clean row. `steps` is what the table shows. The arm `attacked` is what the attack
    faces; the arms in `judges` give their verdicts.
    """

    name: str
    threat: Threat
    attack: Attack | None
    keys: Tensor
    steps: int | None
    attacked: str
    judges: tuple[str, ...]


@attrs.frozen
class ArmRecord:
    """What one arm said of every image of a row: tensors [N] on the CPU."""

    predicted: Tensor
    confidence: Tensor
    accepted: Tensor
    score: Tensor


@attrs.frozen
class Example:
    """A few images of a row for the picture, [M,C,H,W]; what each arm's victim saw of them, and predicted [M]."""

    clean: Tensor
    attacked: Tensor
    labels: Tensor
    purified: Mapping[str, Tensor]
    predicted: Mapping[str, Tensor]


@attrs.frozen
class RowRecord:
    """Everything recorded of a row, per image, in the order of `keys`; `linf` and `l2` are distances.

    `judge_seconds` is what each arm's judging took in all, `judge_ms` an image's share of its fastest batch.
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


@attrs.frozen(kw_only=True)
class Settings:
    """How to evaluate: nothing here changes a result except `seed`, `draws` and `crafting`.

    Attributes:
        batch_size: images at a time; halved, and kept so, when memory runs out.
        draws: passes an adaptive attacker averages over when the defence is random.
        crafting: a dtype for autocast while crafting, or None.
        progress: called with the number of images just finished.
    """

    device: torch.device
    seed: int = 0
    batch_size: int = 64
    draws: int = 20
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
        if plan.attack is None or target is None:
            attacked = images
        else:
            eps = plan.threat.eps
            attacked = craft(
                plan.attack, target, images, batch.labels, eps=1.0 if eps is None else eps, keys=batch.keys
            )
        crafted = self._now()
        verdicts, seconds = self._verdicts(plan.judges, attacked, batch.keys)
        arms = {
            name: ArmRecord(said.labels.cpu(), said.confidence.cpu(), said.accepted.cpu(), said.score.cpu())
            for name, said in verdicts.items()
        }
        difference = (attacked - images).flatten(1)
        some = slice(0, EXAMPLES)
        return _Part(
            keys=batch.keys.cpu(),
            labels=batch.labels.cpu(),
            arms=arms,
            linf=difference.abs().amax(1).cpu(),
            l2=difference.square().sum(1).sqrt().cpu(),
            attack_seconds=crafted - start,
            judge_seconds=seconds,
            example=Example(
                images[some].cpu(), attacked[some].cpu(), batch.labels[some].cpu(),
                {name: said.purified[some].cpu() for name, said in verdicts.items()},
                {name: said.predicted[some] for name, said in arms.items()},
            ),
        )  # fmt: skip

    def _verdicts(
        self, names: tuple[str, ...], attacked: Tensor, keys: Tensor
    ) -> tuple[dict[str, Verdict], dict[str, float]]:
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
        return {name: said for name, (said, _) in answers.items()}, {name: took for name, (_, took) in answers.items()}

    def _now(self) -> float:
        if self._settings.device.type == "cuda":
            torch.cuda.synchronize(self._settings.device)  # once a batch and stage, outside the attack's loop
        return time.perf_counter()


@attrs.frozen(kw_only=True)
class _Part:
    """The record of one batch."""

    keys: Tensor
    labels: Tensor
    arms: dict[str, ArmRecord]
    linf: Tensor
    l2: Tensor
    attack_seconds: float
    judge_seconds: dict[str, float]
    example: Example


def _join(plan: PlannedRow, parts: list[_Part], partial: bool) -> RowRecord:
    def arm(name: str) -> ArmRecord:
        columns = [attrs.astuple(part.arms[name], recurse=False) for part in parts]
        return ArmRecord(*(torch.cat(column) for column in zip(*columns, strict=True)))

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
        example=parts[0].example,
        partial=partial or count < len(plan.keys),
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
        ),
    )


def worst_case(records: list[RowRecord], arm: str) -> tuple[Tensor, Tensor]:
    """Return (keys of the images that every row judged, whether each was right and accepted in all rows)."""
    alive: dict[int, bool] = {}
    common: set[int] | None = None
    for record in records:
        said = record.arms[arm]
        right = ((said.predicted == record.labels) & said.accepted).tolist()
        keys = record.keys.tolist()
        for key, ok in zip(keys, right, strict=True):
            alive[key] = alive.get(key, True) and ok
        common = set(keys) if common is None else common & set(keys)
    kept = sorted(common or ())
    return torch.tensor(kept, dtype=torch.int64), torch.tensor([alive[key] for key in kept], dtype=torch.bool)
