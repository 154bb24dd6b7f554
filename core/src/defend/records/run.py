"""A run as it is read back, as values: its rows per image, and everything that its page shows. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from defend.values.references import shorten
from defend.values.report import Report, Row, find_caveats
from defend.values.threats import DEFENDED

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from defend.records.rows import RowRecord


Right = Mapping[int, bool]
"""Whether the defended arm was right, by image: the predicted class is the label, and the image was not rejected."""
RowName = tuple[str, str, str, float | None]
"""Attack, threat, variant and eps: what tells a row of a run from its others."""


@attrs.frozen
class RowKey:
    """What makes a row of one run the same as a row of another: the attack, the threat, its variant and the budget."""

    attack: str
    threat: str
    norm: str
    eps: float | None
    variant: str = ""

    def __str__(self) -> str:
        budget = f", eps {self.eps:.4g}" if self.eps else ""
        variant = f":{self.variant}" if self.variant else ""
        return "clean" if self.threat == "none" else f"{self.attack}/{self.threat}{variant}{budget}"


@attrs.frozen
class RunRow:
    """One row of a run, per image.

    `partial`: it was interrupted, and judged fewer images than planned. `headline`: it counts in the worst case.
    `rising`: its attack was still fooling images when its steps ended, as of `defend.values.report.Row`;
    so is `made_of`.
    """

    key: RowKey
    steps: int | None
    partial: bool
    right: Right
    headline: bool = True
    rising: bool = False
    made_of: str | None = None


@attrs.frozen
class Run:
    """One run: its label, its report as plain data (report.json's keys), its rows, and its folder if it has one."""

    label: str
    report: Mapping[str, Any]
    rows: tuple[RunRow, ...]
    folder: Path | None = None

    @property
    def partial(self) -> bool:
        """Whether the run was interrupted."""
        return bool(self.report.get("partial"))

    @property
    def failed(self) -> tuple[str, ...]:
        """The checks that failed, each in words: where there are any, the run's figures are not to be trusted."""
        return self._checks("fail")

    @property
    def warned(self) -> tuple[str, ...]:
        """The checks that warn, each in words: they say how far the run's figures can be trusted."""
        return self._checks("warn")

    def _checks(self, status: str) -> tuple[str, ...]:
        found = (each for each in self.report.get("checks", ()) if each["status"] == status)
        return tuple(f"{each['number']} {each['name']}: {each['detail']}" for each in found)

    @property
    def left_out(self) -> Mapping[str, str]:
        """What was asked for or is usual and is not among the rows, with the reason."""
        found: Mapping[str, str] = self.report.get("left_out") or {}
        return found

    @property
    def warnings(self) -> tuple[str, ...]:
        """What its reader must know of the images and of the run, a sentence each."""
        return (*self.report["dataset"].get("warnings", ()), *self.report.get("notes", ()))

    @property
    def caveats(self) -> tuple[str, ...]:
        """What its figures rest on that a reader would not guess, see `defend.values.report.find_caveats`."""
        return self.caveats_over(row.key.threat for row in self.rows if row.headline)

    def caveats_over(self, threats: Iterable[str]) -> tuple[str, ...]:
        """What a figure over rows of some threats alone rests on."""
        config = self.report["config"]
        screened = bool(config.get("purifier") or config.get("detector"))
        return find_caveats(config.get("checks", "basic"), screened, threats)


def from_records(label: str, report: Report, records: Sequence[RowRecord]) -> Run:
    """Return a run that is still in memory; its rows are those of `records`."""
    rows = []
    reported = {row_name(row): row for row in report.rows}
    for record in records:
        plan, said = record.plan, record.arms[DEFENDED]
        right = ((said.predicted == record.labels) & said.accepted).tolist()
        key = RowKey(plan.name, plan.threat.kind, plan.threat.norm, plan.threat.eps, plan.variant)
        judged = dict(zip(record.keys.tolist(), right, strict=True))
        row = reported.get((key.attack, key.threat, key.variant, key.eps))
        still, made_of = (row.rising, row.made_of) if row else (False, None)
        rows.append(RunRow(key, plan.steps, record.partial, judged, plan.headline, still, made_of))
    return Run(label, attrs.asdict(report), tuple(rows))


@attrs.frozen
class Examples:
    """Images of one attacked row, failures of the defence first.

    Attributes:
        clean, attacked, purified: float32 [M,H,W,C] in [0,1].
        label, undefended, defended: int64 [M], the true class and what was predicted without and with the defence.
        accepted: bool [M].
        image: int64 [M], the place in the test split.
    """

    clean: NDArray[np.float32]
    attacked: NDArray[np.float32]
    purified: NDArray[np.float32]
    label: NDArray[np.int64]
    undefended: NDArray[np.int64]
    defended: NDArray[np.int64]
    accepted: NDArray[np.bool_]
    image: NDArray[np.int64]

    @property
    def held(self) -> NDArray[np.bool_]:
        """Where the defence was right and accepted the image, [M]."""
        held: NDArray[np.bool_] = (self.defended == self.label) & self.accepted
        return held


@attrs.frozen
class Surface:
    """The loss around images: `loss` [K,K], rows along the gradient's sign, columns along random signs.

    `axis` [K] is the step in either direction in units of eps.
    """

    axis: NDArray[np.float64]
    loss: NDArray[np.float64]


@attrs.frozen(kw_only=True)
class Results:
    """One run as the page shows it.

    Attributes:
        run: its rows per image.
        report: report.json's content.
        rows: as reported, clean first, then from the weakest attacker to the strongest.
        places: where each of `rows` stands in report.json.
        scores: the detector's scores of the defended arm, by row; empty without a detector.
        examples: by place in report.json; empty where none were kept.
        toml: the configuration that makes the run again.
    """

    run: Run
    folder: Path
    report: Report
    rows: tuple[Row, ...]
    places: tuple[int, ...]
    scores: Mapping[RowName, NDArray[np.float64]]
    examples: Mapping[int, Examples]
    toml: str

    @property
    def defended(self) -> bool:
        """Whether there is a defence at all."""
        return self.report.defended

    @property
    def title(self) -> str:
        """The stages and the data set."""
        config = self.report.config
        victim = f"{config.victim} tuned by {config.finetune}" if config.finetune else config.victim
        what = " + ".join(shorten(stage) for stage in (config.purifier, config.detector, victim) if stage)
        name = self.report.dataset.name
        return f"{what} on {name}" if self.defended else f"{what}, undefended, on {name}"

    @property
    def clean(self) -> Row | None:
        """The row of unattacked images."""
        return next((row for row in self.rows if row.threat == "none"), None)

    @property
    def least(self) -> Row | None:
        """The row of the worst case that alone leaves the lowest accuracy; older runs do not name it."""
        worst = self.report.worst_case
        if worst is None:
            return None
        rows = [row for row in self.rows if row.key == worst.weakest]
        rows = rows or [row for row in self.rows if row.key in worst.over]
        return min(rows, key=lambda row: row.defended.accuracy, default=None)

    @property
    def ladder(self) -> tuple[Row, ...]:
        """The rows at the run's own budgets; those at others belong to a curve."""
        own = {_series(row) for row in self.rows if row.headline}
        return tuple(row for row in self.rows if row.headline or row.eps is None or _series(row) not in own)

    @property
    def surface(self) -> Surface | None:
        """The slice of the loss that a check kept, if one did."""
        for check in self.report.checks:
            found = check.numbers.get("surface")
            if isinstance(found, Mapping) and {"axis", "loss"} <= found.keys():
                import numpy as np

                axis, loss = (np.array(found[part], dtype=np.float64) for part in ("axis", "loss"))
                if axis.ndim == 1 and len(axis) > 1 and loss.shape == (len(axis), len(axis)):
                    return Surface(axis, loss)
        return None


def _series(row: Row) -> tuple[str, str, str, str]:
    return row.attack, row.threat, row.variant, row.norm


def row_name(row: Row) -> RowName:
    """Return what tells a row from the others of its run."""
    return row.attack, row.threat, row.variant, row.eps


def name_row(row: Row) -> str:
    """Return a row's attack with its variant, such as "pgd: identity"."""
    if row.threat == "none":
        return "clean"
    return f"{row.attack}: {row.variant}" if row.variant else row.attack
