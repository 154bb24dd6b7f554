"""Commands as they are typed: all that are printed are written here, so that each runs as printed. Imports no torch."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from typing import Any

from defend.values.sources import ARRAYS, FOLDER, HUB, is_path

LOCAL = ("data_dir", "workers")
"""Options of a data set that have words of their own, or decide nothing."""


def say_command(*words: object) -> str:
    """Return a command of `defend`, quoted for a shell: `say_command("run", "--resume", folder)`."""
    return shlex.join(("defend", *map(str, words)))


def type_settings(prefix: str, options: Mapping[str, Any]) -> Iterator[str]:
    """Yield the words that set a part's options; those of the part that a command is about have no prefix."""
    for key, value in options.items():
        typed = ",".join(map(str, value)) if isinstance(value, (tuple, list)) else str(value)
        yield from ("--set", f"{prefix}.{key}={typed}" if prefix else f"{key}={typed}")


def type_source(name: str, data_dir: str | None = None, options: Mapping[str, Any] | None = None) -> tuple[str, ...]:
    """Return the words that name a data set, as `defend.values.sources.name_source` understands them."""
    given = {key: value for key, value in (options or {}).items() if key not in LOCAL}
    place = data_dir or (options or {}).get("data_dir")
    words: tuple[str, ...] = ("--dataset", name)
    if place is not None:
        words = (*words, "--data-dir", str(place))
        if name == HUB:
            words = ("--dataset", f"{HUB}:{place}")
        elif name in (FOLDER, ARRAYS) and is_path(str(place)):
            words = ("--dataset", str(place))
    return (*words, *type_settings("dataset", given))
