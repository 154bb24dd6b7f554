"""Workload 14, the main command beside other work: how long it takes where something else has one of the cores.

    python -m benchmarks neighbours

OpenMP's threads spin where they wait, and a thread that spins holds a core which the one waited for may need.
`defend` lets them sleep where it starts beside other work. Here it runs alone and beside one busy process, once with
what it chooses, once with threads that spin, and once with one thread.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator

import torch

from benchmarks.contest import Bar, Result, Scale, compete, ratio, timing
from benchmarks.start import LESS, MAIN, process

WORKLOAD = "14 neighbours"
OURS, SPIN, ONE = "ours", "threads that spin", "one thread"
CONTENDERS = {OURS: {}, SPIN: {"GOMP_SPINCOUNT": "300000"}, ONE: {"OMP_NUM_THREADS": "1"}}
"""What is added to the environment. The count is the one that GNU's OpenMP takes where nothing is set."""
BUSY = "while True: pass"
ROUNDS = 2
SECONDS, SHARE = 60.0, 1.05
SETTLED = 0.2  # seconds after which the neighbour is seen


def run(scale: Scale) -> Iterator[Result]:
    """Yield the main command alone, then beside a busy process."""
    for title, beside in (("on a quiet machine", contextlib.nullcontext), ("beside one busy process", neighbour)):
        with tempfile.TemporaryDirectory() as folder, beside():
            arguments = [*MAIN, "--device", str(scale.device), *(LESS if scale.quick else [])]
            works = {name: process(arguments, folder, env) for name, env in CONTENDERS.items()}
            rounds = 1 if scale.quick else ROUNDS
            timings = compete(works, per=1, rounds=rounds, device=torch.device("cpu"), warm_up=0)
        bars: tuple[Bar, ...] = ()
        if beside is neighbour and not scale.quick:
            bars = (
                Bar("beside a neighbour, seconds", timing(timings, OURS).median / 1000, SECONDS, "at most"),
                Bar("beside a neighbour, ours / threads that spin", ratio(timings, OURS, SPIN), SHARE, "at most"),
            )
        yield Result(WORKLOAD, f"the main command {title}", "ms", timings, bars)


@contextlib.contextmanager
def neighbour() -> Iterator[None]:
    """Keep one core busy with a process of its own."""
    busy = subprocess.Popen([sys.executable, "-c", BUSY])
    try:
        time.sleep(SETTLED)
        yield
    finally:
        busy.kill()
        busy.wait()
