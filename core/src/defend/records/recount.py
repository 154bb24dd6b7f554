"""Holds a report.json against the records beside it: what can be computed again from them is. Imports no torch."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from defend.errors import DataError
from defend.util.statistics import mcnemar, paired_interval, wilson
from defend.values.threats import DEFENDED, UNDEFENDED

DIGESTS = "digests"  # of report.json: a SHA-256 of each of its other parts, by key
Name = tuple[str, str, float | None, str]
"""Attack, threat, eps and variant of a row."""
Answer = tuple[bool, bool]
"""Of one image: whether the predicted class is the label, and whether the image was accepted."""
Answers = Mapping[str, Mapping[int, Answer]]
"""Of one row: an arm's answers by image."""


def add_digests(document: Mapping[str, Any]) -> dict[str, Any]:
    """Return a report as plain data with the digests of its parts, by which an edited part is noticed."""
    return {**document, DIGESTS: {key: _digest(value) for key, value in document.items()}}


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


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


def check_digests(report: Mapping[str, Any], path: Path) -> None:
    """Compare a report's parts with the digests it was written with; old ones have none.

    Raises:
        DataError: one was edited; it is named.
    """
    for key, digest in (report.get(DIGESTS) or {}).items():
        if key in report and _digest(report[key]) != digest:
            raise DataError(
                f"{str(path)!r} was edited: {key!r} is not what the run wrote; its figures are no longer the run's, "
                f"make it again with `defend run --config {path.parent / 'config.toml'}`"
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
