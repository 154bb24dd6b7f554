"""`defend run`: options to configs, one an arm; their run; what is left of them.

`run_configs` serves `defend recipe --run` too.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from defend.cli.completion import names_of
from defend.cli.exits import GATE, INTERRUPTED
from defend.cli.flags import (
    DEVICE,
    JSON,
    LOG,
    LOG_DIR,
    PARTS,
    PATH,
    QUIET,
    SEED,
    SET,
    TRAIN_MISSING,
    check_classes,
    print_json,
    take_options,
    take_source,
    take_weights,
)
from defend.cli.say import say
from defend.cli.streams import answer
from defend.cli.usage import OUTPUT, command, option
from defend.cli.verdicts import VERDICTS, VerdictFiles
from defend.errors import ConfigError, ContractError, NoRowError, StageError, WriteError
from defend.report import progress
from defend.report.trackers import Log, LoggedRun, log_verdicts
from defend.util.launch import place
from defend.values.commands import say_command
from defend.values.floors import CLEAN, Floor, check_planned, parse_floors, share_out
from defend.values.references import number_twin, shorten
from defend.values.run_config import LADDER, NONE
from defend.values.threats import THREATS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console

    from defend.evaluation.course import Outcome
    from defend.records.rows import PlannedRow
    from defend.records.shards import Shards
    from defend.values.run_config import RunConfig

NO_FILES = VerdictFiles()
GATE_FLAG = option("--gate", "Exit with 3 if a check fails.")
AT_LEAST = option(
    "--at-least [ROW=]SHARE",
    "Exit with 3 if the worst case leaves less, for example 0.3; or a row: pgd/adaptive=0.3, clean=0.9. Repeatable.",
    multiple=True,
)


@command(
    "run",
    {
        "What is defended": [
            option(
                "--victim NAME", "Victim, for example resnet18 (any timm model).", shell_complete=names_of("victim")
            ),
            *PARTS,
            option("--fpr RATE", "Calibrate the detector for this false-positive rate, for example 0.01.", type=float),
            TRAIN_MISSING,
        ],
        "Who attacks": [
            option(
                "--attack NAME",
                "Attack (default noise, fgsm, pgd), or file:adv.npz, images that somebody else made. Repeatable.",
                "attacks",
                multiple=True,
                shell_complete=names_of("attack"),
            ),
            option(
                "--threat NAME",
                f"{', '.join(THREATS)}, or ladder, all that fit the defence (default noise, oblivious, adaptive; "
                "the ladder with --thorough). Repeatable.",
                "threats",
                multiple=True,
                shell_complete=lambda *typed: [name for name in (*THREATS, LADDER) if name.startswith(typed[-1])],
            ),
            option(
                "--source NAME",
                "Victim whose gradients the transfer threat takes (default: others with weights). Repeatable.",
                "sources",
                multiple=True,
            ),
            option(
                "--eps SIZE[,SIZE]",
                "L-inf budget, for example 0.1 (default) or 8/255; several make a curve, the headline is for the "
                "largest.",
            ),
            option("--eps-l2 SIZE", "Budget of L2 attacks (default eps * sqrt(dimensions) / 4)."),
        ],
        "How much": [
            option("--limit N", "Images, a seeded stratified sample (default 100; all with --thorough).", type=int),
            option("--adaptive-limit N", "Images in the adaptive rows (default 25; all with --thorough).", type=int),
            option("--adaptive-steps N", "Steps of an attack in the adaptive rows, at most (default 10).", type=int),
            option(
                "--budget TIME",
                "Choose images and steps of the adaptive rows so that the run takes so long, for example 10m.",
            ),
            option("--thorough", "All images, attacks and steps in the adaptive rows too.", default=None),
            option("--draws N", "Passes the adaptive attacker averages over a random defence (default 20).", type=int),
            option(
                "--passes N",
                "Ask a random defence N times: worst of N, majority vote (default 1; 20 with --thorough).",
                type=int,
            ),
            option(
                "--chance",
                "Against a random defence: also who knows its draws, and who averages over none, at as many gradients "
                "(default with --thorough).",
                default=None,
            ),
            option(
                "--certify N",
                "Certify the vote over N draws of a purifier's Gaussian noise, an L2 radius an image: 1,000 for a "
                "look; the paper's 100,000 show larger ones.",
                type=int,
            ),
            option("--checks NAME", "Sanity checks of the evaluation: basic (default), full (minutes), none."),
        ],
        "Settings": [
            SET,
            SEED,
            option("--config FILE", "TOML of a run; flags win over it.", "file", type=PATH),
            option(
                "--resume RUN",
                "Go on with an interrupted run's folder; its own settings hold, so no others are taken.",
                type=PATH,
            ),
        ],
        OUTPUT: [
            option("--out DIR", "Run folder (default runs/TIME-VICTIM-PURIFIER)."),
            option("--plan", "Run nothing: time two small batches a row, and print rows, minutes and memory."),
            option(
                "--save-images FORMAT",
                "Write attacked images into the run folder, npz or png of 8 bits; the strongest row is judged again.",
            ),
            GATE_FLAG,
            AT_LEAST,
            *VERDICTS,
            LOG,
            LOG_DIR,
            JSON,
            QUIET,
        ],
        "Machine": [
            DEVICE,
            option(
                "--precision NAME",
                "auto (default), exact, fp32 (folded, channels-last), bf16 (crafting; slow on CPUs without it).",
            ),
            option(
                "--shard K/N",
                "Compute the K-th of N shares of the batches, for machines without a network; see `defend merge`.",
            ),
            option("--batch-size N", "Images at a time (default 64); halved when memory runs out.", type=int),
            option("--workers N", "Processes that decode image folders (default 2).", type=int),
            option(
                "--store/--no-store", "Reuse attacked images of other runs (default; `defend cache`).", default=None
            ),
        ],
    },
)
def run_command(
    settings: tuple[str, ...],
    file: Path | None,
    resume: Path | None,
    as_json: bool,
    quiet: bool,
    plan: bool,
    gate: bool,
    at_least: tuple[str, ...],
    junit: Path | None,
    sarif: Path | None,
    loggers: tuple[str, ...],
    log_dir: Path | None,
    **values: Any,
) -> int:
    """Attack a victim with and without its defence, and report what is left.

    Prints a table and writes a run folder: config.toml (runs it again with --config), report.json,
    records.csv (every image), pictures. Options of a part: --set purifier.steps=10 --set pgd.steps=40.
    --purifier given twice makes two arms, compared on the same images.
    """
    import attrs

    from defend.records.unfinished import tidy

    if plan:
        if resume is not None:
            raise ConfigError("--plan is of a run that is to begin: leave out --resume")
        asked = {"--gate": gate, "--at-least": at_least, "--junit": junit, "--sarif": sarif, "--log": loggers}
        if given := [flag for flag, value in asked.items() if value]:  # 0 would say that gates were kept to
            raise ConfigError(f"{given[0]} is of a run, and --plan runs nothing: leave out one of the two")
        return _plan(_asked(settings, file, values), as_json, quiet)
    if resume is None:
        configs = _asked(settings, file, values)
    else:
        configs = _unfinished(resume, {**values, "settings": settings, "file": file})
        if not configs:
            tidy(resume)
            if gate or at_least:  # 0 would say that they were kept to
                raise ConfigError(
                    f"--resume {str(resume)!r}: the run is complete, and gates judge what a command has run: leave out "
                    f"{'--gate' if gate else '--at-least'}, or run it again with --config and the gates"
                )
            asked = {"--junit": junit, "--sarif": sarif, "--log": loggers, "--json": as_json}
            if given := [flag for flag, value in asked.items() if value]:  # an older file would stand for this run's
                raise ConfigError(
                    f"--resume {str(resume)!r}: the run is complete, and {given[0]} tells what a command has run: its "
                    f"report is {str(resume / 'report.json')!r}"
                )
            say(f"{resume} is complete, there is nothing to resume. A page of it: {say_command('report', resume)}")
            return 0
    floors = read_gates(at_least, gate, configs[0])
    if configs[0].shard is not None:
        asked = {"--gate": gate, "--at-least": at_least, "--junit": junit, "--sarif": sarif, "--json": as_json}
        if given := [flag for flag, value in asked.items() if value]:
            raise ConfigError(f"{given[0]} is of a report, and a shard has none: give it to `defend merge`")
    folder = Path(str(configs[0].out))
    log = Log(loggers, (folder.parent if len(configs) > 1 else folder).name, log_dir, attrs.asdict(configs[0]))
    try:
        return run_configs(
            configs,
            as_json=as_json,
            quiet=quiet,
            gate=gate,
            floors=floors,
            verdicts=VerdictFiles(junit, sarif),
            log=log,
            resume=resume is not None,
        )
    finally:
        log.end()


def _plan(configs: Sequence[RunConfig], as_json: bool, quiet: bool) -> int:
    """Print what a run would take."""
    console = progress.open_console(stderr=True)
    with progress.show_waiting(console, quiet):
        from defend.evaluation.runner import plan_arms
        from defend.report.forecast import render
    watcher = progress.RunBar(console, quiet)
    try:
        found, chosen = plan_arms(configs, watcher)
    finally:
        watcher.end()
    if place()[0] != 0:  # of several processes one speaks
        return 0
    if as_json:
        print_json(
            {**found.to_dict(), "adaptive_limit": chosen.adaptive_limit, "adaptive_steps": chosen.adaptive_steps}
        )
        return 0
    render(found, chosen, progress.open_console())
    return 0


def read_gates(at_least: Sequence[str], gate: bool, config: RunConfig) -> Sequence[Floor]:
    """Return the floors that were asked for; refuse gates of what the run will not have."""
    from defend.plugins import registry

    floors = parse_floors(at_least)
    for floor in floors:
        if floor.attack is not None:
            registry().find("attack", floor.attack)
    if gate and config.checks == "none":
        raise ConfigError("--gate needs checks, and --checks none leaves them out: expected basic or full")
    attacked = [floor for floor in floors if floor.row != CLEAN]
    if attacked and config.checks == "none":
        raise ConfigError(
            f"--at-least {attacked[0]} needs checks, without which an attack that does not work passes for a defence "
            "that holds, and --checks none leaves them out: expected basic or full"
        )
    return floors


def _unfinished(folder: Path, values: dict[str, Any]) -> list[RunConfig]:
    """Return the configs of an interrupted run, none if it is complete; refuse other settings than its own."""
    from defend.records.unfinished import find_unfinished

    # a value that is 0 or False was given too
    source = click.get_current_context().get_parameter_source
    typed = [each for each in run_command.params if str(each.name) in values]
    given = [each.opts[0] for each in typed if source(str(each.name)) is ParameterSource.COMMANDLINE]
    if given:
        raise ConfigError(f"--resume {str(folder)!r} goes on with that run's own settings: leave out {given[0]}")
    return find_unfinished(folder)


def _asked(settings: tuple[str, ...], file: Path | None, values: dict[str, Any]) -> list[RunConfig]:
    """Turn the options of `defend run` into configs, one an arm, each with a run folder."""
    import attrs

    from defend.values.budgets import parse_sweep
    from defend.values.references import anchor
    from defend.values.toml import alternatives, anchor_paths, run_config, with_out

    weights = take_weights(values)
    purifiers = tuple(anchor(each, Path.cwd()) for each in values.pop("purifiers"))
    values["purifier"] = purifiers[0] if purifiers else None
    values |= {name: values[name] or None for name in ("attacks", "threats", "sources")}
    if values["eps"] is not None:
        *values["sweep"], values["eps"] = parse_sweep(values["eps"])
    options = take_options(settings, values)
    flags = {**values, "options": options or None, "weights": weights or None}
    config = run_config(anchor_paths(flags, Path.cwd()), file)
    check_classes(take_source(config.dataset, config.data_dir)[0], config.options.get("dataset", {}))
    if file is not None and not values["out"]:
        config = attrs.evolve(config, out=None)  # a rerun gets a folder of its own
    several = purifiers if len(purifiers) > 1 else ()
    config = with_out(config, several)
    return alternatives(config, several) if several else [config]


def run_configs(
    configs: Sequence[RunConfig],
    *,
    as_json: bool,
    quiet: bool,
    gate: bool = False,
    floors: Sequence[Floor] = (),
    verdicts: VerdictFiles = NO_FILES,
    log: Log | None = None,
    resume: bool = False,
    shards: Shards | None = None,
) -> int:
    """Run configs, one an arm, each with a run folder; print what is left and return the exit code.

    Args:
        configs: of the arms.
        as_json: print JSON.
        quiet: show no progress.
        gate: exit with 3 where a check fails.
        floors: exit with 3 where the worst case of an arm, or a row, leaves less.
        verdicts: files to write the checks to.
        log: told of every row.
        resume: go on with what was begun.
        shards: take what these have computed.
    """
    from defend.report.verdicts import LEFT, checks_of

    first = place()[0] == 0  # of several processes, one speaks
    console = progress.open_console(stderr=True)
    if first:
        verdicts.begin()
    goes_on = _say_resume(configs[0], gate, floors)
    outcomes = _run(
        configs,
        console,
        quiet=quiet,
        log=log,
        resume=resume,
        shards=shards,
        first=first,
        goes_on=goes_on,
        floors=floors,
    )
    if configs[0].shard is not None:
        if first:
            kept = Path(str(configs[0].out)).parent if len(configs) > 1 else configs[0].out
            say(
                f"shard {configs[0].shard} is complete; when all are: {say_command('merge', kept)} and the others' "
                "folders"
            )
        return 0
    if first:  # before anything is judged: it was computed
        _print(configs, outcomes, as_json)
    reports = [each.report for each in outcomes]
    taken: set[str] = set()  # files of one name may lie in two places
    judged = {
        number_twin(_say_parts(report.config), taken): checks_of(report, own)
        for report, own in zip(reports, share_out(floors, reports), strict=True)
    }
    if first:
        verdicts.write(judged, configs[0].victim)
    if log is not None:
        log_verdicts(log, dict(zip(judged, reports, strict=True)))
    if any(each.report.partial for each in outcomes):
        if first:
            say(f"interrupted: {goes_on} goes on where it stopped", err=True)
        return INTERRUPTED
    every = [(f"{arm}: " * (len(judged) > 1), check) for arm, checks in judged.items() for check in checks]
    failed = [f"{arm}{check.number} {check.name}" for arm, check in every if check.number and check.status == "fail"]
    closed = [f"{len(failed)} failed ({', '.join(failed)})"] if gate and failed else []
    closed += [f"{arm}{check.detail}" for arm, check in every if check.name == LEFT and check.status == "fail"]
    loose = [f"{arm}{check.detail}" for arm, check in every if check.name == LEFT and check.status == "warn"]
    if loose and first:
        console.print(f"gate: {'; '.join(loose)}", highlight=False, style="yellow")
    if closed:  # of every process, whatever the launcher does
        return _close(console, first, "; ".join(closed))
    return 0


def _say_resume(config: RunConfig, gate: bool, floors: Sequence[Floor]) -> str:
    """Return the command that goes on with a run, its gates included: they are no part of config.toml."""
    gates = [*["--gate"] * gate, *(word for floor in floors for word in ("--at-least", str(floor)))]
    return say_command("run", "--resume", config.out, *gates)


def _close(console: Console, first: bool, why: str) -> int:
    """Say why the gate is closed, and return its code."""
    if first:
        console.print(f"gate: {why}", highlight=False, style="red")
    return GATE


def _say_parts(config: RunConfig) -> str:
    parts = (config.purifier, config.detector, config.victim)
    return " + ".join(shorten(part) for part in parts if part)


def _run(
    configs: Sequence[RunConfig],
    console: Console,
    *,
    quiet: bool,
    log: Log | None,
    resume: bool,
    shards: Shards | None,
    first: bool,
    goes_on: str,
    floors: Sequence[Floor],
) -> Sequence[Outcome]:
    """Run configs behind a bar; where that is cut off and can go on, say how.

    Raises:
        NoRowError: of floors for rows that they will not have, before anything is attacked.
    """
    with progress.show_waiting(console, quiet or not first):
        from defend.evaluation.runner import run_arms
        from defend.records import document  # noqa: F401 - slow, so while something is shown
        from defend.records.unfinished import is_unfinished
        from defend.records.watcher import Relay, Watcher
        from defend.report import terminal  # noqa: F401 - slow, so while something is shown
    watcher = progress.RunBar(console, quiet) if first else Watcher()
    watcher = watcher if log is None else LoggedRun(watcher, log)

    class Gated(Relay):
        """Refuses floors of rows that will not be, before anything is attacked."""

        def begin(self, rows: Sequence[PlannedRow]) -> None:
            check_planned(floors, [(row.name, row.threat.kind) for row in rows])
            super().begin(rows)

    watcher = Gated(watcher) if floors else watcher
    try:
        return run_arms(configs, watcher, resume=resume, shards=shards)
    except (KeyboardInterrupt, Exception) as error:
        # a stage that failed is changed before anybody goes on, and a run goes on with the same code alone; what cannot
        # be written says so itself
        told = isinstance(error, (StageError, ContractError, WriteError, NoRowError))
        if first and not told and configs[0].out and is_unfinished(Path(configs[0].out)):
            say(f"what was finished is kept: {goes_on}", err=True)
        raise
    finally:
        watcher.end()


def _print(configs: Sequence[RunConfig], outcomes: Sequence[Outcome], as_json: bool) -> None:
    """Print what is left, and where it was written."""
    if len(configs) > 1:
        _print_comparison(configs, outcomes, as_json)
        return
    from defend.records.document import to_json
    from defend.report.terminal import render

    (config,), (outcome,) = configs, outcomes
    if as_json:
        answer(to_json(outcome.report), nl=False)
        return
    out = progress.open_console()
    render(outcome.report, out)
    written = f"Written to {config.out}: report.json, records.csv, pictures, config.toml"
    out.print(written, highlight=False, markup=False)
    out.print(f"A page to share: {say_command('report', config.out)}", highlight=False, markup=False)


def _print_comparison(configs: Sequence[RunConfig], outcomes: Sequence[Outcome], as_json: bool) -> None:
    from rich.console import Group

    from defend.records.compare import compare
    from defend.records.run import from_records
    from defend.report import comparison
    from defend.report.terminal import certificate

    several = [config.purifier or NONE for config in configs]
    compared = compare(
        [from_records(shorten(name), each.report, each.records) for name, each in zip(several, outcomes, strict=True)]
    )
    if as_json:
        print_json(comparison.to_dict(compared))
        return
    out = progress.open_console()
    comparison.render(compared, out)
    for name, outcome in zip(several, outcomes, strict=True):
        if outcome.report.certified is not None:
            out.print(Group(*certificate(outcome.report.certified, shorten(name), outcome.report.failed)))
    parent = Path(str(configs[0].out)).parent
    arms = ", ".join(map(shorten, several))
    out.print(f"Written to {parent}: a run folder for each of {arms}", highlight=False, markup=False)
    out.print(f"A page to share: {say_command('report', parent)}", highlight=False, markup=False)
