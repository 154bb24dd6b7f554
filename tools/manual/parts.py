"""Parts of hand-written pages that are generated: a page says {{ NAME ARGUMENT }} on a line of its own."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import attrs

from defend.errors import ConfigError
from defend.recipes import LOCAL
from defend.report.text import bound, percent, row_title
from defend.values.commands import say_command
from defend.values.report import is_loose
from defend.values.run_config import RunConfig
from defend.values.threats import THREATS, knows_the_defence
from defend.values.toml import run_config, to_toml
from tools.finished import failed_checks, read_finished
from tools.manual import papers
from tools.manual.bars import bars
from tools.manual.included import ROOT
from tools.manual.ladders import ladder_of
from tools.manual.markdown import cell, code, figure, table, undercut_of

FIRST_RUN = ROOT / "docs/results/first-run.json"
PLACE = re.compile(r"^\{\{ *(\w+)(?: +([^}]*?))? *\}\}$", re.MULTILINE)
"""Where a page wants a part, and its argument."""
CHOSEN = {"purifier": "apudae", "victim": "resnet18"}
COMMAND = say_command("run", *(word for stage, name in CHOSEN.items() for word in (f"--{stage}", name)))


def keep_first_run(run: Path) -> None:
    """Keep what the README's command measured: the rows and the headline of a run folder.

    Raises:
        ConfigError: the run is not complete, or of another command.
    """
    from defend.util.files import write_text

    report = read_finished(run, "the run")
    ran, wanted = (_as_toml(settings) for settings in (report["config"], CHOSEN))
    if ran != wanted:
        raise ConfigError(f"the run in {str(run)!r} is not of `{COMMAND}`: its settings are {ran}, expected {wanted}")
    kept = {"command": COMMAND, **{key: report[key] for key in ("versions", "plugins", "seed", "rows", "worst_case")}}
    kept["failed"] = failed_checks(report)
    kept["rows"] = [{key: value for key, value in row.items() if key != "seconds"} for row in kept["rows"]]
    write_text(FIRST_RUN, json.dumps(kept, indent=1) + "\n", "the first run")


def _as_toml(settings: Mapping[str, Any]) -> str:
    """Return what of a run's settings is not the default, less what is a machine's own, on a line."""
    own = {field.name: field.default for field in attrs.fields(RunConfig) if field.name in LOCAL}
    return to_toml(attrs.evolve(run_config(settings), **own)).strip().replace("\n", ", ")


def first_run() -> str:
    """Return the table that the README's command prints."""
    kept = json.loads(FIRST_RUN.read_text(encoding="utf-8"))
    rows = []
    for row in kept["rows"]:
        title = row_title(row["attack"], row["threat"], row["variant"], row["eps"])
        curve = row["curve"]
        loose = bound(is_loose(bool(curve) and not curve["flattened"], row["threat"], has_defence=True))
        bare = "" if knows_the_defence(row["threat"]) else figure(row["undefended"])
        rows.append((*title, str(row["steps"] or ""), str(row["n"]), bare, loose + figure(row["defended"])))
    worst = kept["worst_case"]
    last = f"{'at most ' if worst['rising'] else ''}{figure(worst)}{undercut_of(worst)}"
    last = f"~~{last}~~ (a check failed: {', '.join(failed)})" if (failed := kept["failed"]) else f"**{last}**"
    rows.append(("**worst case per image**", "", "", "", str(worst["n"]), percent(worst["undefended"]), last))
    return table(("attack", "threat", "eps", "steps", "n", "undefended", "defended"), rows).strip()


def threats() -> str:
    """Return the threat ladder, weakest first."""
    rows = (
        (code(name), cell(one.summary), *(", ".join(map(code, each)) for each in (one.attacks, one.more)), one.needs)
        for name, one in THREATS.items()
    )
    attacks = "attacks, unless `--attack` names others", "`--thorough` adds"
    return table(("threat", "what the attacker has", *attacks, "needs a"), rows)


def stages(stage: str) -> str:
    """Return what is installed of a stage."""
    from defend.plugins import registry

    return table(
        (stage, "what it is", "from"),
        (
            (
                f"[`{one.spec.name}`](../reference/options.md#{stage}-{one.spec.name})",
                cell(one.spec.summary),
                one.origin,
            )
            for one in registry().entries(stage)  # type: ignore[arg-type]
        ),
    )


def contracts() -> str:
    """Return the contract suites, and what each tests."""
    from defend import testing

    suites = [
        getattr(testing, name) for name in testing.__all__ if name.endswith("Contract") and name != "StageContract"
    ]
    rows = []
    for suite in suites:
        tests = [name for one in reversed(suite.__mro__) for name in vars(one) if name.startswith("test_")]
        said = dict.fromkeys(name.removeprefix("test_").replace("_", " ") for name in tests)
        rows.append((code(suite.__name__), cell("; ".join(said))))
    return table(("suite", "tests"), rows)


PARTS: Mapping[str, Callable[..., str]] = {
    "first_run": first_run,
    "ladder": ladder_of,
    "bars": bars,
    "threats": threats,
    "stages": stages,
    "contracts": contracts,
    "papers": papers.all_papers,
    "standings": papers.all_standings,
    "recipes": papers.all_recipes,
    "table": papers.kept_table,
    "recipe": papers.kept_recipe,
}
