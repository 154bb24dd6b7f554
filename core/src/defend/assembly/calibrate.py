"""Sets a detector's threshold for a false-positive rate, on held-out clean images and through the whole defence."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from defend.assembly.composition import Composition
from defend.boundary.answers import threshold_of
from defend.datasets.base import ImageDataset, Split
from defend.defence import Defence
from defend.errors import ConfigError
from defend.randomness import keyed
from defend.util.fp32 import ieee_fp32
from defend.util.memory import fit_batch
from defend.util.metrics import check_rate, threshold_at
from defend.util.processes import resolve_device
from defend.values.editions import edition_of
from defend.values.report import Calibration
from defend.weights.card import new_card
from defend.weights.files import save
from defend.weights.find import cached_path

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
    check_rate(fpr, len(dataset.labels(SPLIT)))
    together = clean_scores(defence, dataset, device=device, batch_size=batch_size, seed=seed, progress=progress)
    threshold = threshold_at(together, fpr)
    set_threshold(detector, threshold)
    measured = float((together >= threshold).double().mean())
    return Calibration(threshold=threshold, fpr=fpr, measured=measured, n=len(together), split=SPLIT)


@ieee_fp32()
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
    scores, task = [], dataset.task()
    some = fit_batch(batch_size, task.height * task.width, device)
    for batch in dataset.batches(SPLIT, dataset.keys(SPLIT), some, device):
        # the stream of the judge, so that a random purifier draws as it will when it is judged
        with keyed(batch.keys, seed=seed, stream="defender"):
            scores.append(defence.screen(batch.images).score.cpu())
        progress(len(batch.keys))
    return torch.cat(scores)


def thresholds_at(scores: Tensor, rates: Sequence[float]) -> dict[float, float]:
    """Return a threshold for each false-positive rate that the clean images' scores [N] can show, and of no other."""
    found = {}
    for rate in rates:
        with contextlib.suppress(ConfigError):
            found[rate] = threshold_at(scores, rate)
    return found


def set_threshold(detector: nn.Module, threshold: float) -> None:
    """Write a threshold into a detector's buffer."""
    held = getattr(detector, "threshold", None)
    if not isinstance(held, Tensor) or held.numel() != 1:
        raise ConfigError(f"detector {detector.stage_name} has no scalar buffer `threshold` that could be calibrated")
    held.fill_(threshold)


def is_calibrated(detector: nn.Module) -> bool:
    """Whether a detector has a threshold; an infinite one rejects nothing."""
    return bool(torch.isfinite(threshold_of(detector)))


def calibrate_part(
    composition: Composition,
    dataset: ImageDataset,
    fpr: float,
    *,
    device: str = "auto",
    seed: int = 0,
    out: Path | None = None,
    progress: Callable[[int], None] = lambda images: None,
) -> tuple[Path, Calibration]:
    """Calibrate a composition's detector, behind its purifiers, and write its weights with the threshold.

    Args:
        composition: a detector, with or without purifiers; a victim is not asked.
        out: the file to write; the user's cache if None, which is found before the shipped one.

    Returns:
        The file written, and the calibration.

    Raises:
        DefendError: missing weights, or a rate that cannot be shown.
    """
    task, place = dataset.task(), resolve_device(device)
    (part,) = composition.of_stage("detector")
    composition.warn_of_own(task.filing)
    parts = composition.build(task)
    built, whole = parts["detector"], composition.compose(parts).to(place)
    calibration = calibrate(whole, dataset, fpr, device=place, seed=seed, progress=progress)
    # the defence may have scored with the detector's `beside()`, and it is the detector itself that is saved
    set_threshold(built.module, calibration.threshold)
    before = built.card
    card = new_card(
        part.found,
        built.config,
        dataset,
        recipe={**(before.recipe if before else {}), "calibrated_behind": composition.purifier},
        figures={
            **(before.figures if before else {}),
            "threshold": calibration.threshold,
            "fpr": fpr,
            "val_rejected": calibration.measured,
        },
    )
    path = out or cached_path("detector", part.found.name, dataset.filed_as, edition_of(part.weights))
    save(path, built.module, card)
    return path, calibration
