"""The command `defend`: click, nothing else. Whatever is slow is imported inside the command that needs it."""

from __future__ import annotations

import functools
import json
import os
import sys
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TextIO

import click

from defend import __version__
from defend.errors import ConfigError, DefendError, ProcessLostError
from defend.launch import place
from defend.progress import counting, open_console, run_watcher, training_progress, waiting

if TYPE_CHECKING:
    from defend.runner import Outcome
    from defend.values import RunConfig

EXIT_WRONG_INPUT, EXIT_INTERNAL, EXIT_INTERRUPTED, EXIT_GATE = 2, 1, 130, 3


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run the command line; every error becomes one line on standard error and an exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    debug = "--debug" in arguments or bool(os.environ.get("DEFEND_DEBUG"))
    arguments = [argument for argument in arguments if argument != "--debug"]
    warnings.showwarning = _one_line
    try:
        code = cli.main(arguments, prog_name="defend", standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message())
        sys.exit(EXIT_WRONG_INPUT)
    except click.ClickException as error:
        _fail(f"{' '.join(error.format_message().split())} (see {_help_for(error)})", EXIT_WRONG_INPUT, debug)
    except ProcessLostError as error:
        _fail(str(error), EXIT_INTERNAL, debug)
    except DefendError as error:
        _fail(str(error), EXIT_WRONG_INPUT, debug)
    except (KeyboardInterrupt, click.Abort):
        _fail("interrupted", EXIT_INTERRUPTED, debug)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(EXIT_INTERNAL)
    except OSError as error:
        if error.filename is None or error.strerror is None:
            _internal(error, debug)
        _fail(f"{str(error.filename)[:300]!r}: {error.strerror}", EXIT_WRONG_INPUT, debug)
    except SystemExit as error:  # of a part that somebody else wrote: its 0 is not ours
        _fail(f"a part of this command asked to exit ({error.code!r}), which it may not", EXIT_INTERNAL, debug)
    except Exception as error:
        _internal(error, debug)
    sys.exit(code if isinstance(code, int) else 0)


def _internal(error: Exception, debug: bool) -> NoReturn:
    text = " ".join(str(error).split())[:300]
    _fail(f"internal error: {type(error).__name__}: {text} (run again with --debug for the traceback)",
          EXIT_INTERNAL, debug)  # fmt: skip


def _one_line(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,  # noqa: ARG001 - the signature is Python's
    line: str | None = None,
) -> None:
    """Show what defend itself warns of as one line; others' warnings as Python does."""
    if category is UserWarning and Path(filename).is_relative_to(Path(__file__).parent):
        click.echo(f"warning: {message}", err=True)
    else:
        click.echo(warnings.formatwarning(message, category, filename, lineno, line), err=True, nl=False)


def _help_for(error: click.ClickException) -> str:
    context = getattr(error, "ctx", None)
    return f"`{context.command_path} --help`" if context else "`defend --help`"


def _fail(message: str, code: int, debug: bool) -> NoReturn:
    if debug:
        traceback.print_exc()
    which = f"process {os.environ['RANK']}: " if "RANK" in os.environ else ""  # of several, each speaks for itself
    click.echo(f"{click.style('error:', fg='red') if _colours() else 'error:'} {which}{message}", err=True)
    sys.exit(code)


def _colours() -> bool:
    return sys.stderr.isatty() and "NO_COLOR" not in os.environ


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="defend")
def cli() -> None:
    """Defend image classifiers against adversarial examples, and measure what an attacker leaves of it.

    Start here:  defend run --purifier apudae --victim resnet18

    Any command takes --debug (a traceback with errors). Exit codes: 0 done, 2 wrong input, 3 a check failed
    (run --gate), 130 interrupted.
    """


Function = Callable[..., Any]

_set_option = click.option(
    "--set", "settings", multiple=True, metavar="KEY=VALUE", help="Set an option; see `defend show NAME`. Repeatable."
)
_json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON for machines.")
_data_option = click.option("--data-dir", metavar="DIR", help="Where the data set lies (default: $DEFEND_DATA_DIR).")
_device_option = click.option("--device", metavar="NAME", help="auto (default), cpu, cuda.")
_seed_option = click.option("--seed", type=click.IntRange(0, 2**63 - 1), help="Seed of everything random (default 0).")


def _stage_options(function: Function) -> Function:
    """Add the options that name the parts of a defence."""
    decorators = [
        click.option(
            "--purifier", "purifiers", multiple=True, metavar="NAME[,NAME]",
            help="Purifier, for example apudae; dae,apudae is two in sequence.",
        ),
        click.option("--detector", metavar="NAME", help="Detector, for example puvae."),
        click.option("--finetune", metavar="NAME", help="Use the victim as a fine-tuner adapted it, for example dae."),
        click.option("--dataset", metavar="NAME", help="Data set (default digits)."),
        _data_option,
        click.option("--victim-weights", metavar="FILE", help="The victim's weights, instead of those found by name."),
        click.option(
            "--purifier-weights", multiple=True, metavar="FILE", help="The purifier's weights; NAME=FILE where several."
        ),
        click.option("--detector-weights", metavar="FILE", help="The detector's weights."),
        click.option(
            "--finetune-weights", metavar="FILE", help="The tuned victim's weights; bare: of the one tuned alone."
        ),
    ]  # fmt: skip
    return functools.reduce(lambda decorated, decorator: decorator(decorated), reversed(decorators), function)


