"""A recipe as data: a whole defence under one name, as it was composed and measured. Imports no torch.

A plugin declares recipes through the hook `defend_recipes`; `defend.reproduce.ladders` holds what was measured of them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

import attrs

from defend.errors import UnknownNameError, did_you_mean
from defend.util.distributions import absent, require
from defend.values.editions import BARE, is_bare, is_file
from defend.values.run_config import LADDER, RunConfig
from defend.values.threats import choose_threats

LOCAL = ("data_dir", "device", "out", "store", "train_missing", "workers")
"""Fields of a `RunConfig` that are a machine's or a run's own, and no part of a recipe."""


def _short_name(_: Any, __: Any, value: Any) -> None:
    if not isinstance(value, str) or not re.fullmatch(r"[a-z0-9]+([-_][a-z0-9]+)*", value):
        raise ValueError(f"recipe name={value!r} is not lower-case letters, digits and hyphens: mnist-robust")


@attrs.frozen(kw_only=True)
class Recipe:
    """A defence by name.

    Attributes:
        name: what the user types, for example "mnist-robust".
        summary: one line for `defend recipe --list`.
        config: fields of `RunConfig`: victim, dataset, purifier, detector, finetune, fpr, eps, options, weights, and
            whatever else the measurement is to have. Threats are the ladder unless it names others. Weights are
            editions ("+robust") or "bare", as files are a machine's own.
        why: why this composition and no other, in a few sentences.
        notes: what else is to be known, a line each.
        needs: distributions that offer its parts, for example "defend-dae-finetune".
        results: the package whose data holds the kept ladder, NAME.json.

    Raises:
        ValueError: a name or a field that is not accepted.
        ConfigError: a value that `RunConfig` refuses.
    """

    name: str = attrs.field(validator=_short_name)
    summary: str
    config: Mapping[str, Any]
    why: str = ""
    notes: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    results: str | None = None

    def __attrs_post_init__(self) -> None:
        names = [field.name for field in attrs.fields(RunConfig) if field.name not in LOCAL]
        for key in self.config:
            if key not in names:
                raise ValueError(f"recipe {self.name}: {key!r} is no field of it: {did_you_mean(key, names)}")
        if "victim" not in self.config:
            raise ValueError(f"recipe {self.name} names no victim")
        config = self.run_config()
        choose_threats(config)
        for part, weights in config.weights.items():
            if is_file(str(weights)):
                raise ValueError(f"recipe {self.name}: weights of {part} are {weights!r}, expected an edition: '+NAME'")

    def run_config(self, **changes: Any) -> RunConfig:
        """Return what runs it: its fields, and `changes` to them; None is no change.

        Raises:
            ConfigError: a changed value that is not accepted.
        """
        given = {key: value for key, value in changes.items() if value is not None}
        return RunConfig(**{"threats": (LADDER,), **self.config, **given})

    def missing(self) -> tuple[str, ...]:
        """Return the distributions it needs that are not installed."""
        return absent(self.needs)

    def require(self) -> None:
        """Check that what it needs is installed.

        Raises:
            ConfigError: it is not; the message says what to install.
        """
        require(f"recipe {self.name!r}", self.needs)


def choose_recipe(recipes: Mapping[str, Recipe], name: str) -> Recipe:
    """Look a recipe up.

    Raises:
        UnknownNameError: nothing answers to it; the nearest name is offered.
    """
    if name not in recipes:
        raise UnknownNameError("recipe", name, recipes)
    return recipes[name]


def composition(config: RunConfig) -> str:
    """Say what a defence is composed of, in the order that an image takes.

    Editions stand with their part, other weights by their file's name, options in brackets:
    "dae+strong, apudae (steps=10) + classifier_a tuned by adversarial+eps03".
    """
    one = len(config.purifiers) == 1
    purifiers = [_part(config, name, name, *(["purifier"] if one else [])) for name in config.purifiers]
    victim = _part(config, config.victim, "victim")
    if config.finetune:
        victim += f" tuned by {_part(config, config.finetune, 'finetuner')}"
    detector = _part(config, config.detector, "detector") if config.detector else ""
    return " + ".join(part for part in (", ".join(purifiers), detector, victim) if part)


def part_keys(config: RunConfig) -> frozenset[str]:
    """Return what a config's options and weights for parts of the defence stand under; other keys are attacks."""
    return frozenset({"victim", "purifier", "detector", "finetuner", "dataset", *config.purifiers})


def _part(config: RunConfig, name: str, *keys: str) -> str:
    """Name a part with its weights and options, which stand under any of `keys`; the first wins."""
    weights = next((str(config.weights[key]) for key in keys if key in config.weights), "")
    options = {key: value for place in reversed(keys) for key, value in config.options.get(place, {}).items()}
    if is_bare(weights):
        weights = f"{weights.removeprefix(BARE)} alone"
    elif weights and is_file(weights):
        weights = f" from {PurePath(weights).name}"
    said = ", ".join(f"{key}={value}" for key, value in options.items())
    return f"{name}{weights}{f' ({said})' if said else ''}"
