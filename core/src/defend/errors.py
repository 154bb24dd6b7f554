"""Everything that `defend` refuses, as exceptions whose text is one helpful line.

Only `defend.cli` turns a `DefendError` into an exit code (2). A message says what came, what was
expected, and what to try.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class DefendError(Exception):
    """Base of every error that a user can cause and mend."""

    def __str__(self) -> str:
        """Return the message in one line, also where it quotes what holds line breaks: a library, a name in a file."""
        return " ".join(super().__str__().splitlines())


class ConfigError(DefendError):
    """A flag, a configuration file or an option holds something that is not accepted."""


class NoRowError(ConfigError):
    """A gate asks for a row that a run does not have."""


class UnknownNameError(ConfigError):
    """A name that nothing installed answers to; the message offers the nearest one."""

    def __init__(self, kind: str, name: str, choices: Iterable[str], hint: str = "") -> None:
        known = sorted(choices)
        super().__init__(f"unknown {kind} {name!r}: {did_you_mean(name, known)}{hint}")
        self.name = name


class PluginError(DefendError):
    """An installed plugin could not be loaded, or two of them offer one name."""


class ContractError(DefendError):
    """A stage returned something that its protocol forbids; the message names the stage."""


class StageError(DefendError):
    """Code of a stage failed; the message names stage, name, method and what was raised, which is the cause."""


class BusyError(DefendError):
    """Another process is at work where only one may be."""


class DataError(DefendError):
    """A data set, folder or image that cannot be read."""


class WeightsError(DefendError):
    """Weights that are missing, damaged, unsafe, or made for another architecture."""


class WriteError(DefendError):
    """A file or folder that the system does not let us write: a full disk, one that is not ours, a broken one."""


class ProcessLostError(DefendError):
    """A process that shared a run is gone, or this one was told to stop."""


def did_you_mean(value: str, choices: Iterable[str], most: int = 12) -> str:
    """Return "did you mean 'x'? (known: a, b, c)", or what is known where nothing is near; at most `most` names."""
    known = list(choices)
    if not known:
        return "none is installed"
    near = nearest(value, known)
    shown = ", ".join(known[:most]) + (f" and {len(known) - most} more" if len(known) > most else "")
    return f"did you mean {near!r}? (known: {shown})" if near is not None else f"known are {shown}"


def nearest(value: str, choices: Iterable[str]) -> str | None:
    """Return the choice that a misspelt value is near to, None where it is near to none."""
    lowered = {name.lower(): name for name in choices}
    near = difflib.get_close_matches(str(value).lower(), list(lowered), n=1, cutoff=0.5)
    return lowered[near[0]] if near else None
