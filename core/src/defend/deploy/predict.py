"""A defence's answer for the user's own image files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from defend.assembly.calibrate import calibrate, check_threshold
from defend.assembly.composition import Composition
from defend.assembly.load import DataSource, build_defence, build_whole, find_task
from defend.datasets.base import Batch
from defend.datasets.fitting import fit
from defend.defence import Defence, Verdict
from defend.errors import DataError
from defend.randomness import keyed
from defend.stages import Task
from defend.util.files import make_folder, shorten, sweep
from defend.util.fp32 import ieee_fp32
from defend.util.images import read_image, write_image
from defend.util.memory import Fitting
from defend.util.processes import resolve_device

BATCH = 64  # images read at once, and judged where they fit into memory
SAID = 5  # of the files that cannot be read
LONGEST_STEM = 200  # bytes of an image's name that its purified form's name begins with


def predict(
    files: Sequence[Path],
    composition: Composition,
    source: DataSource,
    *,
    device: str = "auto",
    save: Path | None = None,
    invert: bool = False,
    fpr: float | None = None,
) -> Iterator[dict[str, Any]]:
    """Classify image files with and without the defence, a batch at a time.

    Args:
        files: images of any size and mode; scaled and cropped to the data set's shape, as it does with its own.
        composition: the defence.
        source: the data set whose weights are taken.
        device: "auto", "cpu", "cuda", ...
        save: a folder for the purified images, made if missing.
        invert: use 1 - image.
        fpr: the false-positive rate that a detector's threshold is set for, on the data set's validation images; None
            keeps the one that came with its weights.

    Yields:
        One dictionary a file: image, undefended and defended {label, confidence, accepted}, changed
        {mean, most} (absolute, in [0,1] units), purified (the file written, or None).

    Raises:
        ConfigError: a detector without a threshold, which would accept every image, or with one that was set elsewhere.
        DataError: files that are no images (named), when all others are judged.
        DefendError: anything `defend.load` refuses.
    """
    task, classes = find_task(composition, source)
    if save is not None:
        make_folder(save, "--save")
        sweep(save)
    composition.warn_of_own(task.filing)
    defence, built = build_whole(composition, task, device)
    place = resolve_device(device)
    card = built["detector"].card if "detector" in built else None
    if fpr is not None:
        calibrate(defence, source.open(composition.plugins), fpr, device=place)
        card = None
    check_threshold(defence, composition, built, card, task)
    bare = Defence(defence.victim)
    if composition.of_stage("finetuner"):  # undefended means the victim as it was
        bare = build_defence(composition.of_victim(), task, device)
    resize = source.find_resize(composition.plugins)

    def judge(batch: Batch) -> tuple[Batch, Verdict, Verdict]:
        with ieee_fp32():  # as thresholds were set
            before = bare.judge(batch.images)
            with keyed(batch.keys, seed=0, stream="defender"):
                return batch, before, defence.judge(batch.images)

    fitting, unread = Fitting(BATCH, task.height * task.width, place), list[DataError]()
    for start in range(0, len(files), BATCH):
        read = {}
        for number, file in enumerate(files[start : start + BATCH], start):
            try:
                read[number] = _read(file, task, resize, invert)
            except DataError as error:  # told when all others are judged
                unread.append(error)
        if not read:
            continue
        images, keys = torch.stack([*read.values()]).to(place), torch.tensor([*read], device=place)
        for batch, before, after in fitting.work(Batch(images, torch.zeros_like(keys), keys), judge):
            change = (after.purified - batch.images).abs().flatten(1)
            for index, place_of_file in enumerate(batch.keys.tolist()):
                file, written = files[place_of_file], None
                if save is not None:
                    written = save / f"{place_of_file:04d}-{shorten(file.stem, LONGEST_STEM)}-purified.png"
                    write_image(written, after.purified[index])
                yield {
                    "image": str(file),
                    "undefended": _said(before.labels, before.confidence, before.accepted, index, classes),
                    "defended": _said(after.labels, after.confidence, after.accepted, index, classes),
                    "changed": {"mean": float(change[index].mean()), "most": float(change[index].max())},
                    "purified": str(written) if written else None,
                }
    if unread:
        raise DataError("; ".join(map(str, unread[:SAID])) + ("" if len(unread) <= SAID else "; and more"))


def _read(file: Path, task: Task, resize: int | None, invert: bool) -> Tensor:
    """Return an image float32 [C,H,W] in [0,1], fitted as the data set fits its own."""
    image = fit(read_image(file, task.channels), task.height, task.width, resize).float() / 255
    return 1 - image if invert else image


def _said(labels: Tensor, confidence: Tensor, accepted: Tensor, index: int, classes: Sequence[str]) -> dict[str, Any]:
    return {
        "label": classes[int(labels[index])],
        "confidence": float(confidence[index]),
        "accepted": bool(accepted[index]),
    }
