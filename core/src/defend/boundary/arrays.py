"""Files of arrays that somebody else made: read without pickle, and every fault of theirs in one line."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.npyio import NpzFile

from defend.boundary.calls import say_cause
from defend.errors import DataError
from defend.util.printable import escape

IMAGES = "np.savez(FILE, images=..., labels=...)"


@contextlib.contextmanager
def reading(path: Path, what: str = "", expected: str = IMAGES) -> Iterator[None]:
    """Tell of what is wrong with a file of arrays, or with `what` of it, as one line: its name, and what is `expected`.

    Raises:
        DataError: it cannot be read, is damaged, or holds Python objects.
    """
    try:
        yield
    except DataError:
        raise
    except Exception as error:  # of damaged files numpy and zipfile raise whatever they like
        if isinstance(error, OSError) and error.strerror:
            raise DataError(f"{str(path)!r} cannot be read: {error.strerror}") from None
        text = say_cause(error)
        said = f"is damaged, or no file of arrays ({text}): expected {expected}"
        if "pickle" in text or "Python objects" in text:  # what is no array at all looks like a pickle to numpy
            said = f"holds Python objects, which are never loaded, or no arrays: expected plain ones, {expected}"
        raise DataError(f"{str(path)!r}{what} {said}") from None


@contextlib.contextmanager
def open_archive(path: Path, expected: str = IMAGES) -> Iterator[NpzFile]:
    """Open a .npz for a block.

    Raises:
        DataError: it is none, or what `reading` says.
    """
    # opened here, as numpy leaves a damaged file open
    with reading(path, expected=expected), path.open("rb") as file:
        archive = np.load(file, allow_pickle=False)
        if not isinstance(archive, NpzFile):
            raise DataError(f"{str(path)!r} holds one array, and no .npz does: name it .npy, beside one of labels")
        yield archive


def list_members(archive: NpzFile) -> str:
    """Return the names of a .npz's arrays as an error may quote them: short, control characters written out."""
    return escape(", ".join(archive.files)[:200]) or "nothing"


def read_member(archive: NpzFile, name: str, path: Path, expected: str = IMAGES) -> Any:
    """Read one array of a .npz.

    Raises:
        DataError: as `reading` says, naming the array.
    """
    with reading(path, f", {name}", expected):
        return archive[name]
