"""RunConfig to Report: the one place where everything is wired."""

from __future__ import annotations

import contextlib
import datetime
import importlib.metadata
import platform
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import torch

from defend import metrics
from defend.build import Built, build_stage, needs_weights, open_dataset, resolve_device
from defend.datasets.base import ImageDataset
from defend.defence import Defence
from defend.errors import ConfigError
from defend.evaluate import Evaluator, PlannedRow, RowRecord, Settings, worst_case
from defend.options import describe
from defend.plugins import Found, Registry, registry
from defend.report import folder as run_folder
from defend.speed import prepare
from defend.stages import Stage, Task
from defend.threats import DEFENDED, THREATS, UNDEFENDED, threat
from defend.train_stage import Progress, train_stage
from defend.values import Cost, DatasetInfo, Report, Row, RunConfig, Threat, WorstCase

QUICK_ADAPTIVE_STEPS = 10
SAMPLE = 4


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


def run(config: RunConfig, watcher: Watcher | None = None, found_in: Registry | None = None) -> Report:
    """Evaluate a defence as a config describes it; write the run folder if the config names one.

    Raises:
        DefendError: anything wrong with the config, before or during the run; finished rows are kept
            in the run folder.
    """
    started = time.perf_counter()
    watcher = watcher or Watcher()
    plugins = found_in or registry()
    device = resolve_device(config.device)
    _check_options(config, plugins)
    for name in config.threats:
        threat(name)
    for name in config.attacks:
        plugins.find("attack", name)
    dataset_options: dict[str, Any] = dict(config.options.get("dataset", {}))
    if "workers" in {option.name for option in describe(plugins.find("dataset", config.dataset).spec.config)}:
        dataset_options.setdefault("workers", config.workers)
    watcher.preparing(f"reading {config.dataset}")
    dataset = open_dataset(config.dataset, config.data_dir, dataset_options, plugins)
    watcher.preparing("building the defence")
    built = _build(config, dataset, plugins, watcher)
    whole = Defence(
        built["victim"].module,
        built["purifier"].module if "purifier" in built else None,
        built["detector"].module if "detector" in built else None,
    )
    precision = "fp32" if config.precision == "auto" else config.precision
    sample, _ = dataset.tensors("val", limit=SAMPLE)
    defended, done = prepare(whole.to(device), precision, sample.to(device))
    arms = {UNDEFENDED: Defence(defended.victim), DEFENDED: defended}
    plans = _plan(config, dataset, plugins, has_defence=len(built) > 1)
    out = run_folder.create(config) if config.out else None
    settings = Settings(
        device=device,
        seed=config.seed,
        batch_size=config.batch_size,
        draws=config.draws,
        crafting=torch.bfloat16 if precision == "bf16" else None,
        progress=watcher.images,
    )
    evaluator = Evaluator(arms, dataset, settings)
    records: list[RowRecord] = []
    partial = False

    def report() -> Report:
        return _report(
            config, records, dataset, built, plugins, device,
            precision={"requested": config.precision, "crafting": "bf16" if settings.crafting else "fp32",
                       "judging": "fp32", **done},
            seconds=time.perf_counter() - started, batch_size=evaluator.batch_size,
            partial=partial or len(records) < len(plans),
        )  # fmt: skip

    watcher.begin(plans)
    try:
        for plan in plans:
            watcher.row(plan)
            record = evaluator.row(plan)
            if record is not None:
                records.append(record)
            partial = record is None or record.partial
            if out is not None and records:
                run_folder.write(out, report(), records)
            if partial:
                break
    except KeyboardInterrupt:  # between rows
        partial = True
    finally:
        watcher.end()
    if not records:
        raise KeyboardInterrupt  # before the first batch was finished: nothing to report
    if out is not None:
        run_folder.write_pictures(out, records)
    return report()


def _check_options(config: RunConfig, plugins: Registry) -> None:
    parts = [stage for stage in ("victim", "purifier", "detector") if getattr(config, stage)]
    known = {*parts, "dataset", *config.attacks, *_counter_attacks(config, plugins)}
    for stage in config.options:
        if stage not in known:
            listed = ", ".join(sorted(known))
            raise ConfigError(f"options for {stage!r}, which this run does not have: expected one of {listed}")
    for stage in config.weights:
        if stage not in parts:
            listed = ", ".join(parts)
            raise ConfigError(f"weights for {stage!r}, which this run does not have: expected one of {listed}")


def _build(config: RunConfig, dataset: ImageDataset, plugins: Registry, watcher: Watcher) -> dict[str, Built]:
    task = dataset.task()
    built = {}
    named: dict[Stage, str | None] = {
        "victim": config.victim, "purifier": config.purifier, "detector": config.detector,
    }  # fmt: skip
    for stage, name in named.items():
        if name is None:
            continue
        options, weights = config.options.get(stage, {}), config.weights.get(stage)
        found = plugins.find(stage, name)
        if config.train_missing and weights is None and _missing(found, options, task):
            train_stage(
                stage, name, dataset, options=options, seed=config.seed, device=config.device, found_in=plugins,
                progress=watcher.training(f"training {stage} {name} on {config.dataset}"),
            )  # fmt: skip
        built[stage] = build_stage(stage, name, task, options, weights, plugins)
    return {str(stage): value for stage, value in built.items()}


def _missing(found: Found, options: Mapping[str, Any], task: Task) -> bool:
    from defend.weights import locate

    return locate(found, task.dataset) is None and needs_weights(found, found.config(options))


