"""Reads run folders: report.json, records.csv, config.toml and the examples. Nothing else opens them.

Imports no torch. What an older run did not record is absent, never guessed.
"""

from __future__ import annotations

import csv
import math
import operator
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import cattrs

from defend.errors import ConfigError, DataError, did_you_mean
from defend.records.document import SCHEMA
from defend.records.recount import Answer, Name, check_digests, check_records, recount
from defend.records.run import Examples, Results, Right, RowKey, RowName, Run, RunRow
from defend.util.cells import from_cell
from defend.util.documents import parse_json
from defend.util.sealed import is_sealed, is_whole
from defend.values.references import shorten
from defend.values.report import Report, Row
from defend.values.threats import DEFENDED, rank
from defend.values.toml import run_config, to_toml

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


NEEDED = {"config": ("victim", "eps"), "dataset": ("name", "split", "sha256")}  # of report.json, beside its rows
COLUMNS = ("attack", "threat", "eps", "image", "label", "arm", "predicted", "accepted")  # of records.csv
_converter = cattrs.Converter()
# report.json holds null where a figure was not finite
_converter.register_structure_hook(float, lambda value, _: math.nan if value is None else float(value))


def is_run(folder: Path) -> bool:
    """Whether a folder holds what a run reports."""
    return (folder / "report.json").is_file()


def arms_of(folder: Path) -> list[Path]:
    """Return the run folders that lie in a folder: those of the arms where a run had several."""
    return sorted(report.parent for report in folder.glob("*/report.json"))


def is_partial(folder: Path) -> bool:
    """Whether a folder holds the report of a run that was interrupted."""
    try:
        report = _parsed(folder)
    except (OSError, ValueError):
        return False
    return isinstance(report, dict) and bool(report.get("partial"))


def run_folders(paths: Iterable[Path]) -> list[Path]:
    """Return the run folders among the paths; a folder of several arms stands for those that it holds."""
    found: list[Path] = []
    for path in paths:
        found += ([] if is_run(path) else arms_of(path)) or [path]
    return found


def read_report(folder: Path) -> Report:
    """Return what report.json alone says, for those who know what to do where it cannot be read.

    Raises:
        OSError, ValueError: it cannot be read, or is no JSON.
        DataError: it was edited, or is not what a run writes.
    """
    report = _parsed(folder)
    if not isinstance(report, dict):
        raise ValueError("it is no JSON object")
    check_digests(report, folder / "report.json")
    return structured(report, folder)


def read_run(folder: Path) -> Run:
    """Read a run folder: report.json and records.csv.

    Raises:
        DataError: there is no such folder (the nearest is offered), or what it holds is missing or damaged.
    """
    report = _checked(folder)
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
        # first, as it names the figure and what the records give; a digest only tells which part was edited
        recount(report, outcomes, folder / "report.json")
        check_digests(report, folder / "report.json")
        check_records(report, folder / "records.csv")
    except KeyError as error:
        raise DataError(f"{str(folder / 'report.json')!r} is damaged: it lacks {error}") from None
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError):
        structured(report, folder)  # which names the value, if it is of another type
        check_digests(report, folder / "report.json")  # and this the part
        raise not_a_report(folder) from None
    structured(report, folder)
    return Run(label, report, rows, folder)


def structured(report: Mapping[str, Any], folder: Path) -> Report:
    """Return a report that was read, as values.

    Raises:
        DataError: it is damaged.
    """
    try:
        return _converter.structure(report, Report)
    except cattrs.BaseValidationError as error:
        (first, *_) = cattrs.transform_error(error, path="report")
        raise not_a_report(folder, f": {first}") from None


def read_results(folder: Path) -> Results:
    """Read everything of a run folder that the page shows.

    Raises:
        DataError: there is no such folder (the nearest is offered), or what it holds is missing or damaged.
    """
    run = read_run(folder)
    report = structured(run.report, folder)
    order = _weakest_first(report.rows)
    return Results(
        run=run,
        folder=folder,
        report=report,
        rows=tuple(report.rows[place] for place in order),
        places=order,
        scores=_read_scores(folder / "records.csv") if report.detector else {},
        examples=_read_examples(folder / "examples.safetensors"),
        toml=_read_config(folder / "config.toml", report),
    )


def _read_config(path: Path, report: Report) -> str:
    """Return the configuration that makes a run again; the report's where the file's is another, with a warning."""
    own = to_toml(report.config)
    if not path.exists():
        return own
    try:
        text = path.read_text(encoding="utf-8")
        said = run_config({}, path)
    except (OSError, ValueError, ConfigError) as error:
        warnings.warn(f"{error}; the page shows the configuration that report.json holds", stacklevel=2)
        return own
    if to_toml(attrs.evolve(said, out=report.config.out)) != own:
        warnings.warn(
            f"{str(path)!r} is not the configuration that the run had: the page shows the one that report.json holds",
            stacklevel=2,
        )
        return own
    return text


def _parsed(folder: Path) -> Any:
    return parse_json((folder / "report.json").read_text(encoding="utf-8"), finite=True)


def not_a_report(folder: Path, why: str = "") -> DataError:
    """Return the error of a report that is JSON, and not what it should hold."""
    return DataError(f"{str(folder / 'report.json')!r} is damaged: it is not what `defend run` writes{why}")


