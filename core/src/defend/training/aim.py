"""The victims that a training looks at: whose gradients it attacks with, or whose loss it lowers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs

from defend.assembly.part import SOURCES_OPTION, VICTIM_OPTIONS, Part, lacking, victims_in
from defend.assembly.stage import build_part
from defend.datasets.base import ImageDataset
from defend.errors import ConfigError, WeightsError
from defend.options import describe
from defend.plugins import Found, Registry
from defend.stages import Task
from defend.values.references import shorten


def aim(
    found: Found, victim: Part, options: Mapping[str, Any], task: Task, plugins: Registry
) -> tuple[dict[str, Any], Registry]:
    """Let a training look at a victim as it was asked for, with weights and options of its own.

    Args:
        found: what is trained.
        victim: what stands behind it.
        options: of the training.
        task: what the victim is built for.
        plugins: what is installed.

    Returns:
        The options with the victim's name, and the registry that finds it so: to be used while training.

    Raises:
        DefendError: the training looks at none, or another was named; or the victim cannot be built.
    """
    if victim.weights is None and not victim.options:
        return aim_at(found, victim.name, options), plugins
    module = build_part(victim, task).module
    name, plugins = plugins.with_thing("victim", module, f"{shorten(victim.name).replace(':', ' ')} as given")
    return aim_at(found, name, options), plugins


def aim_at(found: Found, victim: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return a training's options with the victim whose gradients or losses it uses, be it alone or among sources.

    Raises:
        ConfigError: the training uses none, or another one was named.
    """
    known = {option.name for option in describe(found.spec.recipe)}
    asked = next((name for name in VICTIM_OPTIONS if name in known), None)
    if asked is None:
        raise ConfigError(f"the training of {found.entry.stage} {found.name} uses no victim: leave it out")
    if options.get(asked, victim) != victim:
        raise ConfigError(f"{asked}={options[asked]!r} contradicts victim {victim!r}: name one of them")
    sources = {SOURCES_OPTION: (victim,)} if SOURCES_OPTION in known else {}
    return {**sources, **options, asked: victim}


def check_victims(found: Found, recipe: Any, dataset: ImageDataset, plugins: Registry) -> None:
    """Refuse a training that looks at victims that have no weights for the data set, before anything is built.

    Raises:
        WeightsError: naming them, and the ways on.
    """
    missing = lacking(victims_in(attrs.asdict(recipe, recurse=False)), dataset.filed_as, plugins)
    if not missing:
        return
    names = ", ".join(part.name for part in missing)
    what = f"training {found.entry.stage} {found.name} looks at victim {names}"
    if dataset.typed is None:
        raise WeightsError(f"{what}, and there are no weights for {dataset.filed_as}: give your own model as victim=")
    commands = "; ".join(f"`{part.say_command(dataset.name, dataset.filed_as, dataset.typed)}`" for part in missing)
    raise WeightsError(
        f"{what}, and there are no weights for {dataset.filed_as}: give your own with --victim, or run {commands}, or "
        "add --train-missing"
    )
