"""What was measured of a published table, beside what the paper says: values, their JSON, and where they are kept.

Imports no torch: a kept result is shown at once.
"""

from __future__ import annotations

import importlib.resources
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import attrs
import cattrs

from defend.errors import DataError
from defend.files import write_text
from defend.tables import TOLERANCE, Table

SCHEMA = 1
DIGITS = 4  # that are kept of a fraction
Standing = Literal["same", "better", "explained", "off", "beside", "open"]


@attrs.frozen(kw_only=True)
class Cell:
    """One cell, ours beside the paper's. Accuracies are fractions.

    Attributes:
        attack, arm: its headings.
        paper: the paper's figure.
        ours: ours, with its Wilson 95 % interval and the number of images; None where it was not measured.
        standing: "same" (within `TOLERANCE`), "better" (more accurate than that, where it is a merit), "explained" or
            "off" (neither, with or without a reason), "beside" (the paper has no figure here), "open" (not measured).
        why: the reason, where there is one.
        details: of the row that was measured: threat, eps, steps, the run's folder name; of several arms, the "best".
    """

    attack: str
    arm: str
    paper: float | None
    ours: float | None = None
    ci95: tuple[float, float] | None = None
    n: int = 0
    standing: Standing = "open"
    why: str = ""
    details: Mapping[str, Any] = attrs.field(factory=dict)

    @property
    def difference(self) -> float | None:
        """Ours less the paper's, a fraction."""
        return None if self.ours is None or self.paper is None else self.ours - self.paper


@attrs.frozen(kw_only=True)
class AdaptiveResult:
    """What an attacker who knows the defence leaves of one arm: per image, the worst over `over`.

    Attributes:
        accuracy, ci95, n: a rejected image counts as wrong, unless `credit`.
        credit: whether a rejected attacked image counts as right, as in the arm's own cells.
        failed: the sanity checks that failed; where there are any the figure is not to be trusted.
    """

    arm: str
    eps: float
    accuracy: float
    ci95: tuple[float, float]
    n: int
    over: tuple[str, ...]
    credit: bool = False
    failed: tuple[str, ...] = ()


@attrs.frozen(kw_only=True)
class TableResult:
    """A table measured again.

    Attributes:
        table: its full name.
        command: what makes it again.
        versions, plugins, device, seed, seconds: of the runs; the newest where they differ.
        dataset: name and SHA-256 of the test split.
        weights: by arm and part, the content hashes of the weights.
        missing: commands that train what was missing, with their cost.
        failed: by arm, the error of the first of its runs that failed.
        partial: whether something is still to be run.
    """

    table: str
    command: str
    dataset: Mapping[str, Any]
    cells: tuple[Cell, ...]
    adaptive: tuple[AdaptiveResult, ...] = ()
    versions: Mapping[str, str] = attrs.field(factory=dict)
    plugins: Mapping[str, str] = attrs.field(factory=dict)
    device: str = ""
    seed: int = 0
    seconds: float = 0.0
    weights: Mapping[str, Mapping[str, str]] = attrs.field(factory=dict)
    missing: tuple[str, ...] = ()
    failed: Mapping[str, str] = attrs.field(factory=dict)
    partial: bool = False
    schema: int = SCHEMA

    def cell(self, attack: str, arm: str) -> Cell | None:
        """Return the cell under two headings."""
        return next((cell for cell in self.cells if (cell.attack, cell.arm) == (attack, arm)), None)

    def against(self, arm: str) -> AdaptiveResult | None:
        """Return what an adaptive attacker leaves of an arm."""
        return next((one for one in self.adaptive if one.arm == arm), None)


def standing(table: Table, attack: str, arm: str, ours: float | None) -> tuple[Standing, str]:
    """Hold a figure against the paper's: return how it stands, and the reason the table gives."""
    paper = table.cells.get((attack, arm))
    reason = table.miss(attack, arm)
    if ours is None or paper is None:
        return ("open" if ours is None else "beside"), reason
    difference = round(ours, DIGITS) - paper / 100  # as a kept result has it, so that it stands there as it did here
    if abs(difference) <= TOLERANCE + 1e-9:  # figures are printed to a tenth of a point
        return "same", ""
    if difference > 0 and not table.arm(arm).reference:
        return "better", reason
    return ("explained", reason) if reason else ("off", "")


_converter = cattrs.Converter()


def to_json(result: TableResult) -> str:
    """Write a result as JSON, to four digits."""
    return json.dumps(_rounded(_converter.unstructure(result)), indent=1) + "\n"


def from_json(text: str, where: str) -> TableResult:
    """Read what `to_json` wrote.

    Raises:
        DataError: it is not that, or of another schema; `where` names it.
    """
    try:
        result = _converter.structure(json.loads(text), TableResult)
    except (ValueError, TypeError, cattrs.BaseValidationError):
        raise DataError(f"{where!r} is damaged: it is not what `defend reproduce` writes") from None
    if result.schema != SCHEMA:
        raise DataError(f"{where!r} is of schema {result.schema}, and this version reads {SCHEMA}")
    return result


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, DIGITS)
    if isinstance(value, Mapping):
        return {key: _rounded(inner) for key, inner in value.items()}
    return [_rounded(inner) for inner in value] if isinstance(value, list | tuple) else value


def save(result: TableResult, path: Path) -> None:
    """Write a result, atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, to_json(result))


def kept(table: Table) -> TableResult | None:
    """Return the result that came with the table's plugin, or None.

    Raises:
        DataError: it is damaged.
    """
    if table.results is None:
        return None
    try:
        file = importlib.resources.files(table.results) / f"{table.short}.json"
        text = file.read_text(encoding="utf-8")
    except (ModuleNotFoundError, FileNotFoundError):
        return None
    return from_json(text, f"{table.results}/{table.short}.json")
