"""Sets a detector's threshold for a false-positive rate, on held-out clean images and through the whole defence."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from defend.build import build_purifiers, build_stage, in_sequence, resolve_device
from defend.datasets.base import ImageDataset, Split
from defend.defence import Defence
from defend.errors import ConfigError
from defend.metrics import threshold_at
from defend.plugins import Registry, registry
from defend.randomness import keyed
from defend.values import Calibration, split_names
from defend.weights import cached_path, new_card, save

DEFAULT_FPR = 0.01
SPLIT: Split = "val"


def calibrate(
    defence: Defence,
    dataset: ImageDataset,
    fpr: float,
    *,
    device: torch.device,
    batch_size: int = 64,
    seed: int = 0,
    progress: Callable[[int], None] = lambda images: None,
) -> Calibration:
    """Set the threshold of a defence's detector so that it rejects at most a share `fpr` of clean images.

    Args:
        defence: on `device`; its detector scores images as it will when it judges them.
        dataset: whose validation split, which no weights were trained on, is scored.
        fpr: the false-positive rate, in (0,1).
        progress: called with the number of images just scored.

    Raises:
        ConfigError: no detector, or a rate that this many images cannot show.
    """
    detector = defence.detector
    if detector is None:
        raise ConfigError("there is no detector to calibrate: add --detector")
    together = clean_scores(defence, dataset, device=device, batch_size=batch_size, seed=seed, progress=progress)
    threshold = threshold_at(together, fpr)
    set_threshold(detector, threshold)
    measured = float((together >= threshold).double().mean())
    return Calibration(threshold=threshold, fpr=fpr, measured=measured, n=len(together), split=SPLIT)


def clean_scores(
    defence: Defence,
    dataset: ImageDataset,
    *,
    device: torch.device,
    batch_size: int = 64,
    seed: int = 0,
    progress: Callable[[int], None] = lambda images: None,
) -> Tensor:
    """Return the detector's scores of the validation split's images, behind the whole defence: [N] on the CPU."""
    scores = []
    for batch in dataset.batches(SPLIT, dataset.keys(SPLIT), batch_size, device):
        with keyed(batch.keys, seed=seed, stream="defender"):
            scores.append(defence.screen(batch.images).score.cpu())
        progress(len(batch.keys))
    return torch.cat(scores)


def thresholds_at(scores: Tensor, rates: Sequence[float]) -> dict[float, float]:
    """Return the threshold of each false-positive rate that so many clean images' scores [N] can show."""
    found = {}
    for rate in rates:
        with contextlib.suppress(ConfigError):
            found[rate] = threshold_at(scores, rate)
    return found


def set_threshold(detector: nn.Module, threshold: float) -> None:
    """Write a threshold into a detector's buffer."""
    held: Any = getattr(detector, "threshold", None)
    if not isinstance(held, Tensor) or held.numel() != 1:
        raise ConfigError(f"detector {detector.stage_name} has no scalar buffer `threshold` that could be calibrated")
    held.fill_(threshold)


def is_calibrated(detector: nn.Module) -> bool:
    """Whether a detector has a threshold; an infinite one rejects nothing."""
    return bool(torch.isfinite(torch.as_tensor(detector.threshold)).all())


def calibrate_stage(
    name: str,
    dataset: ImageDataset,
    fpr: float,
    *,
    purifier: str | None = None,
    options: Mapping[str, Mapping[str, Any]] | None = None,
    weights: Mapping[str, str] | None = None,
    device: str = "auto",
    seed: int = 0,
    out: Path | None = None,
    progress: Callable[[int], None] = lambda images: None,
    found_in: Registry | None = None,
) -> tuple[Path, Calibration]:
    """Calibrate a detector by name, behind a purifier if one is named, and write its weights with the threshold.

    Returns:
        The file written (the user's cache if `out` is None; found before the shipped one), and the calibration.

    Raises:
        DefendError: a wrong name, missing weights, or a rate that cannot be shown.
    """
    options, weights = options or {}, weights or {}
    task, place = dataset.task(), resolve_device(device)
    found = (found_in or registry()).find("detector", name)
    built = build_stage("detector", name, task, options.get("detector"), weights.get("detector"), found_in)
    purifiers = build_purifiers(split_names(purifier), task, options, weights, found_in)
    whole = Defence(nn.Identity(), in_sequence(purifiers), built.module).to(place)
    calibration = calibrate(whole, dataset, fpr, device=place, seed=seed, progress=progress)
    set_threshold(built.module, calibration.threshold)
    before = built.card
    card = new_card(
        found, built.config, dataset,
        recipe={**(before.recipe if before else {}), "calibrated_behind": purifier},
        figures={
            **(before.figures if before else {}),
            "threshold": calibration.threshold, "fpr": fpr, "val_rejected": calibration.measured,
        },
    )  # fmt: skip
    path = out or cached_path("detector", found.name, dataset.filed_as)
    save(path, built.module, card)
    return path, calibration
