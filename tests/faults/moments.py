"""Processes that are killed at a file operation: every one of every command, and with half of a file written.

What an operation leaves is what the next one finds, so a process that ends before each has been ended after each too.
Expected: `--resume` goes on wherever something was written, else the same command begins; the end is as if nothing had
been, and nothing is left over. What lies in folders that several processes may write to goes when it is old.
"""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.faults import disk
from tests.faults.commands import COMMANDS, Command
from tests.faults.harness import LOST, Injection

from defend.util.lock import NAME as LOCK

KILLED = 137
DAYS = 2 * 24 * 3600  # after which what nobody finished is nobody's
QUICK = {
    "run": (("rename", "configs.json"), ("rename", "run.json"), ("rename", "report.json"), ("delete", "run.json")),
    "two arms": (("rename", "unet_gan/.config.toml"),),
    "train": (("rename", "weights"),),
}


def injections() -> Iterator[Injection]:
    """One for every operation, and one for every file that is half there."""
    for name, picked in QUICK.items():
        for kind, text in picked:
            yield _injection(
                name, f"before the {kind} of {text}", disk.arranged(disk.cut, 1, kind=kind, name=text), True
            )
    for name, command in COMMANDS.items():
        for nth in range(1, command.operations + 1, command.step):
            yield _injection(name, f"before operation {nth}", disk.arranged(disk.cut, nth))
        for nth in range(1, command.renames + 1, 3):
            half = disk.arranged(disk.cut, nth, half=True, kind="rename")
            yield _injection(name, f"with half of file {nth}", half)


def _injection(name: str, what: str, fault: Callable[[], object], quick: bool = False) -> Injection:
    return Injection(f"{name}: killed", what, functools.partial(_inject, COMMANDS[name], fault), quick)


def _inject(command: Command, fault: Callable[[], object], folder: Path) -> str:
    command.prepare(folder)
    answer = command.start(folder, fault)
    if not disk.was_reached(folder):
        return "the operation never came"
    if answer.code != KILLED:
        return f"exit {answer.code}, although it was killed"
    for left in folder.rglob("*"):
        os.utime(left, (time.time() - DAYS, time.time() - DAYS))
    wrong = command.go_on(folder, resume=bool(command.resumes) and _begun(folder / command.resumes))
    if wrong:
        return f"{LOST}{wrong}"
    left_over = disk.left_over(folder)
    return f"left over: {', '.join(left_over)}" if left_over else ""


def _begun(folder: Path) -> bool:
    """Whether something was written of a run; who holds its folder is none of it."""
    return any(path.is_file() and path.suffix != ".part" and path.name != LOCK for path in folder.rglob("*"))
