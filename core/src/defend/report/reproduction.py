"""A table measured again, to be read: in the terminal, and in a README. Imports no torch."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.table import Table as Grid
from rich.text import Text

from defend.report import readme
from defend.report.fitting import choose_fitting
from defend.report.text import BESIDE, BOUND, UNKNOWN_BOUND, beside, bound, interval, percent, points, with_interval
from defend.reproduce.results import AdaptiveResult, Cell, Standing, TableResult, count_standings, find_kept
from defend.tables import Table

STYLES: dict[Standing, str] = {
    "same": "green",
    "better": "green",
    "stronger": "yellow",
    "explained": "yellow",
    "guessed": "magenta",
    "off": "red",
    "open": "dim",
    "beside": "dim",
    "unmeasured": "dim",
}
SAID: dict[Standing, str] = {
    "same": "within 3 points",
    "better": "better",
    "stronger": "stronger baseline",
    "explained": "explained by a measurement",
    "guessed": "explained by a guess",
    "off": "off",
    "open": "open",
    "beside": "not in the paper",
    "unmeasured": "open, not in the paper",
}
WHY: dict[Standing, str] = {
    "stronger": "a stronger baseline than the paper's",
    "explained": "measured",
    "guessed": "a guess, not measured",
    "off": "no reason is known yet",
    "open": "open",
    "unmeasured": "not measured",
}
"""What stands before a reason."""


def render(table: Table, result: TableResult, console: Console) -> None:
    """Print every cell: the paper's figure, ours with its interval, the difference; adaptive beside every arm."""
    grid = choose_fitting(console, (_grid(table, result, fewer) for fewer in range(5)))
    lines: list[Text | Grid] = [grid]
    lines.append(
        Text(
            "accuracy in %, Wilson 95 % intervals; adaptive: the worst case per image over attacks that know "
            "the defence, with n",
            "dim",
        )
    )
    lines.append(Text(f"What the paper's figures are: {table.knowledge}"))
    lines.append(Text(f"{tally(count_standings(table, result))}."))
    why = explanations(result)
    lines += [Text("\nNot the paper's figures:")] * bool(why) + [Text(f"- {line}") for line in why]
    lines += [Text(BOUND, "dim")] * any(one.rising for one in result.adaptive)
    lines += [Text(UNKNOWN_BOUND, "dim")] * any(one.rising is None for one in result.adaptive)
    lines += [Text(BESIDE, "dim")] * any(one.undercut_by for one in result.adaptive)
    failed = [one for one in result.adaptive if one.failed]
    lines += [
        Text(
            f"{one.arm}: the adaptive figure is not to be trusted, a check failed ({', '.join(one.failed)})", "bold red"
        )
        for one in failed
    ]
    lines += [Text(f"Weights are missing: {command}", "yellow") for command in result.missing]
    lines += [Text(f"{arm}: a run failed: {why}", "bold red") for arm, why in result.failed.items()]
    if result.partial:
        lines.append(Text(f"Partial: {result.command} goes on where it stopped", "yellow"))
    console.print(Group(*lines))


def _grid(table: Table, result: TableResult, fewer: int) -> Grid:
    """Make the table of all cells. With every step `fewer` one thing is left out.

    First how a cell stands to the paper's (those that do not are explained below the table), then the difference, the
    intervals of our cells, and that of the adaptive figures.
    """
    grid = Grid(title=f"{table.name}: {table.caption}", title_justify="left")
    for name in ("arm", "attack"):
        grid.add_column(name, overflow="fold")
    for name in ("paper", "ours", *(["difference"] if fewer < 2 else []), "n", "adaptive"):
        grid.add_column(name, justify="right", no_wrap=True)
    if fewer < 1:
        grid.add_column("")
    for arm in table.arms:
        cells = [cell for cell in result.cells if cell.arm == arm.name]
        adaptive = result.against(arm.name)
        for number, cell in enumerate(cells):
            grid.add_row(
                arm.name if number == 0 else "",
                cell.attack,
                percent(cell.paper),
                _ours(cell) if fewer < 3 else percent(cell.ours),
                *([points(cell.difference)] if fewer < 2 else []),
                f"{cell.n:,}" if cell.ours is not None else "",
                _adaptive(adaptive, fewer < 4) if number == 0 else "",
                *([Text(f"{SAID[cell.standing]}{_which(cell)}", STYLES[cell.standing])] if fewer < 1 else []),
                end_section=number == len(cells) - 1,
            )
    return grid


