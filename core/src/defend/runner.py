"""RunConfig to Report: the one place where everything is wired."""

from __future__ import annotations

import datetime
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import torch
from torch import nn

from defend.bpda import BackwardThrough, surrogates_of
from defend.build import (
    Built,
    build_purifiers,
    build_stage,
    build_tuned,
    in_sequence,
    needs_weights,
    open_dataset,
    purifier_options,
    resolve_device,
    transfer_sources,
)
from defend.calibrate import DEFAULT_FPR, calibrate, clean_scores, is_calibrated, thresholds_at
from defend.checks import Subject, check_run
from defend.datasets.base import ImageDataset
from defend.defence import Defence
from defend.errors import ConfigError
from defend.evaluate import Evaluator, PlannedRow, RowRecord, Settings, restrict
from defend.options import describe
from defend.plan import ArmSet, attacks_of, counter_attacks, plan
from defend.plugins import Registry, registry
from defend.report import folder as run_folder
from defend.report.assemble import Circumstances, assemble
from defend.speed import prepare
from defend.stages import Stage
from defend.threats import (
    BEFORE_TUNING,
    DEFENDED,
    DETECTOR_AWARE,
    RATES,
    THREATS,
    TUNED,
    UNDEFENDED,
    UNTUNED,
    chosen,
)
from defend.train_stage import Progress, train_stage
from defend.values import Calibration, Check, Report, RunConfig
from defend.weights import locate, tuned_name

SAMPLE = 4
PROBED = {"basic": 8, "full": 25}  # images that the sanity checks query the defence with
CHECK_STEPS = 10
MOST_CHECK_STEPS = 20


class Watcher:
    """What a run tells while it goes on; this one shows nothing, the command line's shows progress bars."""

    def preparing(self, what: str) -> None:
        """Something that may take seconds begins, before the first row."""

    def begin(self, rows: Sequence[PlannedRow]) -> None:
        """The rows that will be evaluated."""

    def row(self, plan: PlannedRow) -> None:
        """A row begins."""

    def images(self, count: int) -> None:
        """So many more images of the row are finished."""

    def end(self) -> None:
        """Nothing more will come."""

    def training(self, title: str) -> Progress | None:
        """Missing weights are about to be trained; return what is to be told of it."""
        return None


@attrs.frozen
class Outcome:
    """One defence's report and the records that it was computed from."""

    report: Report
    records: Sequence[RowRecord]


@attrs.frozen
class _Arms:
    """One defence, ready: what was built, its arms by their names in the run, and how they were prepared."""

    names: ArmSet
    built: Mapping[str, Built]
    arms: Mapping[str, Defence]
    parameters: int
    precision: Mapping[str, str]
    calibration: Calibration | None
    thresholds: Mapping[float, float]
    left_out: Mapping[str, str]


def run(config: RunConfig, watcher: Watcher | None = None, found_in: Registry | None = None) -> Report:
    """Evaluate a defence as a config describes it; write the run folder if the config names one.

    Raises:
        DefendError: anything wrong with the config, before or during the run; finished rows are kept
            in the run folder.
    """
    return run_arms([config], watcher, found_in)[0].report


