"""Option classes: attrs classes whose fields carry their help, bounds and choices.

A stage declares one with `@options` and `option(...)`; flags (`--set purifier.steps=15`), TOML and
Python all go through `make`, so a wrong key or value is refused in the same words everywhere.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Any, TypeVar

import attrs

from defend.errors import ConfigError, did_you_mean

T = TypeVar("T")

MOST_WHOLE = 2**31 - 1  # of a whole number: tensors count in it

options = attrs.frozen(kw_only=True)
"""Class decorator for option classes: frozen, keyword-only attrs."""


def option(
    default: Any,
    *,
    help: str,
    choices: tuple[Any, ...] | None = None,
    at_least: float | None = None,
    at_most: float | None = None,
    above: float | None = None,
    architecture: bool = False,
    names: Mapping[str, Any] | None = None,
    levels: bool = False,
) -> Any:
    """Declare one field of an option class.

    A value is accepted from `at_least` to `at_most`; with `above` it must be larger than that, as a budget or a step
    must be that would do nothing at 0. `names` are words that may be typed for a value, and what they stand for.
    `architecture=True` marks what trained weights depend on: where weights are found, their card
    decides such a field, and asking for another value is an error. `levels=True` marks what is of pixels in [0,1]: a
    value of pixels from 0 to 255 is asked back divided.
    """

    def check(_: Any, attribute: attrs.Attribute[Any], value: Any) -> None:
        if value is None:
            return
        if choices is not None and value not in choices:
            listed = did_you_mean(str(value), [str(choice) for choice in choices])
            raise ConfigError(f"{attribute.name}={value!r} is not accepted: {listed}")
        for number in value if isinstance(value, tuple) else (value,):
            low = (at_least is not None and number < at_least) or (above is not None and number <= above)
            high = at_most is not None and number > at_most
            if type(number) is int and abs(number) > MOST_WHOLE and not (low or high):
                raise ConfigError(f"{attribute.name}={number} is out of range: expected at most {MOST_WHOLE}")
            if low or high or number != number:  # a NaN differs from itself
                accepted = _range(at_least, at_most, above) or "a number"
                divided = _divide(value) if levels and high else ""
                raise ConfigError(f"{attribute.name}={value!r} is out of range: expected {accepted}{divided}")

    metadata = {
        "help": help,
        "choices": choices,
        "range": _range(at_least, at_most, above),
        "architecture": architecture,
        "names": names or {},
    }
    return attrs.field(default=default, validator=check, metadata=metadata)


def _range(low: float | None, high: float | None, above: float | None = None) -> str:
    if above is not None:
        return f"above {above:g}" if high is None else f"above {above:g}, to {high:g}"
    if low is None and high is None:
        return ""
    if low is not None and high is not None:
        return f"{low:g} to {high:g}"
    return f"at least {low:g}" if low is not None else f"at most {high:g}"


def _divide(value: Any) -> str:
    """Ask numbers of 0 to 255 back as those of 0 to 1, "" where they are none."""
    numbers = value if isinstance(value, tuple) else (value,)
    if not (2 < max(numbers) <= 255 and min(numbers) >= 0):
        return ""
    return f": did you mean {', '.join(f'{number / 255:.4g}' for number in numbers)} (divided by 255)?"


@options
class NoOptions:
    """For a stage that has nothing to set."""


@attrs.frozen
class OptionInfo:
    """One option as `defend show` prints it."""

    name: str
    type: str
    default: Any
    help: str
    accepted: str
    architecture: bool


def describe(cls: type) -> list[OptionInfo]:
    """List the options of an option class, in the order of their declaration."""
    hints = typing.get_type_hints(cls)
    found = []
    for field in attrs.fields(cls):
        choices = field.metadata.get("choices")
        words = choices or (*field.metadata.get("names", ()), field.metadata.get("range", ""))
        accepted = ", ".join(str(word) for word in words if word != "")
        found.append(
            OptionInfo(
                name=field.name,
                type=_type_name(hints[field.name]),
                default=field.default,
                help=field.metadata.get("help", ""),
                accepted=accepted,
                architecture=bool(field.metadata.get("architecture")),
            )
        )
    return found


def make(cls: type[T], values: Mapping[str, Any], where: str) -> T:
    """Build an option class from strings or typed values.

    Args:
        cls: an option class.
        values: option name to value; strings are parsed to the field's type.
        where: what the options belong to, for the error message, for example "purifier apudae".

    Raises:
        ConfigError: an unknown option (the nearest is offered), a value of the wrong type or range, or no value of an
            option without a default.
    """
    hints = typing.get_type_hints(cls)
    names = list(hints)
    fields: tuple[attrs.Attribute[Any], ...] = attrs.fields(cls)  # type: ignore[arg-type]
    words = {field.name: field.metadata.get("names") or {} for field in fields}
    parsed = {}
    for key, value in values.items():
        if key not in names:
            raise ConfigError(
                f"unknown option {key!r} of {where}: {did_you_mean(key, names) if names else 'it has none'}"
            )
        if isinstance(value, str) and value.lower() in words.get(key, {}):
            parsed[key] = words[key][value.lower()]
            continue
        try:
            parsed[key] = parse(value, hints[key])
        except ValueError as error:
            named = f", or one of {', '.join(words[key])}" if words.get(key) else ""
            raise ConfigError(f"{where}: {key}={value!r} is not {error}{named}") from None
    missing = [field.name for field in fields if field.default is attrs.NOTHING and field.name not in parsed]
    if missing:
        raise ConfigError(
            f"{where} has no default for {', '.join(missing)}: give a value, with --set or in Python's options"
        )
    try:
        return cls(**parsed)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None


def say_others(then: Mapping[str, Any], now: Mapping[str, Any]) -> tuple[str, str]:
    """Say which options have another value now, as in ("steps=5", "steps=9"); of those that both have, ("", "")."""
    other = [name for name, value in then.items() if now.get(name, value) != value]
    before, after = (", ".join(f"{name}={each[name]}" for name in other) for each in (then, now))
    return before, after


def parse(value: Any, kind: Any) -> Any:
    """Turn a string (or an already typed value) into `kind`; ValueError says what was expected."""
    arguments = typing.get_args(kind)
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        empty = value is None or (isinstance(value, str) and value.lower() == "none")
        if empty and type(None) in arguments:
            return None
        (inner,) = [argument for argument in arguments if argument is not type(None)]
        return parse(value, inner)
    if typing.get_origin(kind) is tuple:
        if not isinstance(value, str | list | tuple):
            raise ValueError("a list")
        parts = value.split(",") if isinstance(value, str) else value
        return tuple(parse(part.strip() if isinstance(part, str) else part, arguments[0]) for part in parts)
    parsers: dict[Any, Callable[[Any], Any]] = {bool: _bool, int: _int, float: fraction, str: _str}
    return parsers[kind](value)


def fraction(value: Any) -> float:
    """Read a number, also one written as a fraction: "8/255" or "0.03"."""
    # float(True) is 1.0
    if isinstance(value, bool):
        raise ValueError("a number")
    try:
        return float(Fraction(value.replace(" ", ""))) if isinstance(value, str) and "/" in value else float(value)
    except (TypeError, ValueError, ArithmeticError):
        raise ValueError("a number (such as 0.03 or 8/255)") from None


def _int(value: Any) -> int:
    try:
        number = int(value)
        if isinstance(value, bool) or (not isinstance(value, str) and number != value):
            raise ValueError
        return number
    except (TypeError, ValueError, OverflowError):
        raise ValueError("a whole number") from None


def _bool(value: Any) -> bool:
    words = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}
    if isinstance(value, bool):
        return value
    if str(value).lower() not in words:
        raise ValueError("true or false")
    return words[str(value).lower()]


def _str(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError("text")
    return value


def _type_name(kind: Any) -> str:
    return kind.__name__ if isinstance(kind, type) and not typing.get_args(kind) else str(kind).replace(" ", "")
