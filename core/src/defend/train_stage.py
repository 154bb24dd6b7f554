"""`defend train`: a stage's name and a data set to a weights file with its card."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import attrs
import torch

from defend.build import resolve_device
from defend.datasets.base import ImageDataset
from defend.errors import ConfigError, did_you_mean
from defend.options import describe, make
from defend.plugins import Registry, registry
from defend.stages import Stage
from defend.train import FitSettings, Training, fit
from defend.weights import Card, cache_dir, cached_path, save

Progress = Callable[[int, int, Mapping[str, float]], None]


def train_stage(
    stage: Stage,
    name: str,
    dataset: ImageDataset,
    *,
    options: Mapping[str, Any] | None = None,
    seed: int = 0,
    device: str = "auto",
    precision: str = "no",
    out: Path | None = None,
    progress: Progress | None = None,
    checkpoint_seconds: float | None = None,
    found_in: Registry | None = None,
) -> tuple[Path, Card]:
    """Train a stage and write its weights; a training that was cut off goes on where it was.

    Args:
        stage, name: for example "purifier", "apudae".
        dataset: what to train on; its train split, with val for what is calibrated.
        options: of the stage (its architecture) and of its recipe, in one namespace.
        seed: of everything random.
        device: "auto", "cpu", "cuda".
        precision: "no" or "bf16".
        out: the file to write; the user's cache if None.

    Returns:
        The path and the card.

    Raises:
        ConfigError: an unknown option, or a stage that has nothing to train.
    """
    found = (found_in or registry()).find(stage, name)
    spec = found.spec
    if spec.train is None:
        raise ConfigError(f"{stage} {name} has nothing to train")
    own = [option.name for option in describe(spec.config)]
    recipe_names = [option.name for option in describe(spec.recipe)]
    for key in options or {}:
        if key not in own and key not in recipe_names:
            raise ConfigError(
                f"unknown option {key!r} of training {stage} {name}: {did_you_mean(key, own + recipe_names)}"
            )
    config = found.config({key: value for key, value in (options or {}).items() if key in own})
    chosen = {key: value for key, value in (options or {}).items() if key in recipe_names}
    recipe: Any = make(spec.recipe, {**spec.recipes.get(dataset.name, {}), **chosen}, f"the recipe of {stage} {name}")

    place = resolve_device(device)
    torch.manual_seed(seed)
    training = spec.resolve(spec.train)(config, recipe, dataset.task())
    if not isinstance(training, Training):
        raise ConfigError(f"{stage} {name}: `train` returned {type(training).__name__}, expected a Training")
    identity = {
        "stage": stage, "name": found.name, "dataset": dataset.sha256("train"), "seed": seed, "precision": precision,
        "config": attrs.asdict(config), "recipe": attrs.asdict(recipe),
    }  # fmt: skip
    key = hashlib.sha256(json.dumps(identity, sort_keys=True, default=str).encode()).hexdigest()[:16]
    defaults = FitSettings()
    settings = FitSettings(
        seed=seed,
        device=place.type,
        precision=precision,
        folder=cache_dir() / "training" / f"{stage}-{found.name}-{dataset.name}-{key}",
        checkpoint_seconds=defaults.checkpoint_seconds if checkpoint_seconds is None else checkpoint_seconds,
        progress=progress or defaults.progress,
    )
    figures = fit(training, dataset, settings, identity)
    architecture = {option.name for option in describe(spec.config) if option.architecture}
    task = dataset.task()
    card = Card(
        stage=stage,
        name=found.name,
        config={key: value for key, value in attrs.asdict(config).items() if key in architecture},
        dataset={
            "name": dataset.name,
            "sha256": dataset.sha256("train"),
            "shape": list(dataset.shape),
            "classes": list(dataset.classes),
            "mean": list(task.mean),
            "std": list(task.std),
            "flips": dataset.flips,
        },
        recipe={**attrs.asdict(recipe), "seed": seed, "precision": precision, "torch": torch.__version__,
                "python": platform.python_version(), "device": place.type},
        figures=figures,
    )  # fmt: skip
    path = out or cached_path(stage, found.name, dataset.name)
    return path, save(path, training.stage, card)
