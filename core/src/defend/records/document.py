"""report.json: the report as an interface that scripts rely on (schema 1)."""

from __future__ import annotations

import json
import math
from typing import Any

import attrs

from defend.records.recount import RECORDS, add_digests, digest_records
from defend.values.report import Report

SCHEMA = 1


def to_dict(report: Report) -> dict[str, Any]:
    """Return the report as plain data, keys in the order of the schema."""
    values: dict[str, Any] = attrs.asdict(report)
    values["config"] = {key: value for key, value in values["config"].items() if value is not None}
    return {"schema": SCHEMA, **_plain(values)}


def to_json(report: Report, records: str | None = None) -> str:
    """Return report.json's text; with the text of records.csv it holds the digests of its parts and of these."""
    document = to_dict(report)
    if records is not None:
        known = digest_records(records)
        document[RECORDS] = [known[row.attack, row.threat, row.eps, row.variant] for row in report.rows]
        document = add_digests(document)
    return json.dumps(document, indent=1, allow_nan=False) + "\n"


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
