"""`defend new-plugin`."""

from __future__ import annotations

from pathlib import Path

import click

from defend.cli.flags import JSON, PATH, print_json
from defend.cli.say import say
from defend.cli.usage import OUTPUT, command, option

STAGE = option("--stage STAGE", "purifier, detector, victim, attack, finetuner, dataset.", required=True)
FOLDER = option("--folder DIR", "Where to make it (default: here).", type=PATH, default=Path())


@command("new-plugin", {"What to make": [STAGE, FOLDER], OUTPUT: [JSON]})
@click.argument("name")
def new_plugin_command(name: str, stage: str, folder: Path, as_json: bool) -> None:
    """Write a plugin that installs, is listed, and whose contract suite passes: a start for your own.

    For example: defend new-plugin sharpen --stage purifier
    """
    from defend.scaffold.create import create

    files = create(name, stage, folder)
    if as_json:
        print_json([str(file) for file in files])
        return
    made = folder / name
    say(f"Written: {len(files)} files in {made}. Next: pip install -e {made} pytest && pytest {made}")
