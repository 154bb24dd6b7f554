"""The program: `defend`, or `python -m defend`. It listens to Ctrl-C and SIGTERM from its first moment to its last."""

from __future__ import annotations

import sys
from typing import NoReturn

from defend.util import cores, interrupts, openmp


def start() -> NoReturn:
    """Run the command line in a process of its own, and exit with its code."""
    interrupts.listen()
    before = cores.count_neighbours()
    # only now, as it takes a while
    from defend.cli import main, streams
    from defend.cli.exits import WRONG_INPUT

    # who runs for a moment only is no neighbour; torch, which reads what is set here, comes with the command
    openmp.prepare(min(before, cores.count_neighbours()))
    output = streams.open_streams()
    code: object = 0
    try:
        main()
    except SystemExit as stopped:
        code = stopped.code
    interrupts.ignore()
    sys.stdout.flush()
    sys.stderr.flush()
    if output is not None and output.failure is not None:
        sys.stderr.write(f"error: standard output cannot be written: {output.failure.strerror}\n")
        code = code or WRONG_INPUT
    sys.exit(code)


if __name__ == "__main__":
    start()
