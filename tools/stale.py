"""Runs of a table that were made with other weights than there are now."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from defend.plugins import Registry
from defend.records.reading import read_report
from defend.reproduce.jobs import MeasureSettings, find_missing, hash_job, jobs
from defend.reproduce.open_cells import find_current
from defend.tables import Table


def find_stale_runs(table: Table, settings: MeasureSettings, plugins: Registry) -> Iterator[Path]:
    """Yield the folders of a table's runs that were made with other weights than there are now.

    A table is not measured while there are any (`defend.reproduce.measure`).
    """
    gaps = find_missing(table, plugins, settings.data_dir)
    ready = [arm for arm in table.arms if not arm.absent and not arm.best_of and arm.name not in gaps]
    kept = find_current(table, settings.seed, gaps, plugins) if settings.only_open else None
    for folder, job in {job.folder: job for job in jobs(table, settings, ready, plugins, kept)}.items():
        with contextlib.suppress(OSError, ValueError):  # there is none, or it is damaged, as measuring it will say
            then = {part: made["sha256"] for part, made in read_report(folder).weights.items()}
            if any(then.get(part, value) != value for part, value in hash_job(job, plugins).items()):
                yield folder
