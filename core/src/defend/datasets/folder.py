"""The user's own images: ROOT/CLASS/*.png, or ROOT/{train,val,test}/CLASS/*.png; and ImageNet's; streamed.

However many there are, what stays in memory is their names and labels, and of the images a few batches: those that
worker processes have decoded ahead.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor
from torchvision.datasets.folder import IMG_EXTENSIONS

from defend.datasets.base import (
    SPLIT_SEED,
    Batch,
    Duplicates,
    ImageDataset,
    Origin,
    Split,
    channel_statistics,
    hold_out,
)
from defend.datasets.decoding import Decoder, Decoders
from defend.datasets.digests import digests_of
from defend.datasets.listing import Names, check_link, is_hidden, list_images
from defend.datasets.plugin import FolderOptions, ImageNetOptions
from defend.errors import DataError

STATISTICS_SAMPLE = 512
STATISTICS_BATCH = 64
SPLIT_NAMES: Mapping[Split, tuple[str, ...]] = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}
MOST_NAMED = 5
STANDARD = (1000, 224)
"""ImageNet's classes, and the side of its images for most networks: what weights for "imagenet" are made for."""


def build(config: FolderOptions) -> FolderDataset:
    """Read the folder's class names and file list; images are decoded when they are asked for.

    Raises:
        DataError: a folder that is missing, empty, or has fewer than two classes; or folders of splits without train.
    """
    if config.data_dir is None:
        raise DataError("imagefolder needs --data-dir: a folder with one folder of images a class")
    root = Path(config.data_dir)
    if not root.is_dir():
        raise DataError(f"data folder {str(root)!r} does not exist: name one with --data-dir")
    return FolderDataset(root, _splits(root) or {"train": root}, config.image_size, config.workers)


def _splits(root: Path) -> dict[Split, Path]:
    """Return the folders that a root has for its splits, however they are written; none where its folders are classes.

    Without one for test, val is what the user tests on.
    """
    found, others = _find_splits(root)
    every = [folder for there in found.values() for folder in there]
    if not every or (len(every) == 1 and others and _holds_images_alone(every[0])):
        return {}  # one folder of images among others may be a class called "train"
    for split, there in found.items():
        if len(there) > 1:
            names = " and ".join(repr(folder.name) for folder in there)
            raise DataError(f"{str(root)!r} has {names}, which both mean {split}: expected one of them")
    if "train" not in found:
        names = " and ".join(repr(folder.name) for folder in every)
        raise DataError(
            f"{str(root)!r} has {names} and no 'train': expected ROOT/train/CLASS/ beside them, or class folders alone"
        )
    splits = {split: there[0] for split, there in found.items()}
    return splits if "test" in splits or "val" not in splits else {"train": splits["train"], "test": splits["val"]}


def _find_splits(root: Path) -> tuple[dict[Split, list[Path]], list[Path]]:
    """Return the folders that are named like splits, and the others that are not hidden."""
    try:
        with os.scandir(root) as entries:
            shown = sorted((entry for entry in entries if not is_hidden(entry.name)), key=lambda entry: entry.name)
        for entry in shown:
            check_link(entry)
        inside = [Path(entry.path) for entry in shown if entry.is_dir()]
    except OSError as error:
        raise DataError(f"data folder {str(root)!r} cannot be read: {error.strerror}") from None
    found: dict[Split, list[Path]] = {}
    for split, words in SPLIT_NAMES.items():
        if there := [folder for folder in inside if folder.name.lower() in words]:
            found[split] = there
    named = [folder for there in found.values() for folder in there]
    return found, [folder for folder in inside if folder not in named]


def _holds_images_alone(folder: Path) -> bool:
    with os.scandir(folder) as entries:
        shown = [entry for entry in entries if not is_hidden(entry.name)]
        images = any(entry.name.lower().endswith(IMG_EXTENSIONS) for entry in shown)
        return images and not any(entry.is_dir() for entry in shown)


