"""What of a plan ships with the installed packages already: weights, and results without an open cell."""

from __future__ import annotations

from collections.abc import Sequence

from defend.plugins import registry
from defend.reproduce.results import count_standings, find_kept
from defend.weights.find import find_shipped as weights_of
from tools.plan import Item, Measure, Train


def find_shipped(plan: Sequence[Item]) -> dict[str, str]:
    """Return the items that need not be done, by name, with where what they make is."""
    plugins, found = registry(), {}
    for item in plan:
        if isinstance(item, Train):
            packages = plugins.find(item.stage, item.stage_name).packages
            shipped = {path.name: package for path, package in weights_of(packages).items()}
            if item.file in shipped:
                found[item.name] = f"ships in {shipped[item.file]}"
        elif isinstance(item, Measure) and item.table in plugins.tables:
            table = plugins.tables[item.table]
            kept = find_kept(table)
            if kept is not None and not count_standings(table, kept)["open"]:
                found[item.name] = f"ships in {table.results}"
    return found
