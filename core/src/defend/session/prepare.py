"""`defend.train` and `defend.calibrate`: parts for a user's own model and images."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from defend.assembly.calibrate import DEFAULT_FPR
from defend.assembly.calibrate import calibrate as set_threshold
from defend.assembly.composition import Composition
from defend.assembly.load import ALONE, open_dataset, open_whole
from defend.datasets.bounded import ensure_bounded
from defend.datasets.given import gather_held_out, gather_training
from defend.defence import Defence
from defend.errors import ConfigError, UnknownNameError
from defend.plugins import using
from defend.report.progress import TrainingBar, open_console
from defend.session.evaluate import find_names
from defend.stages import Stage
from defend.training.loop import FitSettings
from defend.training.missing import prepare_training
from defend.training.stage import train_stage
from defend.util.processes import resolve_device
from defend.values.arguments import as_path, check_name, checks_arguments, say_value
from defend.values.report import Calibration
from defend.values.sources import name_source
from defend.weights.card import list_unfiled

ARGUMENTS = {"victim": "victim", "purifier": "purifier", "detector": "detector", "finetuner": "finetune"}
"""What `Composition.of` calls a part of a stage."""


@checks_arguments("train")
def train(
    stage: Stage,
    name: str,
    data: Any,
    *,
    victim: Any = None,
    purifier: Any = None,
    val: Any = None,
    classes: int | Sequence[str] | None = None,
    options: Mapping[str, Any] | None = None,
    out: str | Path | None = None,
    seed: int = 0,
    device: str = "auto",
    progress: bool = True,
) -> nn.Module:
    """Train a purifier, detector, fine-tuner or victim on a user's own images, in front of her own model.

    Args:
        stage, name: for example "purifier", "dae".
        data: the training images, see `defend.evaluate`.
        victim: the model whose gradients or losses the training uses, or that is fine-tuned: a module or a name.
        purifier: of a fine-tuner: what stands before the victim, a module or a name.
        val: held-out images, like `data`, of a folder or a file all (or its own val); None holds a seeded part of
            `data` out. Another part, to measure by, is held out where `data` has no test.
        classes: class names by label, or how many there are, where the data does not say; a number is refused where
            the data names fewer.
        options: of the stage and of its recipe, for example {"epochs": 10}.
        out: the weights file, which of the stage's options keeps the architecture alone; None keeps the weights in the
            returned module.
        seed: of everything random.
        device: "auto", "cpu", "cuda", ...
        progress: whether to show a bar.

    Returns:
        The trained module, with these options, in eval mode, on the CPU: `defend.evaluate` takes it as it is.

    Raises:
        DefendError: what is wrong, in one line.
    """
    if stage not in ARGUMENTS:
        raise UnknownNameError("stage", stage, ARGUMENTS)
    check_name(stage, name)
    if options is not None and not isinstance(options, Mapping):
        raise ConfigError(f"options are {say_value(options)}, expected a mapping, for example {{'epochs': 10}}")
    as_path("out", out)
    opened = _open_training(data, hold_out=val is None)
    images = ensure_bounded(gather_training(opened, val=open_whole(val), classes=classes, seed=seed))
    names, plugins = find_names({"victim": victim, "purifier": purifier}, images)
    parts: dict[str, Any] = {ARGUMENTS[stage]: name}
    with using(plugins), tempfile.TemporaryDirectory() as folder:
        if stage == "finetuner":
            parts |= {"victim": names["victim"], "purifier": names["purifier"]}
        around = Composition.of(names["victim"], names["purifier"], plugins=plugins)
        found = plugins.find(stage, name)
        aimed = prepare_training(found, around, images, options or {})
        path = Path(folder) / "weights.safetensors" if out is None else Path(out)
        with TrainingBar(open_console(stderr=True), f"{stage} {name}", quiet=not progress) as bar:
            how = FitSettings(seed=seed, device=device, progress=bar)
            train_stage(
                stage,
                name,
                images,
                adapted=aimed.adapted,
                options=aimed.options,
                settings=how,
                out=path,
                plugins=aimed.plugins,
            )
        own = list_unfiled(found, aimed.options)
        composition = Composition.of(**parts, options={stage: own}, weights={stage: str(path)}, plugins=plugins)
        return composition.build(images.task())[stage].module


@checks_arguments("calibrate")
def calibrate(
    defence: Defence,
    data: Any,
    fpr: float = DEFAULT_FPR,
    *,
    batch_size: int = 64,
    seed: int = 0,
    device: str = "auto",
) -> Calibration:
    """Set the threshold of a defence's detector so that it rejects at most a share `fpr` of clean images.

    Warns where it rejects none of them, as too many have the highest score.

    Args:
        defence: with a detector, whose threshold is changed.
        data: clean images that nothing was trained on and nothing will be judged by, see `defend.evaluate`; of a folder
            or a file all, or its own val where it has splits.
        fpr: the false-positive rate, in (0,1).
        batch_size: images at a time.
        seed: of a random defence's draws.
        device: "auto", "cpu", "cuda", ...

    Raises:
        ConfigError: there is no detector, or a rate that so few images cannot show.
    """
    if not isinstance(defence, Defence):
        raise ConfigError(f"defence is {say_value(defence)}, expected a defend.Defence, which has a detector")
    images = ensure_bounded(gather_held_out(open_whole(data)))
    where = resolve_device(device)
    return set_threshold(defence.to(where), images, fpr, device=where, batch_size=batch_size, seed=seed)


def _open_training(data: Any, hold_out: bool) -> Any:
    """Return a data set by its name or path, and all else as it is; `hold_out` is whether it is to have a val."""
    if not isinstance(data, (str, os.PathLike)):
        return data
    return open_dataset(data, options={} if hold_out or name_source(data)[0] == data else ALONE)
