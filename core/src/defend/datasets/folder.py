"""The user's own images: ROOT/CLASS/*.png, or ROOT/{train,val,test}/CLASS/*.png; and ImageNet's; streamed.

However many there are, what stays in memory is their names and labels, and of the images a few batches: those that
worker processes have decoded ahead.
"""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from defend.datasets.base import SPLITS, Batch, ImageDataset, Origin, Split, channel_statistics
from defend.datasets.classes import order_names, read_class_names
from defend.datasets.decoding import Decoder, Decoders, stack
from defend.datasets.digests import digests_of
from defend.datasets.listing import EXTENSIONS, Listing, Names, check_link, is_hidden, list_images
from defend.datasets.plugin import EVERYTHING, FolderOptions, ImageNetOptions
from defend.datasets.sizes import SAMPLE, choose_side, sizes_of
from defend.datasets.splitting import SPLIT_NAMES, USUAL_SHARES, let_val_stand_in, name_split, share_out
from defend.datasets.table import list_table
from defend.datasets.twins import MOST_NAMED, Duplicates, find_twins
from defend.errors import DataError, did_you_mean
from defend.util.files import nearest
from defend.values.sources import TABLES

STATISTICS_SAMPLE = 512
STATISTICS_BATCH = 64
STANDARD = (1000, 224)
"""ImageNet's classes, and the side of its images for most networks: what weights for "imagenet" are made for."""


def build(config: FolderOptions) -> FolderDataset:
    """Read the folder's class names and file list, or a table's; images are decoded when they are asked for.

    Raises:
        DataError: a folder that is missing, empty, or has fewer than two classes; folders of splits without train; or a
            table or list of class names that is not one.
    """
    if config.data_dir is None:
        raise DataError("imagefolder needs --data-dir: a folder with one folder of images a class")
    root, names = Path(config.data_dir), read_class_names(config.class_names)
    shares = FolderDataset.shares if config.hold_out else {}
    if root.is_file() and root.name.lower().endswith(TABLES):
        if config.split not in (None, EVERYTHING):
            raise DataError(f"table {str(root)!r} has no split {config.split!r}: expected dataset.split={EVERYTHING}")
        own: dict[Split, Listing] = {"test" if config.split else "train": list_table(root, names)}
        return FolderDataset(
            root.parent, own, config.image_size, config.workers, shares=shares, flips=config.flips, what=root
        )
    folders, stands_in = _splits(check_root(root), config.split)
    own = {split: list_images(folder, root, names) for split, folder in folders.items()}
    if not names:
        order_names(next(iter(own.values())).classes, f"folder {str(root)!r}")
    return FolderDataset(
        root, own, config.image_size, config.workers, shares=shares, flips=config.flips, stands_in=stands_in
    )


def check_root(root: Path) -> Path:
    """Return the folder that the user named.

    Raises:
        DataError: there is none.
    """
    if not root.is_dir():
        kind = f"data folder {str(root)!r} is a file" if root.exists() else f"data folder {str(root)!r} does not exist"
        near = "" if root.exists() else nearest(root)
        raise DataError(f"{kind}{near or ': name one with --data-dir, or a .csv of path,label'}")
    return root


