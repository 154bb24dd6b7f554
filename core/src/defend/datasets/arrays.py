"""The user's own arrays: a .npz with images and labels under the usual names, or two .npy files. Never pickled ones."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from defend.boundary.arrays import list_members, open_archive, read_member, reading
from defend.datasets.base import Split
from defend.datasets.classes import read_class_names
from defend.datasets.given import GivenDataset
from defend.datasets.given_sources import Arrays, Source
from defend.datasets.plugin import ArraysOptions
from defend.datasets.splitting import USUAL_SHARES, choose_splits, name_split, share_out
from defend.errors import DataError

IMAGES = ("images", "image", "x", "data", "imgs", "img", "arr_0")
LABELS = ("labels", "label", "y", "targets", "target", "arr_1")
USUAL_PAIRS = {"images": "labels", "image": "label", "x": "y", "data": "targets", "arr_0": "arr_1"}
USUAL = "images and labels, x and y, x_train, y_train, x_test and y_test, or arr_0 and arr_1"
WHOLE = ""  # what is of no split by its name
MISSING: Mapping[Split, str] = {
    "train": "expected x_train and y_train in the file, or --set dataset.split left out",
    "val": "expected x_val and y_val in the file, or --set dataset.hold_out left out",
    "test": "expected x_test and y_test in the file, or --set dataset.hold_out left out",
}


def build(config: ArraysOptions) -> GivenDataset:
    """Read a file's arrays; those of a .npy stay on disk until an image is asked for.

    Raises:
        DataError: a file that is missing, damaged or holds objects; names that say neither images nor labels; or arrays
            that are not images and labels.
    """
    if config.data_dir is None:
        raise DataError("arrays needs --data-dir: a .npz, or a .npy of images with one of labels beside it")
    path = Path(config.data_dir)
    found = _read_pair(path) if path.suffix.lower() == ".npy" else _read_archive(path)
    own, stands_in = choose_splits(found, config.split, repr(str(path)))
    sources: dict[Split, Source] = {
        split: Arrays(images, labels, f"{str(path)!r}, {split}") for split, (images, labels) in own.items()
    }
    labels = {split: source.labels for split, source in sources.items()}
    parts = share_out(labels, USUAL_SHARES if config.hold_out else {})
    names = read_class_names(config.class_names) or None
    return GivenDataset("arrays", sources, parts, names, missing=MISSING, stands_in=stands_in)


def _read_archive(path: Path) -> dict[str, tuple[Any, Any]]:
    with open_archive(path) as archive:
        places: dict[str, dict[str, str]] = {}
        for name in archive.files:
            split, kind = _parse(name)
            if kind is None:
                continue
            other = places.setdefault(split, {}).setdefault(kind, name)
            if other != name:
                which = f"the {kind}{f' of {split}' if split else ''}"
                raise DataError(
                    f"{str(path)!r} has two arrays that may be {which}, {other!r} and {name!r}: leave out one, or give "
                    "it another name"
                )
        pairs = {split: known for split, known in places.items() if len(known) == len(("images", "labels"))}
        if not pairs:
            raise DataError(f"{str(path)!r} holds {list_members(archive)}: expected {USUAL}")
        return {
            split: (read_member(archive, known["images"], path), read_member(archive, known["labels"], path))
            for split, known in pairs.items()
        }


def _parse(name: str) -> tuple[str, str | None]:
    """Return the split that an array's name says, and whether it is of images or labels; None of neither."""
    words = re.split(r"(?<!arr)[_\-. ]+", name.lower())
    kinds = {word: kind for kind, known in (("images", IMAGES), ("labels", LABELS)) for word in known}
    said = [kinds[word] for word in words if word in kinds]
    splits = [word for word in words if name_split(word) is not None]
    if len(said) != 1 or len(splits) > 1 or len(splits) + 1 != len(words):
        return WHOLE, None
    return (splits or [WHOLE])[0], said[0]


def _read_pair(path: Path) -> dict[str, tuple[Any, Any]]:
    """Read a .npy of images, and the labels that lie beside it under the same name, but for one word."""
    words = re.split(r"([_\-. ]+)", path.stem)
    beside = [
        path.with_name("".join([*words[:at], label, *words[at + 1 :]]) + path.suffix)
        for at, word in enumerate(words)
        if word.lower() in IMAGES
        for label in LABELS
    ]
    there = [each for each in beside if each.is_file()]
    usual = [
        path.with_name("".join([*words[:at], USUAL_PAIRS[word.lower()], *words[at + 1 :]]) + path.suffix)
        for at, word in enumerate(words)
        if word.lower() in USUAL_PAIRS
    ]
    labels = next((each for each in usual if each in there), there[0] if len(there) == 1 else None)
    if labels is None and there:
        raise DataError(
            f"{str(path)!r}: {' and '.join(repr(each.name) for each in there[:2])} beside it may both be its labels: "
            "leave one there"
        )
    if labels is None:
        raise DataError(
            f"{str(path)!r}: there are no labels beside it; expected a pair such as x_test.npy and y_test.npy, or "
            "images.npy and labels.npy"
        )
    split = next((word for word in map(str.lower, words) if name_split(word) is not None), WHOLE)
    return {split: (_opened(path), _opened(labels))}


def _opened(path: Path) -> Any:
    with reading(path):
        return np.load(path, mmap_mode="r", allow_pickle=False)
