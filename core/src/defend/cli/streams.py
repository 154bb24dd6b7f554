"""What the program prints to: a reader that went away, or a full disk, ends nothing that is under way."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import sys
from collections.abc import Iterator
from typing import TextIO

import click

from defend.util.printable import escape

_answer: TextIO | None = None  # where `--json` answers, while it alone may


@contextlib.contextmanager
def answering_alone() -> Iterator[None]:
    """Keep standard output for what `answer` prints: the prints of a user's own code go to standard error."""
    global _answer
    before, _answer = (sys.stdout, _answer), sys.stdout
    sys.stdout = sys.stderr
    try:
        yield
    finally:
        sys.stdout, _answer = before


def answer(text: str, *, nl: bool = True) -> None:
    """Print a text to standard output, within `answering_alone` too."""
    click.echo(escape(text, keep="\n\t"), file=_answer, nl=nl)


class _Lenient(io.FileIO):
    """A file whose writes never raise; the first that failed is remembered. A reader that went away is no failure."""

    failure: OSError | None = None

    def write(self, data: object) -> int:
        try:
            return super().write(data)  # type: ignore[arg-type]
        except OSError as error:
            if error.errno != errno.EPIPE and self.failure is None:
                self.failure = error
            return len(memoryview(data))  # type: ignore[arg-type]


def open_streams() -> _Lenient | None:
    """Let standard output and error never fail from now on; return what remembers a failure of the first, if any.

    A stream that is closed (`>&-`) becomes one that goes nowhere, as a file opened later would take its place. A
    terminal is left as it is.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115 - for as long as the process
    outputs = [_let_fail(name) for name in ("stdout", "stderr")]
    return outputs[0]


def _let_fail(name: str) -> _Lenient | None:
    # only what Python opened at its start: another object closes its file when nobody holds it any more
    before = getattr(sys, f"__{name}__")
    if before is None or getattr(sys, name) is not before or before.isatty():
        return None
    with contextlib.suppress(OSError, ValueError):
        raw = _Lenient(before.fileno(), "w", closefd=False)
        buffered = io.TextIOWrapper(
            io.BufferedWriter(raw), before.encoding, before.errors, line_buffering=before.line_buffering
        )
        setattr(sys, name, buffered)
        return raw
    return None
