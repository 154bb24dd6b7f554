"""The card in a weights file: what was trained, on which images, how. Reading one imports no torch."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from defend.errors import WeightsError
from defend.options import describe
from defend.plugins import Found
from defend.stages import Task
from defend.util.documents import parse_json
from defend.util.header import read_metadata

if TYPE_CHECKING:
    from defend.datasets.base import ImageDataset


CARD_FORMAT = 1
CALIBRATION, OLD_CALIBRATION = "calibration", "calibrated_behind"  # of the recipe: how a threshold was set
CUT_SHORT = "cut_short"  # of the recipe: why the training failed, of weights that were kept from before its end
FROM, READ = "from", "read"  # of the recipe of weights that no `defend train` wrote: their file, and how it was read


@attrs.frozen(kw_only=True)
class Card:
    """What is known of a weights file.

    Attributes:
        stage, name: which stage these weights are for.
        config: its architecture options.
        dataset: {"name", "sha256" of the training split, "" without one, "shape", "classes" (names), "mean", "std",
            "flips"}, and "filed_as" where the name does not say which images they are.
        recipe: the training options, seed and versions; of the user's own weights the file that they are from; of a
            detector whose threshold was set later also how that was, see `calibration`.
        figures: what was measured, for example {"test_accuracy": 0.996}.
        licence: SPDX identifier.
        content_sha256: the hash of all tensors, checked at loading.
    """

    stage: str
    name: str
    config: Mapping[str, Any]
    dataset: Mapping[str, Any]
    recipe: Mapping[str, Any] = attrs.field(factory=dict)
    figures: Mapping[str, float] = attrs.field(factory=dict)
    licence: str = "MIT"
    content_sha256: str = ""
    format: int = CARD_FORMAT

    def task(self) -> Task:
        """Return the task these weights were trained for."""
        known = self.dataset
        channels, height, width = known["shape"]
        return Task(
            known["name"],
            channels,
            height,
            width,
            len(known["classes"]),
            tuple(known["mean"]),
            tuple(known["std"]),
            known["flips"],
            tuple(known["classes"]),
            known.get("filed_as", ""),
        )

    @property
    def filing(self) -> str:
        """What files are named after that were trained on the same images."""
        return str(self.dataset.get("filed_as") or self.dataset["name"])

    @property
    def serves(self) -> str:
        """What files are named after that are for the same images: those of its threshold, else those it learnt of."""
        return str((self.calibration or {}).get("dataset") or self.filing)

    @property
    def calibration(self) -> Mapping[str, Any] | None:
        """How the threshold was set after the training, None where it was not.

        "fpr" was asked for, "measured" was rejected of "n" images of "dataset" (what that files weights under) with
        hash "sha256", "behind" the purifiers of that name, or None; "parts" says what these and the detector were like,
        see `defend.values.report.Calibration`, and is not in old files.
        """
        return self.recipe.get(CALIBRATION)

    @property
    def cut_short(self) -> str:
        """Why the training failed before what is measured at its end was known; "" of one that was through."""
        return str(self.recipe.get(CUT_SHORT, ""))

    @property
    def overwritten(self) -> bool:
        """Whether an old `defend calibrate` put its own images in the place of those that the weights learnt of."""
        return OLD_CALIBRATION in self.recipe and CALIBRATION not in self.recipe

    @property
    def foreign(self) -> str:
        """The file that the user's own weights are from, of which nobody knows what they were trained on; else ""."""
        return str(self.recipe.get(FROM, ""))


def new_card(
    found: Found,
    config: Any,
    dataset: ImageDataset,
    *,
    recipe: Mapping[str, Any],
    figures: Mapping[str, float],
    made_for: Mapping[str, Any] | None = None,
) -> Card:
    """Describe weights that were just made: the stage's architecture options, the data set, and what is given."""
    return Card(
        stage=found.entry.stage,
        name=found.name,
        config={**architecture_of(found, config), **(made_for or {})},
        dataset={
            **describe_task(dataset.task(), dataset.classes),
            "sha256": dataset.sha256("train") if dataset.has("train") else "",
        },
        recipe=recipe,
        figures=figures,
    )


