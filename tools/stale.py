"""Runs of a table that were made with other weights than there are now."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from defend.assembly.composition import Composition
from defend.plugins import Registry
from defend.records.reading import read_report
from defend.reproduce.jobs import Job, MeasureSettings, find_missing, jobs
from defend.tables import Table
from defend.values.threats import NO_SOURCES


def find_stale_runs(table: Table, settings: MeasureSettings, plugins: Registry) -> Iterator[Path]:
    """Yield the folders of a table's runs that were made with other weights than there are now.

    A table is not measured while there are any (`defend.reproduce.measure`).
    """
    gaps = find_missing(table, plugins, settings.data_dir)
    ready = [arm for arm in table.arms if not arm.absent and not arm.best_of and arm.name not in gaps]
    for folder, job in {job.folder: job for job in jobs(table, settings, ready, plugins)}.items():
        with contextlib.suppress(OSError, ValueError):  # there is none, or it is damaged, as measuring it will say
            then = {part: made["sha256"] for part, made in read_report(folder).weights.items()}
            if any(then.get(part, value) != value for part, value in _hash_weights(job, plugins)):
                yield folder


def _hash_weights(job: Job, plugins: Registry) -> Iterator[tuple[str, str]]:
    """Yield the content hash of everything that a run would load now, under its name in a report."""
    yield from Composition.of_config(job.config, plugins).hash_weights(job.config.dataset).items()
    for name in job.config.sources if job.config.sources not in (None, NO_SOURCES) else ():
        source = Composition.of(name, plugins=plugins).hash_weights(job.config.dataset)
        yield from ((f"source {name}", value) for value in source.values())