def _weights(values: dict[str, Any]) -> dict[str, str]:
    """Take the weight files out of a command's values, by stage, or by the purifier's name in NAME=FILE."""
    found = {"victim": values.pop("victim_weights"), "detector": values.pop("detector_weights"),
             "finetuner": values.pop("finetune_weights")}  # fmt: skip
    for given in values.pop("purifier_weights"):
        name, equals, path = given.partition("=")
        found[name if equals else "purifier"] = path if equals else given
    return {stage: path for stage, path in found.items() if path is not None}


def _one_purifier(values: dict[str, Any]) -> str | None:
    """Take the one purifier (or sequence) out of a command's values."""
    given: tuple[str, ...] = values.pop("purifiers")
    if len(given) > 1:
        raise ConfigError(f"--purifier was given {len(given)} times: this command takes one, or a sequence NAME,NAME")
    return given[0] if given else None


@cli.command("run")
@click.option("--victim", metavar="NAME", help="Victim, for example resnet18 (any timm model).")
@_stage_options
@click.option(
    "--attack", "attacks", multiple=True, metavar="NAME", help="Attack (default noise, fgsm, pgd). Repeatable."
)
@click.option(
    "--threat",
    "threats",
    multiple=True,
    metavar="NAME",
    help="noise, transfer, oblivious, query, bpda, adaptive, detector-aware, or ladder, all of them (default noise, "
    "oblivious, adaptive; the ladder with --thorough). Repeatable.",
)
@click.option(
    "--source",
    "sources",
    multiple=True,
    metavar="NAME",
    help="Victim whose gradients the transfer threat takes (default: others with weights). Repeatable.",
)
@click.option(
    "--fpr", type=float, metavar="RATE", help="Calibrate the detector for this false-positive rate, for example 0.01."
)
@click.option(
    "--eps",
    metavar="SIZE[,SIZE]",
    help="L-inf budget, for example 0.1 (default) or 8/255; several make a curve, the headline is for the largest.",
)
@click.option("--eps-l2", metavar="SIZE", help="Budget of L2 attacks (default eps * sqrt(dimensions) / 4).")
@click.option(
    "--limit", type=int, metavar="N", help="Images, a seeded stratified sample (default 100; all with --thorough)."
)
@click.option(
    "--adaptive-limit", type=int, metavar="N", help="Images in the adaptive rows (default 25; all with --thorough)."
)
@click.option("--thorough", is_flag=True, default=None, help="All images, attacks and steps in the adaptive rows too.")
@click.option(
    "--draws", type=int, metavar="N", help="Passes the adaptive attacker averages over a random defence (default 20)."
)
@click.option(
    "--passes",
    type=int,
    metavar="N",
    help="Ask a random defence N times: worst of N, majority vote (default 1; 10 with --thorough).",
)
@click.option(
    "--checks", metavar="NAME", help="Sanity checks of the evaluation: basic (default), full (minutes), none."
)
@click.option("--gate", is_flag=True, help="Exit with 3 if a check fails.")
@_seed_option
@click.option("--batch-size", type=int, metavar="N", help="Images at a time (default 64); halved when memory runs out.")
@click.option("--workers", type=int, metavar="N", help="Processes that decode image folders (default 2).")
@_device_option
@click.option(
    "--precision",
    metavar="NAME",
    help="auto (default), exact, fp32 (folded, channels-last), bf16 (crafting; slow on CPUs without it).",
)
@click.option("--train-missing", is_flag=True, default=None, help="Train weights that do not exist yet.")
@click.option(
    "--config", "file", type=click.Path(path_type=Path), metavar="FILE", help="TOML of a run; flags win over it."
)
@click.option("--out", metavar="DIR", help="Run folder (default runs/TIME-VICTIM-PURIFIER).")
@click.option(
    "--resume",
    type=click.Path(path_type=Path),
    metavar="RUN",
    help="Go on with an interrupted run's folder; its own settings hold, so no others are taken.",
)
@click.option("--store/--no-store", default=None, help="Reuse attacked images of other runs (default; `defend cache`).")
@_set_option
@_json_option
@click.option("--quiet", is_flag=True, help="No progress.")
def run_command(
    settings: tuple[str, ...], file: Path | None, as_json: bool, quiet: bool, gate: bool, resume: Path | None,
    **values: Any,
) -> int:  # fmt: skip
    """Attack a victim with and without its defence, and report what is left.

    Prints a table and writes a run folder: config.toml (runs it again with --config), report.json,
    records.csv (every image), pictures. Options of a part: --set purifier.steps=10 --set pgd.steps=40.
    --purifier given twice makes two arms, compared on the same images.
    """
    if resume is not None:
        given = [name for name, value in {**values, "set": settings, "config": file}.items() if value]
        if given:
            raise ConfigError(
                f"--resume {str(resume)!r} goes on with that run's own settings: leave out --{given[0].rstrip('s')}"
            )
        from defend.unfinished import unfinished

        configs = unfinished(resume)
        if not configs:
            click.echo(f"{resume} is complete, there is nothing to resume. A page of it: defend report {resume}")
            return 0
    else:
        configs = _asked(settings, file, values)
    if gate and configs[0].checks == "none":
        raise ConfigError("--gate needs checks, and --checks none leaves them out: expected basic or full")
    return _run(configs, as_json=as_json, quiet=quiet, gate=gate, resume=resume is not None)