def _check(card: Card) -> None:
    """Refuse what no card holds, so that whoever has one need not look.

    Raises:
        TypeError, KeyError: it names the key.
    """
    data, numbers = card.dataset, (int, float)
    _hold("stage, name, licence and content_sha256", (card.stage, card.name, card.licence, card.content_sha256), str)
    _hold("config, dataset, recipe and figures", (card.config, data, card.recipe, card.figures), Mapping)
    _hold("figures", card.figures.values(), numbers)
    _hold("dataset.name, sha256 and filed_as", (data["name"], data["sha256"], data.get("filed_as", "")), str)
    _hold("dataset.shape, classes, mean and std", (data["shape"], data["classes"], data["mean"], data["std"]), list)
    _hold("dataset.shape", data["shape"], int)
    _hold("dataset.classes", data["classes"], str)
    _hold("dataset.mean and std", (*data["mean"], *data["std"]), numbers)
    _hold("dataset.flips", (data["flips"],), bool)
    _hold("recipe.calibration", (card.recipe.get(CALIBRATION, {}),), Mapping)
    if (set_on := card.calibration) is not None:
        _hold("recipe.calibration.fpr, measured and n", (set_on["fpr"], set_on["measured"], set_on["n"]), numbers)
        _hold("recipe.calibration.dataset and behind", (set_on["dataset"], set_on["behind"] or ""), str)
        _hold("recipe.calibration.parts", (set_on.get("parts", {}), *set_on.get("parts", {}).values()), Mapping)
    if len(data["shape"]) != 3:
        raise TypeError(f"dataset.shape is {data['shape']!r}")


def _hold(what: str, values: Iterable[Any], kind: type | tuple[type, ...]) -> None:
    for value in values:
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise TypeError(f"of {what} one is {str(value)[:60]!r}")


def architecture_of(found: Found, config: Any) -> dict[str, Any]:
    """Return the options of a stage that its weights depend on."""
    architecture = {option.name for option in describe(found.spec.config) if option.architecture}
    kept = {key: value for key, value in attrs.asdict(config).items() if key in architecture}
    return dict(json.loads(json.dumps(kept)))  # as it is read back: tuples are lists


def list_unfiled(found: Found, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return those options of a training that are the stage's own, and that no card keeps: all but its architecture.

    Whether it began with published weights is no option of what was trained.
    """
    own = {option.name for option in describe(found.spec.config) if not option.architecture} - {"pretrained"}
    return {key: value for key, value in options.items() if key in own}


def describe_task(task: Task, classes: Sequence[str] = ()) -> dict[str, Any]:
    """Return what a card says of a task's data set, but for the hash of its images."""
    return {
        "name": task.dataset,
        "shape": [task.channels, task.height, task.width],
        "classes": list(classes or task.class_names or map(str, range(task.classes))),
        "mean": list(task.mean),
        "std": list(task.std),
        "flips": task.flips,
        **({"filed_as": task.filed_as} if task.filed_as else {}),
    }


def has_card(path: Path) -> bool:
    """Whether a weights file has a card; one that has none is the user's own, see `defend.weights.foreign`.

    Raises:
        WeightsError: it cannot be read, or ends in .safetensors and is no such file.
    """
    try:
        return _read_text(path) is not None
    except ValueError as error:
        if path.suffix == ".safetensors":
            raise WeightsError(f"weights {str(path)!r} are {error}: train anew or fetch it again") from None
        return False


def _read_text(path: Path) -> str | None:
    try:
        with path.open("rb") as file:
            return read_metadata(file).get("defend.card")
    except OSError as error:
        raise WeightsError(f"weights {str(path)!r} cannot be read: {error.strerror}") from None


def read_card(path: Path) -> Card:
    """Read the card of a weights file from its header.

    Raises:
        WeightsError: not safetensors, cut short, or without a card of a known format.
    """
    try:
        text = _read_text(path)
    except ValueError as error:
        raise WeightsError(f"weights {str(path)!r} are {error}: train anew or fetch it again") from None
    if text is None:
        raise WeightsError(
            f"weights {str(path)!r} have no card: they were not written by `defend train`. Your own are taken from a "
            "file that is named, as by --victim-weights"
        )
    try:
        values = parse_json(text)
        if (kept := values.get("format")) != CARD_FORMAT:
            raise WeightsError(
                f"weights {str(path)!r} have a card of format {kept}, and this version reads {CARD_FORMAT}"
            )
        card = Card(**values)
        _check(card)
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        cause = f"it lacks {error}" if isinstance(error, KeyError) else str(error)
        raise WeightsError(
            f"weights {str(path)!r} have a damaged card ({cause}): train anew or fetch it again"
        ) from None
    return card
