"""Shares of a run that processes without a common network compute: `defend run --shard 2/8`. Imports no torch."""

from __future__ import annotations

import attrs

from defend.errors import ConfigError

MOST = 9999


@attrs.frozen
class Shard:
    """Share `number` of `of`, from 1."""

    number: int
    of: int

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"


def parse_shard(text: str) -> Shard:
    """Read "2/8".

    Raises:
        ConfigError: it is no share.
    """
    text = str(text)  # a caller in Python may pass anything
    first, slash, second = text.partition("/")
    wrong = ConfigError(f"shard {text!r} is no share of a run: expected NUMBER/COUNT from 1/COUNT, for example 2/8")
    if not slash or not all(part.strip().isascii() and part.strip().isdigit() for part in (first, second)):
        raise wrong
    if max(len(first), len(second)) > 20:  # so that no text of thousands of digits is read as a number
        raise wrong
    shard = Shard(int(first), int(second))
    if not 1 <= shard.number <= shard.of <= MOST:
        raise wrong
    return shard


def as_shard(text: str | None) -> str | None:
    """Return a share as it is written; None where there is none."""
    return None if text is None else str(parse_shard(text))
