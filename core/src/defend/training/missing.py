"""Trains the parts of a defence that have no weights yet, before it is built."""

from __future__ import annotations

from defend.assembly.composition import Composition
from defend.datasets.base import ImageDataset
from defend.records.watcher import Watcher
from defend.training.loop import FitSettings
from defend.training.stage import train_stage
from defend.values.editions import edition_of, is_file


def train_missing(
    composition: Composition, dataset: ImageDataset, watcher: Watcher, *, seed: int = 0, device: str = "auto"
) -> None:
    """Train every part that needs weights and has none; one whose file was named is left to fail.

    Raises:
        DefendError: as `defend.training.stage.train_stage`.
    """
    for part in composition.parts:  # one may make the weights that the next one shares
        if is_file(part.weights) or not part.is_missing(dataset.filed_as):
            continue
        # options of one that shares another's network are its own: that network is the other stage's
        options = {} if part.found.spec.weights_of else part.options
        with watcher.training(f"training {part.stage} {part.name} on {dataset.name}") as progress:
            train_stage(
                part.trained_as,
                part.name,
                dataset,
                adapted=composition.behind(part) if part.victim is not None else None,
                options=options,
                edition=edition_of(part.weights),
                settings=FitSettings(seed=seed, device=device, progress=progress),
                plugins=composition.plugins,
            )
