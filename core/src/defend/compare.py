"""Runs beside each other: what each left standing, and whether a difference between two is more than chance.

The runs judged the same images, so they are compared image by image: McNemar's test of the images that only one of
the two got right. Reading run folders takes no torch.
"""

from __future__ import annotations

import csv
import itertools
import json
import math
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from defend.errors import ConfigError, DataError, did_you_mean
from defend.recount import Outcome, recount
from defend.statistics import holm, mcnemar, paired_interval, wilson
from defend.threats import DEFENDED, THREATS
from defend.values import Report

if TYPE_CHECKING:
    from defend.rows import RowRecord

SCHEMA = 1
NEEDED = {"config": ("victim", "eps"), "dataset": ("name", "split", "sha256")}  # of report.json, beside its rows
COLUMNS = ("attack", "threat", "eps", "image", "label", "arm", "predicted", "accepted")  # of records.csv

RecordKey = tuple[str, str, float | None, str]
Right = Mapping[int, bool]
"""Whether the defended arm was right, by image: the predicted class is the label, and the image was not rejected."""


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
    """

    key: RowKey
    steps: int | None
    partial: bool
    right: Right
    headline: bool = True


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


@attrs.frozen
class Cell:
    """One run's accuracy on a row, a fraction, with its Wilson 95 % interval."""

    accuracy: float
    ci95: tuple[float, float]
    n: int
    steps: int | None = None
    partial: bool = False


@attrs.frozen
class Difference:
    """Two runs on one row, over the `n` images that both judged.

    Attributes:
        first, second: places of the runs in `Comparison.labels`.
        only_first, only_second: images that only this one got right.
        difference: accuracy of the second less that of the first, a fraction.
        ci95: `paired_interval` of the difference.
        p: `mcnemar`'s p value.
        p_holm: the same, adjusted for all tests of the comparison (`holm`).
    """

    first: int
    second: int
    n: int
    only_first: int
    only_second: int
    difference: float
    ci95: tuple[float, float]
    p: float
    p_holm: float


@attrs.frozen
class ComparedRow:
    """One row of the table: a cell for every run (None where it lacks the row), a difference for every pair.

    A pair without an image in common has none.
    """

    key: RowKey
    cells: tuple[Cell | None, ...]
    differences: tuple[Difference, ...]


@attrs.frozen
class ComparedWorstCase:
    """Per image, right in every row of `over`: the rows that all runs have, on the images common to all of them.

    `left_out` are the rows that only some runs have.
    """

    over: tuple[RowKey, ...]
    left_out: tuple[RowKey, ...]
    cells: tuple[Cell, ...]
    differences: tuple[Difference, ...]


@attrs.frozen
class Comparison:
    """Runs side by side; `notes` say, a line each, what makes a comparison of them less than one of equals."""

    labels: tuple[str, ...]
    runs: tuple[Run, ...]
    rows: tuple[ComparedRow, ...]
    worst_case: ComparedWorstCase | None
    notes: tuple[str, ...]

    @property
    def tests(self) -> int:
        """How many tests the Holm adjustment counts."""
        worst = 0 if self.worst_case is None else len(self.worst_case.differences)
        return sum(len(row.differences) for row in self.rows) + worst


def _cell(right: Right, steps: int | None = None, partial: bool = False) -> Cell:
    successes, n = sum(right.values()), len(right)
    return Cell(successes / n, wilson(successes, n), n, steps, partial)


# Comparing


def compare(runs: Sequence[Run]) -> Comparison:
    """Compare runs, the first of which is what the others are measured against.

    Raises:
        ConfigError: fewer than two runs, one given twice, or runs that judged different images.
    """
    _check(runs)
    labels = _unique_labels(runs)
    found = [{row.key: row for row in run.rows} for run in runs]
    keys = _ordered(key for rows in found for key in rows)
    table = [[rows.get(key) for rows in found] for key in keys]
    shared = [key for key in keys if all(key in rows and rows[key].headline for rows in found)]
    worst = _worst_case(found, shared)

    judged: list[list[Right | None]] = [[None if row is None else row.right for row in line] for line in table]
    *differences, worst_differences = _differences([*judged, list(worst)])
    compared = tuple(
        ComparedRow(
            key, tuple(None if row is None else _cell(row.right, row.steps, row.partial) for row in line), pairs
        )
        for key, line, pairs in zip(keys, table, differences, strict=True)
    )
    worst_case = None
    if worst:
        partial = [any(rows[key].partial for key in shared) for rows in found]
        worst_case = ComparedWorstCase(
            over=tuple(shared),
            left_out=tuple(
                key for key in keys if key not in shared and any(key in rows and rows[key].headline for rows in found)
            ),
            cells=tuple(_cell(right, partial=cut) for right, cut in zip(worst, partial, strict=True)),
            differences=worst_differences,
        )
    return Comparison(labels, tuple(runs), compared, worst_case, tuple(_notes(runs, labels, compared, worst_case)))