def _checked(folder: Path) -> dict[str, Any]:
    path = folder / "report.json"
    if not folder.is_dir():
        what = "is a file, not a folder" if folder.exists() else "does not exist"
        raise DataError(f"run folder {str(folder)!r} {what}: {_nearest(folder)}")
    if not path.exists():
        raise DataError(
            f"{str(folder)!r} holds no report.json: no run, one stopped before its first row was done, or a "
            "shard, on which `defend merge` reports"
        )
    try:
        report = _parsed(folder)
    except OSError as error:
        raise DataError(f"{str(path)!r} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise DataError(f"{str(path)!r} is damaged: {error}") from None
    schema = report.get("schema") if isinstance(report, dict) else None
    if schema != SCHEMA:
        raise DataError(f"{str(path)!r} is of schema {schema}: expected {SCHEMA}")
    return dict(report)


def _nearest(folder: Path) -> str:
    beside = arms_of(folder.parent)
    if not beside:
        return f"and no run lies in {str(folder.parent)!r}; `defend run --out DIR` makes one"
    return did_you_mean(str(folder), map(str, beside))


def _label(config: Mapping[str, Any]) -> str:
    parts = [config.get(stage) for stage in ("purifier", "detector", "finetune")]
    return "+".join(shorten(part) for part in parts if part) or "no defence"


def _row(row: Mapping[str, Any], records: Mapping[Name, Right], folder: Path) -> RunRow:
    key = RowKey(row["attack"], row["threat"], row["norm"], row["eps"], row.get("variant", ""))
    right = records.get((key.attack, key.threat, key.eps, key.variant), {})
    # held against the report, as the two files are written one after the other and either may be damaged
    accuracy = sum(right.values()) / max(len(right), 1)
    if not right or len(right) != row["n"] or not math.isclose(accuracy, row["defended"]["accuracy"], abs_tol=1e-9):
        raise DataError(
            f"run folder {str(folder)!r} is damaged: for {key}, records.csv holds {len(right)} images with accuracy "
            f"{accuracy:.4g}, and report.json says {row['n']} with {row['defended']['accuracy']:.4g}"
        )
    rising = bool(row.get("of_rising")) or not (row.get("curve") or {"flattened": True})["flattened"]
    return RunRow(key, row["steps"], row["partial"], right, row.get("headline", True), rising, row.get("made_of"))


def _read_records(path: Path) -> dict[Name, dict[str, dict[int, Answer]]]:
    """Read what every arm answered, by attack, threat, eps and variant (which older runs have no column for)."""
    records: dict[Name, dict[str, dict[int, Answer]]] = {}
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
            # line 1 is the header; the errors below name the line
            for line, values in enumerate(lines, start=2):  # noqa: B007
                attack, threat, eps, image, label, arm, predicted, accepted = [values[place] for place in places]
                which = "" if variant is None else from_cell(values[variant])
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


def _weakest_first(rows: Sequence[Row]) -> tuple[int, ...]:
    return tuple(sorted(range(len(rows)), key=lambda place: rank(rows[place].threat)))


def _read_scores(path: Path) -> dict[RowName, NDArray[np.float64]]:
    """Read the scores of the defended arm; `read_run` has checked the columns that it needs."""
    import numpy as np

    found: dict[RowName, list[float]] = {}
    try:
        with path.open(encoding="utf-8", newline="") as file:
            for line in csv.DictReader(file):
                if line["arm"] == DEFENDED:
                    eps = float(line["eps"]) if line["eps"] else None
                    name = line["attack"], line["threat"], from_cell(line.get("variant") or ""), eps
                    found.setdefault(name, []).append(float(line["score"]))
    except KeyError as error:
        raise DataError(f"{str(path)!r} is damaged: it has no column {error}") from None
    except (ValueError, TypeError) as error:
        raise DataError(f"{str(path)!r} is damaged: {error}") from None
    return {name: np.array(values) for name, values in found.items()}


def _read_examples(path: Path) -> dict[int, Examples]:
    from safetensors import SafetensorError
    from safetensors.numpy import load

    if not path.exists():
        return {}
    try:
        data = path.read_bytes()
        if is_sealed(data) and not is_whole(data):  # those of older runs have no checksum
            raise ValueError("it is not as it was written; without it the page has no images")
        tensors = load(data)
        return {row: _examples(tensors, row) for row in sorted({int(name.partition("/")[0]) for name in tensors})}
    except (SafetensorError, OSError, KeyError, ValueError, IndexError) as error:
        raise DataError(f"{str(path)!r} is damaged: {error}") from None


def _examples(tensors: Mapping[str, NDArray[Any]], row: int) -> Examples:
    import numpy as np

    def part(name: str) -> NDArray[Any]:
        return tensors[f"{row}/{name}"]

    def pixels(name: str) -> NDArray[np.float32]:
        return part(name).astype(np.float32).transpose(0, 2, 3, 1).clip(0, 1)

    def whole(name: str) -> NDArray[np.int64]:
        return part(name).astype(np.int64)

    found = Examples(
        clean=pixels("clean"),
        attacked=pixels("attacked"),
        purified=pixels("purified"),
        label=whole("label"),
        undefended=whole("undefended"),
        defended=whole("defended"),
        accepted=part("accepted") != 0,
        image=whole("image"),
    )
    if len({len(values) for values in attrs.astuple(found, recurse=False)}) > 1:
        raise ValueError(f"row {row} has parts of different lengths")
    return found
