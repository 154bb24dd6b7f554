"""What was measured of a recipe: its ladder, the compositions it was held against, and how both are kept.

Imports torch only where a defence is loaded: a kept ladder is shown at once.
"""

from __future__ import annotations

import importlib.resources
import json
import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

import attrs
import cattrs

from defend.config import run_config, to_toml
from defend.editions import is_file
from defend.errors import ConfigError, DataError, DefendError
from defend.files import write_text
from defend.plugins import registry
from defend.recipes import LOCAL, Recipe, choose_recipe, composition, part_keys
from defend.threats import chosen
from defend.values import Arm, RunConfig, WorstCase

if TYPE_CHECKING:
    from defend.defence import Defence

SCHEMA = 1
DIGITS = 6
PARTS = ("dataset", "victim", "purifier", "detector", "finetune", "fpr", "options", "weights")
"""What makes a defence."""
MEASURED = ("dataset", "eps", "eps_l2", "attacks", "threats", "sources", "draws")
"""What two measurements must share to be held against each other; how many images they took is said beside them."""


@attrs.frozen(kw_only=True)
class LadderRow:
    """One attack under one threat, as in `defend.values.Row`."""

    attack: str
    threat: str
    norm: str
    eps: float | None
    n: int
    steps: int | None
    undefended: Arm
    defended: Arm
    variant: str = ""
    headline: bool = True


@attrs.frozen(kw_only=True)
class Figure:
    """An accuracy, a fraction, with its Wilson 95 % interval and the number of images."""

    accuracy: float
    ci95: tuple[float, float]
    n: int


@attrs.frozen(kw_only=True)
class Status:
    """How a sanity check of the evaluation ended: pass, warn, fail or skip."""

    name: str
    status: str


@attrs.frozen(kw_only=True)
class Compared:
    """Another composition that was measured in the same way.

    Attributes:
        name: what it is composed of.
        config: the TOML that runs it, less what is a machine's own.
        clean, worst_case: what is left of unattacked images, and per image of all attacks that count.
        failed: the checks that failed; where there are any the figures are not to be trusted.
        norms: what the attacks of each norm alone leave, as in `defend.values.WorstCase`.
    """

    name: str
    config: str
    clean: Figure
    worst_case: Figure
    failed: tuple[str, ...] = ()
    norms: Mapping[str, Any] | None = None


@attrs.frozen(kw_only=True)
class Ladder:
    """The measurement that is kept with a recipe.

    Attributes:
        recipe: its name.
        command: what makes it again.
        config: the TOML of the recipe as it was measured.
        versions, plugins, device, seed: of the run.
        dataset: name, split, n and SHA-256 of what was judged.
        weights: by part, the content hashes of the weights.
        rows: every row, at other budgets than the recipe's too.
        worst_case: as in the run's report.
        left_out: threats that do not fit the defence, with the reason.
        checks: how the sanity checks ended.
        compared: the other compositions.
    """

    recipe: str
    command: str
    config: str
    dataset: Mapping[str, Any]
    rows: tuple[LadderRow, ...]
    worst_case: WorstCase
    versions: Mapping[str, str] = attrs.field(factory=dict)
    plugins: Mapping[str, str] = attrs.field(factory=dict)
    device: str = ""
    seed: int = 0
    weights: Mapping[str, str] = attrs.field(factory=dict)
    left_out: Mapping[str, str] = attrs.field(factory=dict)
    checks: tuple[Status, ...] = ()
    compared: tuple[Compared, ...] = ()
    schema: int = SCHEMA

    @property
    def failed(self) -> tuple[str, ...]:
        """The checks that failed."""
        return tuple(check.name for check in self.checks if check.status == "fail")

    @property
    def clean(self) -> Figure:
        """What the defence leaves of unattacked images."""
        return _clean(self.rows)


_converter = cattrs.Converter()


def find(name: str) -> Recipe:
    """Return an installed recipe.

    Raises:
        UnknownNameError: nothing answers to the name; the nearest is offered.
        PluginError: two plugins offer it.
    """
    registry().refuse_claimed("recipe", name)
    return choose_recipe(registry().recipes, name)


