"""A defence as one file that runs without this package: torch's own format (.pt2), or ONNX (.onnx).

What is written answers as `Defence.judge` does: images float32 [B,C,H,W] in [0,1], of any B, to logits [B,classes] and,
with a detector, its score [B] and whether the image is accepted (score below the threshold), a truth value [B].
Normalisation, purifier and threshold are inside; parameters are frozen, and the victim's batch norm is folded into its
convolutions where that can be done. A file holds one fixed graph, so a defence that draws random numbers or optimises
at test time cannot become one.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path

import attrs
import torch
from torch import Tensor, nn

from defend import __version__
from defend.assembly.calibrate import calibrate, check_threshold, find_kept
from defend.assembly.composition import Composition
from defend.assembly.load import DataSource
from defend.assembly.stage import Built, build_module, build_stage
from defend.defence import Defence
from defend.deploy.formats import CHECKED, Exported, check_path, write_file
from defend.deploy.tracing import TRACED
from defend.errors import ConfigError, DefendError
from defend.gradients import differentiates_inside
from defend.plugins import Found, registry
from defend.stages import Task

RANDOM = "draws random numbers"
OPTIMISES = "optimises at test time (its forward pass takes gradients)"


def export_defence(out: Path, composition: Composition, source: DataSource, fpr: float | None = None) -> Exported:
    """Write a defence to a file, once it was found to answer as the defence does.

    Args:
        out: a file ending in .pt2 (`torch.export.load`) or .onnx; replaced if it exists.
        composition: the defence.
        source: the data set whose weights are taken, and on whose test images the file is checked.
        fpr: the false-positive rate that a detector's threshold is set for, on its validation images; None keeps the
            one that came with its weights.

    Raises:
        ConfigError: another suffix, packages that are missing, a part whose answer is no fixed graph (the message names
            what to use instead), a detector without a threshold or with one that was set elsewhere, or a graph that
            torch cannot trace or convert.
        ContractError: the file answered otherwise than the defence; nothing is written.
        DefendError: whatever else is wrong with an option or the weights.
    """
    check_path(out)
    images = source.open(composition.plugins)
    composition.warn_of_own(images.filed_as)
    built = composition.build(images.task())
    whole = composition.compose(built)
    sample, _ = images.tensors("test", limit=sum(CHECKED))
    _check_fixed(whole, composition, built, images.task(), sample)
    names = {part.stage: part.name for part in composition.parts} | {"purifier": composition.purifier}
    weights = built["detector"].card if whole.detector is not None else None
    set_on = None if whole.detector is None else find_kept(weights, whole.detector)
    if fpr is not None:
        weights, set_on = None, calibrate(whole, images, fpr, device=sample.device)
    check_threshold(whole, composition, built, weights, images.task())
    labels = {part.key: part.name if part.stage == "purifier" else part.stage for part in composition.parts}
    options = {part.key: part.options for part in composition.parts} | {"dataset": source.options}
    card = {
        "victim": names["victim"],
        "purifier": composition.purifier,
        "detector": names.get("detector"),
        "finetune": names.get("finetuner"),
        "options": {key: dict(chosen) for key, chosen in options.items() if chosen},
        "dataset": images.name,
        "classes": list(images.classes),
        # the threshold itself stands beside it; None where the weights do not say
        "calibration": set_on and attrs.asdict(set_on, filter=lambda field, _: field.name not in ("threshold", "kept")),
        "weights": {labels[key]: made.content_hash for key, made in built.items() if made.card is not None},
        "versions": {"defend": __version__, "torch": torch.__version__, **composition.plugins.versions},
    }
    return write_file(out, whole, sample, card)


class _Scored(nn.Module):
    """A detector on images that no purifier changed: [B,C,H,W] to scores [B]."""

    def __init__(self, detector: nn.Module) -> None:
        super().__init__()
        self.detector, self.random = detector, bool(getattr(detector, "random", False))

    def forward(self, images: Tensor) -> Tensor:
        """See the class."""
        score: Tensor = self.detector(images, images)
        return score


def _obstacle(module: nn.Module, images: Tensor) -> str | None:
    """Say what keeps a stage's answer from being a fixed graph, if anything."""
    if getattr(module, "random", False):
        return RANDOM
    return OPTIMISES if differentiates_inside(module, images) else None


def _check_fixed(
    whole: Defence, composition: Composition, built: Mapping[str, Built], task: Task, sample: Tensor
) -> None:
    """Refuse a defence with a part whose answer is no fixed graph.

    Raises:
        ConfigError: it names the part, the reason, and what to use instead.
    """
    few = sample[:TRACED]
    for part in composition.parts:
        if part.stage == "finetuner":  # what it holds is judged in the victim's place
            continue
        module = whole.victim if part.stage == "victim" else built[part.key].module
        if part.stage == "detector":
            assert whole.detector is not None
            module = _Scored(whole.detector)
        why = _obstacle(module, few)
        if why is None:
            continue
        ways = []
        setting = None if part.stage == "victim" else _setting(part.found, built[part.key], task, few)
        if setting is not None:
            ways.append(f"add --set {part.key}.{setting}")
        if part.stage == "purifier" and (others := _fixed_purifiers(task, few)):
            ways.append(f"take a single-pass purifier ({', '.join(others)})")
        ways.append("use the defence in Python (defend.load)")
        raise ConfigError(f"{part.stage} {part.name} {why}, which no exported graph can hold: {', or '.join(ways)}")


def _setting(found: Found, built: Built, task: Task, images: Tensor) -> str | None:
    """Find one option of a stage with which it is a fixed graph, as OPTION=VALUE: a choice, or noise of size 0."""
    for field in attrs.fields(type(built.config)):
        if field.metadata.get("architecture"):
            continue
        current = getattr(built.config, field.name)
        still = (0.0,) if isinstance(current, float) and current > 0 and getattr(built.module, "random", False) else ()
        for value in field.metadata.get("choices") or still:
            with contextlib.suppress(DefendError):  # a value out of range
                module = build_module(found, attrs.evolve(built.config, **{field.name: value}), task)
                module.eval()
                if found.entry.stage == "detector":
                    module = _Scored(module)
                if _obstacle(module, images) is None:
                    return f"{field.name}={value:g}" if isinstance(value, float) else f"{field.name}={value}"
    return None


def _fixed_purifiers(task: Task, images: Tensor) -> list[str]:
    """Return the installed purifiers that are fixed graphs and need no training for this data set, by name."""
    names = []
    for entry in registry().entries("purifier"):
        with contextlib.suppress(DefendError):  # a family, or no weights
            if _obstacle(build_stage("purifier", entry.spec.name, task).module, images) is None:
                names.append(entry.spec.name)
    return names
