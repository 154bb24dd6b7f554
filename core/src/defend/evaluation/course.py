"""A run under way: where everything is wired, from the configs to the reports."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import attrs

from defend.assembly.composition import Composition
from defend.assembly.load import check_default_type, open_dataset
from defend.attacks.given import Replay
from defend.boundary.answers import threshold_of
from defend.checks import Subject
from defend.datasets.base import ImageDataset
from defend.datasets.bounded import ensure_bounded
from defend.errors import ConfigError, ProcessLostError
from defend.evaluation.agreement import check_alike
from defend.evaluation.arms import BuiltDefence, build_all
from defend.evaluation.assemble import Circumstances, assemble, describe_weights
from defend.evaluation.certify import Certifier
from defend.evaluation.evaluate import EvaluationSettings, Evaluator
from defend.evaluation.forecast import Forecast, choose_for, forecast
from defend.evaluation.identity import describe_images, find_versions, identify
from defend.evaluation.notes import make_notes
from defend.evaluation.plan import attacks_of, counter_attacks, find_undone, is_costly, plan
from defend.evaluation.precision import REDUCED, Crafting, choose
from defend.evaluation.probing import check, choose_subject
from defend.evaluation.rounded import find_strongest, round_row
from defend.options import describe
from defend.plugins import Registry
from defend.records import folder as run_folder
from defend.records.attacked import FOLDER as ATTACKED
from defend.records.attacked import check_format, name_file, write_attacked
from defend.records.journal import Journal
from defend.records.rows import PlannedRow, RowRecord, restrict
from defend.records.shards import Shards, share
from defend.records.watcher import Watcher
from defend.stages import Stage
from defend.store.store import Store
from defend.util.files import sweep
from defend.util.processes import Processes, join, resolve_device
from defend.values.commands import say_command
from defend.values.durations import parse_duration
from defend.values.report import Report
from defend.values.run_config import MOST, QUICK_STEPS, RunConfig
from defend.values.shards import parse_shard
from defend.values.threats import DEFENDED, NO_SOURCES, THREATS, UNDEFENDED, choose_threats
from defend.values.toml import to_toml


@attrs.frozen
class Outcome:
    """One defence's report and the records that it was computed from."""

    report: Report
    records: Sequence[RowRecord]


