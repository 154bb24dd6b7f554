"""`defend list`."""

from __future__ import annotations

from defend.cli.flags import JSON, print_json
from defend.cli.usage import OUTPUT, command
from defend.report.progress import open_console


@command("list", {OUTPUT: [JSON]})
def list_command(as_json: bool) -> None:
    """List every installed stage, by kind, and the weights that exist."""
    from defend.plugins import registry
    from defend.report import catalogue

    found = registry()
    if as_json:
        failures = [{"plugin": failure.plugin, "cause": failure.cause} for failure in found.failures]
        print_json({"stages": catalogue.listing(found), "failures": failures})
    else:
        catalogue.print_listing(open_console(), found)