def build_imagenet(config: ImageNetOptions) -> FolderDataset:
    """Read ImageNet's folders: ROOT/train, and ROOT/val, which is the test split.

    Raises:
        DataError: a folder that is missing or empty, or two with different classes.
    """
    if config.data_dir is None:
        raise DataError("imagenet needs --data-dir: a folder with train/WNID/*.JPEG and val/WNID/*.JPEG")
    if config.resize < config.image_size:
        raise DataError(f"imagenet: resize={config.resize} is below image_size={config.image_size}: no crop fits in it")
    root = Path(config.data_dir)
    found = _find_splits(root)[0] if root.is_dir() else {}
    folders: dict[Split, Path] = {
        "train": found.get("train", [root / "train"])[0],
        "test": found.get("val", [root / "val"])[0],
    }
    for folder in (root, *folders.values()):
        if not folder.is_dir():
            raise DataError(f"{str(folder)!r} does not exist: imagenet is train/WNID/*.JPEG and val/WNID/*.JPEG")
    return ImageNetDataset(root, folders, config.image_size, config.workers, config.resize)


class FolderDataset(ImageDataset):
    """Images on disk, resized and centre-cropped to a square of `image_size`, in RGB.

    Where test (or val) has no folder of its own, a stratified share of train becomes test, and one of the rest val.

    Args:
        root: the folder that all others are in.
        folders: those that the splits have of their own; train always.
        image_size: pixels a side.
        workers: processes that decode, no more than there are cores to run on; 0 decodes in this process.
        resize: the shorter side in pixels before the crop, if not `image_size`.

    Raises:
        DataError: a folder is missing, empty or has fewer than two classes; splits with different classes; too
            few images to hold some out; or a link that leads nowhere.
    """

    name = "imagefolder"
    flips = True
    shares: Mapping[Split, int] = {"test": 5, "val": 10}
    """One in how many images of train is held out; val's are taken of what test leaves."""

    def __init__(
        self, root: Path, folders: Mapping[Split, Path], image_size: int, workers: int, resize: int | None = None
    ) -> None:
        self.shape = (3, image_size, image_size)
        if not root.is_dir():
            raise DataError(f"data folder {str(root)!r} does not exist: name one with --data-dir")
        own = {split: list_images(folder, root) for split, folder in folders.items()}
        self.classes = own["train"].classes
        for split, folder in folders.items():
            if own[split].classes != self.classes:
                differing = sorted(set(own[split].classes) ^ set(self.classes))
                raise DataError(
                    f"{str(folder)!r} has other classes than {str(folders['train'])!r}: only one of them has "
                    f"{', '.join(map(repr, differing[:MOST_NAMED]))}{' and others' * (len(differing) > MOST_NAMED)}"
                )
        self._labels: dict[Split, Tensor] = {split: listing.labels for split, listing in own.items()}
        self._files: dict[Split, Tensor] = {}  # places in the list of all files, int64
        first = 0
        for split, listing in own.items():
            self._files[split] = torch.arange(first, first + len(listing.labels))
            first += len(listing.labels)
        self._origins: dict[Split, Origin] = {
            split: Origin(
                folder.name if folder != root else "",
                len(own[split].labels),
                len(own[split].labels),
                # for ImageNet val is the test split itself, and stands in for none
                stands_in=split == "test" and "test" in self.shares and folder.name.lower() in SPLIT_NAMES["val"],
            )
            for split, folder in folders.items()
        }
        for split, share in self.shares.items():
            if split not in own:
                self._hold_out(split, share)
        if len(self._labels["train"]) == 0:
            raise DataError(f"{str(root)!r} has {first} images: too few to hold some out for val and test")
        self._names = Names(root, list(own.values()))
        self._decoders = Decoders(Decoder(self._names, image_size, resize or image_size), workers)
        self._digests: dict[Split, bytes] = {}
        self._hashes: dict[Split, str] = {}
        self._duplicates: Duplicates | None = None
        self._filed_as: str | None = None
        self._statistics: tuple[tuple[float, ...], tuple[float, ...]] | None = None

    def _hold_out(self, split: Split, share: int) -> None:
        """Move one in `share` images from train to another split."""
        files, labels = self._files["train"], self._labels["train"]
        kept, held = hold_out(labels, max(len(files) // share, 1))
        self._files[split], self._labels[split] = files[held], labels[held]
        self._files["train"], self._labels["train"] = files[kept], labels[kept]
        whole = self._origins["train"]
        self._origins[split] = Origin(whole.folder, len(held), whole.of, SPLIT_SEED)
        self._origins["train"] = Origin(whole.folder, len(kept), whole.of, SPLIT_SEED)

    @property
    def filed_as(self) -> str:
        """The name, and what tells this folder from others: its classes, its size, its training images."""
        if self._filed_as is None:
            made_for = repr((self.name, self.classes, self.shape, self.sha256("train")))
            self._filed_as = f"{self.name}-{hashlib.sha256(made_for.encode()).hexdigest()[:10]}"
        return self._filed_as

    def labels(self, split: Split) -> Tensor:
        return self._labels[split]

    def batches(self, split: Split, keys: Tensor, batch_size: int, device: torch.device) -> Iterator[Batch]:
        labels, keys = self._labels[split], keys.cpu()
        start = 0
        pinned = device.type == "cuda"  # so that the copy to the device does not wait for it
        for pixels in self._decoders.decode(self._files[split][keys].split(batch_size), pinned):
            part = keys[start : start + len(pixels)]
            start += len(pixels)
            images = pixels.to(device, non_blocking=True).float().div_(255)
            yield Batch(images, labels[part].to(device), part.to(device))

    def sha256(self, split: Split) -> str:
        if split not in self._hashes:
            digest, contents = hashlib.sha256(), self.digests(split)
            for number, (place, label) in enumerate(
                zip(self._files[split].tolist(), self._labels[split].tolist(), strict=True)
            ):
                digest.update(self._names[place])
                digest.update(f"\0{contents[32 * number : 32 * number + 32].hex()}\0{label}\n".encode())
            self._hashes[split] = digest.hexdigest()
        return self._hashes[split]

    def digests(self, split: Split) -> bytes:
        """Return the SHA-256 of each file of a split, 32 bytes each, in order.

        Raises:
            DataError: a file that cannot be read.
        """
        if split not in self._digests:
            places = self._files[split].tolist()
            self._digests[split] = digests_of([self._names.path(place) for place in places])
        return self._digests[split]

    def origin(self, split: Split) -> Origin:
        return self._origins[split]

    def duplicates(self) -> Duplicates | None:
        if self._duplicates is None:
            self._duplicates = self._twins()
        return self._duplicates

    def _twins(self) -> Duplicates:
        known: dict[bytes, tuple[Split, int]] = {}
        for split in ("val", "train"):
            contents = self.digests(split)
            known |= {contents[32 * at : 32 * at + 32]: (split, at) for at in range(len(contents) // 32)}
        contents, count = self.digests("test"), 0
        pairs: list[tuple[str, str]] = []
        for at in range(len(contents) // 32):
            other = known.get(contents[32 * at : 32 * at + 32])
            if other is not None:
                count += 1
                if len(pairs) < MOST_NAMED:
                    pairs.append((self._show("test", at), self._show(*other)))
        return Duplicates(count, tuple(pairs))

    def _show(self, split: Split, place: int) -> str:
        # a file's name may be no UTF-8, and a report is
        return os.fsencode(os.fsdecode(self._names[int(self._files[split][place])])).decode("utf-8", "replace")

    def statistics(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        if self._statistics is None:
            files = self._files["train"][self.keys("train", STATISTICS_SAMPLE)]
            self._statistics = channel_statistics(list(self._decoders.decode(files.split(STATISTICS_BATCH), False)))
        return self._statistics


class ImageNetDataset(FolderDataset):
    """ImageNet as torchvision and timm lay it out; its classes, sorted by WNID, are in timm's order."""

    name = "imagenet"
    shares: Mapping[Split, int] = {"val": 50}

    @property
    def filed_as(self) -> str:
        """The name alone, but for other classes or another size than ImageNet's."""
        return self.name if (len(self.classes), self.shape[1]) == STANDARD else super().filed_as

    def duplicates(self) -> Duplicates | None:
        return None  # a run does not read 1.3 million training images for it