def _run(configs: list[RunConfig], *, as_json: bool, quiet: bool, gate: bool = False, resume: bool = False) -> int:
    """Run configs, one an arm, each with a run folder; print what is left and return the exit code."""
    first = place()[0] == 0  # of several processes, one speaks

    console = open_console(stderr=True)
    with waiting(console, quiet or not first):
        from defend.report import document, terminal  # noqa: F401 - slow, so while something is shown
        from defend.runner import run_arms
        from defend.watcher import Watcher
    watcher = run_watcher(console, quiet) if first else Watcher()
    try:
        outcomes = run_arms(configs, watcher, resume=resume)
    except KeyboardInterrupt:
        if configs[0].out and first and Path(configs[0].out, "config.toml").is_file():
            click.echo(f"what was finished is kept: defend run --resume {configs[0].out}", err=True)
        raise
    finally:
        watcher.end()
    if first:
        _print(configs, outcomes, as_json)
    if any(each.report.partial for each in outcomes):
        if first:
            click.echo(f"interrupted: defend run --resume {configs[0].out} goes on where it stopped", err=True)
        return EXIT_INTERRUPTED
    failed = [check for each in outcomes for check in each.report.failed]
    if gate and failed:
        names = ", ".join(f"{check.number} {check.name}" for check in failed)
        if first:
            console.print(f"gate: {len(failed)} failed ({names})", highlight=False, style="red")
        return EXIT_GATE  # of every process, whatever the launcher makes of them
    return 0


def _print(configs: list[RunConfig], outcomes: list[Outcome], as_json: bool) -> None:
    """Print what is left, and where it was written."""
    from defend.report.document import to_json
    from defend.report.terminal import render

    out = open_console()
    folders = [str(config.out) for config in configs]
    if len(configs) > 1:
        from defend.compare import compare, from_records
        from defend.report import comparison

        several = [str(config.purifier) for config in configs]
        runs = [from_records(name, each.report, each.records) for name, each in zip(several, outcomes, strict=True)]
        compared = compare(runs)
        if as_json:
            click.echo(json.dumps(comparison.to_dict(compared), indent=1))
        else:
            comparison.render(compared, out)
            parent = Path(folders[0]).parent
            out.print(
                f"Written to {parent}: a run folder for each of {', '.join(several)}", highlight=False, markup=False
            )
    elif as_json:
        click.echo(to_json(outcomes[0].report), nl=False)
    else:
        render(outcomes[0].report, out)
        out.print(
            f"Written to {folders[0]}: report.json, records.csv, pictures, config.toml", highlight=False, markup=False
        )
        out.print(f"A page to share: defend report {folders[0]}", highlight=False)


def _asked(settings: tuple[str, ...], file: Path | None, values: dict[str, Any]) -> list[RunConfig]:
    """Turn the options of `defend run` into configs, one an arm, each with a run folder."""
    from defend.config import alternatives, parse_settings, run_config, with_out

    weights = _weights(values)
    purifiers: tuple[str, ...] = values.pop("purifiers")
    values["purifier"] = purifiers[0] if purifiers else None
    values |= {name: values[name] or None for name in ("attacks", "threats", "sources")}
    if values["eps"] is not None:
        from defend.values import parse_sweep

        *values["sweep"], values["eps"] = parse_sweep(values["eps"])
    flags = {**values, "options": parse_settings(settings) or None, "weights": weights or None}
    config = run_config(flags, file)
    if file is not None and not values["out"]:
        import attrs

        config = attrs.evolve(config, out=None)  # a rerun gets a folder of its own
    several = purifiers if len(purifiers) > 1 else ()
    config = with_out(config, several)
    return alternatives(config, several) if several else [config]


@cli.command("compare")
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="RUN...")
@_json_option
def compare_command(runs: tuple[Path, ...], as_json: bool) -> None:
    """Lay runs side by side, and test their differences on the same images (McNemar).

    RUN is a folder that `defend run` wrote. The others are compared with the first.
    """
    from defend.compare import compare, read_run
    from defend.report import comparison

    compared = compare([read_run(folder) for folder in runs])
    if as_json:
        click.echo(json.dumps(comparison.to_dict(compared), indent=1))
        return
    comparison.render(compared, open_console())


