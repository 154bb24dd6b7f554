"""Reports of runs to the cells of a published table. A cell asks for one row of one run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs

from defend.assembly.composition import Missing
from defend.errors import DataError, DefendError
from defend.reproduce.jobs import Job, MeasureSettings, threat_of
from defend.reproduce.results import STILL_TO_RUN, AdaptiveResult, Cell, TableResult, standing
from defend.tables import Table, TableArm, TableAttack
from defend.util.statistics import wilson
from defend.values.commands import say_command
from defend.values.report import Report
from defend.values.threats import DEFENDED, THREATS, UNDEFENDED


def make_result(
    table: Table,
    settings: MeasureSettings,
    every: Sequence[Job],
    reports: Mapping[Path, Report],
    gaps: Mapping[str, Sequence[Missing]],
    failed: Mapping[str, DefendError],
    partial: bool,
) -> TableResult:
    """Return a table's result, as far as the reports of its runs go; what is missing or failed stays open."""
    troubles = dict.fromkeys(gaps, "its weights are missing") | dict.fromkeys(failed, "its run failed")
    cells: dict[tuple[str, str], Cell] = {}
    for (attack, arm), paper in table.cells.items():
        if not table.arm(arm).best_of:
            cells[attack, arm] = _cell(table, attack, table.arm(arm), paper, every, reports, troubles)
    for (attack, arm), paper in table.cells.items():
        if table.arm(arm).best_of:
            cells[attack, arm] = _best(table, attack, table.arm(arm), paper, every, reports)
    latest = list(reports.values())[-1] if reports else None
    made = [(job, reports[job.folder]) for job in every if job.folder in reports]
    limit = () if settings.limit is None else ("--limit", settings.limit)
    seed = () if settings.seed == 0 else ("--seed", settings.seed)
    return TableResult(
        table=table.name,
        command=say_command("reproduce", table.name, *limit, *seed),
        dataset={"name": latest.dataset.name, "sha256": latest.dataset.sha256} if latest else {"name": table.dataset},
        cells=tuple(cells[place] for place in table.cells),
        adaptive=tuple(
            _adaptive(table, job, report) for job, report in made if not job.attacks and report.worst_case is not None
        ),
        versions=join_versions(report.versions for report in reports.values()),
        plugins=join_versions(report.plugins for report in reports.values()),
        device="; ".join(dict.fromkeys(report.device for report in reports.values())),
        seed=settings.seed,
        seconds=sum(report.seconds for report in {job.folder: report for job, report in made}.values()),
        weights={name: hash_arm(name, every, reports) for name in dict.fromkeys(job.arm.name for job, _ in made)},
        missing=tuple(dict.fromkeys(str(gap) for each in gaps.values() for gap in each)),
        failed={name: str(error) for name, error in failed.items()},
        partial=partial,
    )


def hash_arm(arm: str, every: Iterable[Job], reports: Mapping[Path, Report]) -> dict[str, str]:
    """Return the hashes of the weights that an arm's runs were made with, by part: one may have what others lack."""
    mine = [reports[job.folder] for job in every if job.arm.name == arm and job.folder in reports]
    return {part: made["sha256"] for report in mine for part, made in report.weights.items()}


def join_versions(every: Iterable[Mapping[str, str]]) -> dict[str, str]:
    """Return the versions of all runs, each that there is: after an upgrade cells may be of several."""
    found: dict[str, dict[str, None]] = {}
    for versions in every:
        for name, several in versions.items():
            found.setdefault(name, {}).update(dict.fromkeys(several.split(", ")))
    return {name: ", ".join(versions) for name, versions in found.items()}


