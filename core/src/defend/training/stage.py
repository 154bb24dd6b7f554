"""`defend train`: a stage's name and a data set to a weights file with its card."""

from __future__ import annotations

import contextlib
import hashlib
import json
import platform
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import attrs
import torch
from torch import nn

from defend.assembly.composition import Composition
from defend.datasets.base import ImageDataset, Split
from defend.datasets.bounded import ensure_bounded
from defend.errors import ConfigError, ContractError, WeightsError, WriteError, did_you_mean
from defend.fingerprints.code import code_of_stage, code_version
from defend.fingerprints.values import use_hash
from defend.options import describe, make
from defend.plugins import Found, Registry, registry
from defend.stages import Stage, Task
from defend.train import Training
from defend.training.aim import check_victims
from defend.training.checkpoint import CHECKPOINT, mark_written
from defend.training.contract import TrainedError, blame
from defend.training.denoising import measure_denoising
from defend.training.loop import FitSettings, fit_in_course
from defend.util.files import cache_dir, check_writable, make_folder, place_plainly
from defend.util.lock import hold
from defend.util.processes import Processes, join, resolve_device
from defend.util.tensors import device_of
from defend.values.run_config import check_seed
from defend.weights.card import CUT_SHORT, Card, new_card, read_card
from defend.weights.files import check_out, save
from defend.weights.find import cached_path, plain, tuned_name

NEEDED: tuple[Split, ...] = ("train", "val")


def train_stage(
    stage: Stage,
    name: str,
    dataset: ImageDataset,
    *,
    adapted: Composition | None = None,
    options: Mapping[str, Any] | None = None,
    edition: str = "",
    settings: FitSettings | None = None,
    out: Path | None = None,
    plugins: Registry | None = None,
) -> tuple[Path, Card]:
    """Train a stage and write its weights; a training that was cut off goes on where it was.

    Warns of held-out images that are trained on.

    Args:
        stage, name: for example "purifier", "apudae".
        dataset: what to train on; its train split, with val for what is calibrated.
        adapted: of a fine-tuner: the victim that it adapts, and the purifiers before it, if any.
        options: of the stage (its architecture) and of its recipe, in one namespace.
        edition: which of the stage's editions to train, "" for the usual weights.
        settings: seed, device ("auto" too), precision and what is told; the folder is chosen here.
        out: the file to write; the user's cache if None.
        plugins: what is installed, if not all that is.

    Returns:
        The path and the card.

    Raises:
        ConfigError: an unknown option or edition, or a stage that has nothing to train.
        DataError: no images to train on, or none held out.
        ContractError: as `fit`. What was trained when a stage failed to judge or measure it is kept in a file.
        BusyError: another process is at this very training.
    """
    how, dataset = settings or FitSettings(device="auto"), ensure_bounded(dataset)
    check_seed(how.seed)
    if out is not None:
        check_out(out)
    plugins = plugins or registry()
    found = plugins.find(stage, name)
    spec = found.spec
    if spec.train is None:
        instead = f": it is trained as {spec.weights_of} {name}" if spec.weights_of else ""
        raise ConfigError(f"{stage} {name} has nothing to train{instead}")
    if (stage == "finetuner") != (adapted is not None):
        needs = "a fine-tuner needs --victim, the victim to adapt"
        raise ConfigError(needs if adapted is None else f"{stage} {name} takes no victim")
    config, recipe = _choose_options(found, dataset.name, edition, options or {})
    check_victims(found, recipe, dataset, plugins)
    for split in NEEDED:
        dataset.labels(split)  # a split that it lacks is told now, and not when hours later its figures are measured

    processes, device = join(resolve_device(how.device))
    if processes.first and (twins := dataset.duplicates()) is not None:
        for said in twins.sentences():
            warnings.warn(said, stacklevel=2)
    # before anything is built: the first weights are drawn from it
    torch.manual_seed(how.seed)
    task = dataset.task()
    around, tuned = _build_adapted(adapted, task)
    filed_as = tuned_name(found.name, tuned["victim"], tuned["purifier"]) if tuned else found.name
    training = found.call("train", config, recipe, task, *around)
    if not isinstance(training, Training):
        raise ConfigError(f"{stage} {name}: `train` returned {type(training).__name__}, expected a Training")
    made_of = {spec.train.partition(":")[0], spec.config.__module__}
    made_of |= {each.__module__ for each in type(training).__mro__} - {"builtins", "abc", Training.__module__}
    homes = {"defend", *(module.partition(".")[0] for module in made_of)}
    parts = {type(part).__module__ for part in training.stage.modules()}
    made_of |= {module for module in parts if module.partition(".")[0] in homes}
    identity = {
        "stage": stage,
        "name": found.name,
        "dataset": dataset.sha256("train"),
        "val": dataset.sha256("val"),  # it may choose the epoch that is kept, and figures are measured on it
        "prepared": dataset.prepared,
        "flips": task.flips,
        "seed": how.seed,
        "precision": how.precision,
        "config": attrs.asdict(config),
        "recipe": attrs.asdict(recipe),
        **tuned,
        "frozen": {part: use_hash(module) for part, module in training.frozen.items()},
        # whoever changes the stage begins another training
        "code": code_of_stage(*made_of),
    }
    _check_alike(processes, identity)
    key = hashlib.sha256(json.dumps(identity, sort_keys=True, default=str).encode()).hexdigest()[:16]
    path = out or cached_path(stage, filed_as, dataset.filed_as, edition)
    processes.do_first(lambda: check_writable(path, "weights"), "the file of the weights")
    filed = f"{stage}-{plain(filed_as)}-{dataset.filed_as}-{key}"
    folder = place_plainly(cache_dir() / "training", filed, f"the training of {stage} {name}")

    def describe_weights(figures: Mapping[str, float], **more: Any) -> Card:
        return new_card(
            found,
            config,
            dataset,
            figures=figures,
            recipe={
                **attrs.asdict(recipe),
                "seed": how.seed,
                "precision": how.precision,
                "torch": torch.__version__,
                "python": platform.python_version(),
                "device": device_of(training.stage).type,
                **tuned,
                **more,
            },
            made_for={"victim": tuned["victim"], "purifier": tuned["purifier"]} if tuned else None,
        )

    with _hold(processes, folder, f"the training of {stage} {name} on {dataset.name}"):
        try:
            settings = attrs.evolve(how, device=str(device), folder=folder)
            fitted = fit_in_course(training, dataset, settings, identity, code_version(*made_of))
            figures = dict(fitted.figures)
            if stage == "purifier":
                with blame(f"the training of {stage} {name}", "forward", trained=True):
                    figures |= measure_denoising(training.stage, dataset, device)
        except TrainedError as error:
            # whoever mends the stage's code begins another training: what this one came to would be lost to it
            kept = folder / "weights.safetensors"
            if not processes.first:  # where the first one is through, nothing is kept
                raise
            save(kept, training.stage, describe_weights({}, **{CUT_SHORT: str(error)}))
            flag = "finetune" if stage == "finetuner" else stage
            raise ContractError(
                f"{error}; the weights, as they were trained until then, are kept: --{flag}-weights {kept} takes "
                "them, and the same command tries again from there"
            ) from error
    course: dict[str, Any] = {}
    if fitted.kept_epoch is not None:  # of few images the choice is partly chance
        course |= {"kept_epoch": fitted.kept_epoch, "kept_by_val_images": len(dataset.labels("val"))}
    if fitted.code_changed_at:
        course["code_changed_at_step"] = list(fitted.code_changed_at)

    def write() -> Card:
        try:
            card = save(path, training.stage, describe_weights(figures, **course))
        except WriteError as error:
            there = (folder / CHECKPOINT).is_file()
            kept = "what was trained is kept, and the same command goes on from there"
            raise WriteError(f"{error}; {kept if there else 'no checkpoint is kept'}, with another --out too") from None
        mark_written(folder)
        return card

    card = processes.do_first(write, "the file of the weights")
    _see_written(path, training.stage, card)
    processes.gather(None, "the end of a training")  # whoever is through may look for any process's file
    return path, card