def _plan(config: RunConfig, dataset: ImageDataset, plugins: Registry, has_defence: bool) -> list[PlannedRow]:
    keys = dataset.keys("test", config.row_limit, config.seed)
    fewer = keys if config.adaptive_row_limit is None else keys[: config.adaptive_row_limit]
    rows = [PlannedRow("none", Threat("none", "none", 0.0), None, keys, None)]
    for kind in THREATS:
        if kind not in config.threats or (THREATS[kind].attacked == DEFENDED and not has_defence):
            continue
        expensive = THREATS[kind].expensive
        counter = _counter_attacks(config, plugins) if THREATS[kind].attacked == DEFENDED else ()
        for name in dict.fromkeys((*config.attacks, *counter)):
            found = plugins.find("attack", name)
            if kind not in found.spec.threats:
                continue
            options = dict(config.options.get(name, {}))
            if expensive and not config.thorough:
                if "steps" not in {option.name for option in describe(found.spec.config)}:
                    continue  # one step finds little that many do not
                options = _fewer_steps(found, options)
            chosen = found.config(options)
            attack = found.spec.resolve(found.spec.build)(chosen)
            eps = None if attack.norm != "linf" else config.eps + getattr(attack, "excess", 0.0)
            steps = getattr(chosen, "steps", None)
            plan = PlannedRow(name, Threat(kind, attack.norm, eps), attack, fewer if expensive else keys, steps)
            rows.append(plan)
    return rows


def _counter_attacks(config: RunConfig, plugins: Registry) -> tuple[str, ...]:
    """Return the attacks that the parts of the defence name as made against them."""
    parts: tuple[tuple[Stage, str | None], ...] = (("purifier", config.purifier), ("detector", config.detector))
    return tuple(name for stage, part in parts if part for name in plugins.find(stage, part).spec.counter_attacks)


def _fewer_steps(found: Found, options: dict[str, Any]) -> dict[str, Any]:
    for option in describe(found.spec.config):
        if option.name == "steps" and isinstance(option.default, int):
            return {"steps": min(option.default, QUICK_ADAPTIVE_STEPS), **options}
    return options


def _row(record: RowRecord, seed: int) -> Row:
    attacked = record.plan.attack is not None
    arms = {
        name: metrics.arm(said.predicted, record.labels, said.accepted, attacked) for name, said in record.arms.items()
    }
    n = len(record.labels)
    return Row(
        attack=record.plan.name,
        threat=record.plan.threat.kind,
        norm=record.plan.threat.norm,
        eps=record.plan.threat.eps,
        n=n,
        steps=record.plan.steps,
        seed=seed,
        undefended=arms[UNDEFENDED],
        defended=arms[DEFENDED],
        mean_linf=float(record.linf.double().mean()),
        mean_l2=float(record.l2.double().mean()),
        seconds={"attack": record.attack_seconds, "purify": record.judge_seconds[DEFENDED]},
        partial=record.partial,
    )


def _report(
    config: RunConfig,
    records: list[RowRecord],
    dataset: ImageDataset,
    built: Mapping[str, Built],
    plugins: Registry,
    device: torch.device,
    *,
    precision: Mapping[str, str],
    seconds: float,
    partial: bool,
    batch_size: int,
) -> Report:
    rows = tuple(_row(record, config.seed) for record in records)
    common, right = worst_case(records, DEFENDED)
    _, bare = worst_case(records, UNDEFENDED)
    worst = None
    if len(common) and len(rows) > 1:
        worst = WorstCase(
            accuracy=float(right.double().mean()),
            ci95=metrics.wilson(int(right.sum()), len(right)),
            n=len(right),
            over=tuple(row.key for row in rows),
            undefended=float(bare.double().mean()),
        )
    clean = records[0].judge_ms
    size = sum(
        parameter.numel() for stage in built if stage != "victim" for parameter in built[stage].module.parameters()
    )
    weights = {
        stage: {"file": value.path.name, "sha256": value.card.content_sha256, "figures": dict(value.card.figures)}
        for stage, value in built.items()
        if value.path is not None and value.card is not None
    }
    return Report(
        versions={"defend-core": _version("defend-core"), "python": platform.python_version(),
                  "torch": torch.__version__, "timm": _version("timm")},
        plugins=dict(plugins.versions),
        config=config,
        seed=config.seed,
        device=_device_name(device),
        precision=dict(precision),
        seconds=seconds,
        dataset=DatasetInfo(config.dataset, "test", max(row.n for row in rows), dataset.sha256("test")),
        rows=rows,
        worst_case=worst,
        detector=None,
        checks=(),
        cost=Cost(clean[UNDEFENDED], clean[DEFENDED], size, batch_size),
        weights=weights,
        partial=partial,
    )  # fmt: skip


def _version(distribution: str) -> str:
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        return importlib.metadata.version(distribution)
    return "unknown"


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type} ({torch.get_num_threads()} threads)"


def default_out(config: RunConfig, root: Path = Path("runs")) -> str:
    """Return a fresh run folder's name: runs/20260131-120000-resnet18-apudae."""
    stamp = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    parts = [stamp, config.victim, *(part for part in (config.purifier, config.detector) if part)]
    path = root / "-".join(parts).replace(":", "_").replace("/", "_")
    unique, count = path, 2
    while unique.exists():
        unique, count = path.with_name(f"{path.name}-{count}"), count + 1
    return str(unique)


def with_out(config: RunConfig) -> RunConfig:
    """Name a run folder if the config has none."""
    return config if config.out else attrs.evolve(config, out=default_out(config))
