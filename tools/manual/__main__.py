"""Writes the README's generated parts: `python -m tools.manual [RUN]`; RUN is a new run of its command, to keep."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from defend.errors import DefendError
from defend.report import readme
from tools.manual.included import ROOT
from tools.manual.parts import COMMAND, first_run, keep_first_run


def main() -> int:
    """Keep the run that is given and write the README's parts; return 0, or 2 for a run that is not to be kept."""
    parser = argparse.ArgumentParser(prog="python -m tools.manual", description=__doc__)
    parser.add_argument("run", nargs="?", type=Path, metavar="RUN", help=f"the folder of a new run of `{COMMAND}`")
    given = parser.parse_args()
    try:
        if given.run is not None:
            keep_first_run(given.run)
        readme.fill(ROOT / "README.md", "figures", {"first-run": first_run() + "\n"})
    except DefendError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
