"""Measures a published table again: its arms and attacks to runs, the runs' reports to cells.

A cell asks for one row of one run. Attacks on one arm that differ in nothing but the attack share a run; every run has
a folder of its own, named after its config, so that a table goes on where it was cut off, and a run that two arms or
two tables need is made once. Images attacked on a bare victim are shared through the store.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs

from defend.build import needs_weights, open_dataset, purifier_options, train_command
from defend.config import to_toml
from defend.datasets.base import ImageDataset
from defend.editions import edition_of, tuned_behind
from defend.errors import ConfigError, DataError, DefendError, WeightsError
from defend.plan import counter_attacks
from defend.plugins import Registry, registry
from defend.recount import check_digests
from defend.results import AdaptiveResult, Cell, TableResult, save, standing
from defend.runner import run_arms
from defend.stages import Stage
from defend.statistics import wilson
from defend.tables import Adaptive, Table, TableArm, TableAttack
from defend.threats import DEFENDED, NO_SOURCES, THREATS, UNDEFENDED
from defend.unfinished import is_unfinished, unfinished
from defend.values import RunConfig, split_names
from defend.watcher import Watcher
from defend.weights import locate, read_card, tuned_name

RESULT = "result.json"
DETECTOR_AWARE = THREATS["detector-aware"].attacks


@attrs.frozen(kw_only=True)
class Settings:
    """How to measure.

    Attributes:
        out: the folder that holds a folder for every run.
        limit: at most so many images in any cell, for a quick look.
        train_missing: train weights that do not exist yet.
        announce: called with a line when a run begins.
    """

    out: Path
    limit: int | None = None
    seed: int = 0
    device: str = "auto"
    data_dir: str | None = None
    batch_size: int = 64
    train_missing: bool = False
    announce: Callable[[str], None] = lambda line: None


@attrs.frozen
class Job:
    """One run: what of the table it is for, and its config, which names its folder."""

    arm: TableArm
    attacks: tuple[str, ...]
    eps: float
    config: RunConfig

    @property
    def folder(self) -> Path:
        return Path(str(self.config.out))


@attrs.frozen
class Missing:
    """Weights that an arm needs and nobody has: the command that trains them, and what it takes where that is known."""

    arm: str
    command: str
    cost: str

    def __str__(self) -> str:
        return f"{self.command}{f'  ({self.cost})' if self.cost else ''}"


def reproduce(
    table: Table, settings: Settings, watcher: Watcher | None = None, found_in: Registry | None = None
) -> TableResult:
    """Measure a table; runs that are complete are taken as they are, one that was cut off goes on.

    Arms whose weights are missing are left open, unless `settings.train_missing`. After Ctrl-C the result holds what
    was finished, marked partial. A run that fails leaves its cells open, and the others go on. The result is written
    to `settings.out`/PLUGIN-TABLE.json too, after every run.

    Raises:
        WeightsError: no arm has its weights; the message names the commands.
        ConfigError: a distribution that offers a part of it is not installed; the message says which.
        DataError: a run that is there was made with other weights, or with other images than the others.
        DefendError: as `defend.run`, where all runs fail.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError("a table is measured in one process: start it without torchrun")
    table.require()
    plugins = found_in or registry()
    gaps = {} if settings.train_missing else missing(table, plugins)
    ready = [arm for arm in table.arms if not arm.absent and not arm.best_of and arm.name not in gaps]
    if not ready:
        commands = "; ".join(dict.fromkeys(str(gap) for each in gaps.values() for gap in each))
        raise WeightsError(f"table {table.name} needs weights that are not there: run {commands}, or --train-missing")
    every = list(jobs(table, settings, ready, plugins))
    reports: dict[Path, Mapping[str, Any]] = {}
    path = settings.out / f"{table.name.replace('/', '-')}.json"
    dataset: ImageDataset | None = None
    failed: dict[str, DefendError] = {}
    result = _result(table, settings, every, reports, gaps, failed, partial=bool(every))
    for number, job in enumerate(every, 1):
        report = _finished(job, plugins)
        if report is None:
            settings.announce(f"{table.name}, run {number} of {len(every)}: {_described(job)}")
            if dataset is None:
                dataset = open_dataset(table.dataset, settings.data_dir, {}, plugins)
            begun = is_unfinished(job.folder) or (job.folder / "config.toml").is_file()
            try:
                run_arms([_as_begun(job)], watcher, plugins, resume=begun, dataset=dataset)
            except KeyboardInterrupt:
                return result
            except DefendError as error:
                if begun and isinstance(error, ConfigError):
                    error = DataError(f"{error}; or delete the folder, and the same command measures it again")
                failed.setdefault(job.arm.name, error)
                settings.announce(f"{table.name}, {job.arm.name}: {error}")
            else:
                report = _read(job.folder)
                if report["partial"]:
                    return result
        if report is not None:
            _check_images(job, report, reports)
            reports[job.folder] = report
        result = _result(table, settings, every, reports, gaps, failed, partial=number < len(every))
        save(result, path)
    if failed and not reports:
        raise next(iter(failed.values()))
    return result


