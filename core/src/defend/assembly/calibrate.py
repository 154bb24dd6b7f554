"""Sets a detector's threshold for a false-positive rate, on held-out clean images and through the whole defence."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import torch
from torch import Tensor, nn

from defend.assembly.composition import Composition
from defend.assembly.part import Part, type_parts
from defend.assembly.stage import Built
from defend.boundary.answers import threshold_of
from defend.boundary.given import name_of
from defend.datasets.base import Batch, ImageDataset, Split
from defend.defence import Defence
from defend.errors import ConfigError
from defend.fingerprints.values import code_hash
from defend.randomness import keyed
from defend.stages import Task
from defend.util.fp32 import ieee_fp32
from defend.util.memory import Fitting
from defend.util.metrics import check_rate, round_up, threshold_at
from defend.util.processes import resolve_device
from defend.util.tensors import hash_state
from defend.values.commands import say_command
from defend.values.editions import edition_of, is_file
from defend.values.report import Calibration
from defend.weights.card import CALIBRATION, FROM, OLD_CALIBRATION, Card, new_card
from defend.weights.files import check_out, save
from defend.weights.find import cached_path

DEFAULT_FPR = 0.01
SPLIT: Split = "val"
THRESHOLD = "threshold"
HASH = 16
"""How many digits of a content hash tell weights apart in a message."""
OF_THRESHOLD = (THRESHOLD, "fpr", "val_rejected")
"""Figures of a card that are of one threshold, and no longer true of the next."""


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

    Warns where it rejects none of them (`Calibration.blunt`).

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
        raise ConfigError("there is no detector to calibrate: load the defence with detector=")
    check_rate(fpr, len(dataset.labels(SPLIT)))
    together = clean_scores(defence, dataset, device=device, batch_size=batch_size, seed=seed, progress=progress)
    set_threshold(detector, threshold_at(together, fpr))
    threshold = float(threshold_of(detector))  # as it is kept
    measured = float((together >= threshold).double().mean())
    found = Calibration(
        threshold=threshold,
        fpr=fpr,
        measured=measured,
        n=len(together),
        split=SPLIT,
        dataset=dataset.filed_as,
        behind=say_behind(defence),
    )
    if found.blunt:
        top = together.max()
        warnings.warn(
            f"the threshold {threshold:.8g} of detector {name_of(detector)} rejects none of {found.n} held-out clean "
            f"images, and was to reject at most {100 * fpr:g} %: {int((together == top).sum())} of them have the "
            f"highest score, {float(top):.6g}; attacked images with that score are accepted too",
            stacklevel=2,
        )
    return found


def describe_parts(composition: Composition, built: Mapping[str, Built]) -> dict[str, dict[str, Any]]:
    """Return what a composition's detector and purifiers are like, as `Calibration.parts`."""
    found = {}
    for part in (*composition.of_stage("purifier"), *composition.of_stage("detector")):
        each = built[part.key]
        found[f"{part.stage} {part.found.name}"] = each.list_options()
        if part.stage == "purifier":  # the threshold is in the detector's own weights
            known = each.content_hash or (hash_state(each.module) if each.custom else "")
            found[f"{part.stage} {part.found.name}"]["weights"] = known[:HASH]
        if each.custom:  # of a package its version is told
            found[f"{part.stage} {part.found.name}"]["code"] = code_hash(each.module)[:HASH]
    return found


def say_behind(defence: Defence) -> str | None:
    """Return the purifiers that a defence's detector stands behind, as in "dae,blur"; None for none."""
    return None if defence.purifier is None else name_of(defence.purifier)


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
    task = dataset.task()
    fitting = Fitting(batch_size, task.height * task.width, device)

    def score(batch: Batch) -> Tensor:
        # the stream of the judge, so that a random purifier draws as it will when it is judged
        with keyed(batch.keys, seed=seed, stream="defender"):
            found = defence.screen(batch.images).score.cpu()
        progress(len(batch.keys))
        return found

    every = dataset.batches(SPLIT, dataset.keys(SPLIT), fitting.size, device)
    return torch.cat([found for batch in every for found in fitting.work(batch, score)])


