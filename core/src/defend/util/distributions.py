"""What a table or a recipe needs beside its own plugin: whether it is installed, and what to do if not."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterable, Sequence

from defend.errors import ConfigError


def absent(names: Iterable[str]) -> tuple[str, ...]:
    """Return those of some distributions that are not installed."""
    return tuple(name for name in names if version_of(name) is None)


def install(names: Sequence[str]) -> str:
    """Return the command that installs distributions."""
    return f"pip install {' '.join(names)}"


def lack(what: str, missing: Sequence[str]) -> str:
    """Say that something needs distributions that are not installed, and what to do."""
    return f"{what} needs {' and '.join(missing)}, not installed here: run `{install(missing)}`"


def require(what: str, names: Iterable[str]) -> None:
    """Check that distributions are installed.

    Args:
        what: who needs them, as in "recipe 'mnist-robust'".
        names: the distributions.

    Raises:
        ConfigError: some are not; the message says what to install.
    """
    missing = absent(names)
    if missing:
        raise ConfigError(lack(what, missing))


def version_of(name: str) -> str | None:
    """Return the version of a distribution; None where it is not installed."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
