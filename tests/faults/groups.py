"""The groups of injections: every module of this folder that has `injections()`."""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from pathlib import Path

from tests.faults.harness import Injection

HELPERS = ("__init__", "__main__", "commands", "disk", "groups", "harness", "toys", "warm")


def names() -> list[str]:
    """Return the groups' names."""
    files = sorted(Path(__file__).parent.glob("*.py"))
    return [file.stem for file in files if file.stem not in HELPERS and not file.stem.startswith("test_")]


def injections(group: str) -> Iterable[Injection]:
    """Return a group's injections."""
    found: Iterable[Injection] = importlib.import_module(f"tests.faults.{group}").injections()
    return found
