"""RunConfig to Report: the one place where everything is wired."""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
import warnings
from collections.abc import Sequence
from typing import Any

import attrs
import torch

from defend import __version__
from defend.arms import Arms, build_all
from defend.build import check_default_type, open_dataset, resolve_device
from defend.checks import Promise, Subject, check_run
from defend.config import to_toml
from defend.datasets.base import ImageDataset
from defend.errors import ConfigError, ProcessLostError
from defend.evaluate import Evaluator, Settings
from defend.fingerprint import code_of
from defend.journal import Journal
from defend.options import describe
from defend.plan import attacks_of, counter_attacks, plan, undone
from defend.plugins import Registry, registry
from defend.precision import REDUCED, Crafting, choose
from defend.processes import Processes, join
from defend.report import folder as run_folder
from defend.report.assemble import Circumstances, assemble
from defend.rows import PlannedRow, RowRecord, restrict
from defend.store import Store
from defend.threats import DEFENDED, NO_SOURCES, UNDEFENDED, WHOLE, chosen
from defend.values import Check, Report, RunConfig
from defend.watcher import Watcher

PROBED = {"basic": 8, "full": 25}  # images that the sanity checks query the defence with
CHECK_STEPS = 10
MOST_CHECK_STEPS = 20


@attrs.frozen
class Outcome:
    """One defence's report and the records that it was computed from."""

    report: Report
    records: Sequence[RowRecord]


def run(config: RunConfig, watcher: Watcher | None = None, found_in: Registry | None = None) -> Report:
    """Evaluate a defence as a config describes it; write the run folder if the config names one.

    Raises:
        DefendError: anything wrong with the config, before or during the run; finished rows are kept
            in the run folder.
    """
    return run_arms([config], watcher, found_in)[0].report


def run_arms(
    configs: Sequence[RunConfig],
    watcher: Watcher | None = None,
    found_in: Registry | None = None,
    resume: bool = False,
    dataset: ImageDataset | None = None,
) -> list[Outcome]:
    """Evaluate several defences of one victim side by side, see `alternatives`.

    An attack on the bare victim is made once and judged by all of them; each gets a report, and a run folder if
    its config names one. Every finished batch is kept in the first of these folders until the run is complete, and
    with `resume` it is taken from there. Where a launcher (torchrun) started several processes they share the
    batches; process 0 alone writes, and alone runs the checks that query the defence. A `dataset` that is open
    already is not read again.

    Raises:
        DefendError: as `run`.
        ProcessLostError: another process of the run is gone; what was finished is in the run folder.
    """
    started = time.perf_counter()
    check_default_type()
    watcher = watcher or Watcher()
    plugins = found_in or registry()
    config = configs[0]
    processes, device = join(resolve_device(config.device))
    store = Store.users() if config.store and config.out else None  # without a folder, a run leaves no trace
    for each in configs:
        _check_names(each, plugins)
    dataset_options: dict[str, Any] = dict(config.options.get("dataset", {}))
    if "workers" in {option.name for option in describe(plugins.find("dataset", config.dataset).spec.config)}:
        dataset_options.setdefault("workers", config.workers)
    if dataset is None:
        watcher.preparing(f"reading {config.dataset}")
        dataset = open_dataset(config.dataset, config.data_dir, dataset_options, plugins)
    defences = build_all(configs, dataset, plugins, watcher, device, config.precision)
    plans = plan([defence.names for defence in defences], dataset, plugins)
    outs = [run_folder.create(each, resume) if each.out and processes.first else None for each in configs]
    journal = Journal(outs[0]) if outs[0] is not None else None
    if journal is not None:
        texts = [to_toml(each) for each in configs]
        journal.announce(texts)
        for out, each in zip(outs, configs, strict=True):
            if out is not None:
                run_folder.write_config(out, each)
        journal.begin(texts, _fingerprint(defences, plans, dataset, plugins, device))
    watcher.preparing("choosing a precision")
    crafting = processes.tell(_crafting(defences, plans, dataset, device, journal) if processes.first else None)
    assert crafting is not None
    settings = Settings(
        device=device,
        seed=config.seed,
        batch_size=config.batch_size,
        draws=config.draws,
        passes=config.passes_asked,
        crafting=crafting.dtype,
        progress=watcher.images,
    )
    everyone = {name: arm for each in defences for name, arm in each.arms.items()}
    evaluator = Evaluator(everyone, dataset, settings, processes, journal, store)
    records: list[RowRecord] = []
    partial = False

    def outcome(defence: Arms, subject: Subject | None = None) -> Outcome:
        names = defence.names.names
        own = [restrict(record, names) for record in records if names[DEFENDED] in record.arms]
        own_plans = [planned for planned in plans if names[DEFENDED] in planned.judges]
        detector: Any = defence.arms[names[DEFENDED]].detector
        checks = _checked(defence.names.config, own, subject, watcher)  # first, as they count in the run's seconds
        known = Circumstances(
            dataset=dataset,
            plugins=plugins.versions,
            device=device,
            precision={"requested": config.precision, "crafting": crafting.name, "crafting_why": crafting.why,
                       "judging": "fp32", **defence.precision},
            seconds=time.perf_counter() - started if journal is None else journal.seconds,
            batch_size=evaluator.batch_size,
            built=defence.built,
            parameters=defence.parameters,
            threshold=None if detector is None else float(detector.threshold),
            thresholds=defence.thresholds,
            calibration=defence.calibration,
            checks=checks,
            left_out={**defence.left_out, **undone(defence.names.config, own_plans, plugins)},
            notes=(*_notes(defence.names.config, plugins), *_rounding(own_plans, defence.names.config)),
            partial=partial or len(own) < len(own_plans),
            random=defence.arms[names[DEFENDED]].random,
        )  # fmt: skip
        return Outcome(assemble(defence.names.config, own, known), own)

    watcher.begin(plans)
    try:
        for number, planned in enumerate(plans):
            watcher.row(planned)
            record = evaluator.row(planned, number)
            if record is not None:
                records.append(record)
            partial = record is None or record.partial
            for out, defence in zip(outs, defences, strict=True):
                if out is not None and records and defence.names.names[DEFENDED] in planned.judges:
                    done = outcome(defence)
                    run_folder.write(out, done.report, done.records)
            if partial:
                break
    except KeyboardInterrupt:  # between rows
        partial = True
    except ProcessLostError as error:
        kept = f"; what was finished is kept: defend run --resume {outs[0]}" if outs[0] is not None else ""
        raise ProcessLostError(f"{error}{kept}") from None
    finally:
        watcher.end()
    if not records:
        raise KeyboardInterrupt  # before the first batch was finished: nothing to report
    outcomes = []
    for out, defence in zip(outs, defences, strict=True):
        try:
            whole = not partial and processes.first
            done = outcome(defence, _subject(defence, dataset, settings, records) if whole else None)
        except KeyboardInterrupt:  # within the checks: the rows are whole
            partial = True
            done = outcome(defence)
        finally:
            watcher.end()
        if out is not None:
            run_folder.write(out, done.report, done.records)
            run_folder.write_pictures(out, done.records)
        outcomes.append(done)
    if journal is not None and not partial:
        journal.finish()
    if journal is not None and journal.damaged:
        warnings.warn(
            f"{journal.damaged} finished batches of run {str(outs[0])!r} were not as they were written, and were "
            "computed again with those after them",
            stacklevel=2,
        )
    return _agreed(outcomes, processes)


