"""The least that a run must leave, for gates: of its worst case, or of a row. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import attrs

from defend.errors import ConfigError, NoRowError, did_you_mean
from defend.values.report import STILL_FOOLING, Report, Row, WorstCase
from defend.values.shares import in_percent, tell_apart
from defend.values.threats import threat

BOUND = f"{STILL_FOOLING}, so that more of them may leave less"
CLEAN = "clean"
WORST = "worst_case"


@attrs.frozen
class Floor:
    """The least accuracy, in [0,1], of a row: "clean", "ATTACK", "ATTACK/THREAT"; or of the worst case."""

    row: str
    share: float

    def __str__(self) -> str:
        """Return what `parse_floors` reads."""
        return f"{self.share}" if self.row == WORST else f"{self.row}={self.share}"

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


@attrs.frozen
class Left:
    """What a run leaves of a row or its worst case: a fraction, its Wilson 95 % interval, of so many images.

    `loose`: more steps would plainly lower it, as an attack was still fooling images when its steps ended. `row`: of a
    worst case, the row that leaves so much of all its images, and so bounds it (`defend.values.report.undercut`).
    """

    accuracy: float
    ci95: tuple[float, float]
    n: int
    loose: bool = False
    row: str = ""

    def against(self, asked: float) -> str:
        """Return it as what follows "leaves", beside the least share that was asked for: the two never look equal."""
        share, least = tell_apart(self.accuracy, asked)
        low, high = map(in_percent, self.ci95)
        most = "at most " if self.loose or self.row else ""
        alone = f" ({self.row} alone, of all its images)" if self.row else ""
        return f"{most}{share} % [{low}, {high}], n={self.n}{alone}; at least {least} % was asked for"


def left_of_worst(worst: WorstCase) -> Left:
    """Return what a run's worst case leaves; what a row leaves of all its images, where that is less."""
    if (below := worst.undercut_by) is not None:
        return Left(below.accuracy, below.ci95, below.n, bool(worst.rising), below.row)
    return Left(worst.accuracy, worst.ci95, worst.n, bool(worst.rising))


def check_planned(floors: Iterable[Floor], rows: Iterable[tuple[str, str]]) -> None:
    """Refuse floors of rows, (attack, threat), that a run will not have, before it attacks anything.

    Raises:
        NoRowError: naming the first, and the nearest that there will be.
    """
    names = list(dict.fromkeys(_say(attack, threat) for attack, threat in rows))
    for floor in floors:
        if floor.row != WORST and not any(_answers(name, floor.row) for name in names):
            raise NoRowError(
                f"--at-least {floor.row!r}: this run will have no such row: {did_you_mean(floor.row, names)}"
            )


def find_left(report: Report, floor: Floor) -> Left | None:
    """Return what the run leaves of a floor's row, of the lowest where several answer to its name; None of nothing.

    Raises:
        ConfigError: there is no such row, and the run is whole.
    """
    if floor.row == WORST:
        worst = report.worst_case
        return None if worst is None else left_of_worst(worst)
    found = _rows(report, floor.row)
    if not found and report.partial:
        return None
    if not found:
        names = list(dict.fromkeys(map(_name, report.rows)))
        raise ConfigError(f"--at-least {floor.row!r}: this run has no such row: {did_you_mean(floor.row, names)}")
    lowest = min(found, key=lambda row: row.defended.accuracy)
    # each of them has to leave enough, and any may yet fall below the lowest
    loose = any(row.is_loose(report.defended) for row in found)
    return Left(lowest.defended.accuracy, lowest.defended.ci95, lowest.n, loose)


def share_out(floors: Sequence[Floor], reports: Sequence[Report]) -> list[list[Floor]]:
    """Return the floors of each arm of a run: all but those of rows that other arms have, and it has not.

    The bare victim beside a defence has no adaptive rows. A row that no arm has stays with all of them, and is refused.
    """
    only = {floor for floor in floors if floor.row != WORST and any(_rows(each, floor.row) for each in reports)}
    return [[floor for floor in floors if floor not in only or _rows(each, floor.row)] for each in reports]


def _rows(report: Report, wanted: str) -> list[Row]:
    return [row for row in report.rows if _answers(_name(row), wanted)]


def _answers(name: str, wanted: str) -> bool:
    return wanted in (name, name.partition("/")[0])


def _name(row: Row) -> str:
    return _say(row.attack, row.threat)


def _say(attack: str, threat: str) -> str:
    return CLEAN if attack == "none" else f"{attack}/{threat}"
