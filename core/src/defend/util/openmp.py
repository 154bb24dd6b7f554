"""How many threads torch's OpenMP has and how they wait: how a run fares beside other work. Without torch.

OpenMP's threads spin at every barrier until the last has come. On a quiet machine that is fastest. Where the last one
waits for a core that a spinning one holds, a run takes a multiple of its time; sleeping costs a fifth on a quiet
machine. And it counts the machine's cores, of which a container may have few. The variables are read once, as torch is
imported.
"""

from __future__ import annotations

import os

from defend.util.cores import count_cores, count_granted

THREADS, POLICY = "OMP_NUM_THREADS", "OMP_WAIT_POLICY"
CHOSEN_BY_USERS = (POLICY, "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
"""Whoever sets one of these has decided how threads wait; the last two are those of GNU's and of Intel's OpenMP."""


def prepare(neighbours: int) -> None:
    """Set the variables that the user has not: as many threads as cores, asleep while they wait beside neighbours."""
    cores, granted = count_cores(), count_granted()
    if THREADS not in os.environ and granted < cores:
        os.environ[THREADS] = str(granted)
    asked = os.environ.get(THREADS, "")
    threads = int(asked) if asked.isdecimal() else cores
    crowded = threads > granted or threads + neighbours > cores
    if threads > 1 and crowded and not any(name in os.environ for name in CHOSEN_BY_USERS):
        os.environ[POLICY] = "PASSIVE"
