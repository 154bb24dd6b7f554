"""Writes the README's generated parts: `python -m tools.manual [RUN]`; RUN is a new run of its command, to keep."""

from __future__ import annotations

import sys
from pathlib import Path

from defend.report import readme
from tools.manual.included import ROOT
from tools.manual.parts import first_run, keep_first_run

if __name__ == "__main__":
    for folder in sys.argv[1:]:
        keep_first_run(Path(folder))
    readme.fill(ROOT / "README.md", "figures", {"first-run": first_run() + "\n"})