def _check(runs: Sequence[Run]) -> None:
    if len(runs) < 2:
        raise ConfigError(f"{len(runs)} run to compare: expected at least two")
    folders = [run.folder.resolve() for run in runs if run.folder is not None]
    for place, folder in enumerate(folders):
        if folder in folders[:place]:
            raise ConfigError(f"run folder {str(folder)!r} was given twice")
    images = [run.report["dataset"] for run in runs]
    for run, theirs in zip(runs, images, strict=True):
        if any(theirs[part] != images[0][part] for part in ("name", "split", "sha256")):
            raise ConfigError(
                f"runs judged different images, {_images(runs[0])} and {_images(run)}: "
                "only runs on the same data set can be compared"
            )


def _images(run: Run) -> str:
    dataset = run.report["dataset"]
    return f"{dataset['name']} {dataset['split']} {dataset['sha256'][:8]} ({run.folder or run.label})"


def _unique_labels(runs: Sequence[Run]) -> tuple[str, ...]:
    """Tell equal labels apart by the folder's name, then by its whole path, then by the place among the runs."""
    ways: tuple[Callable[[int, Run], str], ...] = (
        lambda place, run: f"{run.label} ({run.folder.name})" if run.folder else run.label,
        lambda place, run: f"{run.label} ({run.folder})" if run.folder else run.label,
        lambda place, run: f"{place + 1}: {run.label}",
    )
    labels = [run.label for run in runs]
    for way in ways:
        equal = [labels.count(label) > 1 for label in labels]
        labels = [way(place, runs[place]) if equal[place] else label for place, label in enumerate(labels)]
    return tuple(labels)


def _ordered(keys: Iterable[RowKey]) -> list[RowKey]:
    """List the keys once each, by threat: clean first, then as threats are listed, then as they came."""
    threats = ["none", *THREATS]
    return sorted(
        dict.fromkeys(keys), key=lambda key: threats.index(key.threat) if key.threat in threats else len(threats)
    )


def _worst_case(found: Sequence[Mapping[RowKey, RunRow]], shared: Sequence[RowKey]) -> list[Right]:
    """Return for every run whether each image common to all was right in all `shared` rows; [] if that says nothing."""
    if len(shared) < 2:
        return []
    judged = [rows[key].right for rows in found for key in shared]
    common = set(judged[0]).intersection(*judged[1:])
    if not common:
        return []
    return [{image: all(rows[key].right[image] for key in shared) for image in sorted(common)} for rows in found]


def _differences(lines: Sequence[Sequence[Right | None]]) -> list[tuple[Difference, ...]]:
    """Compare every pair of runs on every line; the p values are adjusted over all of them."""
    drafts: list[tuple[int, Difference]] = []
    for place, line in enumerate(lines):
        for (first, one), (second, other) in itertools.combinations(enumerate(line), 2):
            if one is None or other is None:
                continue
            images = one.keys() & other.keys()
            if not images:
                continue
            only_first = sum(one[image] and not other[image] for image in images)
            only_second = sum(other[image] and not one[image] for image in images)
            n = len(images)
            draft = Difference(
                first, second, n, only_first, only_second,
                difference=(only_second - only_first) / n,
                ci95=paired_interval(only_first, only_second, n),
                p=mcnemar(only_first, only_second),
                p_holm=1.0,
            )  # fmt: skip
            drafts.append((place, draft))
    adjusted = holm([draft.p for _, draft in drafts])
    compared: list[list[Difference]] = [[] for _ in lines]
    for (place, draft), p in zip(drafts, adjusted, strict=True):
        compared[place].append(attrs.evolve(draft, p_holm=p))
    return [tuple(line) for line in compared]