@cli.command("report")
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="RUN...")
@click.option(
    "--out", type=click.Path(path_type=Path), metavar="FILE",
    help="The page (default RUN/report.html; defend-report.html here for several).",
)  # fmt: skip
@_json_option
def report_command(runs: tuple[Path, ...], out: Path | None, as_json: bool) -> None:
    """Write a run's page, to read on any screen or print, and its figures for a paper.

    RUN is a folder that `defend run` wrote; of several, the page begins with a leaderboard. The figures are PNG and
    SVG files in RUN/figures. --json lists the files.
    """
    with waiting(open_console(stderr=True), quiet=as_json, what="drawing"):
        from defend.report.page import write_page

        written = write_page(runs, out)
    if as_json:
        click.echo(json.dumps([str(file) for file in (written.page, *written.figures)], indent=1))
        return
    folders = dict.fromkeys(str(file.parent) for file in written.figures)
    click.echo(f"Written to {written.page}, and {len(written.figures)} figures (PNG, SVG) to {', '.join(folders)}")


@cli.command("list")
@_json_option
def list_command(as_json: bool) -> None:
    """List every installed stage, by kind, and the weights that exist."""
    from defend import catalogue
    from defend.plugins import registry

    found = registry()
    if as_json:
        failures = [{"plugin": failure.plugin, "cause": failure.cause} for failure in found.failures]
        click.echo(json.dumps({"stages": catalogue.listing(found), "failures": failures}, indent=1))
        return
    catalogue.print_listing(open_console(), found)


@cli.command("show")
@click.argument("name")
@_json_option
def show_command(name: str, as_json: bool) -> None:
    """Explain a stage: its paper, its options, its weights and their figures."""
    from defend import catalogue
    from defend.plugins import registry

    shown = catalogue.descriptions(registry(), name)
    if as_json:
        click.echo(json.dumps(shown, indent=1))
        return
    console = open_console()
    for description in shown:
        catalogue.print_description(console, description)


@cli.command("train")
@click.argument("stage", type=click.Choice(["victim", "purifier", "detector", "finetuner"]))
@click.argument("name")
@click.option("--victim", metavar="NAME", help="Fine-tuners: the victim to adapt.")
@click.option("--purifier", metavar="NAME[,NAME]", help="Fine-tuners: the purifier that stands before it.")
@click.option("--dataset", default="digits", show_default=True, metavar="NAME", help="What to train on.")
@click.option("--edition", default="", metavar="NAME", help="Other weights of the same stage; see `defend show NAME`.")
@_data_option
@_set_option
@_seed_option
@_device_option
@click.option(
    "--precision", type=click.Choice(["no", "bf16"]), default="no", show_default=True, help="Mixed precision."
)
@click.option(
    "--out", type=click.Path(path_type=Path), metavar="FILE", help="Weights file (default: the user's cache)."
)
@_json_option
@click.option("--quiet", is_flag=True, help="No progress.")
def train_command(
    stage: Any, name: str, victim: str | None, purifier: str | None, dataset: str, edition: str,
    data_dir: str | None, settings: tuple[str, ...], seed: int | None,
    device: str | None, precision: str, out: Path | None, as_json: bool, quiet: bool,
) -> int:  # fmt: skip
    """Train a stage and write its weights, with their card. Cut off, it goes on where it was.

    Options of the architecture and of the training: --set epochs=10 --set lr=1e-3, see `defend show NAME`;
    of the data set: --set dataset.image_size=64.
    For several processes: torchrun --nproc-per-node 2 -m defend train ...
    """
    from defend.plugins import registry

    if out is not None and not out.parent.is_dir():
        raise ConfigError(f"--out {str(out)!r}: folder {str(out.parent)!r} does not exist")
    registry().find("dataset", dataset)
    found = registry().find(stage, name)
    options: dict[str, str] = {}
    dataset_options: dict[str, str] = {}
    for setting in settings:
        key, equals, value = (part.strip() for part in setting.partition("="))
        if not equals or not key:
            raise ConfigError(f"--set {setting!r} is not KEY=VALUE, for example epochs=10")
        chosen = dataset_options if key.startswith("dataset.") else options
        chosen[key.removeprefix(f"{stage}.").removeprefix("dataset.")] = value
    console = open_console(stderr=True)
    with waiting(console, quiet):
        import attrs

        from defend.build import open_dataset
        from defend.options import describe
        from defend.train_stage import train_stage

        images = open_dataset(dataset, data_dir, dataset_options)
        twins = images.duplicates()
    known = {option.name for option in describe(found.spec.config)}
    note = found.note(found.config({key: value for key, value in options.items() if key in known})) if found.tag else ""
    for said in (note, twins.sentence() if twins is not None and twins.n else ""):
        if said:
            click.echo(f"warning: {said}", err=True)
    try:
        with training_progress(console, f"{stage} {name} on {dataset}", quiet) as progress:
            path, card = train_stage(
                stage, name, images, victim=victim, purifier=purifier, options=options, edition=edition,
                seed=seed or 0, device=device or "auto", precision=precision, out=out, progress=progress,
            )  # fmt: skip
    except KeyboardInterrupt:
        click.echo("interrupted: the same command goes on from the last checkpoint", err=True)
        return EXIT_INTERRUPTED
    if place()[0] != 0:
        return 0
    if as_json:
        click.echo(json.dumps({"path": str(path), "card": attrs.asdict(card)}, indent=1))
        return 0
    figures = ", ".join(f"{key} {value:.4g}" for key, value in card.figures.items())
    click.echo(f"Written to {path} ({path.stat().st_size / 1e6:.1f} MB): {figures}")
    return 0