def _cell(
    table: Table,
    attack: str,
    arm: TableArm,
    paper: float | None,
    every: Sequence[Job],
    reports: Mapping[Path, Report],
    troubles: Mapping[str, str],
) -> Cell:
    """Return a cell; of an arm with several budgets, the least. `troubles`: by arm, why it is not measured."""
    found = [
        _figure(table.attack(attack), job, reports[job.folder])
        for job in every
        if job.arm == arm and attack in job.attacks and job.folder in reports
    ]
    wanted = sum(job.arm == arm and attack in job.attacks for job in every)
    blank = Cell(attack=attack, arm=arm.name, paper=None if paper is None else paper / 100)
    # a minimum over some of the budgets alone would be too high
    if not found or len(found) < wanted:
        stands, _ = standing(table, attack, arm.name, None)
        return attrs.evolve(blank, standing=stands, why=arm.absent or troubles.get(arm.name, STILL_TO_RUN))
    # the least over the budgets, as Wester's (2020) worst column is
    ours, n, details = min(found, key=lambda figure: figure[0])
    details["declared"] = table.declare(attack, arm.name)
    stands, why = standing(table, attack, arm.name, ours)
    return attrs.evolve(
        blank, ours=ours, ci95=wilson(round(ours * n), n), n=n, standing=stands, why=why, details=details
    )


def _best(
    table: Table, attack: str, arm: TableArm, paper: float | None, every: Sequence[Job], reports: Mapping[Path, Report]
) -> Cell:
    """Return the cell of the best of several arms, once all of them were measured."""
    several = [_cell(table, attack, table.arm(name), None, every, reports, {}) for name in arm.best_of]
    blank = Cell(attack=attack, arm=arm.name, paper=None if paper is None else paper / 100)
    # the best of those that happen to be measured may not be the best
    if any(cell.ours is None for cell in several):
        stands, _ = standing(table, attack, arm.name, None)
        return attrs.evolve(blank, standing=stands, why="not all of its arms are measured")
    best = max(several, key=lambda cell: cell.ours or 0.0)
    stands, why = standing(table, attack, arm.name, best.ours)
    details = {**best.details, "best": best.arm, "declared": table.declare(attack, arm.name)}
    return attrs.evolve(best, arm=arm.name, paper=blank.paper, standing=stands, why=why, details=details)


def _figure(attack: TableAttack, job: Job, report: Report) -> tuple[float, int, dict[str, Any]]:
    """Return (accuracy, images, details) of the row that an attack asks for.

    Raises:
        DataError: the run has no such row.
    """
    wanted = "none" if attack.attack is None else attack.attack
    threat = threat_of(job.arm, attack)
    # a transfer has a row for each source, and one behind a copy of the defence
    variant = job.arm.variant or (job.arm.source if THREATS[threat].faces == "sources" else None) or ""
    rows = [
        row
        for row in report.rows
        if row.attack == wanted and (attack.attack is None or (row.threat, row.variant) == (threat, variant))
    ]
    if not rows:
        raise DataError(
            f"the run in {str(job.folder)!r} has no row for {attack.name!r}: delete the folder, and try again"
        )
    row = rows[0]
    arm = {UNDEFENDED: row.undefended, DEFENDED: row.defended, **row.arms}[job.arm.judged]
    details = {"threat": row.threat, "eps": row.eps, "steps": row.steps, "run": job.folder.name}
    if attack.sight and row.gradients and row.gradients["zero"]:
        details["blind"] = row.gradients["zero"] / row.n
    if job.arm.detector:
        details["rejected"] = arm.rejected
    return arm.accuracy_with_credit if job.arm.credit else arm.accuracy, row.n, details


def _adaptive(table: Table, job: Job, report: Report) -> AdaptiveResult:
    worst = report.worst_case
    assert worst is not None
    credit = worst.with_credit if job.arm.credit else None
    figures = credit or {"accuracy": worst.accuracy, "ci95": worst.ci95}
    return AdaptiveResult(
        arm=job.arm.name,
        eps=job.eps,
        accuracy=figures["accuracy"],
        ci95=tuple(figures["ci95"]),
        n=worst.n,
        over=worst.over,
        credit=bool(credit),
        failed=tuple(check.name for check in report.failed),
        rising=worst.rising,
        undercut_by=worst.undercut_with_credit if credit else worst.undercut_by,
        declared=table.declare_adaptive(job.arm.name),
    )
