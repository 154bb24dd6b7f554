"""`hf:NAME`: images and labels through the library `datasets`, where it is installed."""

from __future__ import annotations

import hashlib
import importlib
import importlib.metadata
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from defend.boundary.calls import say_cause
from defend.datasets.base import Split
from defend.datasets.classes import number_classes, order_names, read_class_names
from defend.datasets.fitting import fit
from defend.datasets.given import GivenDataset
from defend.datasets.given_sources import Items, Source
from defend.datasets.plugin import HubOptions
from defend.datasets.sizes import SAMPLE, choose_side
from defend.datasets.splitting import USUAL_SHARES, choose_splits, share_out
from defend.errors import ConfigError, DataError, did_you_mean
from defend.util.images import GREY, to_pixels

LABELS = ("label", "labels", "fine_label", "target", "class", "coarse_label")
MISSING: Mapping[Split, str] = {
    "train": "leave out --set dataset.split, if it has some",
    "val": "leave out --set dataset.hold_out",
    "test": "name the split to judge with --set dataset.split",
}


def build(config: HubOptions) -> GivenDataset:
    """Load a data set by the library, and find its columns of images and labels; images are decoded when asked for.

    Raises:
        ConfigError: the library is not installed.
        DataError: it cannot load the data set, or this has no column of images or labels.
    """
    if config.data_dir is None:
        raise DataError("hf needs a name: --dataset hf:NAME, for example hf:ylecun/mnist")
    what = f"hf:{config.data_dir}"
    loaded = _load(config.data_dir, config.subset, what)
    own, stands_in = choose_splits(loaded, config.split, what)
    first = next(iter(own.values()))
    image = config.image_column or _find_images(first.features, what)
    label = config.label_column or _find_labels(first.features, image, what)
    for column in (image, label):
        if column not in first.features:
            raise DataError(f"{what} has no column {column!r}: {did_you_mean(column, list(first.features))}")
    names = read_class_names(config.class_names)
    classes = tuple(getattr(first.features[label], "names", ()) or ())
    numbered, classes = _number({split: list(rows[label]) for split, rows in own.items()}, classes, names, what)
    side, channels = _look(first, image, config.image_size, what)
    sources: dict[Split, Source] = {}
    for split, rows in own.items():
        pictures = _Rows(rows, image, numbered[split], classes, side, channels)
        known_as = _identify(rows, image, side, channels)
        sources[split] = Items(pictures, f"{what}, {split}", workers=config.workers, known_as=known_as)
    labels = {split: source.labels for split, source in sources.items()}
    parts = share_out(labels, USUAL_SHARES if config.hold_out else {})
    return GivenDataset("hf", sources, parts, classes or None, missing=MISSING, stands_in=stands_in)


def _identify(rows: Any, image: str, side: int, channels: int) -> str:
    """Return a hash of what decides the images of a split, decoders included; "" where the library does not say it."""
    fingerprint = getattr(rows, "_fingerprint", None)
    if not isinstance(fingerprint, str):
        return ""
    versions = [importlib.metadata.version(name) for name in ("pillow", "torch", "torchvision")]
    return hashlib.sha256(repr((fingerprint, image, side, channels, versions)).encode()).hexdigest()


def _load(name: str, subset: str | None, what: str) -> Any:
    try:
        library = importlib.import_module("datasets")
    except ImportError as error:
        raise ConfigError(f"{what} needs the library datasets ({error}): pip install datasets") from None
    try:
        loaded = library.load_dataset(name, subset)
    except Exception as error:  # of whatever it uses: no network, no such name, no rights
        raise DataError(
            f"{what} cannot be loaded ({say_cause(error)}): see that the name is right and the network is there, or "
            "save the images as folders"
        ) from None
    return loaded if isinstance(loaded, dict) else {"train": loaded}


def _find_images(features: Mapping[str, Any], what: str) -> str:
    found = [name for name, kind in features.items() if type(kind).__name__ == "Image"]
    if not found:
        raise DataError(f"{what} has no column of images, but {', '.join(features)[:200]}: name one that has some")
    return found[0]


def _find_labels(features: Mapping[str, Any], image: str, what: str) -> str:
    others = [name for name in features if name != image]
    named = [name for name in others if type(features[name]).__name__ == "ClassLabel"]
    usual = [name for name in LABELS if name in others]
    if not named and not usual:
        listed = ", ".join(others)[:200] or "nothing else"
        raise DataError(f"{what} has no column of labels, but {listed}: name it with --set dataset.label_column=NAME")
    return (named or usual)[0]


def _number(
    labels: dict[Split, list[Any]], classes: tuple[str, ...], names: Sequence[str], what: str
) -> tuple[dict[Split, list[Any]], tuple[str, ...]]:
    """Return labels as numbers, where they are names, and the class names, in the user's order where there is one."""
    if all(isinstance(label, str) for each in labels.values() for label in each):
        every = {label for each in labels.values() for label in each}
        found = sorted(every) if names else order_names(every, what)
        numbers = number_classes(found, names, what)
        return {split: [numbers[label] for label in each] for split, each in labels.items()}, tuple(names or found)
    if names and classes:
        numbers = number_classes(classes, names, what)
        order = [numbers[name] for name in classes]
        return {
            split: [order[label] if 0 <= label < len(order) else label for label in each]
            for split, each in labels.items()
        }, tuple(names)
    return labels, tuple(names) or classes


def _look(rows: Any, image: str, side: int | None, what: str) -> tuple[int, int]:
    """Return the side and the channels that images become, by a sample of them."""
    places = torch.linspace(0, len(rows) - 1, min(len(rows), SAMPLE)).long().unique().tolist()
    sample = [rows[place][image] for place in places]
    for picture in sample:
        if not isinstance(picture, Image.Image):
            raise DataError(f"{what}: column {image!r} holds {type(picture).__name__}, expected images")
    grey = all(picture.mode in GREY for picture in sample)
    return side or choose_side([picture.size for picture in sample], what), 1 if grey else 3


def _has_colour(picture: Image.Image) -> bool:
    pixels = np.asarray(picture.convert("RGB"))
    return bool((pixels != pixels[..., :1]).any())


class _Rows(Dataset[tuple[Tensor, int]]):
    """A split's rows as images and labels, and what it says of them without decoding any."""

    def __init__(
        self, rows: Any, image: str, targets: list[Any], classes: tuple[str, ...], side: int, channels: int
    ) -> None:
        self._rows, self._image, self._side, self._channels = rows, image, side, channels
        self.targets, self.classes = targets, classes

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, place: int) -> tuple[Tensor, int]:
        picture = self._rows[place][self._image]
        if self._channels == 1 and picture.mode not in GREY and _has_colour(picture):
            raise DataError(
                f"image {place} is in colour ({picture.mode}), and those that were looked at first are grey: expected "
                "images that are all in colour, or all grey; convert them first"
            )
        pixels = to_pixels(picture, f"image {place}", self._channels)
        return fit(pixels, self._side, self._side), self.targets[place]