@cli.command("calibrate")
@click.option("--detector", required=True, metavar="NAME", help="Detector, for example puvae.")
@click.option("--fpr", type=float, default=0.01, show_default=True, metavar="RATE", help="Clean images to reject.")
@click.option("--purifier", metavar="NAME[,NAME]", help="The purifier that will stand before the victim.")
@click.option(
    "--dataset", default="digits", show_default=True, metavar="NAME", help="Whose validation split is scored."
)
@_data_option
@click.option("--detector-weights", metavar="FILE", help="The detector's weights.")
@_set_option
@_seed_option
@_device_option
@click.option(
    "--out", type=click.Path(path_type=Path), metavar="FILE", help="Weights file (default: the user's cache)."
)
@_json_option
@click.option("--quiet", is_flag=True, help="No progress.")
def calibrate_command(
    detector: str, fpr: float, purifier: str | None, dataset: str, data_dir: str | None, detector_weights: str | None,
    settings: tuple[str, ...], seed: int | None, device: str | None, out: Path | None, as_json: bool, quiet: bool,
) -> None:  # fmt: skip
    """Set a detector's threshold for a false-positive rate on held-out clean images, and keep it.

    Writes the detector's weights with the new threshold, where the next run finds them. `defend run --fpr` does
    the same for one run.
    """
    from defend.config import parse_settings
    from defend.plugins import registry

    for kind, name in (("dataset", dataset), ("detector", detector)):
        registry().find(kind, name)  # type: ignore[arg-type]
    console = open_console(stderr=True)
    with waiting(console, quiet):
        import attrs

        from defend.build import open_dataset
        from defend.calibrate import calibrate_stage

        images = open_dataset(dataset, data_dir)
    with counting(console, f"scoring {dataset}", len(images.labels("val")), quiet) as progress:
        path, calibration = calibrate_stage(
            detector, images, fpr, purifier=purifier, options=parse_settings(settings),
            weights={"detector": detector_weights} if detector_weights else {}, device=device or "auto",
            seed=seed or 0, out=out, progress=progress,
        )  # fmt: skip
    if as_json:
        click.echo(json.dumps({"path": str(path), **attrs.asdict(calibration)}, indent=1))
        return
    click.echo(
        f"Threshold {calibration.threshold:.5g}: rejects {100 * calibration.measured:.2f} % of {calibration.n} "
        f"held-out clean images (asked: at most {100 * fpr:g} %). Written to {path}"
    )


