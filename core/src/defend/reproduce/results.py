"""What was measured of a published table, beside what the paper says. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, get_args

import attrs

from defend.reproduce.kept import SCHEMA, Kept
from defend.tables import TOLERANCE, Table
from defend.values.report import LeastRow

DIGITS = 4  # that are kept of a fraction
Standing = Literal["same", "better", "stronger", "explained", "guessed", "off", "beside", "open", "unmeasured"]
STILL_TO_RUN = "it is still to be run"


@attrs.frozen(kw_only=True)
class Cell:
    """One cell, ours beside the paper's. Accuracies are fractions.

    Attributes:
        attack, arm: its headings.
        paper: the paper's figure.
        ours: ours, with its Wilson 95 % interval and the number of images; None where it was not measured.
        standing: "same" (within `TOLERANCE`), "better" (more accurate than that on clean images), "stronger" (a
            baseline that is, which speaks against the paper's claim), "explained" by a measurement, "guessed" (by a
            reason that nobody measured) or "off" (none of these, without a reason), "open" (not measured). Where the
            paper has no figure, "beside", or "unmeasured" where we have none either.
        why: the reason, where there is one.
        details: of the row that was measured: threat, eps, steps, the run's folder name; of several arms, the "best";
            "blind", the share of images at which the attack ever had a gradient of exactly zero, where that happened;
            "rejected", the share that the detector rejected, where there is one; "declared", what the table had it
            measured with, as `Table.declare` says it (of figures from before that was recorded, see `stamp`).
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
        rising: the rows whose attack was still fooling images when its steps ended, as in
            `defend.values.report.WorstCase`; None where that was not recorded.
        undercut_by: the row that leaves less of all its own images, as there, if one does.
        declared: what the table had it measured with, as `Table.declare_adaptive` says it; "" where not recorded;
            see `stamp`.
    """

    arm: str
    eps: float
    accuracy: float
    ci95: tuple[float, float]
    n: int
    over: tuple[str, ...]
    credit: bool = False
    failed: tuple[str, ...] = ()
    rising: tuple[str, ...] | None = None
    undercut_by: LeastRow | None = None
    declared: str = ""


@attrs.frozen(kw_only=True)
class TableResult(Kept):
    """A table measured again.

    Attributes:
        table: its full name.
        command: what makes it again.
        versions, plugins, device, seed, seconds: of the runs; all of them, one after the other, where they differ.
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
    paper, who, reason = table.cells.get((attack, arm)), table.arm(arm), table.miss(attack, arm)
    why = "" if reason is None else reason.text
    if ours is None or paper is None:
        return ("beside" if ours is not None else "unmeasured" if paper is None else "open"), why
    difference = round(ours, DIGITS) - paper / 100  # as a kept result has it, so that it stands there as it did here
    if abs(difference) <= TOLERANCE + 1e-9:  # figures are printed to a tenth of a point
        return "same", ""
    if difference > 0 and not who.reference:
        if who.baseline:
            return "stronger", why
        if table.attack(attack).attack is None:
            return "better", why
        # more is left where the attack is weaker too, so it is no merit; and reasons of a whole row or column say why
        # less is left
        reason = table.misses.get(f"{attack} / {arm}")
        why = "" if reason is None else reason.text
    if reason is None:
        return "off", ""
    return ("explained" if reason.measured else "guessed"), why


def restate(table: Table, result: TableResult) -> TableResult:
    """Hold a result against its table as it is now: every figure stays, reasons and standings are the table's.

    Cells that the table had not when it was measured are open, as are those that it measures otherwise now; those that
    it has no more are gone, as is what an adaptive attacker left of an arm that is another now.
    """
    cells = tuple(_restated(table, result, attack, arm) for attack, arm in table.cells)
    return attrs.evolve(result, cells=cells, adaptive=tuple(one for one in result.adaptive if _is_current(table, one)))


def _is_current(table: Table, one: AdaptiveResult) -> bool:
    there = table.adaptive is not None and any(arm.name == one.arm for arm in table.arms)
    # "": kept before that was recorded
    return there and one.declared in ("", table.declare_adaptive(one.arm))


def stamp(table: Table, result: TableResult) -> TableResult:
    """Return a result that stands to its table as it is now, with what the table declares wherever that is not said.

    Such figures were kept before it was recorded, and count as the table's. A stamp says what the table declared when
    it was stamped, not when they were measured: it tells of changes from then on.
    """
    now = restate(table, result)
    return attrs.evolve(
        now,
        cells=tuple(
            attrs.evolve(cell, details={**cell.details, "declared": table.declare(cell.attack, cell.arm)})
            if cell.ours is not None and "declared" not in cell.details
            else cell
            for cell in now.cells
        ),
        adaptive=tuple(
            attrs.evolve(one, declared=one.declared or table.declare_adaptive(one.arm)) for one in now.adaptive
        ),
    )


def _restated(table: Table, result: TableResult, attack: str, arm: str) -> Cell:
    figure, absent = table.cells[attack, arm], table.arm(arm).absent
    paper = None if figure is None else round(figure / 100, DIGITS)
    cell = result.cell(attack, arm) or Cell(attack=attack, arm=arm, paper=paper, why=STILL_TO_RUN)
    if now := _find_change(table, attack, arm, cell):
        return Cell(attack=attack, arm=arm, paper=paper, why=f"it was measured {now}")
    stands, why = standing(table, attack, arm, cell.ours)
    return attrs.evolve(cell, paper=paper, standing=stands, why=why if cell.ours is not None else absent or cell.why)


def _find_change(table: Table, attack: str, arm: str, cell: Cell) -> str:
    """Return in what a cell was attacked otherwise than its table declares now; "" where nothing says so."""
    then = cell.details.get("declared")
    if cell.ours is not None and then is not None:
        return "" if then == table.declare(attack, arm) else "otherwise than the table has it now"
    # a result that was kept before that was recorded
    declared, eps = table.attack(attack), cell.details.get("eps")
    if cell.ours is None or declared.attack is None or table.arm(arm).budgets or table.arm(arm).best_of:
        return ""
    if eps is not None and abs(eps - table.eps_of(declared)) > 0.6 * 10**-DIGITS:  # as it is kept
        return f"at eps {eps:g}, and the table has {table.eps_of(declared):g} now"
    steps, wanted = cell.details.get("steps"), declared.options.get("steps")
    if steps is not None and wanted is not None and steps != wanted:
        return f"with {steps} steps, and the table has {wanted} now"
    return ""


def find_kept(table: Table) -> TableResult | None:
    """Return the result that came with the table's plugin, as it stands to the table now, or None.

    Raises:
        DataError: it is damaged.
    """
    kept = TableResult.from_package(table.results, table.short)
    return None if kept is None else restate(table, kept)


def find_open(table: Table, result: TableResult) -> set[tuple[str, str]]:
    """Return the cells of a table, (attack, arm), that a result has no figure of."""
    measured = {(cell.attack, cell.arm) for cell in result.cells if cell.ours is not None}
    return set(table.cells) - measured


def count_standings(table: Table, result: TableResult | None) -> dict[Standing, int]:
    """Return how many of a table's cells stand in each way; without a result none is measured."""
    figures = [(place, result.cell(*place) if result else None) for place in table.cells]
    stands = [standing(table, *place, cell.ours if cell else None)[0] for place, cell in figures]
    return {name: stands.count(name) for name in get_args(Standing)}