def entry(table: Table, result: TableResult | None) -> dict[str, Any]:
    """Return a table as `defend reproduce --list --json` has it."""
    return {
        "name": table.name,
        "caption": table.caption,
        "paper": table.paper.title,
        "dataset": table.dataset,
        "cells": len(table.cells),
        "standings": count_standings(table, result),
        "stand_in": table.stand_in,
        "not_run": table.not_run,
        "takes": table.takes if result is None else "",
        "missing": list(table.missing()),
    }


def as_dict(table: Table, result: TableResult) -> dict[str, Any]:
    """Return a result for machines, with what the table says of itself."""
    return {
        **json.loads(result.to_json()),
        "caption": table.caption,
        "knowledge": table.knowledge,
        "notes": list(table.notes),
        "explanations": explanations(result),
    }


def print_listing(console: Console, listed: Sequence[tuple[Table, TableResult | None]]) -> None:
    """Print all tables, and how our kept figures stand to the papers', each and in all."""
    grid = Grid(box=None, pad_edge=False)
    for name in ("table", "data set", "how its cells stand", "what it shows"):
        grid.add_column(name, overflow="fold", no_wrap=name == "table")
    total: Counter[Standing] = Counter()
    for table, result in listed:
        counts = count_standings(table, result)
        total.update({} if table.stand_in else counts)
        grid.add_row(table.name, table.dataset, say_standings(table, result), table.caption)
    console.print(grid, highlight=False)
    if len(listed) > 1:
        left_out = ", ".join(table.name for table, _ in listed if table.stand_in)
        said = f" (without {left_out}, whose cells stand in another table too)" if left_out else ""
        console.print(f"In all{said}: {tally(total)}.", highlight=False)
    console.print("Show one: defend reproduce NAME --kept. Measure it again: defend reproduce NAME", highlight=False)


def tally(counts: Mapping[Standing, int]) -> str:
    """Say how many cells stand in each way: "30 cells of the paper: 12 within 3 points, 18 open"."""
    own = counts["beside"] + counts["unmeasured"]
    papers = {name: counts[name] for name in STYLES if name not in ("beside", "unmeasured") and counts[name]}
    stand = ", ".join(f"{count} {SAID[name]}" for name, count in papers.items())
    said = [f"{sum(papers.values())} cells of the paper: {stand}"] * bool(papers)
    still_open = f", {counts['unmeasured']} open" if counts["unmeasured"] else ""
    return "; ".join([*said, *([f"{own} of ours, which the paper has not{still_open}"] * bool(own))])


def say_standings(table: Table, result: TableResult | None) -> str:
    """Say how a table's cells stand; where nothing was measured, why, and what it takes."""
    takes = table.takes and f"not measured yet: it takes {table.takes}"
    return ": ".join(filter(None, (tally(count_standings(table, result)), "" if result else table.not_run or takes)))


def _ours(cell: Cell) -> str:
    return "-" if cell.ours is None or cell.ci95 is None else with_interval(cell.ours, cell.ci95)


def _which(cell: Cell) -> str:
    """Name the arm that a cell of the best of several is of."""
    return f", {cell.details['best']}" if "best" in cell.details else ""


def _seen(cell: Cell) -> str:
    """Say of how many images the attack had a gradient of exactly zero, and how many the detector rejected."""
    return "".join(f", {percent(cell.details[one])} {one}" for one in ("blind", "rejected") if one in cell.details)


def _adaptive(one: AdaptiveResult | None, whole: bool) -> str:
    if one is None:
        return ""
    figure = bound(one.rising) + with_interval(one.accuracy, one.ci95 if whole else None)
    return f"{figure}{beside(one.undercut_by)}{' ✗' * bool(one.failed)} {one.n:,}{', with credit' * one.credit}"