def thresholds_at(scores: Tensor, rates: Sequence[float]) -> dict[float, float]:
    """Return a threshold for each false-positive rate that the clean images' scores [N] can show, and of no other."""
    found = {}
    for rate in rates:
        with contextlib.suppress(ConfigError):
            found[rate] = threshold_at(scores, rate)
    return found


def set_threshold(detector: nn.Module, threshold: float) -> None:
    """Write a threshold into a detector's buffer; one of lower precision gets the next number above.

    Raises:
        ConfigError: there is no such buffer, or none that holds such a number.
    """
    held, who = getattr(detector, THRESHOLD, None), f"detector {name_of(detector)}"
    if not isinstance(held, Tensor) or held.numel() != 1 or not held.is_floating_point():
        got = f"{held.dtype} {list(held.shape)}" if isinstance(held, Tensor) else f"{held!r}"[:60]
        raise ConfigError(
            f"{who} has no scalar buffer `threshold` that could be calibrated, but {got}: "
            'self.register_buffer("threshold", torch.tensor(float("inf")))'
        )
    kept = round_up(threshold, held.dtype)
    if not bool(kept.isfinite()):
        raise ConfigError(f"{who} keeps its threshold as {held.dtype}, which does not reach to {threshold:.6g}")
    with torch.no_grad():
        held.fill_(kept.item())


def is_calibrated(detector: nn.Module) -> bool:
    """Whether a detector has a threshold; an infinite one rejects nothing."""
    return bool(torch.isfinite(threshold_of(detector)))


def find_kept(card: Card | None, detector: nn.Module) -> Calibration | None:
    """Return how the threshold was set that came with a detector's weights, None where their card does not say."""
    if card is None or (card.calibration is None and not card.overwritten):
        return None
    old = {"fpr": card.figures.get("fpr"), "measured": card.figures.get("val_rejected"), "n": 0}
    said = card.calibration or {**old, "dataset": card.filing, "behind": card.recipe[OLD_CALIBRATION]}
    if said["fpr"] is None or said["measured"] is None:
        return None
    return Calibration(
        threshold=float(threshold_of(detector)),
        fpr=said["fpr"],
        measured=said["measured"],
        n=said["n"],
        split=SPLIT,
        dataset=said["dataset"],
        behind=said["behind"],
        parts=said.get("parts", {}),
        kept=True,
    )


def find_doubt(
    defence: Defence, composition: Composition, built: Mapping[str, Built], card: Card | None, task: Task
) -> str:
    """Say why the threshold that came with a detector's weights is none for where it stands; "" if nothing says so.

    Args:
        defence: the whole.
        composition, built: what it was built from.
        card: of the detector's weights; None where it has none, or its threshold was set just now.
        task: of the images that are judged.
    """
    if defence.detector is None or card is None:
        return ""
    kept = find_kept(card, defence.detector)
    if kept is not None:
        elsewhere = kept.say_elsewhere(say_behind(defence), describe_parts(composition, built) if kept.parts else {})
        if elsewhere:
            return elsewhere
    return "" if card.serves == task.filing else f"the threshold was set on {card.serves}, not on {task.filing}"


def check_threshold(
    defence: Defence, composition: Composition, built: Mapping[str, Built], card: Card | None, task: Task
) -> None:
    """Refuse a defence whose detector has no threshold, and would accept every image, or one that was set elsewhere.

    Args:
        defence, composition, built, card, task: see `find_doubt`.

    Raises:
        ConfigError: it has none, or one for other purifiers or images; what sets one.
    """
    if defence.detector is None:
        return
    rate, who = DEFAULT_FPR, f"detector {name_of(defence.detector)}"
    if not is_calibrated(defence.detector):
        why = f"{who} has no threshold for {task.dataset}, and would accept every image"
    elif doubt := find_doubt(defence, composition, built, card, task):
        why, kept = f"{who}: {doubt}", find_kept(card, defence.detector)
        rate = rate if kept is None else kept.fpr
    else:
        return
    first = ""
    if not hasattr(defence.detector, "with_victim"):  # a threshold for one victim alone is kept nowhere
        words = type_parts(composition.of_stage("purifier") + composition.of_stage("detector"))
        first = f", or run `{say_command('calibrate', *words, *(task.typed or ('--dataset', task.dataset)))}` first"
    raise ConfigError(f"{why}: add --fpr {rate:g} to set one on held-out images{first}")