def missing(table: Table, plugins: Registry) -> dict[str, list[Missing]]:
    """Return which weights are missing, by arm."""
    found: dict[str, list[Missing]] = {}
    for arm in table.arms:
        if arm.absent or arm.best_of:
            continue
        gaps = [gap for part in _parts(table, arm) for gap in _gap(table, arm, *part, plugins)]
        if gaps:
            found[arm.name] = gaps
    return found


def _parts(table: Table, arm: TableArm) -> Iterator[tuple[Stage, str]]:
    yield "victim", arm.victim or table.victim
    if arm.source:
        yield "victim", arm.source
    for name in split_names(arm.purifier):
        yield "purifier", name
    if arm.detector:
        yield "detector", arm.detector
    if arm.finetune:
        yield "finetuner", arm.finetune


def _gap(table: Table, arm: TableArm, stage: Stage, name: str, plugins: Registry) -> Iterator[Missing]:
    found = plugins.find(stage, name)
    victim = arm.victim or table.victim
    given = arm.weights.get(stage) or arm.weights.get(name)
    options = purifier_options(arm.options, name) if stage == "purifier" else arm.options.get(stage, {})
    if stage == "victim" and name != victim:  # the source of a transfer is taken as it is
        given, options = None, {}
    if not needs_weights(found, found.config(options)):
        return
    behind = tuned_behind(arm.purifier, given)
    filed_as = tuned_name(found.name, victim, behind) if stage == "finetuner" else None
    if locate(found, table.dataset, given, filed_as) is None:
        edition = edition_of(given)
        command = train_command(found.spec.weights_of or stage, name, table.dataset, edition=edition)
        if stage == "finetuner":
            command += f" --victim {victim}" + (f" --purifier {behind}" if behind else "")
        kept_as = f"{table.dataset}+{edition}" if edition else table.dataset
        yield Missing(arm.name, command, found.spec.costs.get(kept_as, ""))


def jobs(table: Table, settings: Settings, arms: Sequence[TableArm], plugins: Registry) -> Iterator[Job]:
    """Yield the runs that the cells of some arms need, the cheap ones of all arms before the adaptive ones."""
    wanted = {(attack, owner) for attack, arm in table.cells for owner in _owners(table, arm)}
    for arm in arms:
        mine = [attack for attack in table.attacks if (attack.name, arm.name) in wanted]
        for group in _groups(table, arm, mine):
            budgets = arm.budgets if arm.budgets and group[0].attack else (table.eps_of(group[0]),)
            for eps in budgets:
                yield _job(table, settings, arm, group, eps)
    for arm in arms:
        if table.adaptive is not None and _faces_adaptive(arm) and _has_cells(table, arm):
            yield _adaptive_job(table, settings, arm, table.adaptive, plugins)


def _faces_adaptive(arm: TableArm) -> bool:
    """Whether an arm's figure is that of a whole defence, at one budget: what an adaptive attacker attacks."""
    return arm.protected and arm.judged == DEFENDED and not arm.budgets


def _owners(table: Table, name: str) -> tuple[str, ...]:
    return table.arm(name).best_of or (name,)


def _has_cells(table: Table, arm: TableArm) -> bool:
    return any(arm.name in _owners(table, name) for _, name in table.cells)


def _threat(arm: TableArm, attack: TableAttack) -> str:
    """Return the threat as it is run: the attacker of a whole defence attacks the victim where there is no more."""
    threat = arm.threat or attack.threat
    return "oblivious" if THREATS[threat].needs and not arm.protected else threat


