"""`defend show`."""

from __future__ import annotations

import click

from defend.cli.completion import names_of
from defend.cli.flags import JSON, print_json
from defend.cli.usage import OUTPUT, command
from defend.report.progress import open_console


@command("show", {OUTPUT: [JSON]})
@click.argument("name", shell_complete=names_of())
def show_command(name: str, as_json: bool) -> None:
    """Explain a stage: its paper, its options, its weights and their figures."""
    from defend.plugins import registry
    from defend.report import catalogue

    shown = catalogue.descriptions(registry(), name)
    if as_json:
        print_json(shown)
        return
    console = open_console()
    for description in shown:
        catalogue.print_description(console, description)
