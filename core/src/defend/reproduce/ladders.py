"""A recipe, and what was measured of it: its ladder, and the compositions it was held against.

Imports torch only where a defence is loaded: a kept ladder is shown at once.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import attrs

from defend.errors import DefendError
from defend.plugins import registry
from defend.recipes import Recipe, choose_recipe
from defend.reproduce.kept import SCHEMA, Kept
from defend.util.files import write_text
from defend.values.editions import tuned_behind
from defend.values.report import ArmResult, LeastRow, WorstCase
from defend.values.run_config import RunConfig, split_names
from defend.values.toml import to_toml
from defend.weights.card import read_card
from defend.weights.find import locate, tuned_name

if TYPE_CHECKING:
    from defend.defence import Defence
    from defend.stages import Stage


@attrs.frozen(kw_only=True)
class LadderRow:
    """One attack under one threat, as in `defend.values.report.Row`; `rising` is None where that was not recorded."""

    attack: str
    threat: str
    norm: str
    eps: float | None
    n: int
    steps: int | None
    undefended: ArmResult
    defended: ArmResult
    variant: str = ""
    headline: bool = True
    rising: bool | None = None


@attrs.frozen(kw_only=True)
class Figure:
    """An accuracy, a fraction, with its Wilson 95 % interval and the number of images.

    `undercut_by` as of a `defend.values.report.WorstCase`.
    """

    accuracy: float
    ci95: tuple[float, float]
    n: int
    undercut_by: LeastRow | None = None

    @classmethod
    def of(cls, one: ArmResult | WorstCase, n: int) -> Self:
        """Return what an arm leaves of `n` images."""
        return cls(
            accuracy=one.accuracy,
            ci95=one.ci95,
            n=n,
            undercut_by=one.undercut_by if isinstance(one, WorstCase) else None,
        )


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
        norms: what the attacks of each norm alone leave, as in `defend.values.report.WorstCase`.
        rising: the rows whose attack was still fooling images when its steps ended, as there; None where that
            was not recorded.
    """

    name: str
    config: str
    clean: Figure
    worst_case: Figure
    failed: tuple[str, ...] = ()
    norms: Mapping[str, Any] | None = None
    rising: tuple[str, ...] | None = None


@attrs.frozen(kw_only=True)
class Ladder(Kept):
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

    digits: ClassVar[int] = 6
    written_by: ClassVar[str] = "defend recipe --keep"

    recipe: str
    command: str
    config: str
    dataset: Mapping[str, Any]
    rows: tuple[LadderRow, ...] = attrs.field()
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

    @rows.validator
    def _has_clean_row(self, field: attrs.Attribute[Any], rows: tuple[LadderRow, ...]) -> None:
        if not any(row.threat == "none" for row in rows):
            raise ValueError("no row is of unattacked images")

    @property
    def failed(self) -> tuple[str, ...]:
        """The checks that failed."""
        return tuple(check.name for check in self.checks if check.status == "fail")

    @property
    def clean(self) -> Figure:
        """What the defence leaves of unattacked images."""
        return clean_figure(self.rows)


def list_replaced(recipe: Recipe, ladder: Ladder) -> tuple[str, ...]:
    """Return the parts, by key, that would be loaded here with other weights than the ladder was measured with.

    Of weights that cannot be found or read, loading says why.
    """
    config, replaced = recipe.run_config(), []
    purifiers = split_names(config.purifier)
    parts: dict[str, tuple[Stage, str | None]] = {"victim": ("victim", config.victim)}
    parts["detector"] = ("detector", config.detector)
    parts["finetuner"] = ("finetuner", config.finetune)
    parts |= {name if len(purifiers) > 1 else "purifier": ("purifier", name) for name in purifiers}
    for key, then in ladder.weights.items():
        stage, name = parts.get(key, ("victim", None))
        if name is None or not then:
            continue
        with contextlib.suppress(DefendError):
            given = config.weights.get(key, config.weights.get(stage))
            behind = tuned_behind(config.purifier, given)
            filed_as = tuned_name(name, config.victim, behind) if stage == "finetuner" else None
            path = locate(registry().find(stage, name), config.dataset, given, filed_as)
            if path is not None and read_card(path).content_sha256 != then:
                replaced.append(key)
    return tuple(replaced)


def clean_figure(rows: Sequence[LadderRow]) -> Figure:
    """Return what the defence leaves of unattacked images."""
    row = next(row for row in rows if row.threat == "none")
    return Figure.of(row.defended, row.n)


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

    A detector has the threshold of its weights (`defend calibrate`), as `fpr` sets one in runs alone. Warnings say
    what `defend.load` warns of: weights of your own are not those that the recipe was measured with.

    Args:
        name: the recipe's.
        data_dir: where its data set lies, if it has files.
        device: "auto", "cpu", "cuda", ...

    Raises:
        DefendError: an unknown recipe, a part that is not installed, or weights that do not exist: the message says
            what to install or to train.
    """
    config = recipe_config(name)
    from defend.assembly.composition import Composition
    from defend.assembly.load import DataSource, load_composition

    source = DataSource(config.dataset, data_dir, config.options.get("dataset", {}))
    return load_composition(Composition.of_config(config), source, device)


def write_toml(recipe: Recipe, path: Path) -> None:
    """Write a recipe as the TOML that `defend run --config` reads, atomically."""
    write_text(path, to_toml(recipe.run_config()), "settings")


def find_kept(recipe: Recipe) -> Ladder | None:
    """Return the ladder that came with a recipe's plugin, or None.

    Raises:
        DataError: it is damaged.
    """
    return Ladder.from_package(recipe.results, recipe.name)
