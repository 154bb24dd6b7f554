"""The least that a run must leave, for gates: of its worst case, or of a row. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import attrs

from defend.errors import ConfigError, did_you_mean
from defend.values.report import Report, Row
from defend.values.threats import threat

CLEAN = "clean"
WORST = "worst_case"


@attrs.frozen
class Floor:
    """The least accuracy, in [0,1], of a row: "clean", "ATTACK", "ATTACK/THREAT"; or of the worst case."""

    row: str
    share: float

    @property
    def attack(self) -> str | None:
        """The attack of its row, None where there is none."""
        return None if self.row in (CLEAN, WORST) else self.row.partition("/")[0]


def parse_floors(texts: Iterable[str]) -> tuple[Floor, ...]:
    """Read "0.3" (of the worst case) and "pgd/adaptive=0.3".

    Raises:
        ConfigError: a share that is no number from 0 to 1, or an unknown threat.
    """
    floors = []
    for text in texts:
        row, _, value = text.rpartition("=")
        try:
            share = float(value)
        except ValueError:
            share = -1.0
        if not 0 <= share <= 1:
            raise ConfigError(
                f"--at-least {text!r}: expected a share from 0 to 1, or ROW=SHARE, as in pgd/adaptive=0.3"
            )
        if "/" in row:
            threat(row.strip().partition("/")[2])
        floors.append(Floor(row.strip() or WORST, share))
    return tuple(floors)


def list_below(report: Report, floors: Sequence[Floor]) -> Iterator[str]:
    """Yield a sentence for each floor that the run does not keep to; a figure that is not there is below any.

    Raises:
        ConfigError: there is no such row.
    """
    for floor in floors:
        if floor.row == WORST:
            lowest = 0.0 if report.worst_case is None else report.worst_case.accuracy
        else:
            lowest = min(row.defended.accuracy for row in _rows(report, floor.row))
        if lowest < floor.share:
            what = "the worst case" if floor.row == WORST else floor.row
            yield f"{what} leaves {100 * lowest:.1f} %, and at least {100 * floor.share:.1f} % was asked for"


def _rows(report: Report, wanted: str) -> list[Row]:
    found = [row for row in report.rows if wanted in (_name(row), _name(row).partition("/")[0])]
    if not found:
        names = list(dict.fromkeys(map(_name, report.rows)))
        raise ConfigError(f"--at-least {wanted!r}: this run has no such row: {did_you_mean(wanted, names)}")
    return found


def _name(row: Row) -> str:
    return CLEAN if row.attack == "none" else f"{row.attack}/{row.threat}"
