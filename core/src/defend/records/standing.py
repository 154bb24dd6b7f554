"""What a report says, held against what is known where it is opened again: the victim's card, the libraries of now.

Each is a sentence, where they do not agree. Imports no torch.
"""

from __future__ import annotations

import platform
from collections.abc import Iterator, Mapping
from typing import Any

from defend.util.distributions import version_of
from defend.util.statistics import exact_interval
from defend.values.shares import in_percent
from defend.values.threats import UNDEFENDED

FIGURES = ("test_accuracy", "val_accuracy")  # of a victim's card, the first that it has


def find_doubts(report: Mapping[str, Any]) -> tuple[str, ...]:
    """Return what a reader of a report should know today, a sentence each; nothing where all is as it was.

    Args:
        report: report.json's content, already held against its records.
    """
    return (*_of_the_victim(report), *_of_the_libraries(report))


def _of_the_victim(report: Mapping[str, Any]) -> Iterator[str]:
    """Hold the clean row of the bare victim against the figure of its card, whichever side it errs on."""
    figures = report.get("weights", {}).get("victim", {}).get("figures", {})
    name = next((each for each in FIGURES if each in figures), None)
    clean = next((row for row in report["rows"] if row["threat"] == "none"), None)
    if name is None or clean is None:
        return
    promised, n, accuracy = float(figures[name]), clean["n"], clean[UNDEFENDED]["accuracy"]
    low, high = exact_interval(round(accuracy * n), n, 0.99)
    if not low <= promised <= high:
        same = report["dataset"].get("seen", {}).get("victim") in ("no", "some")
        whose = "" if same else ", which may be of other images"
        yield (
            f"the bare victim is right on {in_percent(accuracy)} % of {n} clean images, and its weights' card says "
            f"{name} {in_percent(promised)} %{whose}: outside the exact 99 % interval, {in_percent(low)} to "
            f"{in_percent(high)} %; "
            "the weights, the images or what is done to them are not those of the card"
        )


def _of_the_libraries(report: Mapping[str, Any]) -> Iterator[str]:
    """Name the libraries and plugins of which another version is here, or none."""
    then = {**report.get("versions", {}), **report.get("plugins", {})}
    now = {name: platform.python_version() if name == "python" else version_of(name) for name in then}
    others = [
        f"{name} {said}, here {now[name] or 'none'}"
        for name, said in then.items()
        if said != "unknown" and not _same(str(said), now[name])
    ]
    if others:
        yield f"the run was made with other versions than are here ({'; '.join(others)}): made again it may differ"


def _same(then: str, now: str | None) -> bool:
    """Compare versions; what stands behind a plus, such as a build for a GPU, only where both say it."""
    if now is None or then == now:
        return then == now
    return ("+" in then) != ("+" in now) and then.partition("+")[0] == now.partition("+")[0]
