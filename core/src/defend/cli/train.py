"""`defend train`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import click

from defend.cli.exits import INTERRUPTED
from defend.cli.flags import DATA_DIR, DEVICE, JSON, QUIET, SEED, SET, WEIGHTS_OUT, given, print_json
from defend.cli.say import say
from defend.cli.usage import OUTPUT, command, option
from defend.errors import ConfigError
from defend.report.progress import TrainingBar, open_console, show_waiting
from defend.util.launch import place
from defend.values.references import anchor

if TYPE_CHECKING:
    from defend.stages import Stage

TRAINABLE = click.Choice(["victim", "purifier", "detector", "finetuner"])
PRECISIONS = click.Choice(["no", "bf16"])


@command(
    "train",
    {
        "What is trained": [
            option("--victim NAME", "The victim to adapt, or whose gradients or losses the training uses."),
            option("--purifier NAME[,NAME]", "Fine-tuners: the purifier that stands before it."),
            option(
                "--dataset NAME",
                "What to train on: a name, a folder, .csv, .npz or hf:NAME.",
                default="digits",
                show_default=True,
            ),
            DATA_DIR,
            option("--edition NAME", "Other weights of the same stage; see `defend show NAME`.", default=""),
            SET,
            SEED,
        ],
        OUTPUT: [WEIGHTS_OUT, JSON, QUIET],
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
    dataset: str,
    edition: str,
    data_dir: str | None,
    settings: tuple[str, ...],
    out: Path | None,
    as_json: bool,
    quiet: bool,
    device: str | None,
    **values: Any,
) -> int:
    """Train a stage and write its weights, with their card. Cut off, it goes on where it was.

    Options of the architecture and of the training: --set epochs=10 --set lr=1e-3, see `defend show NAME`;
    of the data set: --set dataset.image_size=64.
    For several processes: torchrun --nproc-per-node 2 -m defend train ...
    """
    from defend.plugins import registry
    from defend.values.sources import name_source

    if out is not None and not out.parent.is_dir():
        raise ConfigError(f"--out {str(out)!r}: folder {str(out.parent)!r} does not exist")
    dataset, data_dir = name_source(dataset, data_dir)
    registry().find("dataset", dataset)
    found = registry().find(stage, name)
    options, dataset_options = _settings(stage, settings)
    victim, purifier = (each and anchor(each, Path.cwd()) for each in (victim, purifier))
    console = open_console(stderr=True)
    with show_waiting(console, quiet):
        from defend.assembly.composition import Composition
        from defend.assembly.load import open_dataset
        from defend.options import describe
        from defend.training.loop import FitSettings
        from defend.training.stage import aim_at, train_stage
        from defend.weights.origin import find_origin, forgetting

        images = open_dataset(dataset, data_dir, dataset_options)
        twins = images.duplicates()
    known = {option.name for option in describe(found.spec.config)}
    note = found.note(found.config({key: value for key, value in options.items() if key in known})) if found.tag else ""
    for said in (note, twins.sentence() if twins is not None and twins.n else ""):
        if said:
            say(f"warning: {said}", err=True)
    try:
        with TrainingBar(console, f"{stage} {name} on {dataset}", quiet) as progress:
            path, card = train_stage(
                stage,
                name,
                images,
                adapted=None if victim is None or stage != "finetuner" else Composition.of(victim, purifier),
                options=options if victim is None or stage == "finetuner" else aim_at(found, victim, options),
                edition=edition,
                settings=FitSettings(device=device or "auto", progress=progress, **given(values)),
                out=out,
            )
    except KeyboardInterrupt:
        say("interrupted: the same command goes on from the last checkpoint", err=True)
        return INTERRUPTED
    if place()[0] != 0:
        return 0
    if as_json:
        print_json({"path": str(path), "card": attrs.asdict(card)})
        return 0
    figures = ", ".join(f"{key} {value:.4g}" for key, value in card.figures.items())
    say(f"Written to {path} ({path.stat().st_size / 1e6:.1f} MB): {figures}")
    if hides := find_origin(path, found.packages).hides:
        back = forgetting(path.name)
        say(f"From now on they are taken in the place of those shipped with {hides}; to go back: {back}")
    return 0


def _settings(stage: Stage, settings: tuple[str, ...]) -> tuple[dict[str, str], dict[str, str]]:
    """Read `--set` arguments into options of the stage, and of the data set."""
    options: dict[str, str] = {}
    dataset_options: dict[str, str] = {}
    for setting in settings:
        key, equals, value = (part.strip() for part in setting.partition("="))
        if not equals or not key:
            raise ConfigError(f"--set {setting!r} is not KEY=VALUE, for example epochs=10")
        chosen = dataset_options if key.startswith("dataset.") else options
        chosen[key.removeprefix(f"{stage}.").removeprefix("dataset.")] = value
    return options, dataset_options
