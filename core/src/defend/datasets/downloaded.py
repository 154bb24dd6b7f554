"""MNIST, Fashion-MNIST and CIFAR-10: read from a data folder, or downloaded there by torchvision."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import platformdirs
import torch

from defend.datasets.base import MemoryDataset, Split, from_numpy, hold_out
from defend.datasets.listing import Names, list_images
from defend.datasets.plugin import DownloadedOptions
from defend.errors import DataError
from defend.util.images import read_image

VALIDATION = 5000


def data_root(data_dir: str | None) -> Path:
    """Return the data folder: the argument, else $DEFEND_DATA_DIR, else the user's data folder.

    Raises:
        DataError: a folder that was named does not exist.
    """
    named = data_dir or os.environ.get("DEFEND_DATA_DIR")
    if named is None:
        return platformdirs.user_data_path("defend")
    root = Path(named)
    if not root.is_dir():
        raise DataError(f"data folder {named!r} does not exist: name an existing one with --data-dir")
    return root


def mnist(config: DownloadedOptions) -> MemoryDataset:
    """MNIST; the 5,000 validation images are a stratified sample of the official training images."""
    return _idx("mnist", "MNIST", config)


def fashion_mnist(config: DownloadedOptions) -> MemoryDataset:
    """Fashion-MNIST."""
    return _idx("fashion_mnist", "FashionMNIST", config, flips=True)


def cifar10(config: DownloadedOptions) -> MemoryDataset:
    """CIFAR-10: ROOT/cifar10/{train,test}/CLASS/*.png if there, else torchvision's own."""
    from torchvision.datasets import CIFAR10

    root = data_root(config.data_dir)
    raw: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    classes: list[str] = []
    for split in ("train", "test"):
        folder = root / "cifar10" / split
        if folder.is_dir():
            listing = list_images(folder, folder)
            files, names = Names(folder, [listing]), list(listing.classes)
            try:
                # one after the other: of files so small most of the time is Python's, and threads take turns at that
                read = [read_image(files.path(at), 3) for at in range(len(files))]
                images = torch.stack(read).permute(0, 2, 3, 1).numpy()
            except RuntimeError as error:  # of different sizes
                raise DataError(f"cifar10 in {str(folder)!r} cannot be read: {error}") from None
            raw[split] = images, listing.labels.numpy()
        else:
            official = _torchvision("cifar10", CIFAR10, root, split == "train")
            raw[split], names = (official.data, np.asarray(official.targets)), official.classes
        if classes and names != classes:
            raise DataError(f"cifar10 in {str(root)!r} has other classes in test than in train")
        classes = names
    return _with_validation("cifar10", classes, raw, flips=True)


def _idx(name: str, torchvision_name: str, config: DownloadedOptions, flips: bool = False) -> MemoryDataset:
    import torchvision.datasets

    root = data_root(config.data_dir)
    cls = getattr(torchvision.datasets, torchvision_name)
    parts = {split: _torchvision(name, cls, root, split == "train") for split in ("train", "test")}
    raw = {split: (part.data.numpy(), part.targets.numpy()) for split, part in parts.items()}
    return _with_validation(name, parts["train"].classes, raw, flips)


def _torchvision(name: str, cls: Any, root: Path, train: bool) -> Any:
    unreadable = (OSError, RuntimeError, ValueError, AssertionError)  # what torchvision raises on damaged files
    try:
        return cls(str(root), train=train, download=False)
    except unreadable:
        pass  # not there (or damaged) yet
    try:
        root.mkdir(parents=True, exist_ok=True)
        return cls(str(root), train=train, download=True)
    except unreadable as error:
        cause = " ".join(str(error).split())[:120] or type(error).__name__
        raise DataError(
            f"{name} is not in {str(root)!r} (or damaged) and could not be downloaded ({cause}): "
            "name a folder that has it with --data-dir or DEFEND_DATA_DIR"
        ) from None


def _with_validation(
    name: str, classes: list[str], raw: dict[str, tuple[np.ndarray, np.ndarray]], flips: bool
) -> MemoryDataset:
    for split, (pixels, targets) in raw.items():
        if len(pixels) != len(targets):
            raise DataError(f"{name} has {len(pixels)} {split} images and {len(targets)} labels: fetch it again")
    train_pixels, train_labels = from_numpy(*raw["train"])
    test_pixels, test_labels = from_numpy(*raw["test"])
    kept, held = hold_out(train_labels, min(VALIDATION, len(train_labels) // 10))
    images: dict[Split, torch.Tensor] = {"train": train_pixels[kept], "val": train_pixels[held], "test": test_pixels}
    labels: dict[Split, torch.Tensor] = {"train": train_labels[kept], "val": train_labels[held], "test": test_labels}
    return MemoryDataset(name, classes, images, labels, flips)
