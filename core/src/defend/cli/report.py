"""`defend report`."""

from __future__ import annotations

from pathlib import Path

import click

from defend.cli.flags import JSON, PATH, print_json
from defend.cli.say import say
from defend.cli.usage import OUTPUT, command, option
from defend.report.progress import open_console, show_waiting

OUT = option("--out FILE", "The page (default RUN/report.html; defend-report.html here for several).", type=PATH)


@command("report", {OUTPUT: [OUT, JSON]})
@click.argument("runs", nargs=-1, required=True, type=PATH, metavar="RUN...")
def report_command(runs: tuple[Path, ...], out: Path | None, as_json: bool) -> None:
    """Write a run's page, to read on any screen or print, and its figures for a paper.

    RUN is a folder that `defend run` wrote; of several, the page begins with a leaderboard. The figures are PNG and
    SVG files in RUN/figures. --json lists the files.
    """
    with show_waiting(open_console(stderr=True), quiet=as_json, what="drawing"):
        from defend.report.page import write_page

        written = write_page(runs, out)
    for doubt in written.doubts:
        say(f"Note: {doubt}", err=True)
    if as_json:
        print_json([str(file) for file in (written.page, *written.figures)])
        return
    folders = dict.fromkeys(str(file.parent) for file in written.figures)
    say(f"Written to {written.page}, and {len(written.figures)} figures (PNG, SVG) to {', '.join(folders)}")