def _check_alike(processes: Processes, identity: Mapping[str, Any]) -> None:
    """Refuse processes that would train different things: other images, another recipe, another victim to look at.

    Raises:
        ConfigError: naming what differs.
    """
    # the code's may be like no other on purpose, see `code_of_stage`
    said = {key: json.dumps(value, sort_keys=True, default=str) for key, value in identity.items() if key != "code"}
    if (found := processes.find_difference(said)) is not None:
        raise ConfigError(
            f"process {found[0]} of this training has another {found[1]} than process 0: let all of them see the same "
            "files, and give all of them the same arguments"
        )


def _see_written(path: Path, module: nn.Module, card: Card) -> None:
    """Let a process that does not see the file that the first one wrote, as on another machine, write the same one."""
    with contextlib.suppress(WeightsError):
        if read_card(path).content_sha256 == card.content_sha256:
            return
    save(path, module, card)


@contextlib.contextmanager
def _hold(processes: Processes, folder: Path, what: str) -> Iterator[None]:
    """Hold a training's folder, which all trainings of one identity share; of several processes the first does."""
    if not processes.first:
        yield
        return
    make_folder(folder, f"folder of {what}")
    with hold(folder, what, "wait until it has ended; the same command then finds what it made"):
        yield


def _build_adapted(adapted: Composition | None, task: Task) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Build what a fine-tuner adapts: (victim, purifier or None), and which weights they had, for the card."""
    if adapted is None:
        return (), {}
    built = adapted.build(task)
    (victim,) = adapted.of_stage("victim")
    tuned = {
        "victim": victim.name,
        "victim_sha256": built["victim"].content_hash,
        "purifier": adapted.purifier,
        "purifier_sha256": {part.name: built[part.key].content_hash for part in adapted.of_stage("purifier")},
        "purifier_options": {part.name: attrs.asdict(built[part.key].config) for part in adapted.of_stage("purifier")},
    }
    return (built["victim"].module, adapted.compose(built).purifier), tuned


def _choose_options(found: Found, dataset: str, edition: str, options: Mapping[str, Any]) -> tuple[Any, Any]:
    """Return a stage's config and its training recipe, from the data set's, the edition's and the user's options."""
    spec, what = found.spec, f"{found.entry.stage} {found.name}"
    own = [option.name for option in describe(spec.config)]
    others = [option.name for option in describe(spec.recipe)]
    for key in options:
        if key not in own and key not in others:
            raise ConfigError(f"unknown option {key!r} of training {what}: {did_you_mean(key, own + others)}")
    if edition and edition not in spec.editions:
        known = did_you_mean(edition, list(spec.editions)) if spec.editions else "it has none"
        raise ConfigError(f"unknown edition {edition!r} of {what}: {known}")
    chosen = {**spec.recipes.get(dataset, {}), **spec.editions.get(edition, {}), **options}
    recipe: Any = make(spec.recipe, {key: chosen[key] for key in chosen if key in others}, f"the recipe of {what}")
    return found.config({key: value for key, value in chosen.items() if key in own}), recipe
