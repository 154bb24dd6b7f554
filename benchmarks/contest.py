"""The frame of the benchmarks: contenders run in turn, every round's figure kept, promises held against ratios.

Contenders run interleaved (A B C A B C ...), so that a machine that slows down slows all of them, and are compared
round by round: a ratio is the median of the rounds' own ratios.
"""

from __future__ import annotations

import gc
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import attrs
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

PEERS = ("foolbox", "torchattacks", "art", "pyautoattack")
ROOT = Path(__file__).resolve().parents[1]  # where `benchmarks` is found, wherever it is run from
MIB = 2**20
T = TypeVar("T")


def _rounds(values: Any) -> tuple[float, ...]:
    return tuple(float(value) for value in values)


@attrs.frozen
class Timing:
    """One contender's time, in milliseconds of the unit that the result names, round by round."""

    name: str
    rounds: tuple[float, ...] = attrs.field(converter=_rounds)

    @property
    def median(self) -> float:
        """The middle of the rounds."""
        return statistics.median(self.rounds)

    @property
    def least(self) -> float:
        """The fastest round."""
        return min(self.rounds)

    @property
    def most(self) -> float:
        """The slowest round."""
        return max(self.rounds)


@attrs.frozen
class Bar:
    """A promise held against what was measured: `figure` is to be "at most" or "at least" `bound`."""

    what: str
    figure: float
    bound: float
    kind: str = attrs.field(validator=attrs.validators.in_(("at most", "at least")))

    @property
    def met(self) -> bool:
        """Whether the promise holds; never for a figure that is not a number."""
        return self.figure <= self.bound if self.kind == "at most" else self.figure >= self.bound


@attrs.frozen
class Result:
    """What one part of a workload found.

    Attributes:
        workload: number and name, such as "1 pgd".
        title: what was measured, on what.
        unit: of every timing, such as "ms an image-step".
        timings: the contenders in the order they ran; the first is what ratios are printed against.
        bars: promises and what became of them.
        figures: anything else that was measured: memory, accuracies; values that JSON can hold.
        notes: sentences for the reader.
    """

    workload: str
    title: str
    unit: str
    timings: tuple[Timing, ...] = ()
    bars: tuple[Bar, ...] = ()
    figures: Mapping[str, Any] = attrs.field(factory=dict)
    notes: tuple[str, ...] = ()


@attrs.frozen
class Scale:
    """How much work to do: `quick` for a look, otherwise what the bars are held against.

    Attributes:
        rounds: turns of each contender.
        images: how many a contender works on, where the workload's definition does not say.
        quick: whether to leave out what takes long.
        device: where contenders run.
        peers: which other libraries are installed, by the names they are imported by.
        kept: the titles of results that an earlier run has, which a workload whose results take long leaves out.
    """

    rounds: int
    images: int
    quick: bool
    device: torch.device
    peers: tuple[str, ...]
    kept: frozenset[str] = frozenset()


def compete(
    contenders: Mapping[str, Callable[[], object]], *, per: float, rounds: int, device: torch.device, warm_up: int = 1
) -> tuple[Timing, ...]:
    """Run every contender once a round, in turn, and time it.

    Garbage is collected before each turn, outside the time taken. On CUDA a turn lasts from one event to another,
    between two synchronisations.

    Args:
        contenders: work by name.
        per: what a turn's time is divided by: images times steps.
        rounds: turns of each contender that count.
        device: where the work happens.
        warm_up: turns of each contender before that.
    """
    if not contenders or rounds < 1:
        raise ValueError(f"a contest of {len(contenders)} contenders over {rounds} rounds measures nothing")
    found: dict[str, list[float]] = {name: [] for name in contenders}
    with progress() as shown:
        task = shown.add_task("", total=(warm_up + rounds) * len(contenders))
        for turn in range(-warm_up, rounds):
            for name, work in contenders.items():
                shown.update(task, description=name)
                gc.collect()
                seconds = timed(work, device)[1]
                if turn >= 0:
                    found[name].append(1000 * seconds / per)
                shown.advance(task)
    return tuple(Timing(name, times) for name, times in found.items())


def timed(work: Callable[[], T], device: torch.device) -> tuple[T, float]:
    """Return what some work gives, and its seconds; on CUDA those between two synchronisations."""
    if device.type == "cuda":
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize(device)
        start.record()  # type: ignore[no-untyped-call]
        found = work()
        end.record()  # type: ignore[no-untyped-call]
        torch.cuda.synchronize(device)
        return found, float(start.elapsed_time(end)) / 1000  # type: ignore[no-untyped-call]
    begun = time.perf_counter()
    found = work()
    return found, time.perf_counter() - begun


def progress() -> Progress:
    """Return a progress bar on the error stream, gone when it is done and silent where nobody looks."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description:44}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)


def timing(timings: tuple[Timing, ...], name: str) -> Timing:
    """Return the timing of a contender; KeyError names those there are."""
    for one in timings:
        if one.name == name:
            return one
    raise KeyError(f"no contender '{name}' among {', '.join(one.name for one in timings)}")


def ratio(timings: tuple[Timing, ...], ours: str, against: str) -> float:
    """Return the median over the rounds of `ours` divided by `against`."""
    first, second = timing(timings, ours).rounds, timing(timings, against).rounds
    return statistics.median(one / other for one, other in zip(first, second, strict=True))


def alone(module: str, *arguments: str, env: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Run `python -m module arguments` in a process of its own and return the JSON object it prints last.

    For peak memory, which a process never gives back, and for start-up times. `env` is added to the environment.

    Raises:
        RuntimeError: with the end of what the process wrote, if it failed.
    """
    surroundings = {**os.environ, **(env or {})}
    surroundings["PYTHONPATH"] = os.pathsep.join(filter(None, (str(ROOT), surroundings.get("PYTHONPATH"))))
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments], capture_output=True, text=True, env=surroundings, check=False
    )
    if done.returncode != 0:
        raise RuntimeError(f"{module} {' '.join(arguments)} ended with {done.returncode}: {done.stderr[-1000:]}")
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def resident() -> float:
    """Return the most memory, in MiB, that this process has held so far."""
    status = Path("/proc/self/status")  # getrusage tells no less than the peak of the process that started this one
    if status.exists():
        lines = status.read_text(encoding="utf-8", errors="replace").splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) / 1024
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / MIB if sys.platform == "darwin" else peak / 1024


def measure_held() -> float:
    """Return the MiB that this process holds now, and let `resident` start again from there; elsewhere, its peak."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except OSError:
        return resident()
    return pages * os.sysconf("SC_PAGE_SIZE") / MIB


def find_installed() -> tuple[str, ...]:
    """Return which peers can be imported."""
    return tuple(name for name in PEERS if importlib.util.find_spec(name) is not None)
