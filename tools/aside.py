"""What is to be made anew, moved out of the way: nothing may take the old for the new. Imports no torch."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path


def set_aside(paths: Iterable[Path], folder: Path) -> list[Path]:
    """Move what is there of some files and folders into a folder; what it holds under their names goes.

    Returns:
        Those that were moved.
    """
    moved = []
    for path in paths:
        if path.exists():
            folder.mkdir(parents=True, exist_ok=True)
            there = folder / path.name
            if there.is_dir():
                shutil.rmtree(there)
            path.replace(there)
            moved.append(path)
    return moved
