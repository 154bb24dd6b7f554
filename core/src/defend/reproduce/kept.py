"""Measurements that are kept: written as JSON, read back, and found beside the plugin that they came with. No torch."""

from __future__ import annotations

import importlib.resources
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

import cattrs

from defend.errors import DataError
from defend.util.documents import digest, parse_json
from defend.util.files import make_folder, write_text

SCHEMA = 1
_converter = cattrs.Converter()


class Kept:
    """The base of frozen attrs classes that are kept as JSON; their last field is the `schema` they were written in.

    `digits` is how many decimals are kept of a float; `written_by` is the command that writes the file.
    """

    # attrs classes with slots below it get no __dict__ by it
    __slots__ = ()
    digits: ClassVar[int]
    written_by: ClassVar[str]

    def to_json(self) -> str:
        """Write it as JSON, its figures rounded."""
        return json.dumps(_rounded(_converter.unstructure(self), self.digits), indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str, where: str) -> Self:
        """Read what `to_json` wrote.

        Raises:
            DataError: it is not that, or of another schema; `where` names it.
        """
        try:
            values = parse_json(text, finite=True)
            if values["schema"] != SCHEMA:
                raise DataError(f"{where!r} is of schema {values['schema']}, and this version reads {SCHEMA}")
            if "digest" in values and values.pop("digest") != digest(values):
                raise ValueError
            return _converter.structure(values, cls)
        except (ArithmeticError, AttributeError, TypeError, ValueError, LookupError, cattrs.BaseValidationError):
            raise DataError(f"{where!r} is damaged: it is not what `{cls.written_by}` writes") from None

    @classmethod
    def from_package(cls, package: str | None, name: str) -> Self | None:
        """Return what came with a plugin as NAME.json in one of its packages; None where there is no such file.

        Raises:
            DataError: it is damaged.
        """
        if package is None:
            return None
        try:
            text = (importlib.resources.files(package) / f"{name}.json").read_text(encoding="utf-8")
        except (ModuleNotFoundError, FileNotFoundError):
            return None
        return cls.from_json(text, f"{package}/{name}.json")

    def save(self, path: Path) -> None:
        """Write it to a file, atomically; its folder is made.

        Raises:
            WriteError: it cannot be written there.
        """
        make_folder(path.parent)
        values = json.loads(self.to_json())
        write_text(path, json.dumps({**values, "digest": digest(values)}, indent=1) + "\n", "result")


def _rounded(value: Any, digits: int) -> Any:
    if isinstance(value, float):
        return round(value, digits)
    if isinstance(value, Mapping):
        return {key: _rounded(inner, digits) for key, inner in value.items()}
    return [_rounded(inner, digits) for inner in value] if isinstance(value, list | tuple) else value