def warn_of_threshold(defence: Defence, composition: Composition, built: Mapping[str, Built], task: Task) -> None:
    """Warn of what `check_threshold` refuses, as a program may still set a threshold."""
    if defence.detector is None:
        return
    card = built["detector"].card
    who = f"detector {name_of(defence.detector)}"
    if not is_calibrated(defence.detector):
        why = f"{who} has no threshold for {task.dataset}, and accepts every image"
    elif doubt := find_doubt(defence, composition, built, card, task):
        why = f"{who}: {doubt}"
    else:
        return
    warnings.warn(
        f"{why}: set one with defend.calibrate(defence, images, fpr={DEFAULT_FPR:g}), on held-out clean images",
        stacklevel=4,
    )


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

    The card goes on saying what the weights were trained on, and says beside it what the threshold was set on.
    """
    if out is not None:
        check_out(out)
    task, place = dataset.task(), resolve_device(device)
    (part,) = composition.of_stage("detector")
    composition.warn_of_own(task.filing)
    parts = composition.build(task)
    built, whole = parts["detector"], composition.compose(parts).to(place)
    made = describe_parts(composition, parts)
    calibration = calibrate(whole, dataset, fpr, device=place, seed=seed, progress=progress)
    calibration = attrs.evolve(calibration, parts=made)
    # the defence may have scored with the detector's `beside()`, and it is the detector itself that is saved
    set_threshold(built.module, calibration.threshold)
    card = _describe(part, built, dataset, calibration)
    path = out or cached_path("detector", part.found.name, dataset.filed_as, edition_of(part.weights))
    save(path, built.module, card)
    return path, calibration


def is_found(composition: Composition, path: Path, filing: str) -> bool:
    """Whether a detector's weights, just written to a file, are those that its name alone leads to.

    A user's own detector has its weights with it, so that none are looked for. `filing` is what the data set files
    weights under.
    """
    (part,) = composition.of_stage("detector")
    unnamed = attrs.evolve(part, weights=None) if is_file(part.weights) else part
    return unnamed.find_weights(filing) == path


def _describe(part: Part, built: Built, dataset: ImageDataset, calibration: Calibration) -> Card:
    """Return the card of a detector whose threshold was just set: what it learnt of stays as it was known."""
    known = built.card or new_card(part.found, built.config, dataset, recipe={}, figures={})
    learnt_of, recipe = known.dataset, known.recipe
    if built.card is None and set(built.module.state_dict()) - {THRESHOLD}:
        # it knows something, and nobody said from where
        learnt_of, recipe = {**learnt_of, "sha256": ""}, {FROM: part.found.name}
    elif known.overwritten:
        learnt_of = {**learnt_of, "sha256": ""}
    set_on = {
        "dataset": calibration.dataset,
        "sha256": dataset.sha256(SPLIT),
        "n": calibration.n,
        "fpr": calibration.fpr,
        "measured": calibration.measured,
        "behind": calibration.behind,
        "parts": calibration.parts,
    }
    figures = {name: value for name, value in known.figures.items() if name not in OF_THRESHOLD}
    return attrs.evolve(
        new_card(
            part.found,
            built.config,
            dataset,
            recipe={**recipe, CALIBRATION: set_on},
            figures={**figures, THRESHOLD: calibration.threshold},
        ),
        dataset=learnt_of,
        licence=known.licence,
    )
