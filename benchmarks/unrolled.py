"""Workload 5, the adaptive attack: its gradient through a purifier's unrolled steps, in time and memory.

    python -m benchmarks unrolled

One gradient of the cross-entropy through `apudae` and resnet18 on digits, as the adaptive threat takes it. "ours" is
what `defend run` does: prepared modules, freed memory kept, the graph of a few steps at a time where autograd records
one (`defend.gradients.unroll`). "naive" is the same gradient of the modules as they were built, through the steps
written as a plain loop, which keeps the graph of all of them. Every figure comes from a process of its own. Memory is
the most that the process held during its first gradient less what it held before, after a pass without gradients (on
a GPU, what PyTorch allocated); time is that of the gradients after, which find memory to reuse.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import json
import math
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import defend
from benchmarks.contest import Bar, Result, Scale, Timing, alone, progress, ratio
from defend.assembly.prepare import prepare
from defend.attacks.target import Target
from defend.defence import Defence
from defend.gradients import smooth_sign

WORKLOAD = "5 unrolled"
OURS, NAIVE = "ours", "naive"
STEPS = (5, 15, 30)
QUICK_STEPS = (2, 6)
IMAGES, QUICK_IMAGES = 16, 2
ROUNDS, QUICK_ROUNDS = 2, 1  # at most: a round is a process for each way and number of steps
GRADIENTS = 2  # timed in each process, after one that is not
MEMORY, TIME = 2.0, 1.0
SAMPLE = 4  # images that `prepare` checks itself on
STATUS = Path("/proc/self/status")  # on Linux
MIB = 2**20


def run(scale: Scale) -> Iterator[Result]:
    """Yield the times for each number of steps, then what memory does as they grow."""
    images = QUICK_IMAGES if scale.quick else IMAGES if scale.device.type == "cpu" else scale.images
    counts = QUICK_STEPS if scale.quick else STEPS
    found: dict[tuple[str, int], list[dict[str, Any]]] = {(way, n): [] for n in counts for way in (NAIVE, OURS)}
    rounds = min(scale.rounds, QUICK_ROUNDS if scale.quick else ROUNDS)
    with progress() as shown:
        task = shown.add_task("", total=rounds * len(found))
        for _ in range(rounds):
            for (way, steps), each in found.items():
                shown.update(task, description=f"{way}, {steps} steps")
                each.append(alone(__name__, way, str(steps), str(images), str(scale.device)))
                shown.advance(task)
    for steps in counts:
        yield compare(found, steps, images)
    yield grown(found, counts, images)


def compare(found: dict[tuple[str, int], list[dict[str, Any]]], steps: int, images: int) -> Result:
    """Lay ours beside the naive unroll, where that fits into memory."""
    each = {way: [one["seconds"] for one in found[way, steps]] for way in (NAIVE, OURS)}
    title = f"one gradient through {steps} steps, {images} images"
    if None in each[NAIVE]:
        del each[NAIVE]
    timings = tuple(Timing(way, [1000 * seconds for seconds in taken]) for way, taken in each.items())
    if NAIVE not in each:
        return Result(WORKLOAD, title, "ms", timings, notes=("the naive unroll does not fit into memory",))
    bar = Bar(f"time at {steps} steps, ours / naive", ratio(timings, OURS, NAIVE), TIME, "at most")
    return Result(WORKLOAD, title, "ms", timings, (bar,))


def grown(found: dict[tuple[str, int], list[dict[str, Any]]], counts: tuple[int, ...], images: int) -> Result:
    """Say what peak memory each way adds at each number of steps."""
    peaks = {
        way: {n: statistics.median(one["mib"] for one in found[way, n]) for n in counts if _fits(found[way, n])}
        for way in (NAIVE, OURS)
    }
    few, many = counts[0], counts[-1]
    growth = peaks[OURS][many] / peaks[OURS][few] if peaks[OURS][few] else math.inf
    bar = Bar(f"ours, memory at {many} steps / at {few}", growth, MEMORY, "at most")
    figures = {f"{way}, MiB added by steps": {str(n): peak for n, peak in by.items()} for way, by in peaks.items()}
    return Result(WORKLOAD, f"memory of one gradient, {images} images", "MiB", (), (bar,), figures)


def _fits(each: list[dict[str, Any]]) -> bool:
    return all(one["seconds"] is not None for one in each)


class NaiveUnroll(nn.Module):
    """APuDAE's variant A as a plain loop; differentiable as the purifier is, through sign and second order.

    Args:
        purifier: of variant A; its autoencoder, number and size of steps are taken.
    """

    random = False

    def __init__(self, purifier: Any) -> None:
        super().__init__()
        self.dae, self.config = purifier.dae, purifier.config

    def forward(self, images: Tensor) -> Tensor:
        """Purify images [B,C,H,W] in [0,1]."""
        attached = torch.is_grad_enabled()
        with torch.enable_grad():
            x = images
            for _ in range(self.config.steps):
                at = x if attached and x.requires_grad else x.detach().requires_grad_()
                (slope,) = torch.autograd.grad((at - self.dae(at)).square().sum(), at, create_graph=attached)
                x = at - self.config.step_size * smooth_sign(slope)
            return x.clamp(0, 1) if attached else x.detach().clamp(0, 1)


def measure(way: str, steps: int, images: int, device: str) -> dict[str, float | None]:
    """Take gradients in this process: "mib" of memory that the first adds, median "seconds" of the others.

    Both are None where memory runs out.
    """
    clean, labels = (part.to(device) for part in defend.dataset("digits").tensors("test", limit=images, seed=0))
    defence = defend.load("resnet18", purifier="apudae", options={"purifier": {"steps": steps}}, device=device)
    defence.requires_grad_(False)
    if way == OURS:
        defence = prepare(defence, "fp32", clean[:SAMPLE])[0]
    else:
        defence = Defence(defence.victim, NaiveUnroll(defence.purifier))
    keys = torch.arange(images, device=device)
    target = Target(defence)
    with torch.no_grad():
        defence(clean)  # what a forward pass needs is there before
    before, added, taken = forget_peak(clean.is_cuda), 0.0, []
    try:
        for number in range(1 + GRADIENTS):
            begun = time.perf_counter()
            target.slope(clean, labels, keys, number)
            if clean.is_cuda:
                torch.cuda.synchronize()
            taken.append(time.perf_counter() - begun)
            if number == 0:
                added = peak(clean.is_cuda) - before
    except RuntimeError as error:
        if "memory" not in str(error):
            raise
        return {"mib": None, "seconds": None}
    return {"mib": added, "seconds": statistics.median(taken[1:])}


def forget_peak(cuda: bool) -> float:
    """Give back freed memory, let the peak be what is held now, and return it in MiB.

    Only PyTorch on a GPU and Linux can; elsewhere the peak stays, and what is added above it is no more than it seems.
    """
    if cuda:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    elif STATUS.exists():
        with contextlib.suppress(OSError, AttributeError):  # another libc
            ctypes.CDLL("libc.so.6").malloc_trim(0)
        with contextlib.suppress(OSError), open("/proc/self/clear_refs", "w", encoding="ascii") as file:
            file.write("5")  # see proc(5): resets VmHWM
    return peak(cuda)


def peak(cuda: bool) -> float:
    """Return the most memory held, in MiB: by PyTorch on the GPU, or by this process.

    Linux tells a process's own in /proc; getrusage(2) would tell no less than that of the process that started it.
    """
    if cuda:
        return torch.cuda.max_memory_allocated() / MIB
    if STATUS.exists():
        lines = STATUS.read_text(encoding="utf-8", errors="replace").splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) / 1024
    import resource

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most / (MIB if sys.platform == "darwin" else 1024)


def main() -> None:
    """Measure one way in this process and print JSON."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("way", choices=(OURS, NAIVE))
    parser.add_argument("steps", type=int)
    parser.add_argument("images", type=int)
    parser.add_argument("device")
    given = parser.parse_args()
    print(json.dumps(measure(given.way, given.steps, given.images, given.device)))


if __name__ == "__main__":
    main()
