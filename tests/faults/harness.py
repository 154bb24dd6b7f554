"""What an injection is, and the command in a process of its own, with something broken in it.

Commands run in children of a fork server that has torch loaded, so that one costs a second, not five. A child is told
what to break by a function of a module (`arrange`), as it is found there by its name.
"""

from __future__ import annotations

import contextlib
import functools
import multiprocessing
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import attrs

PRELOADED = ("tests.faults.warm",)
EXPECTED_CODES = (0, 2, 3, 130)
"""What a command may exit with when a part of it fails: it is done, refuses, a gate is shut, or it was interrupted."""


@attrs.frozen
class Injection:
    """One thing that is broken.

    Attributes:
        kind: the group's kind of fault, a row of the counts.
        name: which one, for people.
        inject: given an empty folder, breaks it, and returns "" if all went well, else what was wrong in one line; a
            line that begins with LOST tells of something computed that is gone.
        quick: whether it is one of those of which every test run injects one a kind.
    """

    kind: str
    name: str
    inject: Callable[[Path], str]
    quick: bool = False


LOST = "lost: "


@attrs.frozen
class Answer:
    """What a command exited with (negative: the signal that ended it) and wrote."""

    code: int
    out: str
    error: str

    @property
    def line(self) -> str:
        """The one line that says what went wrong, "" without one."""
        return next((line for line in self.error.splitlines() if line.startswith("error:")), "")

    def misbehaved(self, *, code: int | tuple[int, ...] = EXPECTED_CODES, words: tuple[str, ...] = ()) -> str:
        """Say how this is no answer that a user can use: the code, a traceback, no or several lines, missing words."""
        codes = (code,) if isinstance(code, int) else code
        if self.code not in codes:
            return f"exit {self.code}, expected {' or '.join(map(str, codes))}: {self._last()}"
        if "Traceback" in self.error + self.out:
            return f"a traceback: {self._last()}"
        if "internal error" in self.error:
            return self.line
        if sum(line.startswith("error:") for line in self.error.splitlines()) > 1:
            return f"more than one error: {self.error!r}"
        if self.code not in (0, 3) and not self.line:
            return f"exit {self.code} without a line that says why"
        missing = [word for word in words if word not in self.error + self.out]
        return f"says nothing of {missing[0]!r}: {self._last()}" if missing else ""

    def _last(self) -> str:
        return " | ".join(self.error.strip().splitlines()[-2:])[:300] or "nothing was said"


def nothing() -> None:
    """Break nothing."""


def run_command(
    folder: Path,
    *arguments: object,
    arrange: Callable[[], object] = nothing,
    environment: Mapping[str, str] | None = None,
    seconds: float = 120,
) -> Answer:
    """Run `defend ARGUMENTS` in `folder`, in a process of its own; its cache is a folder there.

    Args:
        folder: where it runs.
        arguments: of the command.
        arrange: a function of a module, or a `functools.partial` of one, called in that process before the command.
        environment: variables beside the usual.
        seconds: after which it is killed.
    """
    cache = {"DEFEND_CACHE_DIR": str(folder / "cache"), "NO_COLOR": "1", "OMP_NUM_THREADS": "1"}
    out, error = folder / ".out", folder / ".error"
    child = _server().Process(
        target=_child,
        args=(str(folder), [str(each) for each in arguments], arrange, {**cache, **(environment or {})}),
    )
    child.start()
    child.join(seconds)
    if child.exitcode is None:
        child.kill()
        child.join()
        return Answer(-9, "", f"it did not end within {seconds:g} s")
    texts = [path.read_text(encoding="utf-8", errors="replace") if path.exists() else "" for path in (out, error)]
    return Answer(child.exitcode, *texts)


@functools.cache
def _server() -> multiprocessing.context.ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    context.set_forkserver_preload(list(PRELOADED))
    return context


def _child(folder: str, arguments: list[str], arrange: Callable[[], object], environment: Mapping[str, str]) -> None:
    os.chdir(folder)
    os.environ.update(environment)
    os.environ.pop("DEFEND_DATA_DIR", None)
    for name, descriptor in ((".out", 1), (".error", 2)):
        handle = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(handle, descriptor)
    sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115
    code: object = 70  # main always exits
    try:
        from defend.cli import main
        from defend.util import interrupts

        interrupts.listen()
        arrange()
        main(arguments)
    except SystemExit as stopped:
        code = 0 if stopped.code is None else stopped.code
    except BaseException:
        import traceback

        traceback.print_exc()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(ValueError, OSError):
            stream.flush()
    os._exit(code if isinstance(code, int) else 71)
