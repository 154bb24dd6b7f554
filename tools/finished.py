"""Run folders whose figures are kept in this repository: complete ones."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from defend.errors import ConfigError
from defend.records.unfinished import is_unfinished


def read_finished(folder: Path, what: str) -> dict[str, Any]:
    """Return a run's report.

    Raises:
        ConfigError: there is none, or the run is not complete; `what` names it.
    """
    path = folder / "report.json"
    if not path.exists():
        raise ConfigError(f"{what} in {str(folder)!r} has no report.json: expected the folder of a run")
    report: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    if report["partial"] or is_unfinished(folder) or any(row["partial"] for row in report["rows"]):
        raise ConfigError(f"{what} in {str(folder)!r} is not complete: go on with the same command")
    return report


def failed_checks(report: Mapping[str, Any]) -> list[str]:
    """Return the names of the checks that failed: where there are any, no figure of the run is to be trusted."""
    return [check["name"] for check in report["checks"] if check["status"] == "fail"]
