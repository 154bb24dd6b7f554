"""The options that several commands share, each defined once, and what their values mean together."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from defend.cli.completion import names_of
from defend.cli.streams import answer, answering_alone
from defend.cli.usage import option
from defend.errors import ConfigError

if TYPE_CHECKING:
    from defend.assembly.composition import Composition
    from defend.assembly.load import DataSource

PATH = click.Path(path_type=Path)
CLASS_NAMES = "class_names"  # the option of data sets of one's own images that --classes is short for

SET = option("--set KEY=VALUE", "Set an option; see `defend show NAME`. Repeatable.", "settings", multiple=True)


def _answer_alone(context: click.Context, _: click.Parameter, as_json: bool) -> bool:
    if as_json:
        context.with_resource(answering_alone())
    return as_json


JSON = option("--json", "Print JSON for machines.", "as_json", callback=_answer_alone)
QUIET = option("--quiet", "No progress.")
DATA_DIR = option("--data-dir DIR", "Where the data set lies (default: $DEFEND_DATA_DIR).")
CLASSES = option("--classes N", "How many classes there are, or a file of their names, where the images show fewer.")
DEVICE = option(
    "--device NAME", "auto (default), cpu, cuda, mps, xpu, or another that torch knows; cuda:1 is the second."
)
SEED = option("--seed N", "Seed of everything random (default 0).", type=click.IntRange(0, 2**63 - 1))
TRAIN_MISSING = option("--train-missing", "Train weights that do not exist yet.", default=None)
LOG = option(
    "--log NAME", "Log figures as they come: csv, tensorboard, wandb or mlflow. Repeatable.", "loggers", multiple=True
)
LOG_DIR = option("--log-dir DIR", "Where loggers write their files (default ./logs).", type=PATH)
WEIGHTS_OUT = option("--out FILE", "Weights file (default: the user's cache).", type=PATH)
ONE_VICTIM = option("--victim NAME", "Victim, for example resnet18.", required=True, shell_complete=names_of("victim"))
OF_VICTIM = (
    option(
        "--victim-weights FILE",
        "The victim's weights, instead of those found by name: a file, your own .pth too, or +EDITION.",
    ),
    option("--mean MEAN", "What the victim subtracts: 0.49,0.48,0.45, or imagenet, cifar10, half, none."),
    option("--std STD", "What it divides by, alike (default: the data set's own)."),
)
PURIFIER_WEIGHTS = option(
    "--purifier-weights FILE",
    "The purifier's weights: a file, or +EDITION as `defend list` shows it; NAME=FILE where several.",
    multiple=True,
)
DETECTOR_WEIGHTS = option("--detector-weights FILE", "The detector's weights: a file, or +EDITION.")
FPR = option("--fpr RATE", "Set the detector's threshold to reject this share of held-out clean images.", type=float)
PARTS = (
    option(
        "--purifier NAME[,NAME]",
        "Purifier, for example apudae; dae,apudae is two in sequence.",
        "purifiers",
        multiple=True,
        shell_complete=names_of("purifier"),
    ),
    option("--detector NAME", "Detector, for example puvae.", shell_complete=names_of("detector")),
    option(
        "--finetune NAME",
        "Use the victim as a fine-tuner adapted it, for example dae.",
        shell_complete=names_of("finetuner"),
    ),
    option(
        "--dataset NAME",
        "Data set (default digits), or a folder, .csv, .npz or hf:NAME.",
        shell_complete=names_of("dataset"),
    ),
    DATA_DIR,
    CLASSES,
    *OF_VICTIM,
    PURIFIER_WEIGHTS,
    DETECTOR_WEIGHTS,
    option("--finetune-weights FILE", "The tuned victim's weights: a file, or +EDITION; bare: of the one tuned alone."),
)
"""What stands before a victim, and on which data set."""


def take_weights(values: dict[str, Any]) -> dict[str, str]:
    """Take the weight files out of a command's values, by stage, or by the purifier's name in NAME=FILE."""
    found = {
        "victim": values.pop("victim_weights", None),
        "detector": values.pop("detector_weights", None),
        "finetuner": values.pop("finetune_weights", None),
    }
    for text in values.pop("purifier_weights"):
        name, equals, path = text.partition("=")
        found[name if equals else "purifier"] = path if equals else text
    return {stage: path for stage, path in found.items() if path is not None}


def take_options(settings: Sequence[str], values: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the options by stage that `--set` gives, and those that have a flag of their own among PARTS.

    Raises:
        ConfigError: a setting that is none, or one that was given both ways.
    """
    from defend.values.toml import parse_settings

    options = parse_settings(settings)
    take_normalisation(values, options.setdefault("victim", {}))
    take_classes(values, options.setdefault("dataset", {}))
    return {stage: chosen for stage, chosen in options.items() if chosen}


