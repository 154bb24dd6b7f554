"""`python -m tests.faults [GROUP...]`: inject everything, print what survived; exits with 1 where something did not."""

from __future__ import annotations

import argparse
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from rich.console import Console
from rich.progress import track
from rich.table import Table
from tests.faults import groups
from tests.faults.harness import LOST, Injection


def main() -> int:
    """Run the groups that were named, or all."""
    known = groups.names()
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("groups", nargs="*", metavar="GROUP", help=f"one of {', '.join(known)} (default: all)")
    parser.add_argument("--quick", action="store_true", help="only the quick ones, of which pytest injects one a kind")
    parser.add_argument("--only", default="", help="only injections whose name holds this text")
    parser.add_argument("--workers", type=int, default=2, help="injections at once (default 2)")
    asked = parser.parse_args()
    for name in asked.groups:
        if name not in known:
            parser.error(f"unknown group {name!r}: expected one of {', '.join(known)}")
    chosen = [
        each
        for name in asked.groups or known
        for each in groups.injections(name)
        if (each.quick or not asked.quick) and asked.only in each.name
    ]
    started = time.monotonic()
    with ThreadPoolExecutor(asked.workers) as pool:
        results = pool.map(inject, chosen)
        found = dict(
            zip(chosen, track(results, "injecting", total=len(chosen), console=Console(stderr=True)), strict=True)
        )
    out = Console()
    for injection, wrong in found.items():
        if wrong:
            out.print(f"{injection.kind}: {injection.name}: {wrong}", markup=False, highlight=False)
    out.print(_count(found))
    out.print(f"{len(found)} injections in {time.monotonic() - started:.0f} s")
    return 1 if any(found.values()) else 0


def inject(injection: Injection) -> str:
    """Inject into a folder that is gone afterwards; return what was wrong, "" if nothing."""
    with tempfile.TemporaryDirectory(prefix="defend-fault-") as folder:
        return injection.inject(Path(folder))


def _count(found: dict[Injection, str]) -> Table:
    table = Table("kind of fault", "tried", "survived", "failed", "lost something", title="Injections")
    for kind in dict.fromkeys(each.kind for each in found):
        of_kind = [wrong for each, wrong in found.items() if each.kind == kind]
        lost = sum(wrong.startswith(LOST) for wrong in of_kind)
        failed = sum(bool(wrong) for wrong in of_kind) - lost
        table.add_row(kind, *map(str, (len(of_kind), len(of_kind) - failed - lost, failed, lost)))
    return table


if __name__ == "__main__":
    raise SystemExit(main())