def run_arms(
    configs: Sequence[RunConfig], watcher: Watcher | None = None, found_in: Registry | None = None
) -> list[Outcome]:
    """Evaluate several defences of one victim side by side, see `alternatives`.

    An attack on the bare victim is made once and judged by all of them; each gets a report, and a run folder if
    its config names one.

    Raises:
        DefendError: as `run`.
    """
    started = time.perf_counter()
    watcher = watcher or Watcher()
    plugins = found_in or registry()
    config = configs[0]
    device = resolve_device(config.device)
    for each in configs:
        _check_names(each, plugins)
    dataset_options: dict[str, Any] = dict(config.options.get("dataset", {}))
    if "workers" in {option.name for option in describe(plugins.find("dataset", config.dataset).spec.config)}:
        dataset_options.setdefault("workers", config.workers)
    watcher.preparing(f"reading {config.dataset}")
    dataset = open_dataset(config.dataset, config.data_dir, dataset_options, plugins)
    precision = "fp32" if config.precision == "auto" else config.precision
    defences = _build_all(configs, dataset, plugins, watcher, device, precision)
    plans = plan([defence.names for defence in defences], dataset, plugins)
    outs = [run_folder.create(each) if each.out else None for each in configs]
    settings = Settings(
        device=device,
        seed=config.seed,
        batch_size=config.batch_size,
        draws=config.draws,
        passes=config.passes_asked,
        crafting=torch.bfloat16 if precision == "bf16" else None,
        progress=watcher.images,
    )
    evaluator = Evaluator({name: arm for each in defences for name, arm in each.arms.items()}, dataset, settings)
    records: list[RowRecord] = []
    partial = False

    def outcome(defence: _Arms, subject: Subject | None = None) -> Outcome:
        names = defence.names.names
        own = [restrict(record, names) for record in records if names[DEFENDED] in record.arms]
        wanted = sum(names[DEFENDED] in planned.judges for planned in plans)
        detector: Any = defence.arms[names[DEFENDED]].detector
        known = Circumstances(
            dataset=dataset,
            plugins=plugins.versions,
            device=device,
            precision={"requested": config.precision, "crafting": "bf16" if settings.crafting else "fp32",
                       "judging": "fp32", **defence.precision},
            seconds=time.perf_counter() - started,
            batch_size=evaluator.batch_size,
            built=defence.built,
            parameters=defence.parameters,
            threshold=None if detector is None else float(detector.threshold),
            thresholds=defence.thresholds,
            calibration=defence.calibration,
            checks=_checked(defence.names.config, own, subject, watcher),
            left_out=defence.left_out,
            partial=partial or len(own) < wanted,
        )  # fmt: skip
        return Outcome(assemble(defence.names.config, own, known), own)

    watcher.begin(plans)
    try:
        for planned in plans:
            watcher.row(planned)
            record = evaluator.row(planned)
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
    finally:
        watcher.end()
    if not records:
        raise KeyboardInterrupt  # before the first batch was finished: nothing to report
    outcomes = []
    for out, defence in zip(outs, defences, strict=True):
        try:
            done = outcome(defence, None if partial else _subject(defence, dataset, settings, records))
        except KeyboardInterrupt:  # within the checks: the rows are whole
            partial = True
            done = outcome(defence)
        finally:
            watcher.end()
        if out is not None:
            run_folder.write(out, done.report, done.records)
            run_folder.write_pictures(out, done.records)
        outcomes.append(done)
    return outcomes


def _checked(
    config: RunConfig, records: Sequence[RowRecord], subject: Subject | None, watcher: Watcher
) -> tuple[Check, ...]:
    """Run the sanity checks that the config asks for: while rows are still missing, on what there is."""
    if config.checks == "none":
        return ()
    level: Any = config.checks
    return check_run(records, subject, level, lambda what: watcher.preparing(f"checking: {what}"))


def _subject(defence: _Arms, dataset: ImageDataset, settings: Settings, records: Sequence[RowRecord]) -> Subject | None:
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
        calibration=defence.calibration,
    )  # fmt: skip


def alternatives(config: RunConfig, purifiers: Sequence[str]) -> list[RunConfig]:
    """Return one config a purifier (or sequence of them), each an arm with a folder of its own under the config's.

    Raises:
        ConfigError: one named twice; or options or weights for "purifier", which cannot mean several.
    """
    if len(set(purifiers)) < len(purifiers):
        raise ConfigError(f"--purifier names one twice: {', '.join(purifiers)}")
    for kind, given in (("options", config.options), ("weights", config.weights)):
        if "purifier" in given:
            raise ConfigError(f"{kind} for 'purifier', and there are {len(purifiers)}: name one of them instead")
    every = {name for purifier in purifiers for name in purifier.split(",")}
    configs = []
    for purifier in purifiers:
        others = every - set(purifier.split(","))
        own = {key: value for key, value in config.options.items() if key not in others}
        files = {key: value for key, value in config.weights.items() if key not in others}
        out = None if config.out is None else str(Path(config.out) / purifier.replace(",", "+"))
        configs.append(attrs.evolve(config, purifier=purifier, options=own, weights=files, out=out))
    return configs


def _check_names(config: RunConfig, plugins: Registry) -> None:
    carried_out = {found.name for kind in chosen(config) for found in attacks_of(kind, config, plugins)}
    carried_out |= {plugins.find("attack", name).name for name in config.attacks or ()}
    for name in config.sources:
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


