"""`defend show`."""

from __future__ import annotations

import click

from defend.cli.completion import names_of
from defend.cli.flags import JSON, print_json
from defend.cli.usage import OUTPUT, command
from defend.report.progress import open_console
from defend.values.threats import THREATS


@command("show", {OUTPUT: [JSON]})
@click.argument("name", shell_complete=names_of())
def show_command(name: str, as_json: bool) -> None:
    """Explain a stage: its paper, its options, its weights and their figures; or a threat: what its attacker knows."""
    from defend.plugins import registry
    from defend.report import catalogue

    known, threat = registry(), THREATS.get(name)
    named = threat is None or any(entry.spec.name == name for entry in known.all_entries())
    shown = catalogue.descriptions(known, name) if named else []
    if as_json:
        print_json(
            [*shown, *([] if threat is None else [{"stage": "threat", "name": name, "summary": threat.summary}])]
        )
        return
    console = open_console()
    if threat is not None:
        catalogue.print_threat(console, name, threat.summary)
    for description in shown:
        catalogue.print_description(console, description)