def take_normalisation(values: dict[str, Any], options: dict[str, Any]) -> None:
    """Move --mean and --std out of a command's values into the victim's options.

    Raises:
        ConfigError: one that was given both ways.
    """
    for name in ("mean", "std"):
        value = values.pop(name)
        if value is None:
            continue
        if name in options:
            raise ConfigError(f"--{name} is short for --set victim.{name}: give one of the two")
        options[name] = value


def take_classes(values: dict[str, Any], options: dict[str, Any]) -> None:
    """Move --classes out of a command's values into the data set's options.

    Raises:
        ConfigError: it was given both ways.
    """
    value = values.pop("classes")
    if value is not None and CLASS_NAMES in options:
        raise ConfigError(f"--classes is short for --set dataset.{CLASS_NAMES}: give one of the two")
    if value is not None:
        options[CLASS_NAMES] = value


def check_classes(dataset: str, options: Mapping[str, Any]) -> None:
    """Refuse class names for a data set that has its own.

    Raises:
        ConfigError: it takes none.
    """
    from defend.options import describe
    from defend.plugins import registry

    known = [option.name for option in describe(registry().find("dataset", dataset).spec.config)]
    if CLASS_NAMES in options and CLASS_NAMES not in known:
        raise ConfigError(
            f"--classes {options[CLASS_NAMES]}: {dataset} has classes of its own; it is for images of your own "
            "(a folder, .csv, .npz, hf:NAME)"
        )


def resolve_defence(victim: str, settings: Sequence[str], values: dict[str, Any]) -> tuple[Composition, DataSource]:
    """Return the defence that the values of PARTS name, and where its images come from.

    Raises:
        ConfigError: several purifiers that are no sequence; a setting that is none; or options or weights of what is no
            part of it.
    """
    from defend.assembly.composition import Composition
    from defend.assembly.load import DataSource

    options, weights, purifiers = take_options(settings, values), take_weights(values), values.pop("purifiers")
    if len(purifiers) > 1:
        raise ConfigError(
            f"--purifier was given {len(purifiers)} times: this command takes one, or a sequence NAME,NAME"
        )
    purifier = purifiers[0] if purifiers else None
    names = {"victim": victim, "purifier": purifier, "detector": values["detector"], "finetune": values["finetune"]}
    composition = Composition.of(**names, options=options, weights=weights)
    composition.check_keys("options", options, {"dataset"}, "this defence")
    composition.check_keys("weights", weights, (), "this defence")
    source = take_source(values["dataset"] or "digits", values["data_dir"])
    check_classes(source[0], options.get("dataset", {}))
    return composition, DataSource(*source, options.get("dataset", {}))


def take_source(dataset: str, data_dir: str | None) -> tuple[str, str | None]:
    """Return the name of a data set and where its files lie, from `--dataset` and `--data-dir`.

    Raises:
        UnknownNameError: there is no such data set.
        ConfigError: a folder for a data set that reads none: another one would be judged than the user means.
    """
    from defend.options import describe
    from defend.plugins import registry
    from defend.values.sources import name_source

    name, folder = name_source(dataset, data_dir)
    options = describe(registry().find("dataset", name).spec.config)
    if folder is not None and not any(option.name == "data_dir" for option in options):
        raise ConfigError(
            f"--data-dir {folder!r}: the data set {name} reads no files; images of your own are --dataset {folder}, "
            "others are named with --dataset (defend list dataset)"
        )
    return name, folder


def given(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values that were given; a function's own defaults stand for the others."""
    return {name: value for name, value in values.items() if value is not None}


def print_json(value: Any) -> None:
    """Print what `--json` asks for, to be read by people too."""
    answer(json.dumps(value, indent=1))
