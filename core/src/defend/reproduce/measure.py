"""Measures a published table again: makes the runs that are missing, and reads them all.

Images attacked on a bare victim are shared through the store.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import attrs

from defend.assembly.composition import Missing
from defend.assembly.load import open_dataset
from defend.datasets.base import ImageDataset
from defend.errors import ConfigError, DataError, DefendError, WeightsError
from defend.evaluation.runner import run_arms
from defend.plugins import Registry, registry
from defend.records.reading import is_run, read_report
from defend.records.unfinished import find_unfinished, is_unfinished
from defend.records.watcher import Watcher
from defend.reproduce.cells import hash_arm, make_result
from defend.reproduce.jobs import Job, MeasureSettings, describe_job, find_missing, hash_job, jobs
from defend.reproduce.open_cells import find_current, join
from defend.reproduce.results import TableResult
from defend.tables import Table
from defend.util.launch import place
from defend.values.report import Report
from defend.values.run_config import RunConfig


def reproduce(
    table: Table, settings: MeasureSettings, watcher: Watcher | None = None, plugins: Registry | None = None
) -> TableResult:
    """Measure a table; runs that are complete are taken as they are, one that was cut off goes on.

    Arms whose weights are missing are left open, unless `settings.train_missing`. After Ctrl-C the result holds what
    was finished, marked partial. A run that fails leaves its cells open, and the others go on. The result is written
    to `settings.out`/PLUGIN-TABLE.json too, after every run. With `settings.only_open` only what the kept result lacks
    is run, and the rest is taken from it.

    Raises:
        WeightsError: no arm has its weights; the message names the commands.
        ConfigError: a distribution that offers a part of it is not installed; the message says which.
        DataError: a run that is there was made with other weights than there are now, or than are trained now for
            others; or one with other weights or images than the others.
        DefendError: as `defend.run`, where all runs fail.
    """
    if place()[1] > 1:
        raise ConfigError("a table is measured in one process: start it without torchrun")
    table.require()
    plugins = plugins or registry()
    lacking = find_missing(table, plugins, settings.data_dir)
    gaps = {} if settings.train_missing else lacking
    ready = [arm for arm in table.arms if not arm.absent and not arm.best_of and arm.name not in gaps]
    if not ready:
        commands = "; ".join(dict.fromkeys(str(gap) for each in gaps.values() for gap in each))
        raise WeightsError(f"table {table.name} needs weights that are not there: run {commands}, or --train-missing")
    trains, kept = settings.train_missing, None
    if settings.only_open:
        kept = find_current(table, settings.seed, lacking, plugins, trains)
    every = list(jobs(table, settings, ready, plugins, kept))
    if trains:
        _check_replaced(every, lacking, plugins)
    reports: dict[Path, Report] = {}
    path = settings.out / f"{table.name.replace('/', '-')}.json"
    dataset: ImageDataset | None = None
    failed: dict[str, DefendError] = {}

    def collect(partial: bool) -> TableResult:
        new = make_result(table, settings, every, reports, gaps, failed, partial)
        return new if kept is None else join(table, kept, new)

    result = collect(partial=bool(every))  # what Ctrl-C in the first run returns
    for number, job in enumerate(every, 1):
        report = _find_finished(job, plugins)
        if report is None:
            settings.announce(f"{table.name}, run {number} of {len(every)}: {describe_job(job)}")
            if dataset is None:
                # once for all runs, and not at all where all are complete
                dataset = open_dataset(table.dataset, settings.data_dir, {}, plugins)
            # a run stopped before its first batch has a config alone, and its folder would be refused otherwise
            begun = is_unfinished(job.folder) or (job.folder / "config.toml").is_file()
            try:
                run_arms([_as_begun(job)], watcher, plugins, resume=begun, dataset=dataset)
            except KeyboardInterrupt:
                return result
            except DefendError as error:
                if begun and isinstance(error, ConfigError):
                    # the user wrote no config: what does not fit is the run that was begun
                    error = DataError(f"{error}; or delete the folder, and the same command measures it again")
                failed.setdefault(job.arm.name, error)
                settings.announce(f"{table.name}, {job.arm.name}: {error}")
            else:
                report = _read(job.folder)
                if report.partial:
                    return result
        if report is not None:
            _check_images(job, report, reports, kept)
            _check_weights(job, report, hash_arm(job.arm.name, every, reports), kept)
            reports[job.folder] = report
        result = collect(partial=number < len(every))
        result.save(path)
    if failed and not reports:
        raise next(iter(failed.values()))
    return result


def _find_finished(job: Job, plugins: Registry) -> Report | None:
    """Return the report of a run that is complete and was made with the weights that would be used now."""
    if is_unfinished(job.folder) or not is_run(job.folder):
        return None
    report = _read(job.folder)
    if report.partial:
        return None
    now = hash_job(job, plugins)
    then = {part: made["sha256"] for part, made in report.weights.items()}
    stale = sorted(part for part in now if part in then and now[part] != then[part])
    if stale:
        raise DataError(
            f"{str(job.folder)!r} was measured with other weights of the {stale[0]} than there are now: delete the "
            "folder to measure it again, or name another with --out"
        )
    return report


def _check_replaced(every: Sequence[Job], lacking: Mapping[str, Sequence[Missing]], plugins: Registry) -> None:
    """Refuse runs whose weights are gone, where those are trained now for others: they may come to other ones."""
    there = {job.folder: _find_finished(job, plugins) for job in every}
    trained = {str(gap) for job in every if there[job.folder] is None for gap in lacking.get(job.arm.name, ())}
    for job in every:
        report = there[job.folder]
        if report is None or not any(str(gap) in trained for gap in lacking.get(job.arm.name, ())):
            continue
        if gone := sorted(set(report.weights) - set(hash_job(job, plugins))):
            raise DataError(
                f"{str(job.folder)!r} was measured with weights of the {gone[0]} that are not there any more, and what "
                "--train-missing trains may be others: put them back, delete the folder to measure it again, or name "
                "another with --out"
            )


def _as_begun(job: Job) -> RunConfig:
    """Return a run's config; one that goes on keeps its batch size, as its finished batches are counted in it."""
    if not is_unfinished(job.folder):
        return job.config
    return attrs.evolve(job.config, batch_size=find_unfinished(job.folder)[0].batch_size)


