"""The card in a weights file: what was trained, on which images, how. Reading one imports no torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from defend.errors import WeightsError
from defend.options import describe
from defend.plugins import Found
from defend.stages import Task
from defend.util.header import read_metadata

if TYPE_CHECKING:
    from defend.datasets.base import ImageDataset


CARD_FORMAT = 1


@attrs.frozen(kw_only=True)
class Card:
    """What is known of a weights file.

    Attributes:
        stage, name: which stage these weights are for.
        config: its architecture options.
        dataset: {"name", "sha256" of the training split, "" without one, "shape", "classes" (names), "mean", "std",
            "flips"}, and "filed_as" where the name does not say which images they are.
        recipe: the training options, seed and versions.
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
    architecture = {option.name for option in describe(found.spec.config) if option.architecture}
    kept = {key: value for key, value in attrs.asdict(config).items() if key in architecture}
    task = dataset.task()
    return Card(
        stage=found.entry.stage,
        name=found.name,
        config={**kept, **(made_for or {})},
        dataset={
            "name": dataset.name,
            "sha256": dataset.sha256("train") if dataset.has("train") else "",
            "shape": list(dataset.shape),
            "classes": list(dataset.classes),
            "mean": list(task.mean),
            "std": list(task.std),
            "flips": dataset.flips,
            **({"filed_as": task.filed_as} if task.filed_as else {}),
        },
        recipe=recipe,
        figures=figures,
    )


def read_card(path: Path) -> Card:
    """Read the card of a weights file from its header.

    Raises:
        WeightsError: not safetensors, cut short, or without a card of a known format.
    """
    try:
        with path.open("rb") as file:
            text = read_metadata(file).get("defend.card")
    except OSError as error:
        raise WeightsError(f"weights {str(path)!r} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise WeightsError(f"weights {str(path)!r} are {error}: train anew or fetch it again") from None
    if text is None:
        raise WeightsError(f"weights {str(path)!r} have no card: they were not written by `defend train`")
    try:
        values = json.loads(text)
        if (kept := values.get("format")) != CARD_FORMAT:
            raise WeightsError(
                f"weights {str(path)!r} have a card of format {kept}, and this version reads {CARD_FORMAT}"
            )
        card = Card(**values)
        # raises where something is missing that a task needs
        card.task()
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        cause = f"{type(error).__name__}: {error}"
        raise WeightsError(
            f"weights {str(path)!r} have a damaged card ({cause}): train anew or fetch it again"
        ) from None
    return card
