"""What of a plan ships with the installed packages already: weights, and results that lack nothing."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from defend.plugins import Registry, registry
from defend.reproduce.results import find_kept
from defend.tables import Table
from defend.weights.find import find_shipped as weights_of
from tools.plan import Item, Measure, Train


def find_shipped(plan: Sequence[Item], cache: Path) -> dict[str, str]:
    """Return the items that need not be done, by name, with where what they make is.

    `cache` is the folder whose weights come before the shipped ones: a result of others lacks what is of them.
    """
    plugins, found = registry(), {}
    for item in plan:
        if isinstance(item, Train):
            if (shipped := find_shipped_file(item)) is not None:
                found[item.name] = f"ships in {shipped[1]}"
        elif isinstance(item, Measure) and item.table in plugins.tables:
            table = plugins.tables[item.table]
            with _taking(cache):
                if _is_whole(table, plugins):
                    found[item.name] = f"ships in {table.results}"
    return found


def find_shipped_file(item: Train) -> tuple[Path, str] | None:
    """Return the shipped weights that a training would make again, and the package they came with; None without any."""
    packages = registry().find(item.stage, item.stage_name).packages
    return next((shipped for shipped in weights_of(packages).items() if shipped[0].name == item.file), None)


def _is_whole(table: Table, plugins: Registry) -> bool:
    """Whether `defend reproduce --open` would measure nothing of a table, also with the weights that are to come."""
    from defend.reproduce.jobs import find_missing, find_unmeasured  # these import torch
    from defend.reproduce.open_cells import find_current

    kept = find_kept(table)
    if kept is None:
        return False
    current = find_current(table, kept.seed, find_missing(table, plugins), plugins)
    return not find_unmeasured(table, current)


@contextlib.contextmanager
def _taking(cache: Path) -> Iterator[None]:
    """Take weights from a cache, as the process does that measures."""
    before = os.environ.get("DEFEND_CACHE_DIR")
    os.environ["DEFEND_CACHE_DIR"] = str(cache)
    try:
        yield
    finally:
        del os.environ["DEFEND_CACHE_DIR"]
        os.environ.update({} if before is None else {"DEFEND_CACHE_DIR": before})
