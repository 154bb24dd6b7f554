"""What the program prints to: a reader that went away, or a full disk, ends nothing that is under way."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import sys


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
