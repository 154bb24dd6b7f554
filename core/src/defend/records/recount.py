"""Holds a report.json against the records beside it: what can be computed again from them is. Imports no torch."""

from __future__ import annotations

import csv
import hashlib
import io
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from defend.errors import DataError
from defend.util.cells import from_cell
from defend.util.documents import digest
from defend.util.statistics import mcnemar, paired_interval, wilson
from defend.values.commands import say_command
from defend.values.threats import DEFENDED, UNDEFENDED

DIGESTS = "digests"  # of report.json: a SHA-256 of each of its other parts, by key
SINCE = "made_of"  # of a row: what every report has that was written with digests, and newer ones alone
RECORDS = "records"  # of report.json: digests of the rows' lines in records.csv, in the order of its rows
Name = tuple[str, str, float | None, str]
"""Attack, threat, eps and variant of a row."""
Answer = tuple[bool, bool]
"""Of one image: whether the predicted class is the label, and whether the image was accepted."""
Answers = Mapping[str, Mapping[int, Answer]]
"""Of one row: an arm's answers by image."""


def add_digests(document: Mapping[str, Any]) -> dict[str, Any]:
    """Return a report as plain data with the digests of its parts, by which an edited part is noticed."""
    return {**document, DIGESTS: {key: digest(value) for key, value in document.items()}}


def digest_records(text: str) -> dict[Name, str]:
    """Return a digest of every row's lines in records.csv, as they are written."""
    lines = csv.reader(io.StringIO(text, newline=""))
    header = next(lines)
    places = [header.index(name) for name in ("attack", "threat", "eps", "variant")]
    found: dict[Name, Any] = {}
    for values in lines:
        attack, threat, eps, variant = (values[place] for place in places)
        name = attack, threat, float(eps) if eps else None, from_cell(variant)
        found.setdefault(name, hashlib.sha256("\t".join(header).encode())).update("\t".join(values).encode() + b"\n")
    return {name: each.hexdigest()[:16] for name, each in found.items()}


def check_records(report: Mapping[str, Any], path: Path) -> None:
    """Compare the lines of records.csv with the digests that the report beside it was written with; old ones have none.

    Lines of rows that the report does not have are those of a run that was killed between the two files.

    Raises:
        DataError: the lines of a row are not those that were written.
    """
    if RECORDS not in report:
        return
    found = digest_records(path.read_text(encoding="utf-8"))
    for row, wanted in zip(report["rows"], report[RECORDS], strict=True):
        name = row["attack"], row["threat"], row["eps"], row.get("variant", "")
        if found.get(name) != wanted:
            raise DataError(
                f"{str(path)!r} is damaged: its lines of {row['attack']}/{row['threat']} are not what the run wrote"
            )


def recount(report: Mapping[str, Any], records: Mapping[Name, Answers], path: Path) -> None:
    """Compute again what report.json says of its records, and compare.

    Accuracies, intervals and rejections of every arm of every row, the comparison of the two arms, the worst case. Of
    the rest, the checks among it, only the digests tell whether it is as it was written (`check_digests`).

    Raises:
        DataError: a figure differs; it is named, with what the records give.
    """
    counted = []
    for place, row in enumerate(report["rows"]):
        name = row["attack"], row["threat"], row["eps"], row.get("variant", "")
        answers = records.get(name, {})
        where = f"rows[{place}]"
        named = {UNDEFENDED: row[UNDEFENDED], DEFENDED: row[DEFENDED], **(row.get("arms") or {})}
        for arm, said in named.items():
            if arm in answers:
                prefix = f"{where}.{arm}" if arm in (UNDEFENDED, DEFENDED) else f"{where}.arms.{arm}"
                _hold(path, prefix, said, _arm(answers[arm], row["threat"] != "none"))
        if row.get("paired") and {UNDEFENDED, DEFENDED} <= answers.keys():
            _hold(path, f"{where}.paired", row["paired"], _compare(answers[UNDEFENDED], answers[DEFENDED]))
        if row.get("headline", True) and DEFENDED in answers:
            counted.append(answers)
    worst = report.get("worst_case")
    if worst is not None and len(counted) > 1:
        _hold(path, "worst_case", worst, _worst_case(counted))
        if worst.get("least_row"):
            least = [_arm(answers[DEFENDED], attacked=True) | {"n": len(answers[DEFENDED])} for answers in counted]
            _hold(path, "worst_case.least_row", worst["least_row"], min(least, key=lambda one: one["accuracy"]))


