"""Trains what has no weights yet, before a defence is built or another training looks at it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs

from defend.assembly.composition import Composition
from defend.assembly.part import Part, find_part, list_victims
from defend.datasets.base import ImageDataset
from defend.errors import ConfigError
from defend.plugins import Found, Registry, using
from defend.records.watcher import Watcher
from defend.training.aim import aim
from defend.training.loop import FitSettings
from defend.training.stage import train_stage
from defend.util.processes import Processes, join, resolve_device
from defend.values.editions import edition_of, is_file


def train_missing(
    composition: Composition, dataset: ImageDataset, watcher: Watcher, *, seed: int = 0, device: str = "auto"
) -> None:
    """Train every part that needs weights and has none; one whose file was named is left to fail.

    Raises:
        ConfigError: of several processes one finds weights, and another none.
        DefendError: as `defend.training.stage.train_stage`.
    """
    processes, _ = join(resolve_device(device))
    for part in composition.parts:  # one may make the weights that the next one shares
        if is_file(part.weights) or not _is_missing(part, dataset.filed_as, processes):
            continue
        # options of one that shares another's network are its own: that network is the other stage's
        options = {} if part.found.spec.weights_of else part.options
        plugins = composition.plugins
        if (victim := part.aims_at(dataset.name, dataset.filed_as)) is not None:
            options, plugins = aim(plugins.find(part.trained_as, part.name), victim, options, dataset.task(), plugins)
        what = f"training {part.stage} {part.name} on {dataset.name}"
        with using(plugins), watcher.training(what) as progress:
            train_stage(
                part.trained_as,
                part.name,
                dataset,
                adapted=composition.behind(part) if part.victim is not None else None,
                options=options,
                edition=edition_of(part.weights),
                settings=FitSettings(seed=seed, device=device, progress=progress),
                plugins=plugins,
            )


def _is_missing(part: Part, filing: str, processes: Processes) -> bool:
    """Whether a part has no weights; the processes must agree, as all of them train or none."""
    found = processes.gather(part.is_missing(filing), "which weights are missing")
    if len(set(found)) > 1:
        raise ConfigError(
            f"process {found.index(False)} finds weights of {part.stage} {part.name}, and process {found.index(True)} "
            "finds none: let all of them see the same files (DEFEND_CACHE_DIR)"
        )
    return found[0]


@attrs.frozen
class Aimed:
    """What a training is given beside its data.

    Attributes:
        options: of the training, with the victim that it looks at.
        adapted: of a fine-tuner: what it adapts.
        plugins: what finds that victim by its name: to be used while training.
    """

    options: Mapping[str, Any]
    adapted: Composition | None
    plugins: Registry


def prepare_training(
    found: Found,
    around: Composition,
    dataset: ImageDataset,
    options: Mapping[str, Any],
    edition: str = "",
    watcher: Watcher | None = None,
    how: FitSettings | None = None,
) -> Aimed:
    """Return what a training is given: the victim that was named, or the victims that its recipe names.

    Args:
        found: what is trained.
        around: the victim, and of a fine-tuner the purifiers, as far as they were named.
        dataset: what it is trained on.
        options, edition: of the training.
        watcher: told of what is trained before, where weights are missing; None trains none.
        how: seed and device of that.

    Raises:
        DefendError: as `aim`, `train_missing`.
    """
    if found.entry.stage != "finetuner" and around.of_stage("purifier"):
        raise ConfigError(
            f"the training of {found.entry.stage} {found.name} knows no purifier: leave out --purifier "
            f"{around.purifier}, or train a fine-tuner behind it"
        )
    how, missing = how or FitSettings(device="auto"), around
    if watcher is not None:
        if not around.parts:
            names = list_victims(found, dataset.name, edition, options)
            looked_at = (find_part("victim", name, plugins=around.plugins) for name in names)
            missing = Composition(tuple(looked_at), None, around.plugins)
        try:
            train_missing(missing, dataset, watcher, seed=how.seed, device=how.device)
        finally:
            watcher.end()
    if found.entry.stage == "finetuner":
        return Aimed(options, around if around.parts else None, around.plugins)
    if not around.parts:
        return Aimed(options, None, around.plugins)
    (victim,) = around.of_stage("victim")
    chosen, plugins = aim(found, victim, options, dataset.task(), around.plugins)
    return Aimed(chosen, None, plugins)
