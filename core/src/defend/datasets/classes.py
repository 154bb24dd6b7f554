"""The classes of a data set, in the order that its labels count them in."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path

from defend.errors import DataError, did_you_mean

ITS_NAMES = "the model's class names, one a line, in its order"


def count_names(count: int) -> tuple[str, ...]:
    """Return what classes are called of which only the number is known."""
    return tuple(map(str, range(count)))


def number_classes(found: Sequence[str], class_names: Sequence[str], where: str) -> dict[str, int]:
    """Return each class's label: its place among the names that the user gave, or in the order found without any.

    Raises:
        DataError: one is not among the names.
    """
    numbers = {name: label for label, name in enumerate(class_names or found)}
    if strange := [name for name in found if name not in numbers]:
        others = f" and {len(strange) - 1} more" if len(strange) > 1 else ""
        known = did_you_mean(strange[0], numbers)
        if tuple(numbers) == count_names(len(numbers)):
            known = f"a number calls them '0' to '{len(numbers) - 1}'; give a file of {ITS_NAMES} (--classes FILE)"
        raise DataError(f"{where} has a class {strange[0]!r}{others} that class_names does not: {known}")
    return numbers


def order_names(names: Iterable[str], where: str) -> tuple[str, ...]:
    """Return class names in the order that they are counted in: by their text, as torchvision's `ImageFolder` does.

    Where all are whole numbers and their values have another order, a warning says so.
    """
    ordered = sorted(set(names))
    if all(name.isascii() and name.isdecimal() and len(name) < 10 for name in ordered):
        values = sorted(ordered, key=int)
        if values != ordered:
            given = len(values) if tuple(values) == count_names(len(values)) else "FILE"
            warnings.warn(
                f"{where}: the classes are counted by their text, as torchvision does: {', '.join(ordered[:4])}, ...; "
                f"if the model counts them by value, give --classes {given}",
                stacklevel=2,
            )
    return tuple(ordered)


def read_class_names(path: str | None) -> tuple[str, ...]:
    """Read the model's classes in its own order, one name a line of a file; none where none is named.

    A number in the place of a file is how many there are, called "0", "1", ...

    Raises:
        DataError: a number below 2; a file that cannot be read, is empty, or names a class twice.
    """
    if path is None:
        return ()
    if re.fullmatch(r"-?[0-9]{1,6}", path):
        if int(path) < 2:
            raise DataError(f"classes are {path}: expected 2 or more, or a file of {ITS_NAMES}")
        return count_names(int(path))
    try:
        lines = [line.strip() for line in read_lines(Path(path), "class names")]
    except DataError as error:
        raise DataError(f"{error} (expected a file of {ITS_NAMES}, or how many classes there are)") from None
    names = tuple(lines[: max((at for at, line in enumerate(lines, 1) if line), default=0)])
    for at, name in enumerate(names, 1):
        if not name or names.index(name) + 1 != at:
            said = f"is line {names.index(name) + 1} again ({name!r})" if name else "is empty"
            raise DataError(f"class names {path!r}: line {at} {said}, expected one name a line, in the model's order")
    if not names:
        raise DataError(f"class names {path!r}: the file is empty, expected one name a line, in the model's order")
    return names


def read_lines(path: Path, what: str) -> list[str]:
    """Return a text file's lines.

    Raises:
        DataError: it cannot be read, or is no text; `what` says what was expected.
    """
    try:
        return path.read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        raise DataError(f"{what} {str(path)!r} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise DataError(f"{what} {str(path)!r} is no text in UTF-8: save it as such") from None
