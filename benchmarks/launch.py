"""Runs one command and says how long it took and how much memory it held at most.

    python -m benchmarks.launch COMMAND [ARGUMENT ...]

A process of its own stands between the benchmarks and what they measure, because a new process inherits the peak
memory of the one that started it (getrusage(2)); this one imports nothing large. It prints one JSON object.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from typing import Any

WRITTEN = 4000  # characters of what a command wrote that are kept


def measure(command: list[str]) -> dict[str, Any]:
    """Run a command to its end.

    Returns:
        "seconds" of wall time, "mib" of peak resident memory, "code" it ended with, and the ends of "out" and "error".
    """
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as error:
        begun = time.perf_counter()
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=error)
        _, status, used = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - begun
        code = process.returncode = os.waitstatus_to_exitcode(status)
        return {
            "seconds": seconds,
            "mib": used.ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10),
            "code": code,
            "out": _end(out),
            "error": _end(error),
        }


def _end(file: Any) -> str:
    file.seek(0)
    text: str = file.read().decode(errors="replace")
    return text[-WRITTEN:]


if __name__ == "__main__":
    print(json.dumps(measure(sys.argv[1:])))
