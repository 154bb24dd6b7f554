"""The evaluation loop: craft once, judge with every arm, record every image.

Rows run one after another, batch by batch. Where N processes share a run, each takes every N-th batch; what is
finished goes to all of them, and to the journal. Every random draw is keyed by image, and the batches are cut
alike however many processes there are, so that the records are the same to the bit.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping

import attrs
import torch
from torch import Tensor

from defend.attacks.balls import measure, wide
from defend.attacks.rounding import round_to_levels
from defend.attacks.target import Target
from defend.boundary.given import name_of
from defend.boundary.held import as_before
from defend.datasets.base import Batch, ImageDataset
from defend.defence import Defence, Screening, Verdict
from defend.errors import ContractError, StageError
from defend.evaluation.crafting import DEFENDER, VICTIM, Crafted, Crafter
from defend.randomness import keyed
from defend.records.journal import Journal
from defend.records.rows import (
    EXAMPLES,
    REJECTED,
    ArmRecord,
    Example,
    Part,
    PlannedRow,
    RowRecord,
    Trimmed,
    merge,
    record_of,
)
from defend.records.seen import Seen
from defend.store.store import Store
from defend.util import interrupts
from defend.util.memory import Fitting
from defend.util.processes import Processes
from defend.util.tensors import to_host

OTHERS = 20  # held-out images that an attack may begin at


@attrs.frozen(kw_only=True)
class EvaluationSettings:
    """How to evaluate: nothing here changes a result except `seed`, `draws` and `crafting`.

    Attributes:
        batch_size: images at a time; fewer large ones on a CPU, and halved, and kept so, when memory runs out.
        draws: passes an adaptive attacker averages over when the defence is random.
        passes: how often a random arm is asked.
        crafting: a dtype for autocast while crafting, or None.
        keep: whether attacked images are part of the records, rounded to 8 bits.
        progress: called with the number of images just finished.
    """

    device: torch.device
    seed: int = 0
    batch_size: int = 64
    draws: int = 20
    passes: int = 1
    crafting: torch.dtype | None = None
    keep: bool = False
    progress: Callable[[int], None] = lambda images: None


@attrs.frozen
class Nearest:
    """What an attack that minimises the distance found: how `far` [B], `beyond` the budget or not.

    Also which arms stand there, `stands`, where some lie beyond, and which do without any change, `clean`, where some
    lie within.
    """

    far: Tensor
    beyond: Tensor
    stands: Mapping[str, Tensor]
    clean: Mapping[str, Tensor]

    def of(self, arm: str, now: Tensor) -> Tensor:
        """Return an arm's `ArmRecord.distance` [B]; `now` [B] is where it stands in the row, within the budget."""
        found = torch.where(self.stands.get(arm, now), torch.inf, self.far)
        # an arm that fails on the clean image, which stands in the row for what lies beyond, needs no attack
        already = self.beyond | ~self.clean.get(arm, now)
        return torch.where(already & ~now, 0, found)


