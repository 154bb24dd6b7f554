"""`my_model.py:load` and `package.module:load` as names: taken apart, shortened, anchored. Nothing is imported."""

from __future__ import annotations

import contextlib
import importlib.util
import re
import sys
from importlib.machinery import PathFinder
from pathlib import Path

FILE = "file"  # what stands before a file of attacked images: file:adv.npz
_REFERENCE = re.compile(r"(?P<where>.*\.py|[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*):(?P<what>[A-Za-z_]\w*)", re.DOTALL)


def split_reference(text: str) -> tuple[str, str] | None:
    """Return (file or module, name in it) of a reference, None of anything else.

    "PATH.py:NAME" always is one; "MODULE:NAME" where there is such a module, installed or in the current folder, as
    families of stages are named alike.
    """
    named = read_reference(text)
    return named if named is not None and (named[0].endswith(".py") or _is_module(named[0])) else None


def read_reference(text: str) -> tuple[str, str] | None:
    """Return (file or module, name in it) of what is written as a reference, be there such a module or not."""
    match = _REFERENCE.fullmatch(text)
    return None if match is None else (match["where"], match["what"])


def _is_module(name: str) -> bool:
    """Whether there is a module, without the packages around it being run, as `find_spec` of a dotted name does."""
    first, *rest = name.split(".")
    # a command's own path lacks the current folder, which `load_reference` adds
    found = PathFinder.find_spec(first, ["", *sys.path])
    with contextlib.suppress(ImportError, ValueError):  # one without a spec, as `__main__`
        found = found or importlib.util.find_spec(first)
    for each in rest:
        found = PathFinder.find_spec(each, list(found.submodule_search_locations or ())) if found is not None else None
    return found is not None or name in sys.modules


def list_beside(module: str) -> list[str]:
    """Return what could be meant by a module that is not there: files and modules in the current folder."""
    package = module.rpartition(".")[0]
    inside = sorted(Path(*package.split(".")).glob("[!_]*.py")) if package else []
    return [*(f"{package}.{each.stem}" for each in inside), *sorted(each.name for each in Path().glob("[!_]*.py"))]


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