def _groups(table: Table, arm: TableArm, attacks: Sequence[TableAttack]) -> list[list[TableAttack]]:
    """Put attacks that can share a run together; clean images go to a run that has no fewer images."""
    groups: list[list[TableAttack]] = []
    for attack in (each for each in attacks if each.attack is not None):
        shared = (_threat(arm, attack), table.eps_of(attack), attack.n, attack.draws)
        for group in groups:
            first = group[0]
            if (_threat(arm, first), table.eps_of(first), first.n, first.draws) == shared and all(
                each.attack != attack.attack for each in group
            ):
                group.append(attack)
                break
        else:
            groups.append([attack])
    for clean in (each for each in attacks if each.attack is None):
        larger = [group for group in groups if group[0].n >= clean.n]
        if larger:
            min(larger, key=lambda group: group[0].n).append(clean)
        else:
            groups.append([clean])
    return groups


def _job(table: Table, settings: Settings, arm: TableArm, group: Sequence[TableAttack], eps: float) -> Job:
    first = group[0]
    n = first.n if settings.limit is None else min(first.n, settings.limit)
    named = [attack for attack in group if attack.attack is not None]
    config = _config(
        table, settings, arm,
        attacks=tuple(str(attack.attack) for attack in named) or ("noise",),
        threats=(_threat(arm, first) if named else "noise",),
        eps=eps,
        limit=n,
        adaptive_limit=n,
        draws=first.draws,
        checks="none",  # the paper's own attack, however weak: what the checks find is said beside the adaptive figure
        options={**arm.options, **{str(attack.attack): given for attack in named if (given := _options(attack, eps))}},
    )  # fmt: skip
    return Job(arm, tuple(attack.name for attack in group), eps, _placed(settings, config))


def _options(attack: TableAttack, eps: float) -> dict[str, Any]:
    share = {} if attack.step_share is None else {"step_size": eps * attack.step_share}
    return {**attack.options, **share}


def _adaptive_job(table: Table, settings: Settings, arm: TableArm, adaptive: Adaptive, plugins: Registry) -> Job:
    n = adaptive.n if settings.limit is None else min(adaptive.n, settings.limit)
    aware = arm.detector is not None
    config = _config(
        table, settings, arm,
        attacks=(*adaptive.attacks, *(DETECTOR_AWARE if aware else ())),
        threats=("adaptive", "detector-aware") if aware else ("adaptive",),
        eps=table.eps,
        limit=n,
        adaptive_limit=n,
        draws=adaptive.draws_of(arm.name),
        checks="basic",
        options=dict(arm.options),
    )  # fmt: skip
    made = {*(config.attacks or ()), *counter_attacks(config, plugins)}  # options of others would be refused
    own = {name: dict(values) for name, values in adaptive.options.items() if name in made}
    config = attrs.evolve(config, options={**config.options, **own})
    return Job(arm, (), table.eps, _placed(settings, config))


def _config(table: Table, settings: Settings, arm: TableArm, **values: Any) -> RunConfig:
    return RunConfig(
        victim=arm.victim or table.victim,
        dataset=table.dataset,
        purifier=arm.purifier,
        detector=arm.detector,
        finetune=arm.finetune,
        weights=dict(arm.weights),
        sources=(arm.source,) if arm.source else NO_SOURCES,
        seed=settings.seed,
        device=settings.device,
        data_dir=settings.data_dir,
        batch_size=settings.batch_size,
        train_missing=settings.train_missing,
        **values,
    )


def _placed(settings: Settings, config: RunConfig) -> RunConfig:
    """Give a run its folder: named after what it is, and after a hash of the rest."""
    what = attrs.evolve(config, data_dir=None, device="auto", batch_size=64, train_missing=False)  # decide nothing
    digest = hashlib.sha256(to_toml(what).encode()).hexdigest()[:8]
    parts = (config.dataset, config.victim, config.purifier, config.detector, config.finetune, *(config.threats or ()))
    words = "-".join(part for part in (*parts, f"{config.eps:.3g}") if part)
    return attrs.evolve(config, out=str(settings.out / f"{re.sub(r'[^a-z0-9._]+', '-', words.lower())}-{digest}"))


def _described(job: Job) -> str:
    config = job.config
    what = ", ".join(job.attacks) or f"adaptive ({', '.join(config.attacks or ())})"
    return f"{job.arm.name}: {what}; eps {job.eps:.3g}, {config.limit} images"


