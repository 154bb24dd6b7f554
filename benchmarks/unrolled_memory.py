"""Memory and time of the adaptive attacker's gradient through an unrolled purifier, by its number of steps.

    python -m benchmarks.unrolled_memory [--json]

Each figure comes from a process of its own: one gradient of the cross-entropy through `apudae` and resnet18 on
`digits`, as the adaptive threat takes it. "bounded" is what ships (the graph of five steps at a time, see
`defend.gradients.unroll`), "naive" keeps the graph of all steps. Peak memory is the process's own, less what it held
before the gradient.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from typing import Any

STEPS = (5, 15, 30)
WAYS = ("bounded", "naive")
REPEATS = 3
BATCH = 32


def measure(way: str, steps: int, batch: int) -> dict[str, float]:
    """Take one gradient in this process; return its peak memory in MiB beyond what was there before, and seconds."""
    import torch

    import defend
    from defend import gradients
    from defend.attacks.target import Target

    if way == "naive":
        gradients.unroll.__kwdefaults__["segment"] = steps
    defence = defend.load("resnet18", purifier="apudae", options={"purifier": {"steps": steps}}).requires_grad_(False)
    images, labels = defend.dataset("digits").tensors("test", limit=batch, seed=0)
    with torch.no_grad():
        defence(images)  # what a forward pass needs is there before
    before = _peak()
    start = time.perf_counter()
    Target(defence).slope(images, labels, torch.arange(batch), 0)
    return {"mib": _peak() - before, "seconds": time.perf_counter() - start}


def _peak() -> float:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10


def compare(batch: int, repeats: int) -> list[dict[str, Any]]:
    """Measure every way at every number of steps, interleaved; return medians."""
    found: dict[tuple[str, int], list[dict[str, float]]] = {}
    for _ in range(repeats):
        for steps in STEPS:
            for way in WAYS:
                command = [sys.executable, "-m", "benchmarks.unrolled_memory", "--one", way, str(steps), str(batch)]
                done = subprocess.run(command, capture_output=True, text=True, check=True)
                found.setdefault((way, steps), []).append(json.loads(done.stdout))
    return [
        {"way": way, "steps": steps, "batch": batch, "repeats": repeats,
         **{name: statistics.median(one[name] for one in each) for name in ("mib", "seconds")}}
        for (way, steps), each in found.items()
    ]  # fmt: skip


def main() -> None:
    """Print the table, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--batch", type=int, default=BATCH, help="images (default %(default)s)")
    parser.add_argument("--repeats", type=int, default=REPEATS, help="processes a figure (default %(default)s)")
    parser.add_argument("--one", nargs=3, metavar=("WAY", "STEPS", "BATCH"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        way, steps, batch = given.one
        print(json.dumps(measure(way, int(steps), int(batch))))
        return
    rows = compare(given.batch, given.repeats)
    if given.json:
        print(json.dumps(rows, indent=1))
        return
    print(f"{'way':8} {'steps':>5} {'peak MiB':>9} {'seconds':>8}")
    for row in rows:
        print(f"{row['way']:8} {row['steps']:5} {row['mib']:9.0f} {row['seconds']:8.2f}")
    peak = {(row["way"], row["steps"]): row["mib"] for row in rows}
    for way in WAYS:
        ratio = peak[way, STEPS[-1]] / peak[way, STEPS[0]]
        print(f"{way}: {STEPS[-1]} steps take {ratio:.2f} of the memory of {STEPS[0]}")


if __name__ == "__main__":
    main()