def explanations(result: TableResult) -> list[str]:
    """Return why figures are not the paper's: one line a reason, with the cells it is for; those without one last."""
    found: dict[str, list[Cell]] = {}
    for cell in result.cells:
        if cell.standing in ("stronger", "explained", "guessed", "off") or (cell.ours is None and cell.why):
            why = WHY[cell.standing] + (f": {cell.why}" if cell.why else "")
            found.setdefault(why, []).append(cell)
    unexplained = found.pop(WHY["off"], [])
    lines = [f"{_places(cells)}: {why}" for why, cells in found.items()]
    return lines + ([f"{_places(unexplained)}: {WHY['off']}"] if unexplained else [])


def _places(cells: Sequence[Cell]) -> str:
    """Name cells shortly: an arm's attacks together."""
    arms: dict[str, list[str]] = {}
    for cell in cells:
        arms.setdefault(cell.arm, []).append(cell.attack)
    return "; ".join(f"{arm} ({', '.join(attacks)})" for arm, attacks in arms.items())


def markdown(table: Table, result: TableResult | None) -> str | None:
    """Return a table for a README: ours, and the paper's in brackets, as the paper has it; adaptive beside it.

    Where nothing was measured that is how many cells are open, why, and what it takes; None where nobody says so.
    """
    if result is None:
        open_cells = say_standings(table, None)
        return f"{table.caption}. {open_cells}.\n" if table.not_run or table.takes else None
    shown = {cell.arm for cell in result.cells}
    arms = [arm.name for arm in table.arms if arm.name in shown]  # of several, a table may show the best alone
    attacks = [attack.name for attack in table.attacks]
    note = {one.arm: one for one in result.adaptive}
    sizes = {
        name: max((cell.n for cell in result.cells if cell.attack == name and cell.ours is not None), default=0)
        for name in attacks
    }
    named = {name: f"{name} (n={sizes[name]:,})" if sizes[name] else name for name in attacks}

    def adaptive(arm: str) -> str:
        one = note.get(arm)
        if one is None:
            return ""
        mark = ", rejected counts as right" * one.credit + " (a check failed)" * bool(one.failed)
        left = f"{bound(one.rising)}{percent(one.accuracy)}{beside(one.undercut_by)}"
        return f"**{left}** {interval(one.ci95)}, n={one.n:,}{mark}"

    def cell(attack: str, arm: str) -> str:
        one = result.cell(attack, arm)
        if one is None:
            return ""
        papers = "" if one.paper is None else f" ({percent(one.paper)})"
        return f"{percent(one.ours)}{papers}{_which(one)}{_seen(one)}"

    if table.across == "arms":
        head, body = ["", *arms], [[named[attack], *(cell(attack, arm) for arm in arms)] for attack in attacks]
        if note:
            body.append(["**adaptive**", *(adaptive(arm) for arm in arms)])
    else:
        last = ["**adaptive**"] if note else []
        head = ["", *(named[attack] for attack in attacks), *last]
        body = [[arm, *(cell(attack, arm) for attack in attacks), *([adaptive(arm)] if note else [])] for arm in arms]
    lines = [*readme.grid(head, body), ""]
    lines.append(
        f"{table.caption}: accuracy in %, ours (the paper's). `{result.command}`, {result.device}, torch "
        f"{result.versions.get('torch', '')}, seed {result.seed}. What the paper's figures are: {table.knowledge}"
    )
    if any("blind" in cell.details for cell in result.cells):
        lines[-1] += (
            ". Blind: the share of images at which the attack had a gradient of exactly zero, at a step or more"
        )
    if any(one.undercut_by for one in result.adaptive):
        lines[-1] += f". {BESIDE}"
    lines += ["", f"{tally(count_standings(table, result))}."]
    why = explanations(result)
    if why:
        lines += ["", *(f"- {line}" for line in why)]
    return "\n".join(lines) + "\n"


def write_readme(path: Path, tables: Sequence[Table]) -> list[str]:
    """Put the kept results between a README's marks, <!-- table NAME --> and <!-- end NAME -->; return their names.

    A table without one says there what it takes.

    Raises:
        ConfigError: the file cannot be read, or has no mark of any of these tables.
    """
    texts = {table.name: markdown(table, find_kept(table)) for table in tables}
    return readme.fill(path, "table", texts)