def _finished(job: Job, plugins: Registry) -> Mapping[str, Any] | None:
    """Return the report of a run that is complete and was made with the weights that would be used now."""
    if is_unfinished(job.folder) or not (job.folder / "report.json").is_file():
        return None
    report = _read(job.folder)
    if report["partial"]:
        return None
    now = _hashes(job, plugins)
    then = {part: made["sha256"] for part, made in report["weights"].items()}
    stale = sorted(part for part in now if part in then and now[part] != then[part])
    if stale:
        raise DataError(
            f"{str(job.folder)!r} was measured with other weights of the {stale[0]} than there are now: delete the "
            "folder to measure it again, or name another with --out"
        )
    return report


def _as_begun(job: Job) -> RunConfig:
    """Return a run's config; one that goes on keeps its batch size, as its finished batches are counted in it."""
    if not is_unfinished(job.folder):
        return job.config
    return attrs.evolve(job.config, batch_size=unfinished(job.folder)[0].batch_size)


def _check_images(job: Job, report: Mapping[str, Any], others: Mapping[Path, Mapping[str, Any]]) -> None:
    theirs = {other["dataset"]["sha256"] for other in others.values()}
    if theirs - {report["dataset"]["sha256"]}:
        raise DataError(
            f"{str(job.folder)!r} was measured on other images of {job.config.dataset} than the table's other runs: "
            "delete the folders of either to measure them again, or name another with --out"
        )


def _hashes(job: Job, plugins: Registry) -> dict[str, str]:
    """Return the content hashes of the weights that a run would load now, by the names that reports give them."""
    config = job.config
    parts: list[tuple[str, Stage, str, str | None]] = [("victim", "victim", config.victim, None)]
    several = len(config.purifiers) > 1
    parts += [(name if several else "purifier", "purifier", name, None) for name in config.purifiers]
    if config.detector:
        parts.append(("detector", "detector", config.detector, None))
    if config.finetune:
        behind = tuned_behind(config.purifier, config.weights.get("finetuner"))
        filed = tuned_name(config.finetune, config.victim, behind)
        parts.append(("finetuner", "finetuner", config.finetune, filed))
    found = {}
    for label, stage, name, filed_as in parts:
        path = locate(
            plugins.find(stage, name), config.dataset, config.weights.get(stage) or config.weights.get(name), filed_as
        )
        if path is not None:
            found[label] = read_card(path).content_sha256
    return found


def _read(folder: Path) -> Mapping[str, Any]:
    try:
        report: Mapping[str, Any] = json.loads((folder / "report.json").read_text(encoding="utf-8"))
        check_digests(report, folder / "report.json")
        return report
    except (OSError, ValueError) as error:
        raise DataError(
            f"the report in {str(folder)!r} cannot be read ({type(error).__name__}): delete the folder, and the same "
            "command measures it again"
        ) from None


def _result(
    table: Table,
    settings: Settings,
    every: Sequence[Job],
    reports: Mapping[Path, Mapping[str, Any]],
    gaps: Mapping[str, Sequence[Missing]],
    failed: Mapping[str, DefendError],
    partial: bool,
) -> TableResult:
    troubles = dict.fromkeys(gaps, "its weights are missing") | dict.fromkeys(failed, "its run failed")
    cells: dict[tuple[str, str], Cell] = {}
    for (attack, arm), paper in table.cells.items():
        if not table.arm(arm).best_of:
            cells[attack, arm] = _cell(table, attack, table.arm(arm), paper, every, reports, troubles)
    for (attack, arm), paper in table.cells.items():
        if table.arm(arm).best_of:
            cells[attack, arm] = _best(table, attack, table.arm(arm), paper, every, reports)
    latest = list(reports.values())[-1] if reports else {}
    made = [(job, reports[job.folder]) for job in every if job.folder in reports]
    limit = "" if settings.limit is None else f" --limit {settings.limit}"
    seed = "" if settings.seed == 0 else f" --seed {settings.seed}"
    return TableResult(
        table=table.name,
        command=f"defend reproduce {table.name}{limit}{seed}",
        dataset={key: latest["dataset"][key] for key in ("name", "sha256")} if latest else {"name": table.dataset},
        cells=tuple(cells[place] for place in table.cells),
        adaptive=tuple(
            _adaptive(job, report) for job, report in made if not job.attacks and report["worst_case"] is not None
        ),
        versions=latest.get("versions", {}),
        plugins=latest.get("plugins", {}),
        device=latest.get("device", ""),
        seed=settings.seed,
        seconds=sum(report["seconds"] for report in {job.folder: report for job, report in made}.values()),
        weights={job.arm.name: {part: one["sha256"] for part, one in report["weights"].items()}
                 for job, report in made},
        missing=tuple(dict.fromkeys(str(gap) for each in gaps.values() for gap in each)),
        failed={name: str(error) for name, error in failed.items()},
        partial=partial,
    )  # fmt: skip


