"""Makes the ladder that is kept of a recipe out of run folders, which must have been made alike. Imports no torch."""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

import attrs

from defend.errors import ConfigError
from defend.recipes import LOCAL, Recipe, composition, part_keys
from defend.records.reading import not_a_report, read_run, structured
from defend.reproduce.ladders import Compared, Figure, Ladder, LadderRow, Status, clean_figure
from defend.values.commands import say_command
from defend.values.editions import is_file
from defend.values.report import Report
from defend.values.run_config import RunConfig
from defend.values.threats import choose_threats
from defend.values.toml import run_config, to_toml

PARTS = ("dataset", "victim", "purifier", "detector", "finetune", "fpr", "options", "weights")
"""What makes a defence."""
MEASURED = (
    *("dataset", "eps", "eps_l2", "attacks", "threats", "sources"),
    *("draws", "passes", "chance", "adaptive_steps", "precision", "checks"),
)
"""What two measurements must share to be held against each other; how many images they took is said beside them."""


LIMITS = ("limit", "adaptive_limit")


@attrs.frozen
class _Ran:
    """A run folder, as far as it is kept; `dataset` as report.json has it."""

    folder: Path
    report: Report
    dataset: Mapping[str, Any]
    config: RunConfig

    @property
    def rows(self) -> tuple[LadderRow, ...]:
        names = [field.name for field in attrs.fields(LadderRow)]
        return tuple(LadderRow(**{name: getattr(row, name) for name in names}) for row in self.report.rows)


def keep(recipe: Recipe, runs: Sequence[Path], out: Path) -> Path:
    """Write NAME.json from run folders into the folder `out`, and return its path.

    Args:
        recipe: whose ladder it is.
        runs: folders of `defend run`: the first is the recipe's own, the others are what it was held against.
        out: made if it does not exist.

    Raises:
        ConfigError: the first run is of another defence, was less thorough, or judged fewer images; or a run was made
            in another way than the recipe's; the message names the field. Or a run was not finished.
        DataError: a folder that holds no run, or a damaged one.
    """
    own, *others = [_read(folder) for folder in runs]
    wanted, again = recipe.run_config(), say_command("recipe", recipe.name, "--run")
    _same(
        f"run {str(own.folder)!r} is not recipe {recipe.name}'s",
        _flat(own.config, (*PARTS, *MEASURED, "sweep")),
        _flat(wanted, (*PARTS, *MEASURED, "sweep")),
        f"; measure it with `{again}`",
    )
    _refuse_less(own, recipe, again)
    for each in (own, *others):
        if not each.report.checks and wanted.checks != "none":
            raise ConfigError(f"run {str(each.folder)!r} has no checks: run it again without --checks none")
    for other in others:
        what = f"run {str(other.folder)!r} cannot be held against recipe {recipe.name}"
        # a quick run's attacks take fewer steps, and another seed judges other images
        alike = (*MEASURED, "thorough", "seed", "options")
        _same(what, _flat(_attacked(other.config), alike), _flat(_attacked(own.config), alike))
        crafted = [each.report.precision.get("crafting") for each in (own, other)]
        if crafted[0] != crafted[1]:
            raise ConfigError(f"{what}: its images were made in {crafted[1]}, the recipe's in {crafted[0]}")
        if own.report.dataset.sha256 != other.report.dataset.sha256:
            raise ConfigError(f"{what}: it judged other images of {wanted.dataset}")
    report = own.report
    assert report.worst_case is not None
    ladder = Ladder(
        recipe=recipe.name,
        command=_command(recipe, own.config),
        config=to_toml(wanted),
        dataset=own.dataset,
        rows=own.rows,
        worst_case=report.worst_case,
        versions=report.versions,
        plugins=report.plugins,
        device=report.device,
        seed=report.seed,
        weights={part: str(each.get("sha256", "")) for part, each in report.weights.items()},
        left_out=report.left_out,
        checks=tuple(Status(name=check.name, status=check.status) for check in report.checks),
        compared=tuple(_compared(each) for each in others),
    )
    path = out / f"{recipe.name}.json"
    ladder.save(path)
    return path


