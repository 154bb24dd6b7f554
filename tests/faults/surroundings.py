"""What surrounds the program: signals at any moment, a reader that goes away, full or closed output, little memory."""

from __future__ import annotations

import functools
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.faults.harness import Answer, Injection

RUN = ("run", "--victim", "resnet18", "--purifier", "dae", "--limit", "8", "--no-store", "--quiet", "--out", "r")
MOMENTS = 24  # from a quarter of a second, when Python itself has started, to the middle of a run
GIBIBYTE = 2**30


def injections() -> Iterator[Injection]:
    """Yield signals over the beginning of a run, then streams, then limits of memory."""
    for number in (signal.SIGINT, signal.SIGTERM):
        for moment in range(MOMENTS):
            after = 0.25 * 1.2**moment
            inject = functools.partial(_interrupt, number, after)
            yield Injection("signal", f"{number.name} after {after:.2f} s", inject, moment == 8)
    for arguments in (("list",), ("--help",), ("show", "apudae"), ("list", "--json"), RUN):
        name = " ".join(arguments[:2])
        yield Injection("output", f"{name} | head -1", functools.partial(_go_away, arguments), arguments == ("list",))
        yield Injection("output", f"{name} 2>&1 | head -1", functools.partial(_go_away, arguments, both=True))
        yield Injection("output", f"{name} > /dev/full", functools.partial(_fill, arguments), arguments == ("list",))
        yield Injection("output", f"{name} >&-", functools.partial(_close, arguments), arguments == ("list",))
    for size in (0.5, 1, 1.5, 2, 2.5, 3, 3.5, 4, 5):
        yield Injection("memory", f"{size} GiB of addresses", functools.partial(_limit_memory, size))


def _start(
    folder: Path,
    *arguments: str,
    output: int | None = subprocess.PIPE,
    error: int = subprocess.PIPE,
    before: Callable[[], object] | None = None,
) -> subprocess.Popen[str]:
    own = {"DEFEND_CACHE_DIR": str(folder / "cache"), "NO_COLOR": "1", "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "defend", *arguments],
        cwd=folder,
        env={**os.environ, **own},
        stdout=output,
        stderr=error,
        text=True,
        start_new_session=True,
        preexec_fn=functools.partial(_prepare, before),
    )


def _prepare(before: Callable[[], object] | None) -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # which this process may have been started without
    if before is not None:
        before()


def _end(process: subprocess.Popen[str], seconds: float = 240) -> Answer:
    try:
        out, error = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        return Answer(-9, "", f"it did not end within {seconds:g} s")
    return Answer(process.returncode, out or "", error)


def _interrupt(number: signal.Signals, after: float, folder: Path) -> str:
    process = _start(folder, *RUN)
    time.sleep(after)
    process.send_signal(number)
    answer = _end(process)
    if answer.code == 0:  # it had ended before
        return answer.misbehaved(code=0)
    return answer.misbehaved(code=130, words=("interrupted",))


def _go_away(arguments: tuple[str, ...], folder: Path, both: bool = False) -> str:
    process = _start(folder, *arguments, error=subprocess.STDOUT if both else subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    process.stdout.close()
    error = process.stderr.read() if process.stderr else ""
    answer = Answer(process.wait(240), "", error)
    return answer.misbehaved(code=(0, -signal.SIGPIPE)) or (f"it said {answer.line!r}" if answer.line else "")


def _fill(arguments: tuple[str, ...], folder: Path) -> str:
    with open("/dev/full", "w") as full:
        answer = _end(_start(folder, *arguments, output=full.fileno()))
    return answer.misbehaved(code=2, words=("standard output", "No space left"))


def _close(arguments: tuple[str, ...], folder: Path) -> str:
    answer = _end(_start(folder, *arguments, output=None, before=functools.partial(os.close, 1)))
    return answer.misbehaved(code=0)


def _limit_memory(size: float, folder: Path) -> str:
    most = int(size * GIBIBYTE)
    answer = _end(_start(folder, *RUN, before=functools.partial(resource.setrlimit, resource.RLIMIT_AS, (most, most))))
    return answer.misbehaved(code=(0, 2), words=() if answer.code == 0 else ("memory",))
