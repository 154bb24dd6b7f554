"""How many cores there are for this process, and who else wants them. Without torch."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path

LOAD, GROUPS, OWN_GROUPS = Path("/proc/loadavg"), Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


def count_cores() -> int:
    """Return how many of the machine's cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def count_granted() -> int:
    """Return how many cores this process can keep busy: fewer than it may run on where a container grants fewer."""
    return math.ceil(min(find_quota(), count_cores()))


def count_neighbours(load: Path = LOAD) -> int:
    """Return how many threads beside this one run or want to, on the whole machine; 0 where Linux does not say."""
    try:
        running = load.read_text(encoding="ascii").split()[3].partition("/")[0]
        return max(int(running) - 1, 0)
    except (OSError, IndexError, ValueError):
        return 0


def find_quota(groups: Path = GROUPS, own: Path = OWN_GROUPS) -> float:
    """Return how many cores' time a container or a service grants this process, infinity where nothing limits it.

    Source: Linux, admin-guide/cgroup-v2 (`cpu.max`: quota and period) and scheduler/sched-bwc (`cpu.cfs_quota_us`).
    """
    return min((_read_limit(folder) for folder in _own_folders(groups, own)), default=math.inf)


def _own_folders(groups: Path, own: Path) -> Iterator[Path]:
    """Yield the folders of this process's groups and of those around them."""
    try:
        lines = own.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2) if line.count(":") > 1 else ("", "", "")
        if controllers and "cpu" not in controllers.split(","):
            continue
        # the second version has one tree for all controllers; within a container a tree may begin at its own group
        inside = Path(path.lstrip("/"))
        yield from (groups / controllers / each for each in (inside, *inside.parents))


def _read_limit(folder: Path) -> float:
    try:
        if (folder / "cpu.max").exists():
            quota, period = (folder / "cpu.max").read_text(encoding="ascii").split()
        else:
            quota, period = (
                (folder / f"cpu.cfs_{name}_us").read_text(encoding="ascii") for name in ("quota", "period")
            )
        granted = float(quota) / float(period)
    except (OSError, ValueError, ZeroDivisionError):  # "max" is no number, and means no limit
        return math.inf
    return granted if granted > 0 else math.inf  # the first version says -1
