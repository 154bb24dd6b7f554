"""report.json as JSON Schema, made from the classes that are written to it, so that neither can say something else."""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Mapping
from typing import Any

import attrs

from defend.records.document import SCHEMA
from defend.records.recount import DIGESTS, RECORDS
from defend.values.report import Report

DIALECT = "https://json-schema.org/draft/2020-12/schema"
PLAIN: Mapping[Any, str] = {str: "string", bool: "boolean", int: "integer"}


def report_schema() -> dict[str, Any]:
    """Return the JSON Schema of report.json (schema 1). Keys are added, never changed: others are accepted."""
    definitions: dict[str, Any] = {}
    report = _object(Report, definitions)
    report["properties"] = {
        "schema": {"const": SCHEMA, "description": "the version of this interface"},
        **report["properties"],
        RECORDS: {"type": "array", "description": "a digest of each row's part of records.csv"},
        DIGESTS: {"type": "object", "description": "a digest of each part of this file"},
    }
    report["required"] = ["schema", *report["required"]]
    return {"$schema": DIALECT, "title": "report.json of defend", **report, "$defs": definitions}


def _object(cls: type, definitions: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of a class: what every file has is required; later keys, and settings left out, are not."""
    hints = typing.get_type_hints(cls)
    fields = attrs.fields(cls)
    always = [field.name for field in fields if field.default is attrs.NOTHING]
    return {
        "type": "object",
        "description": inspect.cleandoc(cls.__doc__ or "").partition("\n")[0],
        "properties": {field.name: _value(hints[field.name], definitions) for field in fields},
        "required": always,
    }


def _value(hint: Any, definitions: dict[str, Any]) -> dict[str, Any]:
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if attrs.has(hint):
        if hint.__name__ not in definitions:
            definitions[hint.__name__] = {}  # before its fields, as they may be of the same class
            definitions[hint.__name__] = _object(hint, definitions)
        return {"$ref": f"#/$defs/{hint.__name__}"}
    if origin in (typing.Union, types.UnionType):
        return {"anyOf": [_value(each, definitions) for each in inner]}
    if hint is types.NoneType:
        return {"type": "null"}
    if origin is typing.Literal:
        return {"enum": list(inner)}
    if hint is float:
        return {"type": ["number", "null"]}  # null where a figure is not finite
    if origin is tuple:
        if inner[-1] is Ellipsis:
            return {"type": "array", "items": _value(inner[0], definitions)}
        return {"type": "array", "items": _value(inner[0], definitions), "minItems": len(inner), "maxItems": len(inner)}
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return {"type": "object", "additionalProperties": _value(inner[1], definitions)}
    return {"type": PLAIN[hint]} if hint in PLAIN else {}