def _splits(root: Path, judged: str | None) -> tuple[dict[Split, Path], bool]:
    """Return the folders that a root has for its splits, and whether val is test; itself where its folders are classes.

    `judged` names the folder that is, or that the whole root is;
    what else there is of val and train goes with it.
    """
    found, others = _find_splits(root)
    every = [folder for there in found.values() for folder in there]
    if judged == EVERYTHING:
        parts = [folder for folder in every if not _holds_images_alone(folder)]  # others are classes
        if len(parts) > 1:
            known = " and ".join(repr(folder.name) for folder in parts)
            raise DataError(f"{str(root)!r} has {known}: expected one of them to judge, --set dataset.split=NAME")
        return {"test": parts[0] if parts and not others else root}, False
    if judged is None and (not every or (len(every) == 1 and others and _holds_images_alone(every[0]))):
        return {"train": root}, False  # one folder of images among others may be a class called "train"
    for split, there in found.items():
        if len(there) > 1 and (judged is None or judged not in [folder.name for folder in there]):
            names = " and ".join(repr(folder.name) for folder in there)
            raise DataError(f"{str(root)!r} has {names}, which both mean {split}: expected one of them")
    splits = {split: there[0] for split, there in found.items()}
    if judged is not None:
        named = [folder for folder in [*every, *others] if folder.name == judged]
        if not named:
            raise DataError(
                f"{str(root)!r} has no folder {judged!r} to judge (dataset.split): "
                f"{did_you_mean(judged, [*(folder.name for folder in [*every, *others]), EVERYTHING])}"
            )
        rest: dict[Split, Path] = {
            split: folder for split, folder in splits.items() if split != "test" and folder != named[0]
        }
        return {**rest, "test": named[0]}, False
    beside = [folder for folder in others if _holds_an_image(folder)]
    if "train" not in found:
        names = " and ".join(repr(folder.name) for folder in every)
        more = f", beside {', '.join(repr(folder.name) for folder in beside[:3])}" if beside else ""
        every_one = f"; where all are classes: --set dataset.split={EVERYTHING}" if beside else ""
        raise DataError(
            f"{str(root)!r} has {names} and no 'train'{more}: expected ROOT/train/CLASS/ beside them, or class folders "
            f"alone (to judge one without training images: --set dataset.split={every[0].name}{every_one})"
        )
    if beside:
        warnings.warn(
            f"{str(root)!r} has folders of images beside {', '.join(repr(folder.name) for folder in every)} that are "
            f"left out: {', '.join(folder.name for folder in beside)} (where all are classes: --set "
            f"dataset.split={EVERYTHING})",
            stacklevel=2,
        )
    return let_val_stand_in(splits)


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
    for split in SPLIT_NAMES:
        if there := [folder for folder in inside if name_split(folder.name) == split]:
            found[split] = there
    named = [folder for there in found.values() for folder in there]
    return found, [folder for folder in inside if folder not in named]


def _holds_an_image(folder: Path) -> bool:
    """Whether there is an image somewhere in a folder; it stops at the first."""
    files = (name for _, _, names in os.walk(folder) for name in names)
    return any(not is_hidden(name) and name.lower().endswith(EXTENSIONS) for name in files)


def _holds_images_alone(folder: Path) -> bool:
    with os.scandir(folder) as entries:
        shown = [entry for entry in entries if not is_hidden(entry.name)]
        images = any(entry.name.lower().endswith(EXTENSIONS) for entry in shown)
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
    root, names = Path(config.data_dir), read_class_names(config.class_names)
    found = _find_splits(root)[0] if root.is_dir() else {}
    folders: dict[Split, Path] = {
        "train": found.get("train", [root / "train"])[0],
        "test": found.get("val", [root / "val"])[0],
    }
    for folder in (root, *folders.values()):
        if not folder.is_dir():
            raise DataError(f"{str(folder)!r} does not exist: imagenet is train/WNID/*.JPEG and val/WNID/*.JPEG")
    own = {split: list_images(folder, root, names) for split, folder in folders.items()}
    return ImageNetDataset(root, own, config.image_size, config.workers, config.resize)


