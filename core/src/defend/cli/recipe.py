"""`defend recipe`, one function a mode: list, show, run, keep, and write for a reader or for `defend run`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from defend.cli.flags import DATA_DIR, DEVICE, JSON, PATH, QUIET, SEED, TRAIN_MISSING, print_json
from defend.cli.run import run_configs
from defend.cli.say import say
from defend.cli.usage import OUTPUT, command, option
from defend.errors import ConfigError
from defend.report.progress import open_console
from defend.values.commands import say_command

if TYPE_CHECKING:
    from defend.recipes import Recipe


@command(
    "recipe",
    {
        "What to do": [
            option("--list", "List the recipes that the installed plugins bring.", "listing"),
            option("--run", "Measure it again; takes the flags below, as in `defend run`.", "start"),
            option("--toml FILE", "Write it for `defend run --config`.", type=PATH),
            option(
                "--readme FILE",
                "Write its kept ladder between this file's marks, <!-- recipe NAME --> and <!-- end NAME -->.",
                type=PATH,
            ),
            option(
                "--keep",
                "Write what RUN measured to NAME.json in --out: the recipe's own run, then those it is held against.",
                "keeping",
            ),
        ],
        "With --run": [
            option("--thorough", "All images, attacks and steps.", default=None),
            option("--limit N", "Images, a seeded stratified sample.", type=int),
            option("--adaptive-limit N", "Images in the adaptive rows.", type=int),
            TRAIN_MISSING,
            DATA_DIR,
            SEED,
            DEVICE,
        ],
        OUTPUT: [option("--out DIR", "Run folder; with --keep the folder of NAME.json."), JSON, QUIET],
    },
)
@click.argument("name", required=False)
@click.argument("runs", nargs=-1, type=PATH, metavar="[RUN...]")
def recipe_command(
    name: str | None,
    runs: tuple[Path, ...],
    listing: bool,
    start: bool,
    toml: Path | None,
    readme: Path | None,
    keeping: bool,
    out: str | None,
    as_json: bool,
    quiet: bool,
    **values: Any,
) -> int:
    """Show a whole defence that was composed and measured, use it, or measure it again.

    For example: defend recipe --list
    """
    from defend.reproduce import ladders

    asked = {"--list": listing, "--run": start, "--toml": toml, "--readme": readme, "--keep": keeping}
    _refuse_mixtures([flag for flag, given in asked.items() if given not in (False, None)], name, runs, out, values)
    if name is None:
        _list_recipes(as_json)
        return 0
    recipe = ladders.find(name)
    if start:
        return _measure(recipe, out, values, as_json=as_json, quiet=quiet)
    if toml is not None:
        _write_toml(recipe, toml, as_json)
    elif readme is not None:
        _write_readme(recipe, readme, as_json)
    elif keeping:
        _keep(recipe, runs, Path(str(out)), as_json)
    else:
        _show(recipe, as_json)
    return 0


def _refuse_mixtures(
    modes: Sequence[str], name: str | None, runs: Sequence[Path], out: str | None, values: Mapping[str, Any]
) -> None:
    """Refuse two modes at once, and what a mode needs and lacks, or has no use for."""
    if len(modes) > 1:
        raise ConfigError(f"{modes[0]} and {modes[1]} were both given: give one of them")
    mode = modes[0] if modes else ""
    of_runs = [f"--{key.replace('_', '-')}" for key, value in values.items() if value is not None]
    if of_runs and mode != "--run":
        raise ConfigError(f"{of_runs[0]} was given without --run: a recipe is measured again with --run")
    if out and mode not in ("--run", "--keep"):
        raise ConfigError("--out was given without --run or --keep: nothing is written")
    if runs and mode != "--keep":
        raise ConfigError(f"{str(runs[0])!r} was given beside {name!r}: expected one recipe; run folders need --keep")
    if mode == "--keep" and (not runs or out is None):
        raise ConfigError(f"--keep needs {'--out DIR' if runs else 'run folders, first the own run of the recipe'}")
    if name is None and mode not in ("", "--list"):
        raise ConfigError(f"{mode} needs the name of a recipe: see `defend recipe --list`")
    if name is not None and mode == "--list":
        raise ConfigError(f"--list lists every recipe: leave out {name!r}")


def _list_recipes(as_json: bool) -> None:
    from defend.plugins import registry
    from defend.report import recipe as shown
    from defend.reproduce import ladders

    listed = [(recipe, ladders.find_kept(recipe)) for _, recipe in sorted(registry().recipes.items())]
    if as_json:
        print_json([shown.entry(*each) for each in listed])
    else:
        shown.print_listing(open_console(), listed)


def _show(recipe: Recipe, as_json: bool) -> None:
    from defend.report import recipe as shown
    from defend.reproduce import ladders

    if as_json:
        print_json(shown.as_dict(recipe, ladders.find_kept(recipe)))
    else:
        shown.render(recipe, ladders.find_kept(recipe), open_console())


def _measure(recipe: Recipe, out: str | None, values: Mapping[str, Any], *, as_json: bool, quiet: bool) -> int:
    from defend.values.toml import with_out

    recipe.require()
    return run_configs([with_out(recipe.run_config(out=out, **values))], as_json=as_json, quiet=quiet)


def _write_toml(recipe: Recipe, file: Path, as_json: bool) -> None:
    from defend.reproduce import ladders

    ladders.write_toml(recipe, file)
    _say_written(file, say_command("run", "--config", file), as_json)


def _write_readme(recipe: Recipe, file: Path, as_json: bool) -> None:
    from defend.report.recipe import write_readme
    from defend.reproduce import ladders

    write_readme(file, [(recipe, ladders.find_kept(recipe))])
    _say_written(file, recipe.name, as_json)


def _keep(recipe: Recipe, runs: Sequence[Path], folder: Path, as_json: bool) -> None:

    from defend.reproduce.from_runs import keep

    file = keep(recipe, runs, folder)
    _say_written(file, f"the ladder of {recipe.name}, and {len(runs) - 1} that it is held against", as_json)


def _say_written(file: Path, what: str, as_json: bool) -> None:
    print_json({"path": str(file)}) if as_json else say(f"Written to {file}: {what}")
