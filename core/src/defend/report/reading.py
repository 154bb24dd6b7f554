"""Run folders read back to be shown: the report as values, the detector's scores, the examples.

Takes no torch. What an older run did not record is absent here, never guessed.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import cattrs
import numpy as np
from numpy.typing import NDArray

from defend.compare import Run, read_run
from defend.config import to_toml
from defend.errors import DataError
from defend.threats import DEFENDED, THREATS, WHOLE
from defend.values import Report, Row

RowName = tuple[str, str, str, float | None]
"""Attack, threat, variant and eps: what tells a row of a run from its others."""

_converter = cattrs.Converter()
# report.json holds null where a figure was not finite
_converter.register_structure_hook(float, lambda value, _: math.nan if value is None else float(value))


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
        run: as `defend.compare` reads it.
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
        config = self.report.config
        return bool(config.purifier or config.detector or config.finetune)

    @property
    def title(self) -> str:
        """The stages and the data set."""
        config = self.report.config
        victim = f"{config.victim} tuned by {config.finetune}" if config.finetune else config.victim
        what = " + ".join(stage for stage in (config.purifier, config.detector, victim) if stage)
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
                axis, loss = (np.array(found[part], dtype=np.float64) for part in ("axis", "loss"))
                if axis.ndim == 1 and len(axis) > 1 and loss.shape == (len(axis), len(axis)):
                    return Surface(axis, loss)
        return None


def _series(row: Row) -> tuple[str, str, str, str]:
    return row.attack, row.threat, row.variant, row.norm


def row_name(row: Row) -> RowName:
    """Return what tells a row from the others of its run."""
    return row.attack, row.threat, row.variant, row.eps


def knows_the_defence(row: Row) -> bool:
    """Whether the attack was made against the defence, so that its images say nothing of the bare victim."""
    return row.threat in WHOLE


def named(row: Row) -> str:
    """Return a row's attack with its variant, such as "pgd: identity"."""
    if row.threat == "none":
        return "clean"
    return f"{row.attack}: {row.variant}" if row.variant else row.attack


def run_folders(paths: Iterable[Path]) -> list[Path]:
    """Return the run folders among the paths; a folder of several arms stands for those that it holds."""
    found: list[Path] = []
    for path in paths:
        arms = [] if (path / "report.json").exists() else sorted(arm.parent for arm in path.glob("*/report.json"))
        found += arms or [path]
    return found


def read_results(folder: Path) -> Results:
    """Read everything of a run folder that the page shows.

    Raises:
        DataError: there is no such folder (the nearest is offered), or what it holds is missing or damaged.
    """
    run = read_run(folder)
    try:
        report = _converter.structure(run.report, Report)
    except cattrs.BaseValidationError:
        raise DataError(f"{str(folder / 'report.json')!r} is damaged: it is not what `defend run` writes") from None
    order = _weakest_first(report.rows)
    config = folder / "config.toml"
    return Results(
        run=run,
        folder=folder,
        report=report,
        rows=tuple(report.rows[place] for place in order),
        places=order,
        scores=_read_scores(folder / "records.csv") if report.detector else {},
        examples=_read_examples(folder / "examples.safetensors"),
        toml=config.read_text(encoding="utf-8", errors="replace") if config.exists() else to_toml(report.config),
    )


def _weakest_first(rows: Sequence[Row]) -> tuple[int, ...]:
    threats = ["none", *THREATS]
    known = [threats.index(row.threat) if row.threat in threats else len(threats) for row in rows]
    return tuple(sorted(range(len(rows)), key=known.__getitem__))


def _read_scores(path: Path) -> dict[RowName, NDArray[np.float64]]:
    """Read the scores of the defended arm; `defend.compare.read_run` has checked the columns that it needs."""
    found: dict[RowName, list[float]] = {}
    try:
        with path.open(encoding="utf-8", newline="") as file:
            for line in csv.DictReader(file):
                if line["arm"] == DEFENDED:
                    eps = float(line["eps"]) if line["eps"] else None
                    name = line["attack"], line["threat"], line.get("variant") or "", eps
                    found.setdefault(name, []).append(float(line["score"]))
    except KeyError as error:
        raise DataError(f"{str(path)!r} is damaged: it has no column {error}") from None
    except (ValueError, TypeError) as error:
        raise DataError(f"{str(path)!r} is damaged: {error}") from None
    return {name: np.array(values) for name, values in found.items()}


def _read_examples(path: Path) -> dict[int, Examples]:
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    if not path.exists():
        return {}
    try:
        tensors = load_file(path)
        return {row: _examples(tensors, row) for row in sorted({int(name.partition("/")[0]) for name in tensors})}
    except (SafetensorError, OSError, KeyError, ValueError, IndexError) as error:
        raise DataError(f"{str(path)!r} is damaged: {error}") from None


def _examples(tensors: Mapping[str, NDArray[Any]], row: int) -> Examples:
    def part(name: str) -> NDArray[Any]:
        return tensors[f"{row}/{name}"]

    def pixels(name: str) -> NDArray[np.float32]:
        return part(name).astype(np.float32).transpose(0, 2, 3, 1).clip(0, 1)

    def whole(name: str) -> NDArray[np.int64]:
        return part(name).astype(np.int64)

    found = Examples(
        clean=pixels("clean"), attacked=pixels("attacked"), purified=pixels("purified"), label=whole("label"),
        undefended=whole("undefended"), defended=whole("defended"), accepted=part("accepted") != 0,
        image=whole("image"),
    )  # fmt: skip
    if len({len(values) for values in attrs.astuple(found, recurse=False)}) > 1:
        raise ValueError(f"row {row} has parts of different lengths")
    return found