def _check_images(job: Job, report: Report, others: Mapping[Path, Report], kept: TableResult | None) -> None:
    then = None if kept is None else kept.dataset.get("sha256")
    if then is not None and then != report.dataset.sha256:
        raise DataError(
            f"{str(job.folder)!r} was measured on other images of {job.config.dataset} than the kept result: "
            "measure all of the table, without --open"
        )
    if {other.dataset.sha256 for other in others.values()} - {report.dataset.sha256}:
        raise DataError(
            f"{str(job.folder)!r} was measured on other images of {job.config.dataset} than the table's other runs: "
            "delete the folders of either to measure them again, or name another with --out"
        )


def _check_weights(job: Job, report: Report, others: Mapping[str, str], kept: TableResult | None) -> None:
    """Refuse a run of other weights than an arm's `others`: they were replaced while the table was measured."""
    then = {} if kept is None else kept.weights.get(job.arm.name, {})
    for part, made in report.weights.items():
        if then.get(part, made["sha256"]) != made["sha256"]:
            raise DataError(
                f"{str(job.folder)!r} was measured with other weights of the {part} than the kept result: the same "
                "command measures anew what is of those"
            )
        if others.get(part, made["sha256"]) != made["sha256"]:
            raise DataError(
                f"{str(job.folder)!r} was measured with other weights of the {part} than the other runs of "
                f"{job.arm.name!r}: delete the folders of either to measure them again, or name another with --out"
            )


def _read(folder: Path) -> Report:
    try:
        return read_report(folder)
    except (OSError, ValueError) as error:
        raise DataError(
            f"the report in {str(folder)!r} cannot be read ({type(error).__name__}): delete the folder, and the same "
            "command measures it again"
        ) from None
