"""Workload 6, the start: how long a user waits for the help, the list, and the main command's result.

    python -m benchmarks start

Processes from their start to their end, as `python -m defend`, against a bare `import torch`. The main command runs
in an empty folder and an empty cache, as after an install; when its first row was begun and done is taken from what it
says.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
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
HELP_SECONDS, HELP_SHARE, RUNNER_SHARE, MAIN_SECONDS, FIRST_SECONDS = 0.15, 0.1, 1.3, 30.0, 8.0
FIRST, SECOND = "row 1 of", "row 2 of"  # what a run says as a row begins


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
        said: list[tuple[str, float]] = []
        arguments = [*MAIN, "--device", str(scale.device), *(LESS if scale.quick else [])]
        work = process(arguments, folder, listen=lambda *line: said.append(line))
        timings = compete({"ours": work}, per=1, rounds=1 if scale.quick else MAIN_ROUNDS, device=here, warm_up=0)
        title = " ".join(["defend", *MAIN[2:], *(LESS if scale.quick else [])])
        begun, done = (
            statistics.median(after for line, after in said if line.startswith(row)) for row in (FIRST, SECOND)
        )
        bars = (
            Bar("the main command, seconds", timings[0].median / 1000, MAIN_SECONDS, "at most"),
            Bar("its first row, seconds", done, FIRST_SECONDS, "at most"),
        )
        figures = {"seconds until the first row is begun": begun}
        yield Result(WORKLOAD, title, "ms", timings, () if scale.quick else bars, figures)


def process(
    arguments: list[str],
    folder: str,
    more: Mapping[str, str] | None = None,
    listen: Callable[[str, float], None] | None = None,
) -> Callable[[], None]:
    """Return work that runs Python with arguments, each time in an empty folder and with an empty cache within it.

    `more` is added to the environment. `listen` is given every line of standard error, and after how many seconds.

    Raises (the work):
        RuntimeError: the process failed; with the end of what it wrote.
    """

    def work() -> None:
        place = tempfile.mkdtemp(dir=folder)
        env = {**os.environ, "DEFEND_CACHE_DIR": os.path.join(place, "cache"), "NO_COLOR": "1", **(more or {})}
        begun = time.perf_counter()
        said = []
        with subprocess.Popen(
            [sys.executable, *arguments],
            cwd=place,
            env=env,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        ) as running:
            assert running.stderr is not None
            for line in running.stderr:
                said.append(line)
                if listen is not None:
                    listen(line, time.perf_counter() - begun)
        if running.returncode != 0:
            raise RuntimeError(f"python {' '.join(arguments)} ended with {running.returncode}: {''.join(said)[-1000:]}")

    return work
