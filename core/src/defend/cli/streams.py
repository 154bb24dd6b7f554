"""Standard output of the program: a reader that went away, or a full disk, ends nothing that is under way."""

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


def open_output() -> _Lenient | None:
    """Let standard output never fail from now on; return what remembers a failure, None of a terminal.

    A stream that is closed (`>&-`) becomes one that goes nowhere, as a file opened later would take its place.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115 - for as long as the process
    # only what Python opened at its start: another object closes its file when nobody holds it any more
    before = sys.__stdout__
    if before is None or sys.stdout is not before or before.isatty():
        return None
    with contextlib.suppress(OSError, ValueError):
        raw = _Lenient(before.fileno(), "w", closefd=False)
        sys.stdout = io.TextIOWrapper(io.BufferedWriter(raw), before.encoding, before.errors)
        return raw
    return None
