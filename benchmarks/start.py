"""Workload 6, the start: how long a user waits for the help, the list, and the main command's result.

    python -m benchmarks start

Processes from their start to their end, as `python -m defend`, against a bare `import torch`. The main command runs
in an empty folder and an empty cache, as after an install.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping

import torch

from benchmarks.contest import Bar, Result, Scale, compete, ratio, timing

WORKLOAD = "6 start"
TORCH, HELP, LIST, RUNNER = "import torch", "ours: defend --help", "ours: defend list", "ours: what a run imports"
COMMANDS = {
    TORCH: ["-c", "import torch"],
    HELP: ["-m", "defend", "--help"],
    LIST: ["-m", "defend", "list"],
    RUNNER: ["-c", "import defend.evaluation.runner"],  # without the victim's library
}
MAIN = ["-m", "defend", "run", "--purifier", "apudae", "--victim", "resnet18"]
LESS = ["--limit", "4", "--adaptive-limit", "2", "--checks", "none"]  # for a look
ROUNDS, MAIN_ROUNDS = 10, 2
HELP_SECONDS, HELP_SHARE, RUNNER_SHARE, MAIN_SECONDS = 0.15, 0.1, 1.3, 30.0


def run(scale: Scale) -> Iterator[Result]:
    """Yield the short commands, then the main one."""
    here = torch.device("cpu")  # where processes are waited for
    with tempfile.TemporaryDirectory() as folder:
        works = {name: process(arguments, folder) for name, arguments in COMMANDS.items()}
        timings = compete(works, per=1, rounds=scale.rounds if scale.quick else ROUNDS, device=here)
        bars = (
            Bar("defend --help, seconds", timing(timings, HELP).median / 1000, HELP_SECONDS, "at most"),
            Bar("defend --help / import torch", ratio(timings, HELP, TORCH), HELP_SHARE, "at most"),
            Bar("what a run imports / import torch", ratio(timings, RUNNER, TORCH), RUNNER_SHARE, "at most"),
        )
        yield Result(WORKLOAD, "short commands", "ms", timings, bars)
        work = process([*MAIN, "--device", str(scale.device), *(LESS if scale.quick else [])], folder)
        timings = compete({"ours": work}, per=1, rounds=1 if scale.quick else MAIN_ROUNDS, device=here, warm_up=0)
        title = " ".join(["defend", *MAIN[2:], *(LESS if scale.quick else [])])
        bar = Bar("the main command, seconds", timings[0].median / 1000, MAIN_SECONDS, "at most")
        yield Result(WORKLOAD, title, "ms", timings, () if scale.quick else (bar,))


def process(arguments: list[str], folder: str, more: Mapping[str, str] | None = None) -> Callable[[], None]:
    """Return work that runs Python with arguments, each time in an empty folder and with an empty cache within it.

    `more` is added to the environment.

    Raises (the work):
        RuntimeError: the process failed; with the end of what it wrote.
    """

    def work() -> None:
        place = tempfile.mkdtemp(dir=folder)
        env = {**os.environ, "DEFEND_CACHE_DIR": os.path.join(place, "cache"), "NO_COLOR": "1", **(more or {})}
        done = subprocess.run(
            [sys.executable, *arguments], cwd=place, env=env, capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            raise RuntimeError(f"python {' '.join(arguments)} ended with {done.returncode}: {done.stderr[-1000:]}")

    return work
