"""What `tools.ladder` measured, as tables: a row a rung, a column a purifier."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from defend.report.text import BOUND, bound, percent, row_title
from defend.values.report import is_loose, row_key
from defend.values.threats import THREATS, USUAL
from tools import ladder
from tools.manual.markdown import cell, code, figure, table, undercut_of

WEAKEST_FIRST = ("none", *THREATS)
ALONE = "`none` is the victim alone, with nothing to adapt to: its `adaptive` rows have its own gradient."
PASSES = {
    "the same, right in every one of {} passes": "worst",
    "the same, by the majority of {} passes": "majority",
}
"""What a random defence is worth where an attacker may ask again, and where the defender does; by key in a report."""
LINE = 90  # characters of a command, so that it fits the page


def ladder_of(group: str) -> str:
    """Return what every rung leaves of the arms of a group in `tools.ladder.GROUPS`, as far as they were measured."""
    arms, kept = ladder.GROUPS[group], ladder.read()
    measured = {arm.name: kept[arm.name] for arm in arms if arm.name in kept}
    missing = ", ".join(code(arm.name) for arm in arms if arm.name not in kept)
    said = [f"Not measured yet: {missing}."] if missing else []
    if not measured:
        return said[0]
    worst = [arm["worst_case"] for arm in measured.values()]
    failed = [bool(arm["failed"]) for arm in measured.values()]
    rungs = [_rows_of(name, arm) for name, arm in measured.items()]
    rows = [(cell(title), *(_find_cell(title, each) for each in rungs)) for title in _order_titles(rungs)]
    rows.append(("**worst case per image**", *map(_headline, worst, failed)))
    if any(one["with_credit"] for one in worst):
        credited = (figure(one["with_credit"]) if one["with_credit"] else "" for one in worst)
        rows.append(("the same, where a rejected attack counts as right", *credited))
    rows += [row for said, key in PASSES.items() if (row := _passes_of(worst, said, key))]
    heads = (code(name) + r"\*" * bool(arm["failed"]) for name, arm in measured.items())
    return "\n".join(
        (table(("what is left", *heads), rows), " ".join((*said, *_notes(measured))), "", *_commands(arms))
    )


def _headline(worst: Mapping[str, Any], failed: bool) -> str:
    """Return a worst case: bold, struck out where a check failed."""
    said = bound(worst["rising"]) + figure(worst) + undercut_of(worst)
    return f"~~{said}~~" if failed else f"**{said}**"


def _passes_of(worst: Sequence[Mapping[str, Any]], said: str, key: str) -> tuple[str, ...]:
    """Return what is left of random arms that are asked several times, beside their clean images; () without any."""
    asked = [one.get("passes") for one in worst]
    if not any(asked):
        return ()
    cells = (f"{figure(one[key])} (clean {percent(one['clean'][-1][key]['accuracy'])})" if one else "" for one in asked)
    return (said.format(max(one["n"] for one in asked if one)), *cells)


def _rows_of(name: str, arm: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return an arm's rows, each with whether it is `loose`.

    Of the victim alone, what has its gradient stands beside what has the whole defence's.
    """
    rows: list[dict[str, Any]] = [{**row, "loose": _is_loose(row, name, arm["worst_case"])} for row in arm["rows"]]
    if name != ladder.NONE:
        return rows
    both = THREATS[USUAL], THREATS[THREATS[USUAL].alone]
    usual, whole = ((*one.attacks, *one.more) for one in both)
    mine = [row for row in rows if row["threat"] == USUAL]
    return [
        *(row for row in rows if row["threat"] != USUAL or row["attack"] in usual),
        *({**row, "threat": THREATS[USUAL].alone} for row in mine if row["attack"] in whole),
    ]


def _is_loose(row: Mapping[str, Any], name: str, worst: Mapping[str, Any]) -> bool:
    beside = None if row["headline"] else row["eps"]
    key = row_key(row["attack"], row["threat"], row["variant"], beside)
    return is_loose(key in worst["rising"], row["threat"], has_defence=name != ladder.NONE)


def _notes(measured: Mapping[str, Any]) -> list[str]:
    """Say how many images, how long, and which columns are not to be trusted."""
    fewest = min(row["n"] for arm in measured.values() for row in arm["rows"])
    failed = "; ".join(f"{code(name)} ({', '.join(arm['failed'])})" for name, arm in measured.items() if arm["failed"])
    minutes = ", ".join(f"{code(name)} {arm['minutes']:.0f}" for name, arm in measured.items())
    return [
        f"Accuracy in %; at least {fewest} images in every row.",
        *([f"{BOUND}."] if any(arm["worst_case"]["rising"] for arm in measured.values()) else []),
        *([ALONE] if ladder.NONE in measured else []),
        *([rf"\* A check failed, the figures are not to be trusted: {failed}."] if failed else []),
        f"Minutes, beside other work: {minutes}.",
    ]


def _commands(arms: tuple[ladder.Arm, ...]) -> list[str]:
    """Say what measures the arms again."""
    more = "; ".join(f"{code(arm.name)}: `{' '.join(arm.more)}`" for arm in arms if arm.more)
    lines = ["defend run --purifier NAME"]
    for flag, *value in _flags(ladder.SETTINGS):
        added = " ".join((flag, *value))
        if len(lines[-1]) + len(added) > LINE:
            lines[-1] += " \\"
            lines.append(f"    {added}")
        else:
            lines[-1] += f" {added}"
    return [
        *(f"    {line}" for line in lines),
        *(["", f"({more})"] if more else []),
        "",
    ]


def _flags(words: Sequence[str]) -> Iterator[list[str]]:
    """Yield each flag with its value."""
    starts = [place for place, word in enumerate(words) if word.startswith("--")]
    for start, end in zip(starts, (*starts[1:], len(words)), strict=True):
        yield list(words[start:end])


def _order_titles(arms: list[list[dict[str, Any]]]) -> list[str]:
    """Return the names of the rows that any arm has, the weakest threat first."""
    places: dict[str, tuple[int, int]] = {}
    for rows in arms:
        for place, row in enumerate(rows):
            mine = (WEAKEST_FIRST.index(row["threat"]), place)
            places[_title(row)] = min(places.get(_title(row), mine), mine)
    return sorted(places, key=lambda title: places[title])


def _title(row: Mapping[str, Any]) -> str:
    attack, threat, _ = row_title(row["attack"], row["threat"], row["variant"], row["eps"])
    return f"{threat}: {attack}" if threat and threat != attack else attack


def _find_cell(title: str, rows: list[dict[str, Any]]) -> str:
    """Return what a rung leaves; nothing where the arm has no such rung."""
    found = [bound(row["loose"]) + percent(row["defended"]["accuracy"]) for row in rows if _title(row) == title]
    return found[0] if found else ""
