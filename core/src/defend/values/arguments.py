"""Arguments of the Python face: one that there is not is answered as a flag would be, with the nearest."""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ParamSpec, TypeVar

from defend.errors import ConfigError, did_you_mean

P = ParamSpec("P")
R = TypeVar("R")


def refuse_unknown(given: Iterable[str], known: Iterable[str], where: str) -> None:
    """Refuse names of arguments that `where` does not have.

    Raises:
        ConfigError: naming the first, and the nearest that there is.
    """
    choices = list(known)
    for name in given:
        if name not in choices:
            raise ConfigError(f"unknown argument {name!r} of {where}: {did_you_mean(name, choices)}")


def checks_arguments(where: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Return a decorator for a function that users call as `where`; see `refuse_unknown`."""

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        known = [name for name in inspect.signature(function).parameters if name != "self"]

        @functools.wraps(function)
        def call(*given: P.args, **named: P.kwargs) -> R:
            refuse_unknown(named, known, where)
            return function(*given, **named)

        return call

    return decorate


def check_name(kind: str, name: Any) -> None:
    """Refuse what is no text where a name is expected.

    Raises:
        ConfigError: saying what it is.
    """
    if not isinstance(name, str):
        part = callable(name) and kind in ("victim", "purifier", "detector")
        hint = ": defend.evaluate and defend.Defence take modules" if part else ""
        raise ConfigError(f"{kind} is {say_value(name)}, expected a name{hint}")


def check_by_stage(kind: str, given: Any, inner: type | tuple[type, ...], example: str) -> None:
    """Refuse what is no mapping of stages (or names) to `inner`.

    Raises:
        ConfigError: with an example.
    """
    if not isinstance(given, Mapping) or not all(isinstance(each, inner) for each in given.values()):
        raise ConfigError(f"{kind} are {say_value(given)}, expected them by stage, for example {example}")


def check_options(given: Any) -> None:
    """Refuse what are no options by stage."""
    check_by_stage("options", given, Mapping, "{'pgd': {'steps': 40}}")


def check_weights(given: Any) -> None:
    """Refuse what are no weight files by stage."""
    check_by_stage("weights", given, (str, os.PathLike), "{'purifier': 'FILE'}")


def as_path(kind: str, given: Any) -> str | None:
    """Return a path as text; None of None.

    Raises:
        ConfigError: it is none.
    """
    if given == "":
        raise ConfigError(f"{kind} is empty: expected a path, or None")
    if given is None or isinstance(given, str):
        return given
    if not isinstance(given, os.PathLike):
        raise ConfigError(f"{kind} is {say_value(given)}, expected a path")
    return str(os.fspath(given))


def say_value(value: Any) -> str:
    """Return a short value as it is written, and of anything else the type."""
    plain = value is None or isinstance(value, (str, bool, int, float, list, tuple, dict))
    return repr(value) if plain and len(repr(value)) <= 80 else type(value).__name__
