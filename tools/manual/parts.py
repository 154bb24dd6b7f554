"""Parts of hand-written pages that are generated: a page says {{ NAME ARGUMENT }} on a line of its own."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path

from defend.report.text import percent, row_title
from defend.values.threats import THREATS, knows_the_defence
from tools.manual import papers
from tools.manual.bars import bars
from tools.manual.included import ROOT
from tools.manual.ladders import ladder_of
from tools.manual.markdown import cell, code, figure, table

FIRST_RUN = ROOT / "docs/results/first-run.json"
PLACE = re.compile(r"^\{\{ *(\w+)(?: +([^}]*?))? *\}\}$", re.MULTILINE)
"""Where a page wants a part, and its argument."""
COMMAND = "defend run --purifier apudae --victim resnet18"


def keep_first_run(run: Path) -> None:
    """Keep what the README's command measured: the rows and the headline of a run folder."""
    from defend.util.files import write_text

    report = json.loads((run / "report.json").read_text(encoding="utf-8"))
    kept = {"command": COMMAND, **{key: report[key] for key in ("versions", "plugins", "seed", "rows", "worst_case")}}
    kept["rows"] = [{key: value for key, value in row.items() if key != "seconds"} for row in kept["rows"]]
    write_text(FIRST_RUN, json.dumps(kept, indent=1) + "\n", "the first run")


def first_run() -> str:
    """Return the table that the README's command prints."""
    kept = json.loads(FIRST_RUN.read_text(encoding="utf-8"))
    rows = []
    for row in kept["rows"]:
        title = row_title(row["attack"], row["threat"], row["variant"], row["eps"])
        curve = row["curve"]
        loose = "≤ " if curve and not curve["flattened"] and knows_the_defence(row["threat"]) else ""
        bare = "" if knows_the_defence(row["threat"]) else figure(row["undefended"])
        rows.append((*title, str(row["steps"] or ""), str(row["n"]), bare, loose + figure(row["defended"])))
    worst = kept["worst_case"]
    bound = "at most " if worst["rising"] else ""
    last = f"**{bound}{figure(worst)}**"
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