def _cell(
    table: Table, attack: str, arm: TableArm, paper: float | None, every: Sequence[Job],
    reports: Mapping[Path, Mapping[str, Any]], troubles: Mapping[str, str],
) -> Cell:  # fmt: skip
    """Return a cell; of an arm with several budgets, the least. `troubles`: by arm, why it is not measured."""
    found = [
        _figure(table.attack(attack), job, reports[job.folder])
        for job in every
        if job.arm == arm and attack in job.attacks and job.folder in reports
    ]
    wanted = sum(job.arm == arm and attack in job.attacks for job in every)
    blank = Cell(attack=attack, arm=arm.name, paper=None if paper is None else paper / 100)
    if not found or len(found) < wanted:
        why = arm.absent or troubles.get(arm.name, "it is still to be run")
        return attrs.evolve(blank, why=why)
    ours, n, details = min(found, key=lambda figure: figure[0])
    stands, why = standing(table, attack, arm.name, ours)
    return attrs.evolve(
        blank, ours=ours, ci95=wilson(round(ours * n), n), n=n, standing=stands, why=why, details=details
    )


def _best(
    table: Table, attack: str, arm: TableArm, paper: float | None, every: Sequence[Job],
    reports: Mapping[Path, Mapping[str, Any]],
) -> Cell:  # fmt: skip
    """Return the cell of the best of several arms, once all of them were measured."""
    several = [_cell(table, attack, table.arm(name), None, every, reports, {}) for name in arm.best_of]
    blank = Cell(attack=attack, arm=arm.name, paper=None if paper is None else paper / 100)
    if any(cell.ours is None for cell in several):
        return attrs.evolve(blank, why="not all of its arms are measured")
    best = max(several, key=lambda cell: cell.ours or 0.0)
    stands, why = standing(table, attack, arm.name, best.ours)
    return attrs.evolve(
        best, arm=arm.name, paper=blank.paper, standing=stands, why=why, details={**best.details, "best": best.arm}
    )


def _figure(attack: TableAttack, job: Job, report: Mapping[str, Any]) -> tuple[float, int, dict[str, Any]]:
    """Return (accuracy, images, details) of the row that an attack asks for.

    Raises:
        DataError: the run has no such row.
    """
    wanted = "none" if attack.attack is None else attack.attack
    threat = _threat(job.arm, attack)
    variant = job.arm.variant or (job.arm.source if threat == "transfer" else None) or ""
    rows = [
        row
        for row in report["rows"]
        if row["attack"] == wanted
        and (row["threat"] == threat or attack.attack is None)
        and (row.get("variant", "") == variant or attack.attack is None)
    ]
    if not rows:
        raise DataError(
            f"the run in {str(job.folder)!r} has no row for {attack.name!r}: delete the folder, and try again"
        )
    row = rows[0]
    judged = job.arm.judged
    arm = row[judged] if judged in (UNDEFENDED, DEFENDED) else row["arms"][judged]
    accuracy = arm["accuracy_with_credit" if job.arm.credit else "accuracy"]
    details = {key: row[key] for key in ("threat", "eps", "steps")} | {"run": job.folder.name}
    return float(accuracy), int(row["n"]), details


def _adaptive(job: Job, report: Mapping[str, Any]) -> AdaptiveResult:
    worst = report["worst_case"]
    credited = job.arm.credit and worst.get("with_credit")
    figures = worst["with_credit"] if credited else worst
    return AdaptiveResult(
        arm=job.arm.name,
        eps=job.eps,
        accuracy=figures["accuracy"],
        ci95=tuple(figures["ci95"]),
        n=worst["n"],
        over=tuple(worst["over"]),
        credit=bool(credited),
        failed=tuple(check["name"] for check in report["checks"] if check["status"] == "fail"),
    )
