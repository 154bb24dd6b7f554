"""A disk that fails, and processes that die at it: what a command does to files, counted, and broken at one place.

Python tells of every file operation before it is made (`sys.addaudithook`), libraries' among them; one of these fails,
or ends the process. A write is made to fail by the system itself, which lets no file grow any more.
"""

from __future__ import annotations

import errno
import functools
import os
import resource
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

EVENTS = {
    "open": "open",
    "os.chmod": "chmod",
    "os.mkdir": "mkdir",
    "os.remove": "delete",
    "os.rename": "rename",
    "os.rmdir": "delete",
    "os.utime": "utime",
}
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
OURS = (".out", ".error", ".reached")  # files of the harness
MARK = ".reached"
DEVICES = ("/dev/", "/proc/", "/sys/")

Act = Callable[[int, str, str], None]
"""What to do before an operation: its number from 1, its kind, and its path."""


def watch(act: Act, *, kind: str = "", name: str = "", under: str = "", reading: bool = False) -> None:
    """Call `act` before every operation of this process that changes a file.

    Args:
        act: told of the operations that fit, numbered; what it raises is what the operation fails with.
        kind: a value of `EVENTS`, any if "".
        name: what the path must hold.
        under: a folder the path must lie in, from here.
        reading: files that are opened to be read count too.
    """
    state = {"count": 0, "busy": False}
    root = os.path.abspath(under) if under else ""

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event not in EVENTS or state["busy"]:
            return
        path = arguments[0]
        if not isinstance(path, str | bytes | os.PathLike):
            return
        if event == "open" and not reading and not (isinstance(arguments[2], int) and arguments[2] & WRITES):
            return
        text = os.fsdecode(path)
        # deletions within a tree name no folder
        whole = text if event in ("os.remove", "os.rmdir") and arguments[1] != -1 else os.path.abspath(text)
        if os.path.basename(text) in OURS or whole.startswith(DEVICES) or text.endswith(".pyc"):
            return
        if (kind and EVENTS[event] != kind) or name not in text or not whole.startswith(root):
            return
        state["count"] += 1
        state["busy"] = True
        try:
            act(state["count"], EVENTS[event], text)
        finally:
            state["busy"] = False

    sys.addaudithook(hook)


def _reached(path: str) -> None:
    with open(MARK, "a", encoding="utf-8") as file:
        file.write(f"{path}\n")


def count_operations(**where: Any) -> None:
    """Write every operation into the mark, a line each."""
    watch(lambda number, kind, path: _reached(f"{number} {kind} {path}"), **where)


def fail(nth: int, code: int, *, onwards: bool = False, **where: Any) -> None:
    """Let the n-th operation fail with an `errno` code, and with `onwards` all after it."""

    def act(number: int, kind: str, path: str) -> None:
        if number == nth or (onwards and number > nth):
            _reached(path)
            raise OSError(code, os.strerror(code), path)

    watch(act, **where)


def fill(nth: int, **where: Any) -> None:
    """Let the file that is opened for writing as the n-th be created, and not grow: the disk is full."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    full = [False]

    def relax(event: str, _: object) -> None:
        if full[0] and event in EVENTS:  # the write has failed, and what the command says of it must be written
            full[0] = False
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    def act(number: int, kind: str, path: str) -> None:
        if number == nth:
            _reached(path)
            resource.setrlimit(resource.RLIMIT_FSIZE, (0, limits[1]))
            full[0] = True

    sys.addaudithook(relax)
    watch(act, kind="open", **where)


def cut(nth: int, *, half: bool = False, **where: Any) -> None:
    """End the process before its n-th operation; with `half`, with only half of what was written before it there."""

    def act(number: int, kind: str, path: str) -> None:
        if number == nth:
            _reached(path)
            if half and kind == "rename" and os.path.isfile(path):
                os.truncate(path, os.path.getsize(path) // 2)
            os._exit(137)

    watch(act, **where)


def no_temporary_folder() -> None:
    """Leave no folder for temporary files but one that cannot be written to."""
    import tempfile

    os.mkdir("unwritable")
    tempfile.tempdir = None
    tempfile._candidate_tempdir_list = lambda: [os.path.abspath("unwritable")]  # type: ignore[attr-defined]
    fail(1, errno.EROFS, onwards=True, under="unwritable")


def arranged(function: Callable[..., None], *arguments: Any, **where: Any) -> functools.partial[None]:
    """Return what `harness.run_command` calls in the child."""
    return functools.partial(function, *arguments, **where)


def was_reached(folder: Path) -> bool:
    """Whether the fault happened, and forget it."""
    mark = folder / MARK
    there = mark.exists()
    mark.unlink(missing_ok=True)
    return there


def left_over(folder: Path) -> list[str]:
    """Return what writers left under a folder that never became a file."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*.part")) if folder.exists() else []
