"""`my_model.py:load` and `package.module:load` as names: taken apart, shortened, anchored. Nothing is imported."""

from __future__ import annotations

import contextlib
import importlib.util
import re
from pathlib import Path

FILE = "file"  # what stands before a file of attacked images: file:adv.npz
_REFERENCE = re.compile(r"(?P<where>.*\.py|[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*):(?P<what>[A-Za-z_]\w*)", re.DOTALL)


def split_reference(text: str) -> tuple[str, str] | None:
    """Return (file or module, name in it) of a reference, None of anything else.

    "PATH.py:NAME" always is one; "MODULE:NAME" where there is such a module, as families of stages are named alike.
    """
    match = _REFERENCE.fullmatch(text)
    if match is None:
        return None
    where = match["where"]
    if where.endswith(".py"):
        return where, match["what"]
    there = False
    with contextlib.suppress(ImportError, ValueError):  # a package around it is missing, or fails
        there = importlib.util.find_spec(where) is not None
    return (where, match["what"]) if there else None


def shorten(text: str) -> str:
    """Return names as people read them: a reference, or a sequence with one, without the folders of its file."""
    return ",".join(_shorten(each) for each in text.split(","))


def _shorten(text: str) -> str:
    if text.startswith(f"{FILE}:"):
        return f"{FILE}:{Path(text.removeprefix(f'{FILE}:')).name}"
    where, colon, what = text.rpartition(":")
    return f"{Path(where).name}:{what}" if colon and where.endswith(".py") else text


def anchor(text: str, folder: Path) -> str:
    """Return names in which a reference's relative file is looked up from a folder: absolute; others as they are."""
    return ",".join(_anchor(each, folder) for each in text.split(","))


def _anchor(text: str, folder: Path) -> str:
    if text.startswith(f"{FILE}:"):
        return f"{FILE}:{(folder / Path(text.removeprefix(f'{FILE}:').strip()).expanduser()).resolve()}"
    where, colon, what = text.rpartition(":")
    if not colon or not where.endswith(".py"):
        return text
    return f"{(folder / Path(where.strip()).expanduser()).resolve()}:{what}"


def number_twin(name: str, taken: set[str]) -> str:
    """Return a file's name, numbered where it is `taken`, and take it: two names from outside may be made one."""
    free, count = name, 2
    while free in taken:
        free, count = f"{name}-{count}", count + 1
    taken.add(free)
    return free
