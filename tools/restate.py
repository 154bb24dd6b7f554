"""Holds the kept results against the tables as they are now: reasons and standings anew, every figure as it is.

    python -m tools.restate          # after a table's reasons, arms or notes were changed
    python -m tools.restate --stamp  # before they are: figures that do not say what they were measured with say it

Writes the results in the plugins' sources, and the tables in their READMEs.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from defend.errors import DefendError
from defend.plugins import registry
from defend.report.reproduction import write_readme
from defend.reproduce.results import find_kept, stamp
from defend.tables import Table

ROOT = Path(__file__).parents[1]


def main(arguments: Sequence[str] | None = None) -> int:
    """Restate every table of the plugins in this checkout; return 0, or 2 for what cannot be read or written."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.restate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--stamp",
        action="store_true",
        help="also take figures that do not say it for measured as the tables declare them now: changes open them",
    )
    given = parser.parse_args(arguments)
    try:
        restate_all(given.stamp)
    except DefendError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    return 0


def restate_all(stamped: bool) -> None:
    """Write every kept result of the plugins in this checkout, and their READMEs; `stamped` as `stamp` has it."""
    by_plugin: dict[str, list[Table]] = {}
    for table in registry().tables.values():
        by_plugin.setdefault(table.plugin, []).append(table)
    for plugin, tables in by_plugin.items():
        for table in tables:
            if (kept := find_kept(table)) is not None and table.results is not None:
                kept = stamp(table, kept) if stamped else kept
                kept.save(ROOT / "plugins" / plugin / "src" / table.results.replace(".", "/") / f"{table.short}.json")
        write_readme(ROOT / "plugins" / plugin / "README.md", tables)


if __name__ == "__main__":
    sys.exit(main())
