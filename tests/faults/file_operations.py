"""File operations that fail: every one of every command, with each of a disk's errors, once and from then on.

What is expected: one line that says which path, what was being written, and how to go on, exit 2; or a warning, where
the command can do without. What was finished is there, and the command that the line names ends as if nothing had been.
"""

from __future__ import annotations

import errno
import functools
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.faults import disk
from tests.faults.commands import COMMANDS, Command
from tests.faults.harness import LOST, Answer, Injection

CODES = (errno.ENOSPC, errno.EACCES, errno.EROFS, errno.EIO)
FILLED = ("run", "train", "calibrate", "export", "report", "predict", "recipe", "new plugin")
OPTIONAL = ("examples", "unfinished")  # what a run can do without, and says so
QUICK = {  # one operation of each kind that matters
    "run": (
        ("rename", "records.csv", False),
        ("open", "000-000001", True),
        ("mkdir", "unfinished", False),
        ("rename", "examples-", False),
        ("open", "cache", True),
    ),
    "train": (("open", "checkpoint", False), ("rename", "weights", False)),
    "report": (("rename", "ladder.svg", False),),
    "predict": (("rename", "purified", False),),
}


def injections() -> Iterator[Injection]:
    """One for every operation."""
    for name, picked in QUICK.items():
        for number, (kind, text, onwards) in enumerate(picked):
            code = CODES[number % len(CODES)]
            fault = disk.arranged(disk.fail, 1, code, onwards=onwards, kind=kind, name=text)
            yield _injection(name, f"{kind} of {text}{' and all after it' if onwards else ''}", code, fault, quick=True)
    for name, command in COMMANDS.items():
        yield Injection(f"{name}: operations", "all are known", functools.partial(_count, command))
        for nth in range(1, command.operations + 1, command.step):
            # of an operation's two ways to fail and four errors one of each; the next takes others
            code, onwards = CODES[nth % len(CODES)], nth % 2 == 0
            what = f"{nth}{' and all after it' if onwards else ''}"
            yield _injection(name, what, code, disk.arranged(disk.fail, nth, code, onwards=onwards))
        for nth in range(1, command.files + 1 if name in FILLED else 1, 2):
            yield _injection(name, f"the disk is full in file {nth}", errno.EFBIG, disk.arranged(disk.fill, nth))
    for name in COMMANDS:
        for what, arrange in {
            "the cache is a file": cache_is_a_file,
            "nothing can be written in the cache": disk.arranged(
                disk.fail, 1, errno.EROFS, onwards=True, under="cache"
            ),
            "the cache cannot be read": disk.arranged(
                disk.fail, 1, errno.EACCES, onwards=True, under="cache", reading=True
            ),
            "no folder for temporary files": disk.no_temporary_folder,
        }.items():
            yield Injection(f"{name}: places", what, functools.partial(_inject, COMMANDS[name], arrange, sure=False))


def cache_is_a_file() -> None:
    """Put a file where the cache should be."""
    import os
    import shutil

    shutil.rmtree("cache", ignore_errors=True)
    Path(os.environ["DEFEND_CACHE_DIR"]).write_text("not a folder")


def _injection(name: str, what: str, code: int, fault: Callable[[], object], quick: bool = False) -> Injection:
    return Injection(
        f"{name}: operations",
        f"{what} ({errno.errorcode[code]})",
        functools.partial(_inject, COMMANDS[name], fault),
        quick,
    )


def _count(command: Command, folder: Path) -> str:
    command.prepare(folder)
    command.start(folder, disk.arranged(disk.count_operations))
    made = (folder / disk.MARK).read_text().splitlines()
    files = sum(line.split()[1] == "open" for line in made)
    known = command.operations, command.files
    return "" if (len(made), files) == known else f"{len(made)} operations, {files} on files: `commands` says {known}"


def _inject(command: Command, fault: Callable[[], object], folder: Path, *, sure: bool = True) -> str:
    command.prepare(folder)
    answer = command.start(folder, fault)
    if not disk.was_reached(folder) and sure:
        return "the operation never came"
    wrong = answer.misbehaved(code=(0, 2))
    if wrong:
        return wrong
    if answer.code == 0:
        wrong = command.differs(folder, OPTIONAL if "warning:" in answer.error else ())
        return wrong and f"{LOST}exit 0, and {wrong}"
    return _judge(command, answer, folder)


def _judge(command: Command, answer: Answer, folder: Path) -> str:
    """Say what is wrong with a command that failed, and with what goes on."""
    if not re.search(r"('[^']+'|temporary files) (could not|cannot|can) be (written|made|deleted|read)", answer.line):
        return f"names no path or what failed: {answer.line}"
    begun = command.resumes and any((folder / command.resumes).rglob("config*"))
    if begun and "--resume" not in answer.line:
        return f"does not say how to go on: {answer.line}"
    cache = folder / "cache"
    if cache.is_file():
        cache.unlink()
    wrong = command.go_on(folder, "--resume" in answer.line)
    return wrong and f"{LOST}{wrong} (after {answer.line})"
