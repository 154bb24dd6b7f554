"""RunConfig to Report: the one place where everything is wired."""

from __future__ import annotations

import datetime
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import attrs
import torch

from defend.arms import Arms, build_all
from defend.build import open_dataset, resolve_device
from defend.checks import Subject, check_run
from defend.datasets.base import ImageDataset
from defend.errors import ConfigError
from defend.evaluate import Evaluator, RowRecord, Settings, restrict
from defend.options import describe
from defend.plan import attacks_of, counter_attacks, plan
from defend.plugins import Registry, registry
from defend.report import folder as run_folder
from defend.report.assemble import Circumstances, assemble
from defend.threats import DEFENDED, UNDEFENDED, chosen
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
    defences = build_all(configs, dataset, plugins, watcher, device, precision)
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

    def outcome(defence: Arms, subject: Subject | None = None) -> Outcome:
        names = defence.names.names
        own = [restrict(record, names) for record in records if names[DEFENDED] in record.arms]
        wanted = sum(names[DEFENDED] in planned.judges for planned in plans)
        detector: Any = defence.arms[names[DEFENDED]].detector
        checks = _checked(defence.names.config, own, subject, watcher)  # first, as they count in the run's seconds
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
            checks=checks,
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