def _read(folder: Path) -> _Ran:
    run = read_run(folder)
    if run.partial:
        raise ConfigError(f"run {str(folder)!r} is not finished: go on with `{say_command('run', '--resume', folder)}`")
    if run.report.get("worst_case") is None:
        raise ConfigError(f"run {str(folder)!r} has no worst case: it attacked nothing at its own eps")
    report = structured(run.report, folder)
    if not any(row.threat == "none" for row in report.rows):
        raise not_a_report(folder)
    return _Ran(folder, report, run.report["dataset"], run_config(run.report["config"]))


def _flat(config: RunConfig, names: Iterable[str]) -> dict[str, str]:
    """Return fields as texts, those of tables by a dotted name, so that what was typed equals what was declared."""
    found: dict[str, str] = {}

    def add(key: str, value: Any) -> None:
        if isinstance(value, Mapping):
            for name, inner in value.items():
                add(f"{key}.{name}", inner)
        elif isinstance(value, list | tuple):
            found[key] = ",".join(map(str, value))
        else:
            found[key] = str(value).lower() if value is None or isinstance(value, bool) else str(value)

    for name in names:
        add(name, choose_threats(config) if name == "threats" else getattr(config, name))
    return found


def _attacked(config: RunConfig) -> RunConfig:
    """Return a config with the options of its attacks alone."""
    parts = part_keys(config)
    return attrs.evolve(config, options={key: value for key, value in config.options.items() if key not in parts})


def _refuse_less(own: _Ran, recipe: Recipe, again: str) -> None:
    """Refuse a run that was less thorough than its recipe, or judged fewer images; more is welcome."""
    what, wanted = f"run {str(own.folder)!r} is not recipe {recipe.name}'s", recipe.run_config()
    if wanted.thorough and not own.config.thorough:
        raise ConfigError(f"{what}: it was quick, and the recipe is thorough; measure it with `{again}`")
    for name, ran, asked in zip(LIMITS, _limits(own.config), _limits(wanted), strict=True):
        if ran < asked:
            every = "all" if asked == math.inf else asked
            raise ConfigError(f"{what}: its {name} is {ran}, the recipe's is {every}; measure it with `{again}`")


def _limits(config: RunConfig) -> tuple[float, float]:
    """Return how many images the cheap rows and the adaptive ones take; infinite for all."""
    cheap = math.inf if config.row_limit is None else config.row_limit
    return cheap, min(cheap, math.inf if config.adaptive_row_limit is None else config.adaptive_row_limit)


def _same(what: str, ran: Mapping[str, str], wanted: Mapping[str, str], then: str = "") -> None:
    for key in dict.fromkeys([*wanted, *ran]):
        if ran.get(key) != wanted.get(key):
            theirs, ours = (f"{values[key]!r}" if values.get(key) else "not set" for values in (ran, wanted))
            raise ConfigError(f"{what}: its {key} is {theirs}, the recipe's is {ours}{then}")


def _compared(ran: _Ran) -> Compared:
    worst = ran.report.worst_case
    assert worst is not None
    fields = attrs.fields_dict(RunConfig)
    # what is a machine's own says nothing to a reader elsewhere; of a weights file its name is left
    own: dict[str, Any] = {name: fields[name].default for name in LOCAL}
    weights = {part: PurePath(given).name if is_file(given) else given for part, given in ran.config.weights.items()}
    return Compared(
        name=composition(ran.config),
        config=to_toml(attrs.evolve(ran.config, **own, weights=weights)),
        clean=clean_figure(ran.rows),
        worst_case=Figure.of(worst, worst.n),
        failed=tuple(check.name for check in ran.report.failed),
        norms=worst.norms,
        rising=worst.rising,
    )


def _command(recipe: Recipe, config: RunConfig) -> str:
    """Return the command that makes a recipe's run again, with what it changed."""
    wanted = recipe.run_config()
    words = ["defend", "recipe", recipe.name, "--run"]
    words += ["--thorough"] if config.thorough and not wanted.thorough else []
    for name in ("limit", "adaptive_limit", "seed"):
        value = getattr(config, name)
        if value is not None and value != getattr(wanted, name):
            words += [f"--{name.replace('_', '-')}", str(value)]
    return shlex.join(words)
