"""Data sets that were opened once, for all that a process does and for those that it forks."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs
import torch

from defend.assembly.load import open_dataset
from defend.datasets.base import SPLITS, ImageDataset, MemoryDataset, Split
from defend.plugins import Found, Registry
from defend.stages import Stage

_open: dict[str, ImageDataset] = {}
LEAST: Mapping[Split, int] = {"train": 256, "val": 1000, "test": 64}  # images of a trial; 0.1 % of val must be some


def hold(name: str, data_dir: Path | None, scale: float) -> ImageDataset:
    """Open a data set, once; for a trial (`scale` under 1) keep only that share of its images.

    Raises:
        DefendError: as `defend.assembly.load.open_dataset`.
    """
    if name not in _open:
        dataset = open_dataset(name, None if data_dir is None else str(data_dir))
        if scale < 1:
            dataset = thin(dataset, scale)
        dataset.sha256("train")  # and its statistics: kept for all who follow
        dataset.task()
        _open[name] = dataset
    return _open[name]


def thin(dataset: ImageDataset, scale: float) -> MemoryDataset:
    """Return a share of a data set's images, stratified by class, and at least a few."""
    images, labels = {}, {}
    for split in SPLITS:
        pixels, classes = dataset.tensors(split, max(round(scale * len(dataset.labels(split))), LEAST[split]))
        images[split], labels[split] = pixels.mul(255).round().to(torch.uint8), classes
    return MemoryDataset(dataset.name, dataset.classes, images, labels, dataset.flips)


class HeldRegistry(Registry):
    """What is installed, with the data sets that are open in the place of those that would be opened again."""

    def find(self, stage: Stage, name: str) -> Found:
        found = super().find(stage, name)
        if stage != "dataset" or name not in _open:
            return found
        spec = attrs.evolve(found.spec, build=f"{__name__}:{name}")
        return attrs.evolve(found, entry=attrs.evolve(found.entry, spec=spec))


def mnist(_: Any) -> ImageDataset:
    """Return what `hold` opened."""
    return _open["mnist"]


def fashion_mnist(_: Any) -> ImageDataset:
    """Return what `hold` opened."""
    return _open["fashion_mnist"]


def cifar10(_: Any) -> ImageDataset:
    """Return what `hold` opened."""
    return _open["cifar10"]
