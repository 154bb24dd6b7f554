"""`defend list`."""

from __future__ import annotations

import click

from defend.cli.flags import JSON, print_json
from defend.cli.usage import OUTPUT, Choice, command
from defend.report.progress import open_console
from defend.stages import STAGES


@command("list", {OUTPUT: [JSON]})
@click.argument("stage", required=False, type=Choice(STAGES))
def list_command(stage: str | None, as_json: bool) -> None:
    """List every installed stage, by kind, and the weights that exist.

    With STAGE (attack, purifier, detector, victim, finetuner, dataset) those of one, with a line on each.
    """
    from defend.plugins import registry
    from defend.report import catalogue

    found = registry()
    if as_json:
        failures = [{"plugin": failure.plugin, "cause": failure.cause} for failure in found.failures]
        stages = [row for row in catalogue.listing(found) if stage in (None, row["stage"])]
        print_json({"stages": stages, "failures": failures})
    else:
        catalogue.print_listing(open_console(), found, stage)
