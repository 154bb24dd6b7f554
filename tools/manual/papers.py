"""A page a plugin, from what it offers, its weights' cards, its kept results and its README; and one of all."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Mapping
from typing import Any

import attrs

from defend.plugins import registry
from defend.recipes import Recipe
from defend.report import catalogue
from defend.report import recipe as recipe_report
from defend.report.reproduction import markdown as table_markdown
from defend.report.reproduction import say_standings
from defend.report.text import beside, bound, with_interval
from defend.reproduce import ladders, results
from defend.stages import Paper
from tools.manual.included import ROOT, include, plugin_folders
from tools.manual.markdown import cell, code, table


@attrs.frozen
class Plugin:
    """One of the repository's plugins: its folder's name, its distribution and what that offers."""

    name: str
    distribution: str
    summary: str
    stages: tuple[dict[str, Any], ...]

    @property
    def papers(self) -> list[Paper]:
        """The papers of its stages, each once."""
        return list(dict.fromkeys(Paper(**stage["paper"]) for stage in self.stages if stage["paper"]))


def plugins() -> list[Plugin]:
    """Return the plugins of this repository that are installed, by name."""
    found = []
    known = registry()
    for folder in plugin_folders():
        project = tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        offered = [
            shown
            for entry in known.all_entries()
            if entry.origin == project["name"]
            for shown in catalogue.descriptions(known, entry.spec.name)
            if shown["stage"] == entry.stage
        ]
        if not offered:
            raise RuntimeError(
                f"{project['name']} is not installed, and its page is made from it: pip install ./core ./plugins/*"
            )
        found.append(Plugin(folder.name, project["name"], project["description"], tuple(offered)))
    return found


def pages() -> dict[str, str]:
    """Return the page of each plugin by its name in docs/."""
    return {f"papers/{plugin.name}.md": page(plugin) for plugin in plugins()}


def cite(paper: Paper) -> str:
    """Return a paper as a line with its link."""
    said = f"{paper.authors}{f' ({paper.year})' if paper.year else ''}".strip()
    title = f"[{paper.title}]({paper.url})" if paper.url else f"*{paper.title}*"
    return f"{said}: {title}" if said else title


def page(plugin: Plugin) -> str:
    """Return a plugin's page."""
    body = include(f"plugins/{plugin.name}/README.md", f"papers/{plugin.name}.md").partition("\n")[2]
    summary, mark, details = body.partition("\n## ")
    lines = [f"# {plugin.name}", "", *(f"> {cite(paper)}\n" for paper in plugin.papers), summary]
    lines += [
        "## What it offers",
        table(("stage", "name", "what it is"), ((s["stage"], offered(s), cell(s["summary"])) for s in plugin.stages)),
    ]
    if weights := [(stage, one) for stage in plugin.stages for one in stage["weights"] if one["shipped"]]:
        lines += ["## Weights that ship", "From their cards; `defend show NAME` has all of it.", weights_table(weights)]
    return "\n".join(lines) + mark + details


def offered(stage: dict[str, Any]) -> str:
    """Return a stage's name with a link to its options."""
    return f"[`{stage['name']}`](../reference/options.md#{stage['stage']}-{stage['name']})"


def weights_table(weights: Iterable[tuple[dict[str, Any], dict[str, Any]]]) -> str:
    """Return a table of weights files."""
    rows = {}
    for stage, one in weights:
        figures = ", ".join(f"{name} {value:.4g}" for name, value in chosen_figures(one["figures"]))
        recipe = ", ".join(f"{name}={value}" for name, value in one["recipe"].items() if isinstance(value, int | float))
        edition = f"+{one['edition']}" if one["edition"] else ""
        row = (
            code(one["name"]),
            one["filed_as"] + edition,
            f"{one['bytes'] / 1e6:.2f} MB",
            cell(figures),
            cell(recipe),
        )
        rows.setdefault(one["file"], (stage["stage"], *row))  # a detector shares its purifier's
    return table(("stage", "name", "for", "size", "figures", "trained with"), rows.values())


def chosen_figures(figures: Mapping[str, float]) -> list[tuple[str, float]]:
    """Return a card's figures without those of denoising, which have a table, and validation's where the test's are."""
    return [
        (name, value)
        for name, value in figures.items()
        if "psnr" not in name and not (name.startswith("val_") and name.replace("val_", "test_", 1) in figures)
    ]


def standings(plugin: str) -> list[tuple[str, str, str]]:
    """Return how the kept result of each of a plugin's tables stands to the paper's."""
    rows = []
    for one in registry().tables.values():
        if one.plugin == plugin:
            kept = results.find_kept(one)
            rows.append((code(one.name), cell(one.caption), cell(say_standings(one, kept))))
    return rows


def all_papers() -> str:
    """Return the table of all plugins: their papers, what they offer, and for which data sets weights ship."""
    rows = []
    for plugin in plugins():
        offers = "; ".join(f"{s['stage']} `{s['name']}`" for s in plugin.stages if s["stage"] != "attack")
        cites = "<br>".join(map(cite, plugin.papers)) or cell(plugin.summary)
        data = sorted({one["dataset"] for stage in plugin.stages for one in stage["weights"] if one["shipped"]})
        rows.append((f"[`{plugin.name}`]({plugin.name}.md)", cites, offers, ", ".join(data)))
    return table(("plugin", "paper", "offers", "weights for"), rows)


def all_standings() -> str:
    """Return every results table of the papers, and how the kept figures stand to it."""
    return table(
        ("table", "what it shows", "our cells"), [row for plugin in plugins() for row in standings(plugin.name)]
    )


def kept_table(name: str) -> str:
    """Return the kept result of a paper's table."""
    one = registry().tables[name]
    kept = results.find_kept(one)
    if kept is None:
        raise RuntimeError(f"table {name} has no kept result")
    return table_markdown(one, kept)


def all_recipes() -> str:
    """Return the recipes with what was left of each in the worst case."""
    rows = []
    for one in registry().recipes.values():
        kept = ladders.find_kept(one)
        worst = "not measured" if kept is None else said_worst(kept)
        rows.append((code(one.name), cell(one.summary), cell(recipe_report.entry(one, kept)["composition"]), worst))
    return table(("recipe", "what it is", "made of", "worst case, %"), rows)


def said_worst(kept: ladders.Ladder) -> str:
    """Return a ladder's worst case, struck out where a check failed."""
    worst = kept.worst_case
    said = f"{bound(worst.rising)}{with_interval(worst.accuracy, worst.ci95)}{beside(worst.undercut_by)}, n={worst.n:,}"
    return f"~~{said}~~ (a check failed)" if kept.failed else said


def kept_recipe(name: str) -> str:
    """Return the kept ladder of a recipe, beside what it was held against."""
    one: Recipe = registry().recipes[name]
    kept = ladders.find_kept(one)
    if kept is None:
        raise RuntimeError(f"recipe {name} has no kept ladder")
    return recipe_report.markdown(one, kept)


def missing_links(text: str) -> list[str]:
    """Return the links of a text that lead to files of the repository that are not there."""
    aims = re.findall(r"\]\((?!https?:|#)([^)#]+)", text)
    return [aim for aim in aims if not (ROOT / aim).exists()]
