"""`defend train`: a stage's name and a data set to a weights file with its card."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs
import torch
from torch import nn

from defend.build import build_purifiers, build_stage, in_sequence, resolve_device
from defend.datasets.base import ImageDataset
from defend.errors import ConfigError, did_you_mean
from defend.fingerprint import code_version
from defend.options import describe, make
from defend.plugins import Registry, registry
from defend.stages import Stage, Task
from defend.train import FitSettings, Training, fit
from defend.values import check_seed, split_names
from defend.watcher import TrainingWatcher
from defend.weights import Card, cache_dir, cached_path, content_hash, new_card, save, tuned_name


def train_stage(
    stage: Stage,
    name: str,
    dataset: ImageDataset,
    *,
    victim: str | None = None,
    purifier: str | None = None,
    parts: Mapping[str, Any] | None = None,
    options: Mapping[str, Any] | None = None,
    edition: str = "",
    seed: int = 0,
    device: str = "auto",
    precision: str = "no",
    out: Path | None = None,
    progress: TrainingWatcher | None = None,
    checkpoint_seconds: float | None = None,
    found_in: Registry | None = None,
) -> tuple[Path, Card]:
    """Train a stage and write its weights; a training that was cut off goes on where it was.

    Args:
        stage, name: for example "purifier", "apudae".
        dataset: what to train on; its train split, with val for what is calibrated.
        victim, purifier: of a fine-tuner: the names of what it adapts, and behind what (None: no purifier).
        parts: {"options": ..., "weights": ...} of that victim and purifier, as in `defend.load`.
        options: of the stage (its architecture) and of its recipe, in one namespace.
        edition: which of the stage's editions to train, "" for the usual weights.
        seed: of everything random.
        device: "auto", "cpu", "cuda".
        precision: "no" or "bf16".
        out: the file to write; the user's cache if None.
        progress: what is told of it.

    Returns:
        The path and the card.

    Raises:
        ConfigError: an unknown option or edition, or a stage that has nothing to train.
    """
    check_seed(seed)
    found = (found_in or registry()).find(stage, name)
    spec = found.spec
    if spec.train is None:
        instead = f": it is trained as {spec.weights_of} {name}" if spec.weights_of else ""
        raise ConfigError(f"{stage} {name} has nothing to train{instead}")
    if (stage == "finetuner") != (victim is not None):
        raise ConfigError(
            "a fine-tuner needs --victim, the victim to adapt" if victim is None else f"{stage} {name} takes no victim"
        )
    own = [option.name for option in describe(spec.config)]
    recipe_names = [option.name for option in describe(spec.recipe)]
    for key in options or {}:
        if key not in own and key not in recipe_names:
            raise ConfigError(
                f"unknown option {key!r} of training {stage} {name}: {did_you_mean(key, own + recipe_names)}"
            )
    if edition and edition not in spec.editions:
        known = did_you_mean(edition, list(spec.editions)) if spec.editions else "it has none"
        raise ConfigError(f"unknown edition {edition!r} of {stage} {name}: {known}")
    chosen = {**spec.recipes.get(dataset.name, {}), **spec.editions.get(edition, {}), **(options or {})}
    config = found.config({key: value for key, value in chosen.items() if key in own})
    recipe: Any = make(
        spec.recipe,
        {key: value for key, value in chosen.items() if key in recipe_names},
        f"the recipe of {stage} {name}",
    )

    place = resolve_device(device)
    torch.manual_seed(seed)
    task = dataset.task()
    tuned: dict[str, Any] = {}
    if victim is None:
        training = spec.resolve(spec.train)(config, recipe, task)
    else:
        built, tuned = _parts(victim, purifier, task, parts or {}, found_in)
        training = spec.resolve(spec.train)(config, recipe, task, *built)
    if not isinstance(training, Training):
        raise ConfigError(f"{stage} {name}: `train` returned {type(training).__name__}, expected a Training")
    identity = {
        "stage": stage, "name": found.name, "dataset": dataset.sha256("train"), "seed": seed, "precision": precision,
        "config": attrs.asdict(config), "recipe": attrs.asdict(recipe), **tuned,
        "frozen": {part: content_hash(module.state_dict()) for part, module in training.frozen.items()},
        "code": code_version(spec.train.partition(":")[0], spec.config.__module__, type(training).__module__),
    }  # fmt: skip
    key = hashlib.sha256(json.dumps(identity, sort_keys=True, default=str).encode()).hexdigest()[:16]
    filed_as = found.name if victim is None else tuned_name(found.name, victim, purifier)
    defaults = FitSettings()
    settings = FitSettings(
        seed=seed,
        device=place.type,
        precision=precision,
        folder=cache_dir() / "training" / f"{stage}-{filed_as}-{dataset.filed_as}-{key}",
        checkpoint_seconds=defaults.checkpoint_seconds if checkpoint_seconds is None else checkpoint_seconds,
        progress=progress or defaults.progress,
    )
    figures = fit(training, dataset, settings, identity)
    card = new_card(
        found, config, dataset, figures=figures,
        recipe={**attrs.asdict(recipe), "seed": seed, "precision": precision, "torch": torch.__version__,
                "python": platform.python_version(), "device": place.type, **tuned},
        made_for=None if victim is None else {"victim": victim, "purifier": purifier},
    )  # fmt: skip
    path = out or cached_path(stage, filed_as, dataset.filed_as, edition)
    return path, save(path, training.stage, card)


def _parts(
    victim: str, purifier: str | None, task: Task, parts: Mapping[str, Any], found_in: Registry | None
) -> tuple[tuple[nn.Module, nn.Module | None], dict[str, Any]]:
    """Build what a fine-tuner adapts; return (victim, purifier) and which weights they had, for the card."""
    options, weights = parts.get("options", {}), parts.get("weights", {})
    bare = build_stage("victim", victim, task, options.get("victim"), weights.get("victim"), found_in)
    purifiers = build_purifiers(split_names(purifier), task, options, weights, found_in)
    hashes = {name: built.card.content_sha256 if built.card else None for name, built in purifiers.items()}
    tuned = {
        "victim": victim, "victim_sha256": bare.card.content_sha256 if bare.card else None,
        "purifier": purifier, "purifier_sha256": hashes,
    }  # fmt: skip
    return (bare.module, in_sequence(purifiers)), tuned