def _agreed(outcomes: list[Outcome], processes: Processes) -> list[Outcome]:
    """Give every process what process 0 found: its checks alone queried the defence, so its verdict is the run's."""
    said = processes.tell([(each.report.partial, each.report.checks) for each in outcomes])
    return [
        attrs.evolve(each, report=attrs.evolve(each.report, partial=partial, checks=checks))
        for each, (partial, checks) in zip(outcomes, said, strict=True)
    ]


def _crafting(
    defences: Sequence[Arms],
    plans: Sequence[PlannedRow],
    dataset: ImageDataset,
    device: torch.device,
    journal: Journal | None,
) -> Crafting:
    """Choose what attacks on bare victims are crafted in; a run that goes on keeps what it chose at first."""
    kept = None if journal is None else journal.choice("crafting")
    if kept is not None:
        return Crafting(REDUCED if kept["name"] == "bf16" else None, kept["why"], kept["figures"])
    config = defences[0].names.config
    bare = defences[0].arms[UNDEFENDED]
    batches = dataset.batches("test", plans[0].keys, config.batch_size, device)
    chosen = choose(config.precision, bare, batches, eps=config.eps, seed=config.seed, device=device)
    if journal is not None:
        journal.choose("crafting", {"name": chosen.name, "why": chosen.why, "figures": dict(chosen.figures)})
    return chosen


def _fingerprint(
    defences: Sequence[Arms], plans: Sequence[PlannedRow], dataset: ImageDataset, plugins: Registry,
    device: torch.device,
) -> dict[str, Any]:  # fmt: skip
    """Say what decides the records of a run, for its journal."""
    rows = [
        (plan.name, plan.threat.kind, plan.threat.norm, plan.threat.eps, plan.variant, plan.attacked, plan.judges,
         plan.recipe, plan.keys.tolist())
        for plan in plans
    ]  # fmt: skip
    return {
        "version of defend or torch": [__version__, torch.__version__],
        "set of plugins": dict(plugins.versions),
        "data": dataset.sha256("test"),
        "kind of device": device.type,
        "batch size": defences[0].names.config.batch_size,
        "weights file": [
            {part: built.card.content_sha256 for part, built in each.built.items() if built.card is not None}
            for each in defences
        ],
        **_code(defences, plans, plugins),
        "plan of rows": hashlib.sha256(json.dumps(rows).encode()).hexdigest(),
    }


