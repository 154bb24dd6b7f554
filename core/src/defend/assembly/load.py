"""Names to a whole defence: the data set, the task, the parts with their weights, composed."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import torch

from defend.assembly.calibrate import warn_of_threshold
from defend.assembly.composition import Composition
from defend.assembly.stage import Built
from defend.datasets.base import SPLITS, ImageDataset
from defend.datasets.bounded import ensure_bounded
from defend.datasets.given import gather
from defend.datasets.plugin import EVERYTHING
from defend.defence import Defence
from defend.errors import ConfigError, ContractError, WeightsError
from defend.options import describe
from defend.plugins import Found, Registry, registry
from defend.stages import Task
from defend.util.files import cache_dir
from defend.util.processes import resolve_device
from defend.values.arguments import check_name, checks_arguments
from defend.values.commands import type_source
from defend.values.editions import edition_of, is_file
from defend.values.sources import name_source
from defend.weights.card import has_card, read_card
from defend.weights.find import available, locate

MOST_SOURCES = 2
ALONE: Mapping[str, Any] = {"hold_out": False}
"""The option of folders and files with which a data set has the splits alone that came with images."""


@attrs.frozen
class DataSource:
    """Which images: a data set's name, the folder where its files lie, and its options.

    A folder or a file for a name becomes both, see `defend.values.sources`.
    """

    name: str = "digits"
    data_dir: str | None = None
    options: Mapping[str, Any] = attrs.field(factory=dict)

    def __attrs_post_init__(self) -> None:
        for key, value in zip(("name", "data_dir"), name_source(self.name, self.data_dir), strict=True):
            object.__setattr__(self, key, value)  # the class is frozen

    def open(self, plugins: Registry | None = None) -> ImageDataset:
        """Open it; see `open_dataset`."""
        return open_dataset(self.name, self.data_dir, self.options, plugins)

    def find_resize(self, plugins: Registry | None = None) -> int | None:
        """Return what its option `resize` says, see `defend.datasets.fitting.fit`; None where it has none.

        Nothing is opened: the victim's card may say all else of images that are not here.
        """
        found = (plugins or registry()).find("dataset", self.name)
        return getattr(found.config(dict(self.options)), "resize", None)


@checks_arguments("dataset")
def open_dataset(
    name: str | os.PathLike[str],
    data_dir: str | None = None,
    options: Mapping[str, Any] | None = None,
    plugins: Registry | None = None,
) -> ImageDataset:
    """Open a data set by name.

    Args:
        name: for example "digits"; or a folder, a file or "hf:NAME", see `defend.values.sources`.
        data_dir: where its files lie, for those that have files.
        options: its options.

    Raises:
        UnknownNameError, ConfigError, DataError.
    """
    name, data_dir = name_source(name, data_dir)
    found = (plugins or registry()).find("dataset", name)
    values = dict(options or {})
    # data sets without files have no such option, and would refuse it
    if data_dir is not None and any(option.name == "data_dir" for option in describe(found.spec.config)):
        values.setdefault("data_dir", data_dir)
    dataset = found.call("build", found.config(values))
    if not isinstance(dataset, ImageDataset):
        raise ContractError(
            f"data set {name} built {type(dataset).__name__}, expected a defend.datasets.base.ImageDataset"
        )
    dataset.typed = type_source(name, data_dir, options)
    return ensure_bounded(dataset)


def as_dataset(
    data: Any,
    *,
    val: Any = None,
    train: Any = None,
    classes: int | Sequence[str] | None = None,
    name: str = "given",
    seed: int = 0,
) -> ImageDataset:
    """Return what a user has as a data set.

    Args:
        data: a name ("cifar10"), a folder or a file, as `--dataset` takes them; or objects, see
            `defend.datasets.given.gather`: what is given is the test split.
        val, train: held-out images and training images, likewise; of a folder or a file, see `open_whole`. Without
            val, a seeded part of `data` is held out; without train, nothing can be trained on it.
        classes, name, seed: see `gather`.

    Raises:
        DefendError: what was given is no data set; the message says what to pass.
    """
    if isinstance(data, (str, os.PathLike)):
        data = open_dataset(data)
    parts = [open_whole(each) for each in (val, train)]
    return ensure_bounded(gather(data, val=parts[0], train=parts[1], classes=classes, name=name, seed=seed))


def open_whole(data: Any) -> Any:
    """Open what was given for one split by its name or path; objects and None are left as they are.

    A folder or a file without splits of its own is test with all its images, which `gather` and its like take for any
    split. One that has several keeps them, as a data set with a name does.
    """
    if not isinstance(data, (str, os.PathLike)):
        return data
    if name_source(data)[0] == data:
        return open_dataset(data)
    came_apart = sum(map(open_dataset(data, options=ALONE).has, SPLITS)) > 1
    return open_dataset(data, options={} if came_apart else {**ALONE, "split": EVERYTHING})


def find_task(composition: Composition, source: DataSource) -> tuple[Task, tuple[str, ...]]:
    """Return the task and the class names: from the card of the victim's weights, else from the data set.

    Raises:
        WeightsError: several weights go by the data set's name, and nothing says which images are meant.
    """
    (victim,) = composition.of_stage("victim")
    composition.plugins.find("dataset", source.name)
    path = locate(victim.found, source.name, victim.weights)
    if victim.needs_weights and path is None and source.data_dir is None:
        path = _only(victim.found, source.name, edition_of(victim.weights))
    own = path is not None and path.parent == cache_dir() / "weights"
    # what this user trained under the name of a data set may be of another folder than the one that is named now
    known = is_file(victim.weights) or source.data_dir is None or not own
    # nothing but the data set says what the user's own weights are for
    foreign = path is not None and is_file(victim.weights) and not has_card(path)
    if victim.needs_weights and path is not None and known and not foreign:
        typed = type_source(source.name, source.data_dir, source.options)
        task = attrs.evolve(read_card(path).task(), typed=typed)
        return task, task.class_names
    opened = source.open(composition.plugins)
    return opened.task(), opened.classes


def _only(found: Found, dataset: str, edition: str) -> Path | None:
    """Return the one weights file of a data set whose name does not say which images it has, None if there is none."""
    several = [
        each
        for each in available("victim", found.name, found.packages)
        if each.card.dataset["name"] == dataset and each.card.name == found.name and each.edition == edition
    ]
    if len(several) > 1:
        names = ", ".join(repr(each.path.name) for each in several[:3])
        raise WeightsError(
            f"{len(several)} weights of victim {found.name} are for a data set {dataset} ({names}): say which images "
            "are meant with --data-dir, or name a file with --victim-weights"
        )
    return several[0].path if several else None


def check_default_type() -> None:
    """Refuse to build networks in another type than images and weights have.

    Raises:
        ConfigError: torch's default type is not float32.
    """
    if torch.get_default_dtype() != torch.float32:
        raise ConfigError(
            f"torch's default type is {torch.get_default_dtype()}, expected torch.float32, which images and weights "
            "have: call torch.set_default_dtype(torch.float32) before"
        )


@checks_arguments("load")
def load_defence(
    victim: str,
    dataset: str = "digits",
    purifier: str | None = None,
    detector: str | None = None,
    *,
    finetune: str | None = None,
    data_dir: str | None = None,
    options: Mapping[str, Mapping[str, Any]] | None = None,
    weights: Mapping[str, str] | None = None,
    device: str = "cpu",
) -> Defence:
    """Load a defence by names, weights included: an `nn.Module` in eval mode.

    A detector without a threshold accepts every image, and one that was set behind other purifiers or on other images
    rejects by chance. A warning says so: `defend.calibrate` sets one. Another says where weights of your own are taken
    in the place of shipped ones.

    Args:
        victim: any timm model, or a victim of a plugin.
        dataset: which weights to take.
        purifier, detector: names, or None. "dae,apudae" is two purifiers in sequence.
        finetune: the fine-tuner whose tuned weights replace the victim's, or None.
        data_dir: where the data set lies, if it has files.
        options: options by stage (or purifier), for example {"purifier": {"steps": 10}}.
        weights: explicit files by stage (or purifier).
        device: "auto", "cpu", "cuda", ...

    Raises:
        DefendError: whatever is wrong with a name, an option or the weights, in one line.
    """
    check_name("victim", victim)  # which a composition may lack
    composition = Composition.of(victim, purifier, detector, finetune, options=options, weights=weights)
    composition.check_keys("options", options or (), {"dataset"}, "this defence")
    composition.check_keys("weights", weights or (), (), "this defence")
    return load_composition(composition, DataSource(dataset, data_dir, (options or {}).get("dataset", {})), device)


def load_composition(composition: Composition, source: DataSource, device: str = "cpu") -> Defence:
    """Load a composition's defence for images, and warn of what its name does not say.

    That is weights of the user's own in the place of shipped ones, and a detector whose threshold is missing or was set
    elsewhere.

    Raises:
        DefendError: as `load_defence`.
    """
    task, _ = find_task(composition, source)
    composition.warn_of_own(task.filing)
    defence, built = build_whole(composition, task, device)
    warn_of_threshold(defence, composition, built, task)
    return defence


def build_defence(composition: Composition, task: Task, device: str = "cpu") -> Defence:
    """Build a defence with its weights, in eval mode, on a device.

    Raises:
        DefendError: as `load_defence`.
    """
    return build_whole(composition, task, device)[0]


def build_whole(composition: Composition, task: Task, device: str = "cpu") -> tuple[Defence, dict[str, Built]]:
    """Return a defence, see `build_defence`, and what it was built of."""
    check_default_type()
    built = composition.build(task)
    return composition.compose(built).to(resolve_device(device)).eval(), built


def transfer_sources(victim: str, dataset: str, plugins: Registry, most: int = MOST_SOURCES) -> tuple[str, ...]:
    """Return other victims that have weights for a data set, at most so many, by name: each trained on its own.

    `dataset` is what it files weights under, see `defend.weights.find.file_name`.
    """
    names = {
        found.card.name
        for entry in plugins.entries("victim")
        for found in available("victim", None, plugins.packages(entry))
        if found.card.filing == dataset
    }
    return tuple(sorted(names - {victim}))[:most]