def recipe_config(name: str, **changes: Any) -> RunConfig:
    """Return a recipe as the config of a run; `changes` are fields that are to be different.

    Raises:
        ConfigError: an unknown recipe, a part that is not installed, or a value that is not accepted.
    """
    recipe = find(name)
    recipe.require()
    return recipe.run_config(**changes)


def load_recipe(name: str, *, data_dir: str | None = None, device: str = "cpu") -> Defence:
    """Load the defence that a recipe names, weights included: an `nn.Module` in eval mode.

    A detector has the threshold of its weights (`defend calibrate`), as `fpr` sets one in runs alone.

    Args:
        name: the recipe's.
        data_dir: where its data set lies, if it has files.
        device: "auto", "cpu", "cuda", ...

    Raises:
        DefendError: an unknown recipe, a part that is not installed, or weights that do not exist: the message says
            what to install or to train.
    """
    config = recipe_config(name)
    from defend.build import load_defence

    return load_defence(
        config.victim, config.dataset, config.purifier, config.detector, finetune=config.finetune, data_dir=data_dir,
        options=config.options, weights=config.weights, device=device,
    )  # fmt: skip


def write_toml(recipe: Recipe, path: Path) -> None:
    """Write a recipe as the TOML that `defend run --config` reads, atomically."""
    write_text(path, to_toml(recipe.run_config()))


def to_json(ladder: Ladder) -> str:
    """Write a ladder as JSON."""
    return json.dumps(_rounded(_converter.unstructure(ladder)), indent=1) + "\n"


def from_json(text: str, where: str) -> Ladder:
    """Read what `to_json` wrote.

    Raises:
        DataError: it is not that; `where` names it.
    """
    try:
        values = json.loads(text)
        if values["schema"] != SCHEMA:
            raise DataError(f"{where!r} has schema {values['schema']!r}, and this version reads {SCHEMA}")
        ladder = _converter.structure(values, Ladder)
        if not any(row.threat == "none" for row in ladder.rows):
            raise ValueError
        return ladder
    except (ValueError, TypeError, KeyError, cattrs.BaseValidationError):
        raise DataError(f"{where!r} is damaged: it is not what `defend recipe --keep` writes") from None


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, DIGITS)
    if isinstance(value, Mapping):
        return {key: _rounded(inner) for key, inner in value.items()}
    return [_rounded(inner) for inner in value] if isinstance(value, list | tuple) else value


def kept(recipe: Recipe) -> Ladder | None:
    """Return the ladder that came with a recipe's plugin, or None.

    Raises:
        DataError: it is damaged.
    """
    if recipe.results is None:
        return None
    try:
        text = (importlib.resources.files(recipe.results) / f"{recipe.name}.json").read_text(encoding="utf-8")
    except (ModuleNotFoundError, FileNotFoundError):
        return None
    return from_json(text, f"{recipe.results}/{recipe.name}.json")


@attrs.frozen
class _Ran:
    """A run folder, as far as it is kept."""

    folder: Path
    report: Mapping[str, Any]
    config: RunConfig
    rows: tuple[LadderRow, ...]
    checks: tuple[Status, ...]
    worst_case: WorstCase