def _code(defences: Sequence[Arms], plans: Sequence[PlannedRow], plugins: Registry) -> dict[str, str]:
    """Return the hashes of the code that makes the rows: core, and the packages of all that a run is built from."""
    modules = {type(plan.attack).__module__ for plan in plans if plan.attack is not None}
    for each in defences:
        config = each.names.config
        modules |= {type(part).__module__ for arm in each.arms.values() for part in arm.modules()}
        named = [("victim", config.victim), ("detector", config.detector), ("finetuner", config.finetune),
                 ("dataset", config.dataset), *(("purifier", name) for name in config.purifiers),
                 *(("attack", name) for name in dict.fromkeys(plan.name for plan in plans))]  # fmt: skip
        for stage, name in named:
            if name:
                with contextlib.suppress(ConfigError):  # the clean row is of no attack
                    spec = plugins.find(stage, name).spec  # type: ignore[arg-type]
                    modules |= {spec.build.partition(":")[0], spec.config.__module__}
    return {f"source code of {root}": value for root, value in code_of(*modules).items()}


def _checked(
    config: RunConfig, records: Sequence[RowRecord], subject: Subject | None, watcher: Watcher
) -> tuple[Check, ...]:
    """Run the sanity checks that the config asks for: while rows are still missing, on what there is.

    Only those that query something take long enough to be announced; the others run while a row's bar is still shown.
    """
    if config.checks == "none":
        return ()
    level: Any = config.checks
    if subject is None:
        return check_run(records, None, level)
    return check_run(records, subject, level, lambda what: watcher.preparing(f"checking: {what}"))


def _subject(defence: Arms, dataset: ImageDataset, settings: Settings, records: Sequence[RowRecord]) -> Subject | None:
    """Return what the checks may query: they take as many steps as the run's own PGD, within reason."""
    config = defence.names.config
    if config.checks == "none":
        return None
    own = [row.plan.steps for row in records if (row.plan.name, row.plan.threat.kind) == ("pgd", "adaptive")]
    steps = min(own[0] or CHECK_STEPS, MOST_CHECK_STEPS) if own else CHECK_STEPS
    keys = dataset.keys("test", PROBED[config.checks], config.seed)
    batch = next(iter(dataset.batches("test", keys, len(keys), settings.device)))
    names = defence.names.names
    return Subject(
        defence=defence.arms[names[DEFENDED]], undefended=defence.arms[UNDEFENDED],
        images=batch.images, labels=batch.labels, keys=batch.keys,
        eps=config.eps, seed=config.seed, draws=config.draws, steps=steps, classes=dataset.task().classes,
        calibration=defence.calibration, promise=_promise(defence, dataset),
    )  # fmt: skip


def _notes(config: RunConfig, plugins: Registry) -> tuple[str, ...]:
    """Return what a reader should know of the parts that a config names."""
    found = plugins.find("victim", config.victim)
    note = found.note(found.config(config.options.get("victim", {})))
    return (note,) if note else ()


def _rounding(plans: Sequence[PlannedRow], config: RunConfig) -> tuple[str, ...]:
    """Say where another batch size may change a prediction: draws are an image's own, rounding is the batch's."""
    if not config.purifier or not any(each.threat.kind in WHOLE and each.attack is not None for each in plans):
        return ()
    return (
        f"Attacked in batches of {config.batch_size}: another size draws the same numbers for every image but rounds "
        "otherwise, and sign steps through a purifier amplify that, so single predictions may differ",
    )


def _promise(defence: Arms, dataset: ImageDataset) -> Promise | None:
    """Return the clean accuracy that the card of the victim's weights gives."""
    card = defence.built["victim"].card
    if card is None:
        return None
    figures = [card.figures[name] for name in ("test_accuracy", "val_accuracy") if name in card.figures]
    return Promise(float(figures[0]), card.filing == dataset.filed_as) if figures else None


def _check_names(config: RunConfig, plugins: Registry) -> None:
    carried_out = {found.name for kind in chosen(config) for found in attacks_of(kind, config, plugins)}
    carried_out |= {plugins.find("attack", name).name for name in config.attacks or ()}
    for name in config.sources:
        if config.sources != NO_SOURCES:
            plugins.find("victim", name)
    for name in config.purifiers:
        plugins.find("purifier", name)
    named = {
        "victim": config.victim, "purifier": config.purifier, "detector": config.detector, "finetuner": config.finetune,
    }  # fmt: skip
    parts = [*(stage for stage, name in named.items() if name), *config.purifiers]
    if config.fpr is not None and config.detector is None:
        raise ConfigError(f"fpr {config.fpr:g} was asked for, and there is no detector to calibrate: add --detector")
    known = {*parts, "dataset", *carried_out, *counter_attacks(config, plugins)}
    for stage in config.options:
        if stage not in known:
            listed = ", ".join(sorted(known))
            raise ConfigError(f"options for {stage!r}, which this run does not have: expected one of {listed}")
    for stage in config.weights:
        if stage not in parts:
            listed = ", ".join(dict.fromkeys(parts))
            raise ConfigError(f"weights for {stage!r}, which this run does not have: expected one of {listed}")