# What makes runs less comparable


def _victim(run: Run) -> str:
    config, weights = run.report["config"], run.report.get("weights", {})
    parts = []
    for stage, name in (("victim", config["victim"]), ("finetuner", config.get("finetune"))):
        if name:
            sha = str(weights.get(stage, {}).get("sha256", ""))[:8]
            parts.append(" ".join(filter(None, [name, sha, _options(run, stage)])))
    return " tuned by ".join(parts)


def _options(run: Run, name: str) -> str:
    chosen = run.report["config"].get("options", {}).get(name, {})
    return " ".join(f"{key}={value}" for key, value in sorted(chosen.items()) if key != "steps")


_ASPECTS: tuple[tuple[str, Callable[[Run], Any], str], ...] = (
    ("victims", _victim, "oblivious rows are not the same attack"),
    ("eps", lambda run: run.report["config"]["eps"], "rows with another eps are other rows"),
    ("seeds", lambda run: run.report.get("seed"), "other starting points of attacks, and other images with --limit"),
    ("draws", lambda run: run.report["config"].get("draws"), "adaptive attackers of a random defence differ"),
    ("options of the data set", lambda run: _options(run, "dataset") or "defaults", "images may differ"),
    ("crafting precision", lambda run: run.report.get("precision", {}).get("crafting"), "attacks differ"),
)


def _notes(
    runs: Sequence[Run], labels: Sequence[str], rows: Sequence[ComparedRow], worst: ComparedWorstCase | None
) -> Iterable[str]:
    everyone = range(len(runs))
    for what, value, consequence in _ASPECTS:
        yield from _differ(what, {place: value(runs[place]) for place in everyone}, labels, consequence)
    for attack in dict.fromkeys(row.key.attack for row in rows):
        having = [place for place in everyone if any(row.key.attack == attack and row.cells[place] for row in rows)]
        values = {place: _options(runs[place], attack) or "defaults" for place in having}
        yield from _differ(f"options of {attack}", values, labels, "not the same attack")
    for row in rows:
        steps = {place: cell.steps for place, cell in enumerate(row.cells) if cell is not None}
        yield from _differ(f"steps of {row.key}", steps, labels, "not the same attack")
        if len(steps) > 1 and len(row.differences) < math.comb(len(steps), 2):
            yield f"{row.key}: some runs have no image in common there, and are not compared"
    for place in everyone:
        if runs[place].partial:
            yield f"{labels[place]} was interrupted: rows may be missing, and those marked * are cut short"
    if worst is None:
        yield "no worst case: the runs have fewer than two rows with images in common"
    elif worst.left_out:
        left = ", ".join(map(str, worst.left_out))
        yield f"the worst case is over what all runs have; without {left}"


def _differ(what: str, values: Mapping[int, Any], labels: Sequence[str], consequence: str) -> Iterable[str]:
    having: dict[Any, list[str]] = {}
    for place, value in values.items():
        having.setdefault(value, []).append(labels[place])
    if len(having) > 1:
        listed = "; ".join(f"{value}: {', '.join(names)}" for value, names in having.items())
        yield f"{what} differ ({listed}): {consequence}"


# Reading


def from_records(label: str, report: Report, records: Sequence[RowRecord]) -> Run:
    """Return a run that is still in memory; its rows are those of `records`."""
    rows = []
    for record in records:
        plan, said = record.plan, record.arms[DEFENDED]
        right = ((said.predicted == record.labels) & said.accepted).tolist()
        key = RowKey(plan.name, plan.threat.kind, plan.threat.norm, plan.threat.eps, plan.variant)
        judged = dict(zip(record.keys.tolist(), right, strict=True))
        rows.append(RunRow(key, plan.steps, record.partial, judged, plan.headline))
    return Run(label, attrs.asdict(report), tuple(rows))


