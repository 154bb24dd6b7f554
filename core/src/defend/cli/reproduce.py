"""`defend reproduce`, one function a mode: list tables, show or write the results that came with them, measure."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from defend.cli.exits import INTERRUPTED, WRONG_INPUT
from defend.cli.flags import DATA_DIR, DEVICE, JSON, PATH, QUIET, SEED, TRAIN_MISSING, given, print_json
from defend.cli.say import say
from defend.cli.usage import OUTPUT, command, option
from defend.errors import ConfigError, DefendError
from defend.report import progress

if TYPE_CHECKING:
    from rich.console import Console

    from defend.reproduce.results import TableResult
    from defend.tables import Table

    Measured = Sequence[tuple[Table, TableResult]]


@command(
    "reproduce",
    {
        "What to do": [
            option("--list", "List the tables that the installed plugins declare.", "listing"),
            option("--kept", "Show the results that came with the plugins; nothing is run."),
            option(
                "--readme FILE",
                "With --kept: write the tables between this file's marks, <!-- table NAME --> and <!-- end NAME -->.",
                type=PATH,
            ),
            option("--page FILE", "With --kept: write one table as an HTML page.", type=PATH),
        ],
        "How much": [
            option("--limit N", "At most N images in any cell, for a quick look.", type=int),
            option(
                "--open", "Measure only the cells that the kept result lacks; take the others from it.", "only_open"
            ),
            SEED,
            TRAIN_MISSING,
        ],
        OUTPUT: [
            option(
                "--out DIR",
                "Where runs and results go; what is complete there is not run again.",
                type=PATH,
                default=Path("reproductions"),
                show_default=True,
            ),
            JSON,
            QUIET,
        ],
        "Machine": [
            DATA_DIR,
            DEVICE,
            option("--batch-size N", "Images at a time.", type=int, default=64, show_default=True),
        ],
    },
)
@click.argument("names", nargs=-1, metavar="[TABLE...]")
def reproduce_command(
    names: tuple[str, ...],
    listing: bool,
    kept: bool,
    readme: Path | None,
    page: Path | None,
    as_json: bool,
    **values: Any,
) -> int:
    """Measure a paper's table again: ours, the paper's, and what an adaptive attacker leaves.

    TABLE is for example apudae/table-2, or apudae for all of a plugin's. Cut off, the same command goes on.
    """
    _refuse_mixtures(values, listing=listing, kept=kept, readme=readme, page=page, as_json=as_json)
    chosen = _choose(names, listing, kept)
    if listing:
        return _list_tables(chosen, as_json)
    if not kept:
        return _measure(chosen, names, as_json=as_json, **values)
    if readme is not None:
        return _write_readme(chosen, readme)
    if page is not None:
        return _write_page(_kept(chosen), page)
    return _show(_kept(chosen), as_json)


def _refuse_mixtures(
    values: Mapping[str, Any], *, listing: bool, kept: bool, readme: Path | None, page: Path | None, as_json: bool
) -> None:
    """Refuse two things to do at once, and what the one has no use for."""
    written = [flag for flag, file in (("--readme", readme), ("--page", page)) if file is not None]
    for flag in written:
        if not kept:
            raise ConfigError(f"{flag} needs --kept: it writes the results that came with the plugins")
    modes = [flag for flag, given in (("--list", listing), ("--kept", kept)) if given]
    if len(modes) > 1:
        raise ConfigError(f"{modes[0]} and {modes[1]} were both given: give one of them")
    if len(written) > 1 or (written and as_json):
        other = written[1] if len(written) > 1 else "--json"
        raise ConfigError(f"{written[0]} and {other} were both given: give one of them")
    of_runs = [key for key in ("limit", "seed", "data_dir") if values.get(key) is not None]  # 0 was given too
    of_runs += [key for key in ("train_missing", "open") if values.get({"open": "only_open"}.get(key, key))]
    if modes and of_runs:
        flag = f"--{of_runs[0].replace('_', '-')}"
        raise ConfigError(f"{flag} is of a measurement, and {modes[0]} measures nothing: leave out one of the two")


def _choose(names: Sequence[str], listing: bool, kept: bool) -> Sequence[Table]:
    """Return the tables that were named; where all are meant, those that are installed, by name."""
    from defend.plugins import registry
    from defend.tables import choose_tables

    for name in names:
        registry().refuse_claimed("table", name)
    if names and listing:
        raise ConfigError(f"--list lists every table: leave out {names[0]!r}")
    if not names and not listing and not kept:
        raise ConfigError("no table was named: see `defend reproduce --list`, or name a plugin")
    every = registry().tables.values()
    return choose_tables(every, names) if names else sorted(every, key=lambda one: one.name)


def _list_tables(chosen: Iterable[Table], as_json: bool) -> int:
    from defend.report import reproduction
    from defend.reproduce import results

    listed = [(table, results.find_kept(table)) for table in chosen]
    if as_json:
        print_json([reproduction.entry(table, result) for table, result in listed])
    else:
        reproduction.print_listing(progress.open_console(), listed)
    return 0


def _kept(chosen: Sequence[Table]) -> Measured:
    """Return the tables whose results came with their plugins."""
    from defend.reproduce import results

    there = [(table, results.find_kept(table)) for table in chosen]
    measured = [(table, result) for table, result in there if result is not None]
    if not measured:
        several = ", ".join(table.name for table in chosen)
        raise ConfigError(f"no result of {several} came with its plugin: measure it, without --kept")
    return measured


def _write_readme(chosen: Sequence[Table], file: Path) -> int:
    from defend.report.reproduction import write_readme

    say(f"Written to {file}: {', '.join(write_readme(file, chosen))}")
    return 0


def _write_page(measured: Measured, file: Path) -> int:
    from defend.report.reproduction_page import write_page

    if len(measured) > 1:
        raise ConfigError(f"--page {str(file)!r} holds one table: name one, for example {measured[0][0].name}")
    write_page(*measured[0], file)
    say(f"Written to {file}")
    return 0


def _show(measured: Measured, as_json: bool) -> int:
    """Print results; return the exit code, wrong input where a run of them failed."""
    from defend.report import reproduction

    if as_json:
        print_json([reproduction.as_dict(table, result) for table, result in measured])
    else:
        for table, result in measured:
            reproduction.render(table, result, progress.open_console())
    return WRONG_INPUT if any(result.failed for _, result in measured) else 0


def _measure(
    chosen: Sequence[Table], names: Sequence[str], *, out: Path, as_json: bool, quiet: bool, **values: Any
) -> int:
    """Measure tables one after the other, each with a page; those that cannot be are told of where several are."""
    if values["limit"] is not None and values["limit"] < 1:
        raise ConfigError(f"--limit {values['limit']}: expected at least 1")
    console = progress.open_console(stderr=True)
    with progress.show_waiting(console, quiet):
        from defend.report.reproduction_page import page_name, write_page
        from defend.reproduce.jobs import MeasureSettings
        from defend.reproduce.measure import reproduce
        from defend.util.files import make_folder
    announce = (lambda line: None) if quiet else functools.partial(_say, console)
    settings = MeasureSettings(out=out, announce=announce, **given(values))
    measured: list[tuple[Table, TableResult]] = []
    wrong = 0
    for table in chosen:
        if table.name not in names and (reason := _reason_to_skip(table)):
            _say(console, reason)
            continue
        watcher = progress.RunBar(console, quiet)
        try:
            result = reproduce(table, settings, watcher)
        except DefendError as error:
            if len(chosen) == 1:
                raise
            _say(console, f"{table.name}: {error}", style="red")
            wrong = WRONG_INPUT
            continue
        finally:
            watcher.end()
        measured.append((table, result))
        make_folder(out)
        write_page(table, result, out / page_name(table))
        if result.partial:
            break
    failed = _show(measured, as_json)
    for table, _ in () if as_json else measured:
        say(f"Page: {out / page_name(table)}; beside it the result as JSON, and a folder for each run")
    if any(result.partial for _, result in measured):
        say("interrupted: the same command goes on where it stopped", err=True)
        return INTERRUPTED
    return wrong or failed


def _reason_to_skip(table: Table) -> str:
    """Return why a table is not measured where nobody named it, or nothing."""
    from defend.util.distributions import lack

    if table.not_run:
        return f"{table.name}: {table.not_run}; name it to try"
    return lack(f"table {table.name!r}", table.missing()) if table.missing() else ""


def _say(console: Console, line: str, style: str | None = None) -> None:
    console.print(line, style=style, highlight=False, markup=False)