class Evaluator:
    """Runs rows over a data set.

    Args:
        arms: "undefended", "defended", ..., by name, prepared (frozen, on the device).
        dataset: whose test split is judged.
        settings: see `EvaluationSettings`.
        processes: who shares the run; all of them evaluate the same rows in the same order.
        journal: where finished batches are kept, and taken from; None keeps none.
        store: where images attacked on a bare victim are kept for other runs; None keeps none.
    """

    def __init__(
        self,
        arms: Mapping[str, Defence],
        dataset: ImageDataset,
        settings: EvaluationSettings,
        processes: Processes | None = None,
        journal: Journal | None = None,
        store: Store | None = None,
    ) -> None:
        self._arms, self._dataset, self._settings = arms, dataset, settings
        self._processes, self._journal = processes or Processes(), journal
        task = dataset.task()
        self._fitting = Fitting(settings.batch_size, task.height * task.width, settings.device)
        self._classes = task.classes
        self._crafter = Crafter(
            arms,
            dataset=dataset.name if store else "",
            seed=settings.seed,
            draws=settings.draws,
            precision=settings.crafting,
            store=store,
        )

    @property
    def batch_size(self) -> int:
        """How many images are worked on at a time; less than was asked for where memory ran out."""
        return self._fitting.size

    def row(self, plan: PlannedRow, number: int = 0) -> RowRecord | None:
        """Evaluate one row, the `number`-th of the run, from where the journal has it.

        Ctrl-C ends it: what was finished comes back marked partial, None if nothing.

        Raises:
            ContractError: a stage broke its contract, or a victim answers for another number of classes.
            ProcessLostError: another process of the run is gone.
        """
        processes = self._processes
        so_far = Trimmed()
        partial = False
        try:
            for part in processes.tell(
                [] if self._journal is None else self._journal.parts(number), f"the beginning of row {number + 1}"
            ):
                self._take(plan, so_far, part)
            begun = len(so_far.parts)
            left = range(begun, -(-len(plan.keys) // self._settings.batch_size))
            # every N-th batch, so that what is finished is always the row's beginning, from which a run can go on
            own = self._parts(plan, left[processes.rank :: processes.world])
            for start in range(0, len(left), processes.world):
                interrupts.stop_if_asked()
                mine = next(own) if start + processes.rank < len(left) else None
                for place, made in enumerate(processes.gather(mine, f"row {number + 1}"), begun + start):
                    if made is not None:
                        kept = self._take(plan, so_far, made)
                        if self._journal is not None:
                            self._journal.keep(number, place, kept)
        except KeyboardInterrupt:
            partial = True
        return record_of(plan, so_far.parts, partial) if so_far.parts else None

    def _take(self, plan: PlannedRow, so_far: Trimmed, part: Part) -> Part:
        """Add a finished batch to its row."""
        self._settings.progress(len(part.keys))
        self._crafter.remember(plan, part)
        return so_far.add(part)

    def _parts(self, plan: PlannedRow, places: range) -> Iterator[Part]:
        """Evaluate some of the batches that a row is cut into, in this process."""
        settings = self._settings
        target = None if plan.attack is None else self._crafter.target(plan)
        every = plan.keys.split(settings.batch_size)
        if not places:
            return
        if target is not None and getattr(plan.attack, "begins_elsewhere", False):
            target.others, _ = self._dataset.tensors("val", limit=OTHERS)
        keys = torch.cat([every[place] for place in places])
        batches = self._dataset.batches("test", keys, settings.batch_size, settings.device)
        for place, batch in zip(places, batches, strict=True):
            try:
                pieces = list(self._fitting.work(batch, lambda part: self._judge(part, plan, target)))
            except (StageError, ContractError) as error:
                row = "clean" if plan.attack is None else f"{plan.name}, {plan.threat.kind}"
                raise type(error)(f"{error} (row {row}; batch {place + 1} of {len(every)})") from error
            yield pieces[0] if len(pieces) == 1 else merge(pieces)

    def _judge(self, batch: Batch, plan: PlannedRow, target: Target | None) -> Part:
        images = batch.images
        start = self._now()
        made = Crafted(images, images.new_zeros(len(images)))
        if plan.attack is not None and target is not None:
            made = self._crafter.make(plan, plan.attack, target, batch)
            # a source of a transfer is judged by no arm, so its classes are seen here alone
            self._check_classes(target.classes, self._arms[plan.attacked])
        attacked = made.images
        crafted = self._now()
        nearest = self._measure(plan, batch, attacked) if getattr(plan.attack, "minimal", False) else None
        if nearest is not None:
            attacked = torch.where(wide(nearest.beyond), images, attacked)
        verdicts, seconds = self._verdicts(plan.judges, attacked, batch.keys)
        passes = self._more_passes(verdicts, attacked, batch.keys)
        difference = (attacked - images).flatten(1)
        last = verdicts[plan.judges[-1]]
        held = _stands(last, batch.labels)
        # first those that look wrong, then those that look right; which of them really are is known on the host
        some = torch.cat([each.to(torch.uint8).argsort(stable=True)[:EXAMPLES] for each in (held, ~held)])
        columns = {
            "keys": batch.keys,
            "labels": batch.labels,
            "linf": difference.abs().amax(1),
            "l2": difference.square().sum(1).sqrt(),
            "overshoot": made.overshoot,
            "held": held,
            "some": some,
            "clean": images[some],
            "attacked": attacked[some],
        }
        for name, said in verdicts.items():
            columns |= {f"{name}/{key}": getattr(said, key) for key in ("labels", "confidence", "accepted", "score")}
            columns[f"{name}/purified"] = said.purified[some]
            if nearest is not None:
                columns[f"{name}/distance"] = nearest.of(name, _stands(said, batch.labels))
        columns |= {f"{name}/passes": each for name, each in passes.items()}
        if made.queries is not None:
            columns["queries"] = made.queries
        if made.seen is not None:
            columns["seen"] = torch.stack(made.seen.columns())
        # against a random arm being fooled once is no proof: other draws may get the image right
        carries = plan.carry if target is not None and not target.random else None
        if carries is not None:
            columns["every"] = attacked
        if self._settings.keep and plan.attack is not None:
            columns["levels"] = round_to_levels(attacked, images, plan.threat.eps, plan.threat.norm)
        found = to_host(columns)
        arms = {
            name: ArmRecord(
                predicted=found[f"{name}/labels"],
                confidence=found[f"{name}/confidence"],
                accepted=found[f"{name}/accepted"],
                score=found[f"{name}/score"],
                passes=found.get(f"{name}/passes"),
                distance=found.get(f"{name}/distance"),
            )
            for name in verdicts
        }
        carried = None
        if carries is not None:
            whom = arms[carries[1]]
            wrong = ((whom.predicted != found["labels"]) & whom.accepted).nonzero()[:, 0]
            carried = found["keys"][wrong], found["every"][wrong]
        example, failures = _choose_examples(found, arms)
        return Part(
            keys=found["keys"],
            labels=found["labels"],
            arms=arms,
            linf=found["linf"],
            l2=found["l2"],
            attack_seconds=crafted - start,
            judge_seconds=seconds,
            judge_ms={name: 1000 * took / len(images) for name, took in seconds.items()},
            overshoot=found["overshoot"],
            queries=found.get("queries"),
            failures=failures,
            fooled=carried,
            reused=made.reused,
            seen=Seen(*found["seen"]) if "seen" in found else None,
            attacked=found.get("levels"),
            example=example,
        )

    def _measure(self, plan: PlannedRow, batch: Batch, found: Tensor) -> Nearest:
        """Measure how far off an attack found its images; ask all arms there, beyond the budget, and unattacked."""
        assert plan.attack is not None
        far, eps = measure(found - batch.images, plan.attack.norm), plan.threat.eps
        beyond = torch.zeros_like(far, dtype=torch.bool) if eps is None else far > eps

        def find_standing(images: Tensor) -> dict[str, Tensor]:
            said, _ = self._verdicts(plan.judges, images, batch.keys)
            return {name: _stands(one, batch.labels) for name, one in said.items()}

        there = find_standing(found) if bool(beyond.any()) else {}
        return Nearest(far, beyond, there, {} if bool(beyond.all()) else find_standing(batch.images))

    def _verdicts(
        self, names: tuple[str, ...], attacked: Tensor, keys: Tensor
    ) -> tuple[dict[str, Verdict], dict[str, float]]:
        """Ask arms, and time them; what two have in common, purifier and detector or everything, is computed once."""
        screened: dict[tuple[int, int], tuple[Screening, float]] = {}
        known: dict[tuple[int, int, int], tuple[Verdict, float]] = {}
        answers: dict[str, tuple[Verdict, float]] = {}
        for name in names:
            arm = self._arms[name]
            before = (id(arm.purifier), id(arm.detector))
            whole = (*before, id(arm.victim))
            if before not in screened:
                begin = self._now()
                with keyed(keys, seed=self._settings.seed, stream=DEFENDER), as_before(arm, "a pass"):
                    screening = arm.screen(attacked)
                screened[before] = screening, self._now() - begin
            if whole not in known:
                screening, spent = screened[before]
                begin = self._now()
                # a stream of its own, so that a random victim draws the same behind any purifier
                with keyed(keys, seed=self._settings.seed, stream=VICTIM), as_before(arm, "a pass"):
                    verdict = arm.judge(attacked, screening)
                self._check_classes(verdict.logits.shape[1], arm)
                known[whole] = verdict, spent + self._now() - begin
            answers[name] = known[whole]
        seconds = {name: took for name, (_, took) in answers.items()}
        verdicts = {name: said for name, (said, _) in answers.items()}
        return verdicts, seconds

    def _more_passes(self, verdicts: Mapping[str, Verdict], attacked: Tensor, keys: Tensor) -> dict[str, Tensor]:
        """Ask random arms again, each pass with draws of its own."""
        if self._settings.passes == 1:
            return {}
        found = {}
        for name, first in verdicts.items():
            arm = self._arms[name]
            if not arm.random:
                continue
            # the first pass is the one that the row's accuracy is of
            said = [first.labels.where(first.accepted, REJECTED)]
            for number in range(1, self._settings.passes):
                stream = f"{DEFENDER}/pass/{number}"
                with keyed(keys, seed=self._settings.seed, stream=stream), as_before(arm, "a pass"):
                    verdict = arm.judge(attacked)
                said.append(verdict.labels.where(verdict.accepted, REJECTED))
            found[name] = torch.stack(said, 1)
        return found

    def _check_classes(self, classes: int | None, arm: Defence) -> None:
        """Refuse a victim that tells more or fewer classes apart than there are."""
        if classes not in (None, self._classes):
            raise ContractError(
                f"victim {name_of(arm.victim)} returned {classes} logits an image, and {self._dataset.name} has "
                f"{self._classes} classes: build it for {self._classes} (`task.classes`)"
            )

    def _now(self) -> float:
        if self._settings.device.type == "cuda":
            torch.cuda.synchronize(self._settings.device)  # once a batch and stage, outside the attack's loop
        return time.perf_counter()


def _stands(said: Verdict, labels: Tensor) -> Tensor:
    return (said.labels == labels) & said.accepted


def _choose_examples(found: Mapping[str, Tensor], arms: Mapping[str, ArmRecord]) -> tuple[Example, int]:
    """Return the images for the picture, first those that the last arm got wrong, and how many these are."""
    some, half = found["some"], len(found["some"]) // 2
    right = found["held"][some]
    kept = torch.cat([~right[:half], right[half:]]).nonzero()[:, 0]
    places = some[kept]
    example = Example(
        found["clean"][kept],
        found["attacked"][kept],
        found["labels"][places],
        found["keys"][places],
        {name: found[f"{name}/purified"][kept] for name in arms},
        {name: said.predicted[places] for name, said in arms.items()},
        {name: said.accepted[places] for name, said in arms.items()},
    )
    return example, int((~right[:half]).sum())