class Course:
    """A run under way. Made, it has its defences and its rows and is announced; nothing is attacked yet.

    Its folders are held until `folders` is closed.

    Attributes:
        records: of the rows that are finished, or cut short.
        certifier: what is certified of the defences, where that was asked for.
        partial: whether a row is cut short, or the certificates or the checks are.
    """

    def __init__(
        self,
        configs: Sequence[RunConfig],
        watcher: Watcher,
        plugins: Registry,
        resume: bool,
        dataset: ImageDataset | None,
        folders: contextlib.ExitStack,
        shards: Shards | None = None,
    ) -> None:
        self.started = time.perf_counter()
        check_default_type()
        self.watcher, self.plugins = watcher, plugins
        self.processes, self.device = join(resolve_device(configs[0].device))
        # every process names a folder of its own by default, and the first one's is the run's
        outs = self.processes.tell([each.out for each in configs], "its folders")
        configs = [attrs.evolve(each, out=out) for each, out in zip(configs, outs, strict=True)]
        config = configs[0]
        store = Store.users() if config.store and config.out else None  # without a folder, a run leaves no trace
        # before the data set is read and anything is trained, so that a wrong name is told at once
        compositions = [_resolve(each, plugins) for each in configs]
        if dataset is not None:  # its name is what the report and config.toml say
            configs = [attrs.evolve(each, dataset=dataset.name) for each in configs]
            config = configs[0]
        self.dataset = _read(config, plugins, watcher) if dataset is None else ensure_bounded(dataset)
        if config.save_images is not None:
            check_format(config.save_images, self.dataset.task().channels)
            if config.out is None:
                raise ConfigError("save_images was asked for, and the run writes no folder: name one (out)")
        self.defences = build_all(configs, compositions, self.dataset, watcher, self.device, self.processes)
        self.rows = plan([defence.names for defence in self.defences], self.dataset, plugins)
        if config.undecided:
            self._fit_budget()
            configs = [each.names.config for each in self.defences]
            config = configs[0]
        if self.processes.world > 1:  # a split may be drawn anew, a folder may lie on each machine
            check_alike(self.processes, describe_images(self.dataset, self.rows))
        self.certifier = Certifier(self.defences, self.dataset)
        first = self.processes.first
        # of what was built, so that a run that goes on compares weights and code, not their names
        writes = first and config.out is not None
        self.versions = find_versions(self.defences, self.rows, plugins)
        decisive = {}
        if writes:
            decisive = identify(self.defences, self.rows, self.dataset, plugins, self.device, self.versions)
        if shards is not None and writes:
            shards.check(self.rows, decisive)
        self.shard = None if config.shard is None else parse_shard(config.shard)
        if self.shard is not None:
            self.rows = share(self.rows, config.batch_size, self.shard)
        self.outs: list[Path | None] = [None] * len(configs)
        if first:
            self.outs = folders.enter_context(run_folder.claim(configs, resume))
        self.journal = _announce(configs, self.outs)
        if self.journal is not None:
            self.journal.begin([to_toml(each) for each in configs], decisive)
            if shards is not None:
                shards.hand_over(self.journal, self.rows)
        watcher.preparing("choosing a precision")
        crafting = self.processes.tell(self._choose_crafting() if first else None, "the precision of its attacks")
        assert crafting is not None
        self.crafting = crafting
        self.evaluator = self._make_evaluator(crafting, watcher.images, self.journal, store)
        self.records: list[RowRecord] = []
        self.partial = False
        self._file_names: list[set[str]] = [set() for _ in self.outs]

    def _make_evaluator(
        self,
        crafting: Crafting,
        progress: Callable[[int], None] = lambda images: None,
        journal: Journal | None = None,
        store: Store | None = None,
        alone: bool = False,
    ) -> Evaluator:
        config = self.defences[0].names.config
        settings = EvaluationSettings(
            device=self.device,
            seed=config.seed,
            batch_size=config.batch_size,
            draws=config.draws,
            passes=config.passes_asked,
            crafting=crafting.dtype,
            keep=config.save_images is not None and not alone,
            progress=progress,
        )
        arms = {name: arm for each in self.defences for name, arm in each.arms.items()}
        return Evaluator(arms, self.dataset, settings, Processes() if alone else self.processes, journal, store)

    def forecast(self, crafting: Crafting | None = None) -> Forecast:
        """Time two small batches of every row, in this process alone."""
        ready = time.perf_counter() - self.started
        evaluator = self._make_evaluator(crafting or self.crafting, alone=True)
        return forecast(
            evaluator,
            self.rows,
            batch_size=evaluator.batch_size,
            device=self.device,
            ready=ready,
            world=self.processes.world,
            told=lambda row: self.watcher.preparing(f"timing two batches of {row.name}, {row.threat.kind}"),
        )

    def _fit_budget(self) -> None:
        """Choose how many images and steps the adaptive rows have, so that the run fits its budget; see `choose_for`.

        Raises:
            ConfigError: the least of them does not.
        """
        asked = self.defences[0].names.config
        if asked.shard is not None:
            raise ConfigError(
                "shards cannot agree on what fits a budget: choose once, with --plan --budget, and give all of them "
                "its --adaptive-limit and --adaptive-steps"
            )
        self._change(adaptive_steps=asked.adaptive_steps or QUICK_STEPS)
        found = self.forecast(Crafting(None, ""))
        names = [defence.names for defence in self.defences]
        timed = self.rows
        self._change(adaptive_steps=asked.adaptive_steps or MOST)
        own = {
            place: each.steps if THREATS[each.threat.kind].expensive and each.steps else None
            for place, each in enumerate(self.rows)
            if each.attack is not None and is_costly(each.threat.kind, each.attacked, names)
        }
        # where an attack was told its steps they are the same in both, and nothing is to be chosen of it
        fixed = {place for place, steps in own.items() if steps and steps == timed[place].steps}
        # by its own clock each would choose another
        chosen = self.processes.do_first(
            lambda: choose_for(
                parse_duration(str(asked.budget)),
                found,
                {place: None if place in fixed else steps for place, steps in own.items()},
                spent=time.perf_counter() - self.started,
                most=len(timed[0].keys),
                images=asked.adaptive_limit,
                steps=asked.adaptive_steps,
            ),
            "what fits its budget",
        )
        self._change(adaptive_limit=chosen.images, adaptive_steps=chosen.steps)

    def _change(self, **settings: Any) -> None:
        """Change settings of all arms, and plan again."""
        self.defences = [
            attrs.evolve(each, names=attrs.evolve(each.names, config=attrs.evolve(each.names.config, **settings)))
            for each in self.defences
        ]
        self.rows = plan([defence.names for defence in self.defences], self.dataset, self.plugins)

    def _choose_crafting(self) -> Crafting:
        """Choose what attacks on bare victims are crafted in; a run that goes on keeps what it chose at first."""
        kept = None if self.journal is None else self.journal.choice("crafting")
        if kept is not None:
            return Crafting(REDUCED if kept["name"] == "bf16" else None, kept["why"], kept["figures"])
        config = self.defences[0].names.config
        if self.shard is not None and config.precision == "auto":  # time decides, and shards cannot agree on it
            chosen = Crafting(None, "shards try no other precision: each might find another faster")
            return self._keep_crafting(chosen)
        bare = self.defences[0].arms[UNDEFENDED]
        batches = self.dataset.batches("test", self.rows[0].keys, config.batch_size, self.device)
        chosen = choose(config.precision, bare, batches, eps=config.eps, seed=config.seed, device=self.device)
        return self._keep_crafting(chosen)

    def _keep_crafting(self, chosen: Crafting) -> Crafting:
        if self.journal is not None:
            self.journal.choose("crafting", {"name": chosen.name, "why": chosen.why, "figures": dict(chosen.figures)})
        return chosen

    def evaluate(self) -> None:
        """Evaluate row after row, and write what there is after each; Ctrl-C ends it between two batches.

        Raises:
            KeyboardInterrupt: before the first batch was finished: there is nothing to report.
            ProcessLostError: see `run_arms`.
        """
        self.watcher.begin(self.rows)
        try:
            for number, planned in enumerate(self.rows):
                if not len(planned.keys):  # a shard has nothing of a row with few batches
                    continue
                self._evaluate_row(number, planned)
                if self.partial:
                    break
            for planned in [] if self.partial else self._round_strongest():
                self.rows.append(planned)
                self._evaluate_row(len(self.rows) - 1, planned)
                if self.partial:
                    break
        except KeyboardInterrupt:  # between rows
            self.partial = True
        except ProcessLostError as error:
            kept = (
                f"; what was finished is kept: {say_command('run', '--resume', self.outs[0])}" if self.outs[0] else ""
            )
            raise ProcessLostError(f"{error}{kept}") from None
        finally:
            self.watcher.end()
        if not self.records:
            raise KeyboardInterrupt
        if not self.partial and self.processes.first and self.shard is None:
            try:
                self.certifier.run(self.journal, self.watcher, self.evaluator.batch_size, self.device)
            except KeyboardInterrupt:
                self.partial = True
            finally:
                self.watcher.end()

    def _evaluate_row(self, number: int, planned: PlannedRow) -> None:
        """Evaluate a row, keep its record, and write what there is."""
        self.watcher.row(planned)
        record = self.evaluator.row(planned, number)
        if record is not None:
            self._write_attacked(record)
            record = attrs.evolve(record, attacked=None)  # they are in their files, and in the journal
            self.records.append(record)
            self.watcher.finished(record)
        self.partial = record is None or record.partial
        self._write_judged_by(planned)

    def _write_attacked(self, record: RowRecord) -> None:
        """Write a row's attacked images into the folder of every defence that it is of."""
        if record.attacked is None or isinstance(record.plan.attack, Replay):  # which are in a file already
            return
        if self.shard is not None:  # the whole run's files are written at the merge
            return
        for out, defence, taken in zip(self.outs, self.defences, self._file_names, strict=True):
            kind = defence.names.config.save_images
            if out is not None and kind is not None and defence.names.has(record.plan):
                write_attacked(out / ATTACKED, record, name_file(record.plan, taken), kind)

    def _round_strongest(self) -> list[PlannedRow]:
        """Return the rows that judge every defence's strongest row again, in 8 bits; none where no images are kept."""
        found: list[PlannedRow | None] = []
        asked = self.defences[0].names.config.save_images is not None
        if self.journal is not None and asked and self.shard is None:  # a shard cannot say which row is the strongest
            for defence in self.defences:
                names = defence.names
                own = [restrict(one, names.names) for one in self.records if names.has(one.plan)]
                strongest = find_strongest(own)
                number = next((place for place, each in enumerate(self.rows) if each is strongest), None)
                if strongest is not None and number is not None:
                    found.append(round_row(strongest, self.journal.parts(number)))
        # two defences may have the same one
        rows = {(row.name, row.threat, row.variant, row.attacked): row for row in found if row is not None}
        return self.processes.tell(list(rows.values()), "the rows that are judged again")

    def _write_judged_by(self, planned: PlannedRow) -> None:
        """Write the folders of the defences that a row is of, as they stand now."""
        if self.shard is not None:  # its figures would be taken for the run's
            return
        for out, defence in zip(self.outs, self.defences, strict=True):
            if out is not None and self.records and defence.names.has(planned):
                # the whole report after every row: a fault in a later one loses nothing. It says that it is not the
                # run's last word: certificates and checks come after the last row
                done = self._report(defence, under_way=True)
                run_folder.write(out, done.report, done.records)

    def conclude(self) -> list[Outcome]:
        """Check every defence, write its folder for the last time, and return what was found of it.

        Of a shard nothing but its journal is left, for `defend merge`.

        Raises:
            KeyboardInterrupt: a shard was cut off.
        """
        if self.shard is not None:
            if self.partial:
                raise KeyboardInterrupt
            return []
        outcomes = []
        for out, defence in zip(self.outs, self.defences, strict=True):
            try:
                whole = not self.partial and self.processes.first
                own = self._own(defence)
                subject = choose_subject(defence, self.dataset, self.device, own) if whole else None
                done = self._report(defence, subject)
            except KeyboardInterrupt:  # within the checks: the rows are whole
                self.partial = True
                done = self._report(defence)
            finally:
                self.watcher.end()
            if out is not None:
                run_folder.write(out, done.report, done.records)
                run_folder.write_pictures(out, done.records)
            outcomes.append(done)
        if self.journal is not None and not self.partial:
            self.journal.finish()
            for out in self.outs[1:]:
                if out is not None:
                    sweep(out, age=0)
        return outcomes

    def _own(self, defence: BuiltDefence) -> list[RowRecord]:
        """Return the finished rows of one defence, its arms by their names in a report."""
        finished = zip(self.rows, self.records, strict=False)  # the last rows may be missing
        return [restrict(record, defence.names.names) for planned, record in finished if defence.names.has(planned)]

    def _report(self, defence: BuiltDefence, subject: Subject | None = None, under_way: bool = False) -> Outcome:
        """Report on one defence from what is finished; the checks query the `subject` if there is one.

        One that is `under_way` is partial.
        """
        config, names = defence.names.config, defence.names.names
        judge = defence.arms[names[DEFENDED]]
        own = self._own(defence)
        rows = [planned for planned in self.rows if defence.names.has(planned)]
        certified = self.certifier.found(defence)
        checks = check(config, own, subject, self.watcher, certified)  # first, as they count in the run's seconds
        known = Circumstances(
            dataset=self.dataset,
            versions=self.versions,
            plugins=self.plugins.versions,
            device=self.device,
            precision={
                "requested": config.precision,
                "crafting": self.crafting.name,
                "crafting_why": self.crafting.why,
                "judging": "fp32",
                **defence.precision,
            },
            seconds=time.perf_counter() - self.started if self.journal is None else self.journal.seconds,
            batch_size=self.evaluator.batch_size,
            built=defence.built,
            sources=defence.sources,
            parameters=defence.parameters,
            threshold=None if judge.detector is None else float(threshold_of(judge.detector)),
            thresholds=defence.thresholds,
            calibration=defence.calibration,
            checks=checks,
            left_out={
                **defence.left_out,
                **find_undone(config, rows, self.plugins, random=any(each.names.random for each in self.defences)),
                **self.certifier.left_out(defence),
            },
            notes=(
                *make_notes(
                    config,
                    rows,
                    self.plugins,
                    defence.built,
                    own,
                    describe_weights(defence.built),
                    self.evaluator.batch_size,
                ),
                *self._note_merge(),
            ),
            partial=under_way or self.partial or len(own) < len(rows),
            random=judge.random,
            certified=certified,
            given=_find_given(config, self.plugins),
        )
        return Outcome(assemble(config, own, known), own)

    def _note_merge(self) -> list[str]:
        merged = None if self.journal is None else self.journal.choice("merged")
        if merged is None:
            return []
        return [
            f"Merged from {merged['shards']} shards: checks and certificates were computed at the merge, and the run's "
            "seconds are the slowest shard's"
        ]