def _build_all(
    configs: Sequence[RunConfig],
    dataset: ImageDataset,
    plugins: Registry,
    watcher: Watcher,
    device: torch.device,
    precision: str,
) -> list[_Arms]:
    """Build every defence; the bare victim, which they share, once."""
    config, task = configs[0], dataset.task()
    sample, _ = dataset.tensors("val", limit=SAMPLE)
    sample = sample.to(device)
    _train_missing("victim", config.victim, config, dataset, plugins, watcher)
    watcher.preparing("building the defence")
    victim = build_stage(
        "victim", config.victim, task, config.options.get("victim"), config.weights.get("victim"), plugins
    )
    bare, done = prepare(Defence(victim.module).to(device), precision, sample)
    sources = _sources(config, dataset, plugins, watcher, device)
    ready = []
    for each in configs:
        label = f"{each.purifier}: " if len(configs) > 1 else ""
        parts, whole = _build(each, victim, dataset, plugins, watcher)
        calibration = None
        screen = whole.to(device).detector
        if screen is not None and (each.fpr is not None or not is_calibrated(screen)):
            watcher.preparing(f"calibrating {each.detector}")
            calibration = calibrate(
                whole, dataset, each.fpr or DEFAULT_FPR, device=device, batch_size=each.batch_size, seed=each.seed
            )
        behind, _ = prepare(Defence(nn.Identity(), whole.purifier, whole.detector), precision, sample)
        names, arms = {UNDEFENDED: UNDEFENDED, DEFENDED: UNDEFENDED}, {UNDEFENDED: bare}
        last = bare.victim
        if each.finetune is not None:
            tuned, _ = prepare(Defence(whole.victim), precision, sample)
            last = tuned.victim
            names |= {TUNED: label + TUNED, UNTUNED: label + UNTUNED}
            arms |= {names[TUNED]: tuned, names[UNTUNED]: Defence(bare.victim, behind.purifier, behind.detector)}
        if len(parts) > 1:
            names[DEFENDED] = label + DEFENDED
            arms[names[DEFENDED]] = Defence(last, behind.purifier, behind.detector)
        faced, attackable, left_out = _faced(each, label, names, arms, sources)
        thresholds: dict[float, float] = {}
        aim = None
        judge = arms[names[DEFENDED]]
        if DETECTOR_AWARE in faced and judge.detector is not None:
            watcher.preparing(f"scoring held-out clean images with {each.detector}")
            scores = clean_scores(judge, dataset, device=device, batch_size=each.batch_size, seed=each.seed)
            thresholds = thresholds_at(scores, RATES)
            own: Any = judge.detector.threshold
            aim = min([float(own), *thresholds.values()])
        everything = {id(p): p.numel() for p in whole.parameters()}
        added = sum(everything.values()) - sum(p.numel() for p in whole.victim.parameters())
        armed = ArmSet(each, names, faced, aim, frozenset(attackable) - {f"source {name}" for name in sources})
        ready.append(_Arms(armed, parts, arms | attackable, added, done, calibration, thresholds, left_out))
    return ready


def _sources(
    config: RunConfig, dataset: ImageDataset, plugins: Registry, watcher: Watcher, device: torch.device
) -> dict[str, nn.Module]:
    """Build the victims whose gradients the transfer threat takes, frozen, by name."""
    if "transfer" not in chosen(config):
        return {}
    asked = config.threats is not None or config.thorough
    names = config.sources or (transfer_sources(config.victim, dataset.name, plugins) if asked else ())
    found = {}
    for name in names:
        _train_missing("victim", name, config, dataset, plugins, watcher)
        module = build_stage("victim", name, dataset.task(), None, None, plugins).module
        found[name] = module.to(device).requires_grad_(False)
    return found


def _faced(
    config: RunConfig,
    label: str,
    names: Mapping[str, str],
    arms: Mapping[str, Defence],
    sources: Mapping[str, nn.Module],
) -> tuple[dict[str, dict[str, str]], dict[str, Defence], dict[str, str]]:
    """Return what the attackers of each threat see, the arms made for them alone, and the threats that do not fit."""
    whole = arms[names[DEFENDED]]
    made: dict[str, Defence] = {}
    transfer = {BEFORE_TUNING: UNDEFENDED} if TUNED in names else {}
    for place, (name, module) in enumerate(sources.items()):
        transfer[name] = f"source {name}"
        made[transfer[name]] = Defence(module)
        if place == 0 and whole.purifier is not None:
            behind = f"{name} behind the defence"
            transfer[behind] = f"{label}source {behind}"
            made[transfer[behind]] = Defence(module, whole.purifier)
    bpda = {}
    if whole.purifier is not None and "bpda" in chosen(config):
        for variant, surrogate in surrogates_of(whole.purifier).items():
            bpda[variant] = f"{label}bpda {variant}"
            made[bpda[variant]] = Defence(whole.victim, BackwardThrough(whole.purifier, surrogate), whole.detector)
    everything = {
        "noise": {"": UNDEFENDED},
        "transfer": transfer,
        "oblivious": {"": names.get(TUNED, UNDEFENDED)},
        "query": {"": names[DEFENDED]},
        "bpda": bpda,
        "adaptive": {} if names[DEFENDED] == UNDEFENDED else {"": names[DEFENDED]},
        DETECTOR_AWARE: {} if whole.detector is None else {"": names[DEFENDED]},
    }
    left_out = {}
    for kind in chosen(config):
        needs = THREATS[kind].needs
        if not everything[kind] and (needs or config.threats or config.thorough):
            why = f"there is no {needs}" if needs else f"no other victim has weights for {config.dataset} (--source)"
            left_out[kind] = why
    return everything, made, left_out