class FolderDataset(ImageDataset):
    """Images on disk, resized and centre-cropped to a square of `image_size`, in RGB.

    Where test (or val) has no images of its own, a stratified share of train becomes test, and one of the rest val.
    Without train, val is held out of test. See `splitting.share_out`.

    Args:
        root: the folder that all names are below.
        own: the images that the splits have of their own; train or test always.
        image_size: pixels a side; None takes the files' own (`sizes.choose_side`).
        workers: processes that decode, no more than there are cores to run on; 0 decodes in this process.
        resize: the shorter side in pixels before the crop, if not `image_size`.
        shares: which splits are held out, and one in how many of train; the class's own if None.
        flips: whether a mirrored image is still of its class; the class's own if None.
        stands_in: whether the images of test are those of a folder for val, as there is none for test.
        what: what messages name, if not `root`.

    Raises:
        DataError: splits with different classes, or too few images to hold some out.
    """

    name = "imagefolder"
    shares: Mapping[Split, int] = USUAL_SHARES

    def __init__(
        self,
        root: Path,
        own: Mapping[Split, Listing],
        image_size: int | None,
        workers: int,
        resize: int | None = None,
        *,
        shares: Mapping[Split, int] | None = None,
        flips: bool | None = None,
        stands_in: bool = False,
        what: Path | None = None,
    ) -> None:
        self.flips = type(self).flips if flips is None else flips
        first = next(iter(own))
        self.classes, self._what = own[first].classes, str(what or root)
        for listing in own.values():
            if listing.classes != self.classes:
                differing = sorted(set(listing.classes) ^ set(self.classes))
                one, other = str(root / listing.folder), str(root / own[first].folder)
                raise DataError(
                    f"{one!r} has other classes than {other!r}: only one of them has "
                    f"{', '.join(map(repr, differing[:MOST_NAMED]))}{' and others' * (len(differing) > MOST_NAMED)}"
                )
        starts, count = {}, 0  # of each split's own files in the list of all
        for split, listing in own.items():
            starts[split] = count
            count += len(listing.labels)
        parts = share_out(
            {split: listing.labels for split, listing in own.items()}, self.shares if shares is None else shares
        )
        self._labels: dict[Split, Tensor] = {
            split: own[part.source].labels[part.places] for split, part in parts.items()
        }
        self._files: dict[Split, Tensor] = {split: starts[part.source] + part.places for split, part in parts.items()}
        if not all(map(len, self._labels.values())):
            raise DataError(f"{self._what!r} has {count} images: too few to hold some out for val and test")
        self._origins: dict[Split, Origin] = {
            split: Origin(
                own[part.source].folder,
                len(part.places),
                len(own[part.source].labels),
                part.seed,
                stands_in=split == "test" and stands_in,
                given="train" not in own and not own[part.source].folder,
            )
            for split, part in parts.items()
        }
        self._names = Names(root, list(own.values()))
        if image_size is None:
            places = torch.linspace(0, count - 1, min(count, SAMPLE)).long().tolist()
            image_size = choose_side(sizes_of(map(self._names.path, places)), self._what)
        self.shape = (3, image_size, image_size)
        self._resize = resize or image_size
        self._decoders = Decoders(Decoder(self._names, image_size, self._resize), workers, stack)
        self._digests: dict[Split, bytes] = {}
        self._hashes: dict[Split, str] = {}
        self._duplicates: Duplicates | None = None
        self._filed_as: str | None = None
        self._statistics: tuple[tuple[float, ...], tuple[float, ...]] | None = None

    @property
    def filed_as(self) -> str:
        """The name, and what tells this folder from others: its classes, its size, its training (or other) images."""
        if self._filed_as is None:
            made_for = repr((self.name, self.classes, self.shape, self.sha256(self.fitted_on())))
            self._filed_as = f"{self.name}-{hashlib.sha256(made_for.encode()).hexdigest()[:10]}"
        return self._filed_as

    @property
    def prepared(self) -> str:
        """The shape, and the shorter side before the crop: the files' hash knows of neither."""
        return f"{super().prepared}, cut out of {self._resize}"

    def has(self, split: Split) -> bool:
        return split in self._labels

    def labels(self, split: Split) -> Tensor:
        """Return all labels of a split, int64 [N].

        Raises:
            DataError: it has none.
        """
        if split not in self._labels:
            raise DataError(
                f"{self._what!r} has no {split} images as it is asked for, but {', '.join(self._labels)}: leave out "
                f"--set dataset.split and dataset.hold_out, or add a folder {split!r}"
            )
        return self._labels[split]

    def batches(self, split: Split, keys: Tensor, batch_size: int, device: torch.device) -> Iterator[Batch]:
        labels, keys = self.labels(split), keys.cpu()
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
            self.labels(split)  # or there is no such split
            places = self._files[split].tolist()
            self._digests[split] = digests_of([self._names.path(place) for place in places])
        return self._digests[split]

    def files(self, split: Split) -> bytes | None:
        return self.digests(split)

    def origin(self, split: Split) -> Origin:
        return self._origins[split]

    def duplicates(self) -> Duplicates | None:
        if self._duplicates is None:
            digests = {split: self.digests(split) for split in SPLITS if self.has(split)}
            self._duplicates = find_twins(digests, self._show)
        return self._duplicates

    def _show(self, split: Split, place: int) -> str:
        # a file's name may be no UTF-8, and a report is
        return os.fsencode(os.fsdecode(self._names[int(self._files[split][place])])).decode("utf-8", "replace")

    def statistics(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        if self._statistics is None:
            split = self.fitted_on()
            files = self._files[split][self.keys(split, STATISTICS_SAMPLE)]
            self._statistics = channel_statistics(list(self._decoders.decode(files.split(STATISTICS_BATCH), False)))
        return self._statistics


class ImageNetDataset(FolderDataset):
    """ImageNet as torchvision and timm lay it out; its classes, sorted by WNID, are in timm's order."""

    name = "imagenet"
    flips = True
    published_apart = True  # 1.3 million files need not be read to know it
    shares: Mapping[Split, int] = {"val": 50}

    @property
    def filed_as(self) -> str:
        """The name alone, but for other classes or another size than ImageNet's."""
        return self.name if (len(self.classes), self.shape[1]) == STANDARD else super().filed_as

    def files(self, split: Split) -> bytes | None:
        return None  # a run does not read 1.3 million training images for it

    def duplicates(self) -> Duplicates | None:
        return None