@cli.command("reproduce")
@click.argument("names", nargs=-1, metavar="[TABLE...]")
@click.option("--list", "listing", is_flag=True, help="List the tables that the installed plugins declare.")
@click.option("--kept", is_flag=True, help="Show the results that came with the plugins; nothing is run.")
@click.option("--limit", type=int, metavar="N", help="At most N images in any cell, for a quick look.")
@click.option("--train-missing", is_flag=True, help="Train weights that do not exist yet.")
@_data_option
@_seed_option
@_device_option
@click.option("--batch-size", type=int, default=64, show_default=True, metavar="N", help="Images at a time.")
@click.option(
    "--out", type=click.Path(path_type=Path), default=Path("reproductions"), show_default=True, metavar="DIR",
    help="Where runs and results go; what is complete there is not run again.",
)  # fmt: skip
@click.option(
    "--readme", type=click.Path(path_type=Path), metavar="FILE",
    help="With --kept: write the tables between this file's marks, <!-- table NAME --> and <!-- end NAME -->.",
)  # fmt: skip
@click.option(
    "--page", type=click.Path(path_type=Path), metavar="FILE", help="With --kept: write one table as an HTML page."
)
@_json_option
@click.option("--quiet", is_flag=True, help="No progress.")
def reproduce_command(
    names: tuple[str, ...], listing: bool, kept: bool, limit: int | None, train_missing: bool, data_dir: str | None,
    seed: int | None, device: str | None, batch_size: int, out: Path, readme: Path | None, page: Path | None,
    as_json: bool, quiet: bool,
) -> int:  # fmt: skip
    """Measure a paper's table again: ours, the paper's, and what an adaptive attacker leaves.

    TABLE is for example apudae/table-2, or apudae for all of a plugin's. Cut off, the same command goes on.
    """
    from defend import results
    from defend.distributions import lack
    from defend.plugins import registry
    from defend.report import reproduction
    from defend.tables import choose_tables

    every = registry().tables
    for name in names:
        registry().refuse_claimed("table", name)
    if listing or not names:
        if names:
            raise ConfigError(f"--list lists every table: leave out {names[0]!r}")
        if not listing and not kept:
            raise ConfigError("no table was named: see `defend reproduce --list`, or name a plugin")
    chosen = choose_tables(every.values(), names) if names else sorted(every.values(), key=lambda one: one.name)
    if listing:
        listed = [(table, results.kept(table)) for table in chosen]
        if as_json:
            click.echo(json.dumps([reproduction.entry(table, result) for table, result in listed], indent=1))
        else:
            reproduction.print_listing(open_console(), listed)
        return 0
    for flag, value in (("--readme", readme), ("--page", page)):
        if value is not None and not kept:
            raise ConfigError(f"{flag} needs --kept: it writes the results that came with the plugins")
    console = open_console(stderr=True)
    measured = []
    wrong = False
    if kept:
        if readme is not None:
            click.echo(f"Written to {readme}: {', '.join(reproduction.write_readme(readme, chosen))}")
            return 0
        there = [(table, results.kept(table)) for table in chosen]
        measured = [(table, result) for table, result in there if result is not None]
        if not measured:
            several = ", ".join(table.name for table in chosen)
            raise ConfigError(f"no result of {several} came with its plugin: measure it, without --kept")
        if page is not None:
            from defend.report.reproduction_page import write_page

            if len(measured) > 1:
                raise ConfigError(f"--page {str(page)!r} holds one table: name one, for example {measured[0][0].name}")
            write_page(*measured[0], page)
            click.echo(f"Written to {page}")
            return 0
    else:
        if limit is not None and limit < 1:
            raise ConfigError(f"--limit {limit}: expected at least 1")
        with waiting(console, quiet):
            from defend.report.reproduction_page import page_name, write_page
            from defend.reproduce import Settings, reproduce

        settings = Settings(
            out=out, limit=limit, seed=seed or 0, device=device or "auto", data_dir=data_dir, batch_size=batch_size,
            train_missing=train_missing,
            announce=(lambda line: None) if quiet else lambda line: console.print(line, highlight=False, markup=False),
        )  # fmt: skip
        for table in chosen:
            if table.not_run and table.name not in names:
                console.print(f"{table.name}: {table.not_run}; name it to try", highlight=False, markup=False)
                continue
            if table.missing() and table.name not in names:
                console.print(lack(f"table {table.name!r}", table.missing()), highlight=False, markup=False)
                continue
            watcher = run_watcher(console, quiet)
            try:
                result = reproduce(table, settings, watcher)
            except DefendError as error:
                if len(chosen) == 1:
                    raise
                console.print(f"{table.name}: {error}", style="red", highlight=False, markup=False)
                wrong = True
                continue
            finally:
                watcher.end()
            measured.append((table, result))
            out.mkdir(parents=True, exist_ok=True)
            write_page(table, result, out / page_name(table))
            if result.partial:
                break
    if as_json:
        click.echo(json.dumps([reproduction.as_dict(table, result) for table, result in measured], indent=1))
    else:
        for table, result in measured:
            reproduction.render(table, result, open_console())
        for table, _ in measured if not kept else ():
            click.echo(f"Page: {out / page_name(table)}; beside it the result as JSON, and a folder for each run")
    if any(result.partial for _, result in measured) and not kept:
        click.echo("interrupted: the same command goes on where it stopped", err=True)
        return EXIT_INTERRUPTED
    return EXIT_WRONG_INPUT if wrong or any(result.failed for _, result in measured) else 0