def _read(config: RunConfig, plugins: Registry, watcher: Watcher) -> ImageDataset:
    """Open the data set that a config names, with the run's workers where it takes any."""
    watcher.preparing(f"reading {config.dataset}")
    options: dict[str, Any] = dict(config.options.get("dataset", {}))
    if "workers" in {option.name for option in describe(plugins.find("dataset", config.dataset).spec.config)}:
        options.setdefault("workers", config.workers)
    return open_dataset(config.dataset, config.data_dir, options, plugins)


def _announce(configs: Sequence[RunConfig], outs: Sequence[Path | None]) -> Journal | None:
    """Write down what the run will be of; return the journal of its finished batches, if it has a folder."""
    if outs[0] is None:
        return None
    journal = Journal(outs[0])
    journal.announce([to_toml(each) for each in configs])
    for out, each in zip(outs, configs, strict=True):
        if out is not None:
            run_folder.write_config(out, each)
    return journal


def _find_given(config: RunConfig, plugins: Registry) -> tuple[str, ...]:
    """Return the stages of a run that are objects of the program that runs it."""
    named: dict[Stage, str | None] = {
        "victim": config.victim,
        "purifier": config.purifier,
        "detector": config.detector,
        "dataset": config.dataset,
    }
    return tuple(stage for stage, name in named.items() if name and plugins.is_object(stage, name))


def _resolve(config: RunConfig, plugins: Registry) -> Composition:
    """Return a config's parts. Refuse unknown names, and options or weights for what the run does not have."""
    bare = not config.defended
    carried_out = {found.name for kind in choose_threats(config) for found in attacks_of(kind, config, plugins, bare)}
    carried_out |= {plugins.find("attack", name).name for name in config.attacks or ()}
    for name in config.sources:
        if config.sources != NO_SOURCES:
            plugins.find("victim", name)
    composition = Composition.of_config(config, plugins)
    if config.fpr is not None and config.detector is None:
        raise ConfigError(
            f"fpr {config.fpr:g} was asked for, and there is no detector to calibrate: add --detector (in Python "
            "detector=)"
        )
    composition.check_keys("options", config.options, {"dataset", *carried_out, *counter_attacks(config, plugins)})
    composition.check_keys("weights", config.weights)
    return composition
