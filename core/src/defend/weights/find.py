"""Where weights are looked for: a file that is named, the user's cache, the plugins' packages. Imports no torch."""

from __future__ import annotations

import contextlib
import importlib.resources
from collections.abc import Iterable, Iterator
from pathlib import Path

import attrs

from defend.errors import WeightsError, did_you_mean
from defend.plugins import Found
from defend.stages import Task
from defend.util.files import cache_dir, list_folder, nearest, place_plainly
from defend.values.editions import EDITION, edition_of, is_bare, is_file
from defend.values.references import shorten
from defend.weights.card import Card, read_card


def file_name(stage: str, name: str, dataset: str, edition: str = "") -> str:
    """Return the name of a weights file: purifier-apudae-digits.safetensors, or ...-digits+EDITION.safetensors.

    `dataset` is what the data set files its weights under (`ImageDataset.filed_as`, `Task.filing`): for most its name.
    """
    return f"{stage}-{plain(name)}-{dataset}{EDITION if edition else ''}{edition}.safetensors"


def plain(name: str) -> str:
    """Return a stage's name as it stands in the names of files: "hf-hub:org/net" as hf-hub_org_net."""
    return name.replace(":", "_").replace("/", "_")


def cached_path(stage: str, name: str, dataset: str, edition: str = "") -> Path:
    """Return where `defend train` writes weights unless told otherwise.

    Raises:
        DataError: a name leads out of that folder.
    """
    # a plugin's members and editions, and what a data set calls itself, come from outside
    file = file_name(stage, name, dataset, edition)
    return place_plainly(cache_dir() / "weights", file, f"weights of {stage} {name}")


def tuned_name(finetuner: str, victim: str, purifier: str | None) -> str:
    """Return what a fine-tuned victim is filed under: fine-tuner, victim and purifier, as in dae-resnet20-dae."""
    return f"{finetuner}-{shorten(victim)}-{shorten(purifier or 'none').replace(',', '+')}"


def locate(
    found: Found,
    dataset: str,
    explicit: str | None = None,
    filed_as: str | None = None,
    *,
    only_shipped: bool = False,
) -> Path | None:
    """Find weights: an explicit path, then the user's cache, then the plugins' packages.

    `dataset` is what it files weights under, see `file_name`. "+EDITION" in the place of a path asks for that edition
    of them (`StageSpec.editions`). `filed_as` stands in the file's name instead of the stage's own (see `tuned_name`;
    "bare" is for the caller, who knows what stood before the victim). A stage with `weights_of` may also find those of
    that stage. With `only_shipped` the user's cache is left out.

    Raises:
        WeightsError: an explicit path, or an edition, that does not exist; or "bare" of what is no fine-tuner's.
    """
    if filed_as is None and is_bare(explicit):
        raise WeightsError(
            f"{found.entry.stage} {found.name} has no weights {explicit!r}, which are of a fine-tuned victim: expected "
            "a file, or an edition (+NAME)"
        )
    edition = edition_of(explicit)
    if edition and edition not in found.spec.editions:
        known = did_you_mean(edition, list(found.spec.editions)) if found.spec.editions else "it has none"
        raise WeightsError(f"{found.entry.stage} {found.name} has no edition {edition!r}: {known}")
    if explicit is not None and is_file(explicit):
        if not Path(explicit).is_file():
            there = Path(explicit).exists()
            what = "is a folder" if Path(explicit).is_dir() else "is no file"
            raise WeightsError(
                f"weights {explicit!r} {what}: expected a file of weights"
                if there
                else f"weights file {explicit!r} does not exist{nearest(Path(explicit))}"
            )
        return Path(explicit)
    own = [cached_path(stage, filed_as or found.name, dataset, edition) for stage in stages_of(found)]
    shipped = {path.name: path for path in find_shipped(found.packages)}
    candidates = [*(own if not only_shipped else ()), *(shipped[path.name] for path in own if path.name in shipped)]
    return next((path for path in candidates if path.is_file()), None)


def stages_of(found: Found) -> tuple[str, ...]:
    """Return the stages whose weights serve this one: its own, and the one it shares a network with."""
    shared = (found.spec.weights_of,) if found.spec.weights_of else ()
    return (found.entry.stage, *shared)


@attrs.frozen
class Available:
    """A weights file that a name leads to: the user's own, or one that came with a package (`shipped`)."""

    path: Path
    card: Card
    shipped: bool

    @property
    def edition(self) -> str:
        """Which edition of its stage's weights these are, by the file's name; "" for the usual ones."""
        return self.path.stem.partition(f"-{self.card.serves}{EDITION}")[2]

    @property
    def filed_for(self) -> str:
        """The data set, and the edition where there is one: "mnist", "mnist+paper"."""
        return f"{self.card.serves}{EDITION if self.edition else ''}{self.edition}"


def available(stage: str, name: str | None, packages: Iterable[str]) -> Iterator[Available]:
    """Yield every readable weights file of a stage (of any name if None), the user's before those in `packages`."""
    prefix = f"{stage}-" if name is None else f"{stage}-{plain(name)}-"
    cached = [path for path in list_folder(cache_dir() / "weights") if path.suffix == ".safetensors"]
    for shipped, paths in ((False, cached), (True, find_shipped(packages))):
        for path in paths:
            if path.name.startswith(prefix):
                with contextlib.suppress(WeightsError):  # loading a damaged one will say why
                    yield Available(path, read_card(path), shipped)


def near(found: Found, task: Task, filed_as: str | None = None) -> str:
    """Name weights that are for another folder under the same data set's name, and what differs; "" if none are."""
    if not task.filed_as:
        return ""
    for each in available(found.entry.stage, filed_as or found.name, found.packages):
        of_another = each.card.dataset["name"] == task.dataset and each.card.filing != task.filing
        if of_another and each.card.name == found.name:
            differs = mismatch(each.card, task) or "they were trained on other images than this folder's"
            return f"; {each.path.name!r} is for a folder of the same kind, but {differs}"
    return ""


def mismatch(card: Card, task: Task) -> str:
    """Say in what a task differs from the one that weights were made for, "" where in nothing that can be known.

    Class names of different data sets may be written differently ("0" and "0 - zero"), but not stand in another order.
    """
    theirs = card.task()
    kept, wanted = ([each.channels, each.height, each.width] for each in (theirs, task))
    if kept != wanted:
        return f"they are for images of shape {kept}, and {task.dataset} has {wanted}"
    # only these answer with classes
    if card.stage not in ("victim", "finetuner"):
        return ""
    if theirs.classes != task.classes:
        return f"they are for {theirs.classes} classes, and {task.dataset} has {task.classes}"
    # class names are empty where they are not known
    for place, (old, new) in enumerate(zip(theirs.class_names, task.class_names, strict=False)):
        if _plain(old) != _plain(new):
            also = ", which stands elsewhere" if _plain(old) in map(_plain, task.class_names) else ""
            return f"their class {place} is {old!r}{also}, and that of {task.dataset} is {new!r}"
    return ""


def _plain(name: str) -> str:
    return name.partition(" - ")[0].strip().casefold()


def find_shipped(packages: Iterable[str]) -> dict[Path, str]:
    """Return the weights files that came with packages, each with its package.

    Raises:
        WeightsError: a package is not there.
    """
    found: dict[Path, str] = {}
    for package in packages:
        try:
            folder = Path(str(importlib.resources.files(package)))
        except ModuleNotFoundError as error:
            raise WeightsError(f"package {package!r} with the shipped weights is missing: {error}") from None
        found |= dict.fromkeys(sorted(folder.glob("*.safetensors")), package)
    return found
