"""Runs all of examples/, as CI does: `python -m tools.run_examples [--keep]`."""

from __future__ import annotations

import argparse
import os
import runpy
import sys
import time
from collections.abc import Sequence
from pathlib import Path

FOLDER = Path(__file__).parents[1] / "examples"
MOST = 60_000  # characters of a notebook with its outputs


def run_notebook(path: Path, keep: bool) -> None:
    """Run a notebook's cells in order in a new kernel; an error in one is raised.

    Raises:
        ValueError: with its outputs it is too large to be kept.
    """
    import nbformat  # --help does without
    from nbclient import NotebookClient

    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": FOLDER}}).execute()
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)  # when it ran
    notebook.metadata = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
    text = nbformat.writes(notebook)
    if len(text) > MOST:
        raise ValueError(f"{path.name} has {len(text):,} characters with its outputs: expected at most {MOST:,}")
    if keep:
        path.write_text(text + "\n", encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run all of it."""
    parser = argparse.ArgumentParser(prog="python -m tools.run_examples", description=__doc__)
    parser.add_argument("--keep", action="store_true", help="write the notebooks' outputs")
    run_all(parser.parse_args(arguments).keep)


def run_all(keep: bool) -> None:
    """Run scripts in this process and notebooks in kernels; say how long each takes."""
    os.chdir(FOLDER)
    sys.path.insert(0, str(FOLDER))
    for path in sorted([*FOLDER.glob("*.py"), *FOLDER.glob("*.ipynb")]):
        start = time.perf_counter()
        print(f"== {path.name}")
        if path.suffix == ".py":
            runpy.run_path(str(path), run_name="__main__")
        else:
            run_notebook(path, keep)
        print(f"-- {path.name}: {time.perf_counter() - start:.1f} s")


if __name__ == "__main__":
    main()
