"""A recipe to be read: what it is composed of, why, and what was measured of it. Imports no torch."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import attrs
from rich.console import Console, Group
from rich.table import Table as Grid
from rich.text import Text

from defend.recipes import Recipe, composition
from defend.report import readme
from defend.report.fitting import choose_fitting
from defend.report.text import (
    BESIDE,
    BOUND,
    NORMS,
    UNKNOWN_BOUND,
    beside,
    bound,
    of_norms,
    over_passes,
    percent,
    row_title,
    undercut_in_words,
    with_interval,
)
from defend.reproduce.ladders import Compared, Figure, Ladder, LadderRow, list_replaced
from defend.util.distributions import install
from defend.values.commands import say_command
from defend.values.report import ArmResult, WorstCase, is_loose, undercut_of_norm
from defend.values.threats import knows_the_defence
from defend.values.toml import run_config, to_toml


def entry(recipe: Recipe, ladder: Ladder | None) -> dict[str, Any]:
    """Return a recipe as `defend recipe --list --json` has it."""
    config = recipe.run_config()
    worst = None
    if ladder is not None:
        unknown = any(row.rising is None for row in ladder.rows if row.threat != "none")
        rising = None if unknown else list(ladder.worst_case.rising)
        told = {
            "failed": list(ladder.failed),
            "rising": rising,
            "outdated": _is_outdated(recipe, ladder),
            "replaced": list(list_replaced(recipe, ladder)),
        }
        worst = {**attrs.asdict(_worst(ladder)), **told}
    return {
        "name": recipe.name,
        "summary": recipe.summary,
        "dataset": config.dataset,
        "eps": config.eps,
        "composition": composition(config),
        "worst_case": worst,
        "missing": list(recipe.missing()),
    }


def as_dict(recipe: Recipe, ladder: Ladder | None) -> dict[str, Any]:
    """Return a recipe and its ladder for machines."""
    config = recipe.run_config()
    return {
        "name": recipe.name,
        "summary": recipe.summary,
        "composition": composition(config),
        "toml": to_toml(config),
        "why": recipe.why,
        "notes": list(recipe.notes),
        "needs": list(recipe.needs),
        "missing": list(recipe.missing()),
        "outdated": _is_outdated(recipe, ladder),
        "replaced": [] if ladder is None else list(list_replaced(recipe, ladder)),
        "ladder": None if ladder is None else json.loads(ladder.to_json()),
    }


def print_listing(console: Console, listed: Sequence[tuple[Recipe, Ladder | None]]) -> None:
    """Print all recipes, and what is left of each in the worst case."""
    if not listed:
        console.print("No recipe is installed: plugins bring them", highlight=False)
        return
    replaced = {recipe.name for recipe, ladder in listed if ladder is not None and list_replaced(recipe, ladder)}
    tables = (_listing(listed, replaced, left_out) for left_out in (0, 1, 2))
    console.print(choose_fitting(console, tables), highlight=False)
    if any(ladder is not None and ladder.failed for _, ladder in listed):
        console.print("*: not to be trusted, a check failed", style="red", highlight=False)
    console.print(
        "Accuracy in %, per image over the ladder, with its Wilson 95 % interval", style="dim", highlight=False
    )
    console.print("Show one: defend recipe NAME. Measure it again: defend recipe NAME --run", highlight=False)


def _listing(listed: Sequence[tuple[Recipe, Ladder | None]], replaced: Collection[str], left_out: int) -> Grid:
    """Make the table of all recipes, without the last columns: what it is, and what it is made of."""
    every = ("recipe", "data set", "eps", "worst case", "made of", "what it is")
    names = every[: len(every) - left_out]
    grid = Grid(box=None, pad_edge=False)
    for name in names:
        grid.add_column(name, overflow="fold", no_wrap=name in ("recipe", "data set", "worst case"))
    for recipe, ladder in listed:
        config = recipe.run_config()
        left = Text("not measured", "dim")
        if ladder is not None:
            figure = _worst(ladder)
            left = Text(f"{bound(ladder.worst_case.rising)}{_figure(figure)} n={figure.n:,}")
            left.append("*" if ladder.failed else "", "red")
            left.append("\nof an earlier recipe" if _is_outdated(recipe, ladder) else "", "yellow")
            left.append("\nof other weights" if recipe.name in replaced else "", "yellow")
        cells = (recipe.name, config.dataset, f"{config.eps:.4g}", left, composition(config), recipe.summary)
        grid.add_row(*cells[: len(names)])
    return grid


def render(recipe: Recipe, ladder: Ladder | None, console: Console) -> None:
    """Print a recipe: its parts, its TOML, why, and its ladder beside what it was held against."""
    config = recipe.run_config()
    lines: list[Text | Grid] = [
        Text.assemble((f"{recipe.name}: ", "bold"), recipe.summary),
        Text(f"{composition(config)}, on {config.dataset} at eps {config.eps:.4g}\n"),
        Text(to_toml(config), "dim"),
    ]
    lines += [Text(line) for line in (recipe.why, *recipe.notes) if line]
    missing = recipe.missing()
    if missing:
        lines.append(Text(f"Not installed: {install(missing)}", "yellow"))
    if ladder is None:
        lines.append(Text("\nNo ladder came with it"))
    else:
        lines += [Text(""), *_ladder(ladder, console)]
        if _is_outdated(recipe, ladder):
            lines.append(Text("The ladder is of an earlier version of this recipe", "bold red"))
        if replaced := list_replaced(recipe, ladder):
            lines.append(
                Text(
                    f"The ladder is of other weights than would be loaded here: {', '.join(replaced)}. Your own "
                    f"are taken first (`defend list`); measure them: {say_command('recipe', recipe.name, '--run')}",
                    "bold red",
                )
            )
        if ladder.compared:
            tables = (_comparison(ladder, fewer) for fewer in (0, 1, 2))
            lines += [Text(""), choose_fitting(console, tables)]
            if any(each.failed for each in ladder.compared):
                lines.append(Text("*: not to be trusted, a check of that run failed", "red"))
        lines.append(
            Text(f"\nMeasured by `{ladder.command}`, {ladder.device}, {_versions(ladder)}, seed {ladder.seed}", "dim")
        )
    again = say_command("recipe", recipe.name, "--run")
    lines.append(Text(f"Use it: defend.load_recipe({recipe.name!r}). Measure it again: {again}", "dim"))
    console.print(Group(*lines), soft_wrap=False)


def markdown(recipe: Recipe, ladder: Ladder) -> str:
    """Return a recipe for a README: its worst case beside those of what it was held against."""
    norms = tuple(ladder.worst_case.norms or ())
    ranked = _rank(ladder)
    images = f"(n={ladder.clean.n:,})"
    body = []
    for each in ranked:
        own, other_images = each.config == ladder.config, each.clean.n != ladder.clean.n
        body.append(
            [
                f"**{recipe.name}**: {each.name}" if own else each.name,
                f"{percent(each.clean.accuracy)}{f' (n={each.clean.n:,})' if other_images else ''}",
                f"{_worst_of(each)}{' (a check failed)' if each.failed else ''}",
                *_alone(each, norms),
                f"{each.worst_case.n:,}",
            ]
        )
    head = ["made of", f"clean {images}", "worst case", *(f"{_said(norm)} alone" for norm in norms), "n"]
    lines = [
        *readme.grid(head, body),
        "",
        f"{recipe.run_config().dataset}, {_budgets(ladder)}: accuracy in %, with Wilson 95 % intervals. The worst case "
        f"is per image, over {len(ladder.worst_case.over)} rows of the ladder. `{ladder.command}`, {ladder.device}, "
        f"torch {ladder.versions.get('torch', '')}, seed {ladder.seed}"
        f"{'. The recipe has changed since' if _is_outdated(recipe, ladder) else ''}"
        + "".join(f". {said}" for said in _bound_notes(ladder)),
    ]
    why = [f"- {each.name}: a check failed ({', '.join(each.failed)})" for each in ranked if each.failed]
    return "\n".join(lines + [""] * bool(why) + why) + "\n"


def write_readme(path: Path, recipes: Sequence[tuple[Recipe, Ladder | None]]) -> list[str]:
    """Put kept ladders between a README's marks, <!-- recipe NAME --> and <!-- end NAME -->; return their names.

    Raises:
        ConfigError: the file cannot be read, or has no mark of any of these recipes.
    """
    texts = {recipe.name: None if ladder is None else markdown(recipe, ladder) for recipe, ladder in recipes}
    return readme.fill(path, "recipe", texts)


def _budgets(ladder: Ladder) -> str:
    """Name the budget of every norm whose attacks count."""
    counted = [row for row in ladder.rows if row.headline and row.eps is not None and row.threat != "none"]
    return ", ".join(f"{norm} {eps:.3g}" for norm, eps in {_said(row.norm): row.eps for row in counted}.items())


def _said(norm: str) -> str:
    return NORMS.get(norm, norm)


def _rows(ladder: Ladder, fewer: int) -> Grid:
    """Make the table of the ladder's rows.

    With one step fewer the undefended figures have no interval, with two the steps are left out too.
    """
    grid = Grid(title="What is left, by attacker", title_justify="left")
    grid.add_column("attack", no_wrap=True)
    grid.add_column("threat", overflow="fold")
    for name in ("eps", *(["steps"] if fewer < 2 else []), "n", "undefended", "defended"):
        grid.add_column(name, justify="right", no_wrap=True)
    previous = ""
    for row in ladder.rows:
        if row.threat != previous:
            grid.add_section()
        previous = row.threat
        grid.add_row(*_cells(row, fewer))
    grid.add_section()
    worst = ladder.worst_case
    grid.add_row(
        Text("worst case", "bold"),
        f"over {len(worst.over)} rows",
        "",
        *([""] if fewer < 2 else []),
        f"{worst.n:,}",
        percent(worst.undefended),
        Text(bound(worst.rising) + _figure(worst), "bold"),
    )
    return grid


def _ladder(ladder: Ladder, console: Console) -> list[Text | Grid]:
    worst = ladder.worst_case
    grid = choose_fitting(console, (_rows(ladder, fewer) for fewer in range(3)))
    lines: list[Text | Grid] = [grid]
    lines.append(
        Text(
            "accuracy in %, with Wilson 95 % intervals; rows without an undefended figure attack the whole "
            "defence; the worst case is per image",
            "dim",
        )
    )
    lines += [Text(said, "dim") for said in _bound_notes(ladder)]
    lines += [Text(f"{kind}: left out, {why}", "dim") for kind, why in ladder.left_out.items()]
    if worst.undercut_by:
        lines.append(Text(undercut_in_words(worst.undercut_by)))
    if worst.weakest:
        lines.append(Text(f"Least is left by {worst.weakest}"))
    if worst.norms:
        lines.append(Text(of_norms(worst.norms, worst.rising)))
    if worst.with_credit:
        share = with_interval(worst.with_credit["accuracy"], worst.with_credit["ci95"], between=" % ")
        below = undercut_in_words(worst.undercut_with_credit)
        lines.append(Text("; ".join(filter(None, [f"With credit for rejected attacks {share}", below]))))
    if worst.passes:
        lines.append(Text(over_passes(worst.passes)))
    if ladder.failed:
        lines.append(Text(f"Not to be trusted, a check failed ({', '.join(ladder.failed)})", "bold red"))
    elif ladder.checks:
        said = {status: sum(check.status == status for check in ladder.checks) for status in ("pass", "warn", "skip")}
        lines.append(Text(f"Checks: {', '.join(f'{count} {status}' for status, count in said.items() if count)}"))
    return lines


def _cells(row: LadderRow, fewer: int) -> tuple[str, ...]:
    bare = _figure(row.undefended) if fewer < 1 else percent(row.undefended.accuracy)
    return (
        *row_title(row.attack, row.threat, row.variant, row.eps),
        *(["" if row.steps is None else str(row.steps)] if fewer < 2 else []),
        f"{row.n:,}",
        "" if knows_the_defence(row.threat) else bare,
        bound(is_loose(bool(row.rising), row.threat, has_defence=True)) + _figure(row.defended),
    )


def _comparison(ladder: Ladder, fewer: int) -> Grid:
    """Make the table of what it was held against, the best worst case first and the recipe among them.

    With one step fewer the clean figures have no interval, with two what each norm leaves is left out too.
    """
    grid = Grid(title="Held against", title_justify="left")
    grid.add_column("made of", overflow="fold")
    norms = tuple(ladder.worst_case.norms or ()) if fewer < 2 else ()
    for name in ("clean", "n", "worst case", *(f"{_said(norm)} alone" for norm in norms), "n"):
        grid.add_column(name, justify="right", no_wrap=True)
    for each in _rank(ladder):
        worst = f"{_worst_of(each)}{'*' * bool(each.failed)}"
        grid.add_row(
            each.name,
            _figure(each.clean) if fewer < 1 else percent(each.clean.accuracy),
            f"{each.clean.n:,}",
            worst,
            *_alone(each, norms),
            f"{each.worst_case.n:,}",
            style="bold" if each.config == ladder.config else "",
        )
    return grid


def _rank(ladder: Ladder) -> list[Compared]:
    """Return the recipe among what it was held against, the best worst case first; whose checks failed, last."""
    itself = Compared(
        name=composition(run_config(tomllib.loads(ladder.config))),
        config=ladder.config,
        clean=ladder.clean,
        worst_case=_worst(ladder),
        failed=ladder.failed,
        norms=ladder.worst_case.norms,
        rising=ladder.worst_case.rising,
    )
    return sorted((itself, *ladder.compared), key=lambda one: (bool(one.failed), -one.worst_case.accuracy))


def _alone(each: Compared, norms: Sequence[str]) -> list[str]:
    """Return what the attacks of each norm alone leave, as texts."""
    alone = [(each.norms or {}).get(norm) for norm in norms]
    rising = [None if one is None else one.get("rising", each.rising) for one in alone]
    return [
        "" if one is None else f"{bound(loose)}{percent(one['accuracy'])}{beside(undercut_of_norm(one))}"
        for one, loose in zip(alone, rising, strict=True)
    ]


def _worst(ladder: Ladder) -> Figure:
    return Figure.of(ladder.worst_case, ladder.worst_case.n)


def _worst_of(each: Compared) -> str:
    return bound(each.rising) + _figure(each.worst_case)


def _bound_notes(ladder: Ladder) -> list[str]:
    """Say what marks an upper bound, or that nobody knows which figures are."""
    attacked = [row for row in ladder.rows if row.threat != "none"]
    below = [BESIDE] * any(each.worst_case.undercut_by for each in _rank(ladder))
    if any(row.rising is None for row in attacked):
        return [UNKNOWN_BOUND, *below]
    compared = any(each.rising for each in ladder.compared)
    return [BOUND] * (compared or any(row.rising for row in attacked)) + below


def _figure(one: ArmResult | Figure | WorstCase) -> str:
    return with_interval(one.accuracy, one.ci95) + ("" if isinstance(one, ArmResult) else beside(one.undercut_by))


def _is_outdated(recipe: Recipe, ladder: Ladder | None) -> bool:
    return ladder is not None and ladder.config != to_toml(recipe.run_config())


def _versions(ladder: Ladder) -> str:
    """Return the versions that a line has room for; the file has those of all libraries."""
    shown = ("defend-core", "python", "torch", "timm")
    return ", ".join(f"{name} {ladder.versions[name]}" for name in shown if name in ladder.versions)
