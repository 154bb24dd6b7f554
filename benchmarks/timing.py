"""Times contenders in turn and prints medians, spreads and the ratio to the first."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping

ROUNDS = 7


def compare(contenders: Mapping[str, Callable[[], object]], images: int, rounds: int = ROUNDS) -> None:
    """Run every contender once a round, after a warm-up; print milliseconds an image."""
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for work in contenders.values():
        work()
    for _ in range(rounds):
        for name, work in contenders.items():
            start = time.perf_counter()
            work()
            times[name].append(1000 * (time.perf_counter() - start) / images)
    first = statistics.median(next(iter(times.values())))
    print(f"{'ms an image':42} median     min     max   ratio   ({rounds} rounds of {images} images)")
    for name, found in times.items():
        middle = statistics.median(found)
        print(f"{name:42} {middle:6.2f}  {min(found):6.2f}  {max(found):6.2f}  {middle / first:6.2f}")