def check_digests(report: Mapping[str, Any], path: Path) -> None:
    """Compare a report's parts with the digests it was written with; old ones, whose rows lack `SINCE`, have none.

    Raises:
        DataError: one was edited; it is named.
    """
    known = report.get(DIGESTS, {})
    if not known and any(isinstance(row, Mapping) and row.get(SINCE) for row in report.get("rows", ())):
        raise DataError(f"{str(path)!r} was edited: {DIGESTS!r} is gone, by which an edited part is noticed")
    if not isinstance(known, Mapping):
        raise DataError(f"{str(path)!r} is damaged: {DIGESTS!r} is {str(known)[:60]!r}")
    for key, wanted in known.items():
        if key not in report:
            raise DataError(f"{str(path)!r} is damaged: it lacks {key!r}")
        if digest(report[key]) != wanted:
            raise DataError(
                f"{str(path)!r} was edited: {key!r} is not what the run wrote; its figures are no longer the run's, "
                f"make it again with `{say_command('run', '--config', path.parent / 'config.toml')}`"
            )
    if known:
        for key in report.keys() - known.keys() - {DIGESTS}:
            raise DataError(
                f"{str(path)!r} was edited: {key!r} has no digest in {DIGESTS!r}, as all that a run writes has"
            )


def _arm(answers: Mapping[int, Answer], attacked: bool) -> dict[str, Any]:
    n = len(answers)
    held = sum(right and accepted for right, accepted in answers.values())
    rejected = sum(not accepted for _, accepted in answers.values())
    return {
        "accuracy": held / n,
        "ci95": wilson(held, n),
        "rejected": rejected / n,
        "accuracy_with_credit": (held + (rejected if attacked else 0)) / n,
    }


def _compare(bare: Mapping[int, Answer], whole: Mapping[int, Answer]) -> dict[str, Any]:
    lost = sum(all(bare[image]) and not all(whole[image]) for image in whole if image in bare)
    won = sum(all(whole[image]) and not all(bare[image]) for image in whole if image in bare)
    n = len(whole)
    return {
        "difference": (won - lost) / n,
        "ci95": paired_interval(lost, won, n),
        "only_undefended": lost,
        "only_defended": won,
        "p": mcnemar(lost, won),
    }


def _worst_case(counted: list[Answers]) -> dict[str, Any]:
    common = set(counted[0][DEFENDED]).intersection(*(answers[DEFENDED] for answers in counted[1:]))
    n = len(common)
    found: dict[str, Any] = {"n": n}
    for arm, key in ((DEFENDED, "accuracy"), (UNDEFENDED, "undefended")):
        if n and all(arm in answers and common <= answers[arm].keys() for answers in counted):
            held = sum(all(all(answers[arm][image]) for answers in counted) for image in common)
            found[key] = held / n
            if arm == DEFENDED:
                found["ci95"] = wilson(held, n)
    return found


def _hold(path: Path, where: str, said: Mapping[str, Any], found: Mapping[str, Any]) -> None:
    for key, value in found.items():
        if key in said and not _same(said[key], value):
            raise _differs(path, f"{where}.{key}", said[key], value)


def _same(said: Any, found: Any) -> bool:
    if isinstance(found, tuple):
        return len(said) == len(found) and all(_same(*pair) for pair in zip(said, found, strict=True))
    return isinstance(said, int | float) and math.isclose(said, found, rel_tol=1e-9, abs_tol=1e-9)


def _differs(path: Path, key: str, said: Any, found: Any) -> DataError:
    return DataError(f"{str(path)!r} is damaged or edited: {key} is {said}, and records.csv beside it gives {found}")