@cli.command("recipe")
@click.argument("name", required=False)
@click.argument("runs", nargs=-1, type=click.Path(path_type=Path), metavar="[RUN...]")
@click.option("--list", "listing", is_flag=True, help="List the recipes that the installed plugins bring.")
@click.option("--run", "start", is_flag=True, help="Measure it again; takes the flags below, as in `defend run`.")
@click.option("--toml", type=click.Path(path_type=Path), metavar="FILE", help="Write it for `defend run --config`.")
@click.option(
    "--readme", type=click.Path(path_type=Path), metavar="FILE",
    help="Write its kept ladder between this file's marks, <!-- recipe NAME --> and <!-- end NAME -->.",
)  # fmt: skip
@click.option(
    "--keep", "keeping", is_flag=True,
    help="Write what RUN measured to NAME.json in --out: the recipe's own run, then those it is held against.",
)  # fmt: skip
@click.option("--thorough", is_flag=True, default=None, help="All images, attacks and steps.")
@click.option("--limit", type=int, metavar="N", help="Images, a seeded stratified sample.")
@click.option("--adaptive-limit", type=int, metavar="N", help="Images in the adaptive rows.")
@click.option("--train-missing", is_flag=True, default=None, help="Train weights that do not exist yet.")
@_data_option
@_seed_option
@_device_option
@click.option("--out", metavar="DIR", help="Run folder; with --keep the folder of NAME.json.")
@_json_option
@click.option("--quiet", is_flag=True, help="No progress.")
def recipe_command(
    name: str | None, runs: tuple[Path, ...], listing: bool, start: bool, toml: Path | None, readme: Path | None,
    keeping: bool, out: str | None, as_json: bool, quiet: bool, **values: Any,
) -> int:  # fmt: skip
    """Show a whole defence that was composed and measured, use it, or measure it again.

    For example: defend recipe --list
    """
    from defend import ladders
    from defend.plugins import registry
    from defend.report import recipe as shown

    asked = {"--list": listing, "--run": start, "--toml": toml is not None, "--readme": readme is not None,
             "--keep": keeping}  # fmt: skip
    modes = [flag for flag, given in asked.items() if given]
    only_run = [f"--{key.replace('_', '-')}" for key, value in values.items() if value is not None]
    if len(modes) > 1:
        raise ConfigError(f"{modes[0]} and {modes[1]} were both given: give one of them")
    if only_run and not start:
        raise ConfigError(f"{only_run[0]} was given without --run: a recipe is measured again with --run")
    if out and not (start or keeping):
        raise ConfigError("--out was given without --run or --keep: nothing is written")
    if runs and not keeping:
        raise ConfigError(f"{str(runs[0])!r} was given beside {name!r}: expected one recipe; run folders need --keep")
    if keeping and (not runs or out is None):
        raise ConfigError(f"--keep needs {'--out DIR' if runs else 'run folders, first the own run of the recipe'}")
    if name is None and modes not in ([], ["--list"]):
        raise ConfigError(f"{modes[0]} needs the name of a recipe: see `defend recipe --list`")
    if name is not None and listing:
        raise ConfigError(f"--list lists every recipe: leave out {name!r}")
    if name is None:
        listed = [(recipe, ladders.kept(recipe)) for _, recipe in sorted(registry().recipes.items())]
        if as_json:
            click.echo(json.dumps([shown.entry(*each) for each in listed], indent=1))
        else:
            shown.print_listing(open_console(), listed)
        return 0
    recipe = ladders.find(name)
    if start:
        from defend.config import with_out

        recipe.require()
        return _run([with_out(recipe.run_config(out=out, **values))], as_json=as_json, quiet=quiet)
    if toml is not None:
        ladders.write_toml(recipe, toml)
        click.echo(json.dumps({"path": str(toml)}) if as_json else f"Written to {toml}: defend run --config {toml}")
    elif readme is not None:
        shown.write_readme(readme, [(recipe, ladders.kept(recipe))])
        click.echo(json.dumps({"path": str(readme)}) if as_json else f"Written to {readme}: {name}")
    elif keeping and out is not None:
        path = ladders.keep(recipe, runs, Path(out))
        said = f"Written to {path}: the ladder of {name}, and {len(runs) - 1} that it is held against"
        click.echo(json.dumps({"path": str(path)}) if as_json else said)
    elif as_json:
        click.echo(json.dumps(shown.as_dict(recipe, ladders.kept(recipe)), indent=1))
    else:
        shown.render(recipe, ladders.kept(recipe), open_console())
    return 0


@cli.command("cache")
@click.option("--clear", is_flag=True, help="Delete all of it.")
@click.option("--verify", is_flag=True, help="Read and check every batch; delete those that are damaged.")
@_json_option
def cache_command(clear: bool, verify: bool, as_json: bool) -> None:
    """Show what is kept of attacked images, so that another run against the same victim finds them.

    The least recently used go when there are more than $DEFEND_CACHE_LIMIT (2GB; 0 keeps none), in
    $DEFEND_CACHE_DIR/adversarial. What was made by other code, weights or options is never used.
    """
    from defend.store import Store
    from defend.store_listing import contents, print_contents, size

    if clear and verify:
        raise ConfigError("--clear and --verify were both given: what is deleted need not be checked, give one")
    store = Store.users()
    if clear:
        freed = store.clear()
        click.echo(json.dumps({"freed": freed}) if as_json else f"Freed {size(freed)} in {store.folder}")
    elif verify:
        with counting(open_console(stderr=True), "checking", len(store.entries()), quiet=as_json) as progress:
            found = store.verify(progress)
        if as_json:
            click.echo(json.dumps({"checked": found.checked, "damaged": found.damaged, "freed": found.freed}))
            return
        what = f"{found.damaged} damaged, deleted ({size(found.freed)})" if found.damaged else "none damaged"
        click.echo(f"Checked {found.checked} batches in {store.folder}: {what}")
    elif as_json:
        click.echo(json.dumps(contents(store), indent=1))
    else:
        print_contents(open_console(), store)


