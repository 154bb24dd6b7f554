"""`defend compare`."""

from __future__ import annotations

from pathlib import Path

import attrs
import click

from defend.cli.flags import JSON, PATH, print_json
from defend.cli.usage import OUTPUT, command
from defend.report.progress import open_console


@command("compare", {OUTPUT: [JSON]})
@click.argument("runs", nargs=-1, required=True, type=PATH, metavar="RUN...")
def compare_command(runs: tuple[Path, ...], as_json: bool) -> None:
    """Lay runs side by side, and test their differences on the same images (McNemar).

    RUN is a folder that `defend run` wrote, be it of several arms. The others are compared with the first.
    """
    from defend.records.compare import compare
    from defend.records.reading import read_run, run_folders
    from defend.records.standing import find_doubts
    from defend.report import comparison

    compared = compare([read_run(folder) for folder in run_folders(runs)])
    told = zip(compared.labels, compared.runs, strict=True)
    doubts = [f"{label}: {doubt}" for label, run in told for doubt in find_doubts(run.report)]
    compared = attrs.evolve(compared, notes=(*compared.notes, *doubts))
    if as_json:
        print_json(comparison.to_dict(compared))
    else:
        comparison.render(compared, open_console())
