"""What was measured of a published table, beside what the paper says. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import attrs

from defend.reproduce.kept import SCHEMA, Kept
from defend.tables import TOLERANCE, Table

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
class TableResult(Kept):
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

    digits: ClassVar[int] = DIGITS
    written_by: ClassVar[str] = "defend reproduce"

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


def find_kept(table: Table) -> TableResult | None:
    """Return the result that came with the table's plugin, or None.

    Raises:
        DataError: it is damaged.
    """
    return TableResult.from_package(table.results, table.short)