@cli.command("new-plugin")
@click.argument("name")
@click.option("--stage", required=True, metavar="STAGE", help="purifier, detector, victim, attack, finetuner, dataset.")
@click.option(
    "--folder", type=click.Path(path_type=Path), default=Path(), metavar="DIR", help="Where to make it (default: here)."
)
@_json_option
def new_plugin_command(name: str, stage: str, folder: Path, as_json: bool) -> None:
    """Write a plugin that installs, is listed, and whose contract suite passes: a start for your own.

    For example: defend new-plugin median --stage purifier
    """
    from defend.scaffold import create

    files = create(name, stage, folder)
    if as_json:
        click.echo(json.dumps([str(file) for file in files], indent=1))
        return
    made = folder / name
    click.echo(f"Written: {len(files)} files in {made}. Next: pip install -e {made} && pytest {made}")


@cli.command("predict")
@click.argument("images", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="IMAGE...")
@click.option("--victim", required=True, metavar="NAME", help="Victim, for example resnet18.")
@_stage_options
@click.option("--save", type=click.Path(path_type=Path), metavar="DIR", help="Write the purified images here.")
@click.option("--invert", is_flag=True, help="Invert the images first: dark on light to light on dark.")
@_device_option
@_set_option
@_json_option
def predict_command(
    images: tuple[Path, ...], victim: str, save: Path | None, invert: bool, device: str | None,
    settings: tuple[str, ...], as_json: bool, **values: Any,
) -> None:  # fmt: skip
    """Classify your own images, with and without the defence, and show what it changed.

    Images are scaled to the data set's size (the shorter side), cropped to its centre, grey or colour.
    """
    from defend.config import parse_settings

    weights, purifier = _weights(values), _one_purifier(values)
    console = open_console(stderr=True)
    with waiting(console, quiet=as_json):
        from defend.predict import predict
    rows = predict(
        images, victim=victim, purifier=purifier, detector=values["detector"], finetune=values["finetune"],
        dataset=values["dataset"] or "digits", data_dir=values["data_dir"], options=parse_settings(settings),
        weights=weights, device=device or "cpu", save=save, invert=invert,
    )  # fmt: skip
    if as_json:
        click.echo(json.dumps(rows, indent=1))
        return
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for column in ("image", "undefended", "defended", "purifier changed"):
        table.add_column(column, overflow="fold")
    for row in rows:
        flipped = "" if row["undefended"]["label"] == row["defended"]["label"] else "  <- differs"
        rejected = "" if row["defended"]["accepted"] else "  REJECTED"
        table.add_row(
            row["image"],
            f"{row['undefended']['label']} ({100 * row['undefended']['confidence']:.1f} %)",
            f"{row['defended']['label']} ({100 * row['defended']['confidence']:.1f} %){flipped}{rejected}",
            f"mean {row['changed']['mean']:.4f}, most {row['changed']['most']:.3f}",
        )
    open_console().print(table, highlight=False)
    if save is not None:
        click.echo(f"Purified images written to {save}")


@cli.command("export")
@click.option("--victim", required=True, metavar="NAME", help="Victim, for example resnet18.")
@_stage_options
@click.option(
    "--out", type=click.Path(path_type=Path), required=True, metavar="FILE",
    help="model.pt2 (torch.export) or model.onnx; replaced if it exists.",
)  # fmt: skip
@_set_option
@_json_option
def export_command(
    victim: str, out: Path, settings: tuple[str, ...], as_json: bool, **values: Any
) -> None:  # fmt: skip
    """Write a defence as one file that runs without defend: images in [0,1] to logits.

    With a detector also its score, and whether an image is accepted. Batches may be of any size. The file is first
    held against the defence on test images. Only for defences without random numbers or optimisation at test time.
    """
    from defend.config import parse_settings

    weights, purifier = _weights(values), _one_purifier(values)
    with waiting(open_console(stderr=True), quiet=as_json, what="exporting"):
        from defend.export import export_defence

        made = export_defence(
            out, victim=victim, purifier=purifier, detector=values["detector"], finetune=values["finetune"],
            dataset=values["dataset"] or "digits", data_dir=values["data_dir"], options=parse_settings(settings),
            weights=weights,
        )  # fmt: skip
    if as_json:
        click.echo(json.dumps(made.as_dict(), indent=1))
        return
    shapes = {name: str(shape).replace("'", "") for name, shape in {**made.inputs, **made.outputs}.items()}
    outputs = ", ".join(f"{name} {shapes[name]}" for name in made.outputs)
    found = ", ".join(f"{name} {most:.2g}" for name, most in made.parity.items())
    click.echo(f"Written to {made.path} ({made.size / 1e6:.1f} MB): images {shapes['images']} in [0,1] to {outputs}")
    sizes = " and ".join(map(str, made.batches))
    click.echo(f"Largest difference from the defence, on test images in batches of {sizes}: {found}")
