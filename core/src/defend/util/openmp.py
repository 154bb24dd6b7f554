"""How the threads of a run wait for each other, where other work has the machine's cores too. Without torch.

OpenMP's threads spin at every barrier until the last has come. On a quiet machine that is fastest. Where the last one
waits for a core that a spinning one holds, a run takes a multiple of its time. Waiting passively costs a fifth on a
quiet machine. The variables are read once, as torch is imported.
"""

from __future__ import annotations

import os
from pathlib import Path

LOAD = Path("/proc/loadavg")
CHOSEN_BY_USERS = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
"""Whoever sets one of these has decided; the last two are those of GNU's and of Intel's OpenMP."""


def count_neighbours(load: Path = LOAD) -> int:
    """Return how many threads beside this one run or want to, on the whole machine; 0 where Linux does not say."""
    try:
        running = load.read_text(encoding="ascii").split()[3].partition("/")[0]
        return max(int(running) - 1, 0)
    except (OSError, IndexError, ValueError):
        return 0


def wait_passively_beside(neighbours: int) -> bool:
    """Let OpenMP's threads sleep while they wait if they and the neighbours are more than the cores.

    Returns:
        Whether they will. Not with one thread, and not where the user has decided how they wait.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    asked = os.environ.get("OMP_NUM_THREADS", "")
    threads = int(asked) if asked.isdecimal() else cores
    if threads == 1 or threads + neighbours <= cores or any(name in os.environ for name in CHOSEN_BY_USERS):
        return False
    os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
    return True
