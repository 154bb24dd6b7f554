"""What was measured, in a README: a text between marks, <!-- KIND NAME --> and <!-- end NAME -->."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from defend.errors import ConfigError
from defend.util.files import write_text


def row(cells: Iterable[str]) -> str:
    """Return a row of a Markdown table."""
    return f"| {' | '.join(cells)} |"


def grid(head: Sequence[str], body: Iterable[Iterable[str]]) -> list[str]:
    """Return the lines of a Markdown table."""
    return [row(head), row(["---"] * len(head)), *(row(cells) for cells in body)]


def fill(path: Path, kind: str, texts: Mapping[str, str | None]) -> list[str]:
    """Put texts between their marks, atomically; return the names of those that were put.

    Args:
        path: the README.
        kind: what the marks begin with, "table" or "recipe".
        texts: by name; None where nothing was measured, and what stands there stays.

    Raises:
        ConfigError: the file cannot be read, or none of the texts is there and has its place.
    """
    try:
        whole = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"README {str(path)!r} cannot be read: {error.strerror}") from None
    written = []
    for name, text in texts.items():
        marks = (f"<!-- {kind} {name} -->", f"<!-- end {name} -->")
        # a mark that stands twice does not say which place is meant
        if text is None or any(whole.count(mark) != 1 for mark in marks):
            continue
        before, _, rest = whole.partition(marks[0])
        _, closed, after = rest.partition(marks[1])
        if not closed:
            continue
        whole = f"{before}{marks[0]}\n\n{text}\n{marks[1]}{after}"
        written.append(name)
    if not written:
        raise ConfigError(
            f"README {str(path)!r} has no place for {', '.join(texts)}: expected <!-- {kind} NAME -->, then "
            "<!-- end NAME -->, once each, and a kept result"
        )
    write_text(path, whole, "README")
    return written
