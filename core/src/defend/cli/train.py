"""`defend train`."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import click

from defend.cli.exits import INTERRUPTED
from defend.cli.flags import (
    CLASSES,
    DATA_DIR,
    DEVICE,
    JSON,
    LOG,
    LOG_DIR,
    OF_VICTIM,
    PURIFIER_WEIGHTS,
    QUIET,
    SEED,
    SET,
    TRAIN_MISSING,
    WEIGHTS_OUT,
    check_classes,
    given,
    print_json,
    take_classes,
    take_normalisation,
    take_source,
    take_weights,
)
from defend.cli.say import say
from defend.cli.usage import OUTPUT, Choice, command, option
from defend.errors import ConfigError
from defend.report.progress import RunBar, TrainingBar, open_console, show_waiting
from defend.report.trackers import Log, LoggedTraining
from defend.util.launch import place
from defend.values.commands import type_settings
from defend.values.references import anchor, shorten

if TYPE_CHECKING:
    from defend.stages import Stage

TRAINABLE = Choice(["victim", "purifier", "detector", "finetuner"])
PRECISIONS = Choice(["no", "bf16"])


@command(
    "train",
    {
        "What is trained": [
            option("--victim NAME", "The victim to adapt, or whose gradients or losses the training uses."),
            *OF_VICTIM,
            option("--purifier NAME[,NAME]", "Fine-tuners: the purifier that stands before it."),
            PURIFIER_WEIGHTS,
            TRAIN_MISSING,
            option(
                "--dataset NAME",
                "What to train on: a name, a folder, .csv, .npz or hf:NAME.",
                default="digits",
                show_default=True,
            ),
            DATA_DIR,
            CLASSES,
            option("--edition NAME", "Other weights of the same stage; see `defend show NAME`.", default=""),
            SET,
            SEED,
        ],
        OUTPUT: [WEIGHTS_OUT, LOG, LOG_DIR, JSON, QUIET],
        "Machine": [
            DEVICE,
            option("--precision [no|bf16]", "Mixed precision.", type=PRECISIONS, default="no", show_default=True),
        ],
    },
)
@click.argument("stage", type=TRAINABLE)
@click.argument("name")
def train_command(
    stage: Stage,
    name: str,
    victim: str | None,
    purifier: str | None,
    train_missing: bool | None,
    dataset: str,
    edition: str,
    data_dir: str | None,
    settings: tuple[str, ...],
    out: Path | None,
    loggers: tuple[str, ...],
    log_dir: Path | None,
    as_json: bool,
    quiet: bool,
    device: str | None,
    **values: Any,
) -> int:
    """Train a stage and write its weights, with their card. Cut off, it goes on where it was.

    Options of the architecture and of the training: --set epochs=10 --set lr=1e-3, see `defend show NAME`;
    of the data set: --set dataset.image_size=64; of the victim that it looks at: --set victim.stem=standard.
    For several processes: torchrun --nproc-per-node 2 -m defend train ...
    """
    from defend.plugins import registry, using

    if out is not None and not out.parent.is_dir():
        raise ConfigError(f"--out {str(out)!r}: folder {str(out.parent)!r} does not exist")
    dataset, data_dir = take_source(dataset, data_dir)
    found = registry().find(stage, name)
    options, others = _settings(stage, settings)
    take_normalisation(values, options if stage == "victim" else others.setdefault("victim", {}))
    take_classes(values, others.setdefault("dataset", {}))
    check_classes(dataset, others["dataset"])
    weights = take_weights(values)
    victim, purifier = (each and anchor(each, Path.cwd()) for each in (victim, purifier))
    console = open_console(stderr=True)
    with show_waiting(console, quiet):
        from defend.assembly.composition import Composition
        from defend.assembly.load import open_dataset
        from defend.options import describe
        from defend.training.loop import FitSettings
        from defend.training.missing import prepare_training
        from defend.training.stage import train_stage
        from defend.weights.card import list_unfiled
        from defend.weights.find import file_name, plain
        from defend.weights.origin import find_origin, forgetting

        around = Composition.of(victim, purifier, options=others, weights=weights)
        around.check_keys("options", (key for key in others if others[key]), {"dataset"}, "this training")
        around.check_keys("weights", weights, (), "this training")
        images = open_dataset(dataset, data_dir, others.get("dataset"))
    known = {option.name for option in describe(found.spec.config)}
    own = found.config({key: value for key, value in options.items() if key in known})
    note = found.note(own) if found.tag else ""
    if note:
        say(f"warning: {note}", err=True)
    how = FitSettings(device=device or "auto", **given(values))
    of = "-".join(plain(shorten(each)) for each in (name, victim, purifier) if each)
    title = "-".join(
        [f"train-{Path(file_name(stage, of, images.filed_as, edition)).stem}", *_choices(how.seed, options)]
    )
    log = Log(loggers, title, log_dir, {"stage": stage, "name": name, **options})
    try:
        told = RunBar(console, quiet) if train_missing else None
        aimed = prepare_training(found, around, images, options, edition, told, how)
        with using(aimed.plugins), TrainingBar(console, f"{stage} {name} on {dataset}", quiet) as progress:
            path, card = train_stage(
                stage,
                name,
                images,
                adapted=aimed.adapted,
                options=aimed.options,
                edition=edition,
                settings=attrs.evolve(how, progress=LoggedTraining(progress, log)),
                out=out,
                plugins=aimed.plugins,
            )
    except KeyboardInterrupt:
        say("interrupted: the same command goes on from the last checkpoint", err=True)
        return INTERRUPTED
    finally:
        log.end()
    if place()[0] != 0:
        return 0
    usual, unfiled = found.config({}), list_unfiled(found, options)
    unusual = {key: text for key, text in unfiled.items() if getattr(own, key) != getattr(usual, key)}
    if unusual:
        again = shlex.join(type_settings(stage, unusual))
        said = f"The file keeps no options but the architecture's; `defend run` takes the others by {again}"
        say(said, err=as_json)
    if as_json:
        print_json({"path": str(path), "card": attrs.asdict(card)})
        return 0
    figures = ", ".join(f"{key} {value:.4g}" for key, value in card.figures.items())
    say(f"Written to {path} ({path.stat().st_size / 1e6:.1f} MB): {figures}")
    if hides := find_origin(path, found.packages).hides:
        back = forgetting(path.name)
        say(f"From now on they are taken in the place of those shipped with {hides}; to go back: {back}")
    return 0


def _choices(seed: int, options: dict[str, str]) -> list[str]:
    """Return what tells a training from the usual one, as its log is called: its figures are not those of that."""
    chosen = [f"{key}={value}" for key, value in sorted(options.items())]
    return [re.sub(r"[^\w.=+-]", "_", each)[:40] for each in (*([f"seed={seed}"] if seed else []), *chosen)]


def _settings(stage: Stage, settings: tuple[str, ...]) -> tuple[dict[str, str], dict[str, dict[str, Any]]]:
    """Read `--set` arguments into options of the stage, and of the parts that are named before a dot."""
    options: dict[str, str] = {}
    others: dict[str, dict[str, Any]] = {}
    for setting in settings:
        key, equals, value = (part.strip() for part in setting.partition("="))
        if not equals or not key:
            raise ConfigError(f"--set {setting!r} is not KEY=VALUE, for example epochs=10")
        part, dot, own = key.rpartition(".")
        chosen = others.setdefault(part, {}) if dot and part != stage else options
        chosen[own] = value
    return options, others