def _build(
    config: RunConfig, victim: Built, dataset: ImageDataset, plugins: Registry, watcher: Watcher
) -> tuple[dict[str, Built], Defence]:
    """Build one defence around a victim; return its parts by name, and the whole."""
    task, options, weights = dataset.task(), config.options, config.weights
    for name in config.purifiers:
        _train_missing("purifier", name, config, dataset, plugins, watcher)
    purifiers = build_purifiers(config.purifiers, task, options, weights, plugins)
    built = {"victim": victim}
    built |= {"purifier" if len(purifiers) == 1 else name: part for name, part in purifiers.items()}
    last = victim.module
    if config.finetune is not None:
        _train_missing("finetuner", config.finetune, config, dataset, plugins, watcher)
        built["finetuner"] = build_tuned(
            config.finetune, task, config.victim, last, config.purifier, options.get("finetuner"),
            weights.get("finetuner"), plugins,
        )  # fmt: skip
        last = built["finetuner"].module
    if config.detector is not None:
        _train_missing("detector", config.detector, config, dataset, plugins, watcher)
        built["detector"] = build_stage(
            "detector", config.detector, task, options.get("detector"), weights.get("detector"), plugins
        )
    screen = built["detector"].module if "detector" in built else None
    return built, Defence(last, in_sequence(purifiers), screen)


def _train_missing(
    stage: Stage, name: str, config: RunConfig, dataset: ImageDataset, plugins: Registry, watcher: Watcher
) -> None:
    """Train a stage that has no weights yet, if the config allows it."""
    found = plugins.find(stage, name)
    options: Mapping[str, Any] = config.options.get(stage, {})
    if stage == "purifier":
        options = purifier_options(config.options, name)
    elif found.spec.weights_of:
        options = {}  # these are the detector's own; its network is another stage's
    filed_as = tuned_name(found.name, config.victim, config.purifier) if stage == "finetuner" else None
    given = config.weights.get(stage) or config.weights.get(name)
    if not config.train_missing or given is not None or not needs_weights(found, found.config(options)):
        return
    if locate(found, dataset.name, filed_as=filed_as) is not None:
        return
    train_stage(
        found.spec.weights_of or stage,
        name,
        dataset,
        victim=config.victim if stage == "finetuner" else None,
        purifier=config.purifier if stage == "finetuner" else None,
        parts={"options": config.options, "weights": config.weights},
        options=options,
        seed=config.seed,
        device=config.device,
        found_in=plugins,
        progress=watcher.training(f"training {stage} {name} on {config.dataset}"),
    )


def default_out(config: RunConfig, purifiers: Sequence[str] = (), root: Path = Path("runs")) -> str:
    """Return a fresh run folder's name: runs/20260131-120000-resnet18-apudae."""
    stamp = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    named = "-vs-".join(purifiers) or config.purifier
    tuned = f"finetune-{config.finetune}" if config.finetune else None
    parts = [stamp, config.victim, *(part for part in (named, config.detector, tuned) if part)]
    path = root / "-".join(parts).replace(":", "_").replace("/", "_").replace(",", "+")
    unique, count = path, 2
    while unique.exists():
        unique, count = path.with_name(f"{path.name}-{count}"), count + 1
    return str(unique)


def with_out(config: RunConfig, purifiers: Sequence[str] = ()) -> RunConfig:
    """Name a run folder if the config has none; `purifiers` are those of several arms."""
    return config if config.out else attrs.evolve(config, out=default_out(config, purifiers))