def read_run(folder: Path) -> Run:
    """Read a run folder: report.json and records.csv.

    Raises:
        DataError: there is no such folder (the nearest is offered), or what it holds is missing or damaged.
    """
    report = _read_report(folder)
    outcomes = _read_records(folder / "records.csv")
    records = {
        name: {image: all(said) for image, said in answers.get(DEFENDED, {}).items()}
        for name, answers in outcomes.items()
    }
    try:
        label = _label(report["config"])
        for part, names in NEEDED.items():
            operator.itemgetter(*names)(report[part])
        rows = tuple(_row(row, records, folder) for row in report["rows"])
        if not rows or len({row.key for row in rows}) < len(rows):
            raise ValueError
        recount(report, outcomes, folder / "report.json")
    except KeyError as error:
        raise DataError(f"{str(folder / 'report.json')!r} is damaged: it lacks {error}") from None
    except (AttributeError, TypeError, ValueError):
        raise DataError(f"{str(folder / 'report.json')!r} is damaged: it is not what `defend run` writes") from None
    return Run(label, report, rows, folder)


def _label(config: Mapping[str, Any]) -> str:
    parts = [config.get(stage) for stage in ("purifier", "detector", "finetune")]
    return "+".join(part for part in parts if part) or "no defence"


def _row(row: Mapping[str, Any], records: Mapping[RecordKey, Right], folder: Path) -> RunRow:
    key = RowKey(row["attack"], row["threat"], row["norm"], row["eps"], row.get("variant", ""))
    right = records.get((key.attack, key.threat, key.eps, key.variant), {})
    accuracy = sum(right.values()) / max(len(right), 1)
    if not right or len(right) != row["n"] or not math.isclose(accuracy, row["defended"]["accuracy"], abs_tol=1e-9):
        raise DataError(
            f"run folder {str(folder)!r} is damaged: for {key}, records.csv holds {len(right)} images with accuracy "
            f"{accuracy:.4g}, and report.json says {row['n']} with {row['defended']['accuracy']:.4g}"
        )
    return RunRow(key, row["steps"], row["partial"], right, row.get("headline", True))


def _read_report(folder: Path) -> dict[str, Any]:
    path = folder / "report.json"
    if not folder.is_dir():
        what = "is a file, not a folder" if folder.exists() else "does not exist"
        raise DataError(f"run folder {str(folder)!r} {what}: {_nearest(folder)}")
    if not path.exists():
        raise DataError(f"{str(folder)!r} holds no report.json: no run, or one stopped before its first row was done")
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{str(path)!r} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise DataError(f"{str(path)!r} is damaged: {error}") from None
    schema = report.get("schema") if isinstance(report, dict) else None
    if schema != SCHEMA:
        raise DataError(f"{str(path)!r} is of schema {schema}: expected {SCHEMA}")
    return dict(report)


def _nearest(folder: Path) -> str:
    beside = sorted(path.parent for path in folder.parent.glob("*/report.json"))
    if not beside:
        return f"and no run lies in {str(folder.parent)!r}; `defend run --out DIR` makes one"
    return did_you_mean(str(folder), map(str, beside))


def _read_records(path: Path) -> dict[RecordKey, dict[str, dict[int, Outcome]]]:
    """Read what every arm answered, by attack, threat, eps and variant (which older runs have no column for)."""
    records: dict[RecordKey, dict[str, dict[int, Outcome]]] = {}
    line = 1
    try:
        with path.open(encoding="utf-8", newline="") as file:
            lines = csv.reader(file)
            header = next(lines, [])
            missing = [name for name in COLUMNS if name not in header]
            if missing:
                raise ValueError(f"it has no column {missing[0]!r}")
            places = [header.index(name) for name in COLUMNS]
            variant = header.index("variant") if "variant" in header else None
            for line, values in enumerate(lines, start=2):  # noqa: B007
                attack, threat, eps, image, label, arm, predicted, accepted = [values[place] for place in places]
                which = "" if variant is None else values[variant]
                arms = records.setdefault((attack, threat, float(eps) if eps else None, which), {})
                row = arms.setdefault(arm, {})
                if int(image) in row:
                    raise ValueError(f"image {image} is there twice")
                row[int(image)] = int(predicted) == int(label), bool(int(accepted))
    except FileNotFoundError:
        raise DataError(f"run folder {str(path.parent)!r} holds no records.csv: `defend run` wrote one") from None
    except OSError as error:
        raise DataError(f"{str(path)!r} cannot be read: {error.strerror}") from None
    except (ValueError, IndexError, csv.Error) as error:
        raise DataError(f"{str(path)!r} is damaged at line {line}: {error}") from None
    return records