def keep(recipe: Recipe, runs: Sequence[Path], out: Path) -> Path:
    """Write NAME.json from run folders into the folder `out`, and return its path.

    Args:
        recipe: whose ladder it is.
        runs: folders of `defend run`: the first is the recipe's own, the others are what it was held against.
        out: made if it does not exist.

    Raises:
        ConfigError: the first run is of another defence, or a run was made in another way than the recipe's; the
            message names the field. Or a run was not finished.
        DataError: a folder that holds no run, or a damaged one.
    """
    own, *others = [_read(folder) for folder in runs]
    wanted = recipe.run_config()
    _same(f"run {str(own.folder)!r} is not recipe {recipe.name}'s", _flat(own.config, (*PARTS, *MEASURED)),
          _flat(wanted, (*PARTS, *MEASURED)))  # fmt: skip
    if not own.checks and wanted.checks != "none":
        raise ConfigError(f"run {str(own.folder)!r} has no checks: run it again without --checks none")
    for other in others:
        what = f"run {str(other.folder)!r} cannot be held against recipe {recipe.name}"
        alike = (*MEASURED, "thorough", "options")  # a quick run's attacks take fewer steps
        _same(what, _flat(_attacked(other.config), alike), _flat(_attacked(own.config), alike))
        images = [ran.report["dataset"].get("sha256") for ran in (own, other)]
        if images[0] != images[1]:
            raise ConfigError(f"{what}: it judged other images of {wanted.dataset}")
    ladder = Ladder(
        recipe=recipe.name, command=_command(recipe, own.config), config=to_toml(wanted),
        dataset=dict(own.report["dataset"]), rows=own.rows, worst_case=own.worst_case, versions=own.report["versions"],
        plugins=own.report["plugins"], device=own.report["device"], seed=own.report["seed"],
        weights={part: str(each.get("sha256", "")) for part, each in own.report["weights"].items()},
        left_out=own.report.get("left_out", {}), checks=own.checks, compared=tuple(_compared(each) for each in others),
    )  # fmt: skip
    path = out / f"{recipe.name}.json"
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DefendError(f"folder {str(out)!r} cannot be made: {error.strerror}") from None
    write_text(path, to_json(ladder))
    return path


def _read(folder: Path) -> _Ran:
    from defend.compare import read_run

    report = read_run(folder).report
    damaged = DataError(f"{str(folder / 'report.json')!r} is damaged: it is not what `defend run` writes")
    if report.get("partial"):
        raise ConfigError(f"run {str(folder)!r} is not finished: go on with `defend run --resume {folder}`")
    if report.get("worst_case") is None:
        raise ConfigError(f"run {str(folder)!r} has no worst case: it attacked nothing at its own eps")
    if not {"versions", "plugins", "device", "seed", "weights", "dataset", "checks"} <= report.keys():
        raise damaged
    try:
        rows = tuple(_converter.structure(row, LadderRow) for row in report["rows"])
        checks = tuple(_converter.structure(check, Status) for check in report["checks"])
        worst = _converter.structure(report["worst_case"], WorstCase)
        if not any(row.threat == "none" for row in rows):
            raise ValueError
    except (TypeError, ValueError, cattrs.BaseValidationError):
        raise damaged from None
    return _Ran(folder, report, run_config(report["config"]), rows, checks, worst)


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
        add(name, chosen(config) if name == "threats" else getattr(config, name))
    return found


def _attacked(config: RunConfig) -> RunConfig:
    """Return a config with the options of its attacks alone."""
    parts = part_keys(config)
    return attrs.evolve(config, options={key: value for key, value in config.options.items() if key not in parts})


def _same(what: str, ran: Mapping[str, str], wanted: Mapping[str, str]) -> None:
    for key in dict.fromkeys([*wanted, *ran]):
        if ran.get(key) != wanted.get(key):
            theirs, ours = (f"{values[key]!r}" if key in values else "not set" for values in (ran, wanted))
            raise ConfigError(f"{what}: its {key} is {theirs}, the recipe's is {ours}")


def _clean(rows: Sequence[LadderRow]) -> Figure:
    row = next(row for row in rows if row.threat == "none")
    return Figure(accuracy=row.defended.accuracy, ci95=row.defended.ci95, n=row.n)


def _compared(ran: _Ran) -> Compared:
    worst = ran.worst_case
    fields = attrs.fields_dict(RunConfig)
    own: dict[str, Any] = {name: fields[name].default for name in LOCAL}
    weights = {part: PurePath(given).name if is_file(given) else given for part, given in
               ran.config.weights.items()}  # fmt: skip
    return Compared(
        name=composition(ran.config), config=to_toml(attrs.evolve(ran.config, **own, weights=weights)),
        clean=_clean(ran.rows), worst_case=Figure(accuracy=worst.accuracy, ci95=worst.ci95, n=worst.n),
        failed=tuple(check.name for check in ran.checks if check.status == "fail"), norms=worst.norms,
    )  # fmt: skip


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
