"""The user's own images: ROOT/CLASS/*.png, or ROOT/{train,val,test}/CLASS/*.png; and ImageNet's; streamed.

However many there are, what stays in memory is their names and labels, and of the images a few batches: those that
worker processes have decoded ahead.
"""

from __future__ import annotations

import array
import hashlib
import os
import signal
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate
from torchvision.datasets.folder import IMG_EXTENSIONS
from torchvision.transforms import v2

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
from defend.datasets.digests import digests_of
from defend.datasets.plugin import FolderOptions, ImageNetOptions
from defend.errors import DataError
from defend.images import read_image

STATISTICS_SAMPLE = 512
STATISTICS_BATCH = 64
SPLIT_NAMES: Mapping[Split, tuple[str, ...]] = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}
LITTER = ("__macosx", "__pycache__", "@eadir", "$recycle.bin", "system volume information", "lost+found")
"""Folders that programs leave in others, beside those whose names begin with a dot."""
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
    found, others = _named_like_splits(root)
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


def _named_like_splits(root: Path) -> tuple[dict[Split, list[Path]], list[Path]]:
    """Return the folders that are named like splits, and the others that are not hidden."""
    try:
        with os.scandir(root) as entries:
            shown = sorted((entry for entry in entries if not hidden(entry.name)), key=lambda entry: entry.name)
        for entry in shown:
            _check_link(entry)
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
        shown = [entry for entry in entries if not hidden(entry.name)]
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
    found = _named_like_splits(root)[0] if root.is_dir() else {}
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
        self._decoders = _Decoders(_Decoder(self._names, image_size, resize or image_size), workers)
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
        for pixels in self._decoders.decoded(self._files[split][keys].split(batch_size), pinned):
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
                    pairs.append((self._shown("test", at), self._shown(*other)))
        return Duplicates(count, tuple(pairs))

    def _shown(self, split: Split, place: int) -> str:
        return os.fsencode(os.fsdecode(self._names[int(self._files[split][place])])).decode("utf-8", "replace")

    def statistics(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        if self._statistics is None:
            files = self._files["train"][self.keys("train", STATISTICS_SAMPLE)]
            self._statistics = channel_statistics(list(self._decoders.decoded(files.split(STATISTICS_BATCH), False)))
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


@attrs.frozen(eq=False)
class Listing:
    """The images of one folder, in order: their names below the root joined to one, the names' lengths, labels."""

    classes: tuple[str, ...]
    joined: bytearray
    lengths: Tensor
    labels: Tensor


class Names:
    """File names in one piece of memory, as a Python string each would take a hundred bytes more.

    They are tensors, which processes share, and have no reference counts that would make each process copy them.
    """

    def __init__(self, root: Path, listings: Sequence[Listing]) -> None:
        self._root = os.fspath(root)
        self._joined = torch.cat([torch.frombuffer(listing.joined, dtype=torch.uint8) for listing in listings])
        self._ends = torch.cat([listing.lengths for listing in listings]).cumsum(0)

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, place: int) -> bytes:
        """Return a file's name below the root."""
        start = int(self._ends[place - 1]) if place > 0 else 0
        return self._joined[start : int(self._ends[place])].numpy().tobytes()

    def path(self, place: int) -> Path:
        """Return where a file is."""
        return Path(self._root, os.fsdecode(self[place]))


class _Decoder(Dataset[Tensor | DataError]):
    """Gives an image, or the error that it is damaged: raised in a worker, torch would bury it in a traceback."""

    def __init__(self, names: Names, image_size: int, resize: int) -> None:
        self._names = names
        self._resize: Any = v2.Compose([v2.Resize(resize, antialias=True), v2.CenterCrop(image_size)])

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, place: int) -> Tensor | DataError:
        path = self._names.path(place)
        try:
            return self._resize(read_image(path, channels=3))  # type: ignore[no-any-return]
        except DataError as error:
            return error
        except Exception as error:  # for example a strip so long that it does not fit into memory once resized
            cause = " ".join(str(error).split())[:200]
            return DataError(f"image {str(path)!r} cannot be resized: {type(error).__name__}: {cause}")


class _Plan(Sampler[list[int]]):
    """Which files the batches of the next pass are of."""

    def __init__(self) -> None:
        self.batches: Sequence[Tensor] = ()

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[int]]:
        return (batch.tolist() for batch in self.batches)


class _Decoders:
    """Decodes batches of files: in processes of its own, a few batches ahead of their use.

    Processes that have finished a pass wait for the next, as starting them may take seconds; a pass that is left
    early ends its processes.
    """

    def __init__(self, decoder: _Decoder, workers: int) -> None:
        self._decoder = decoder
        self._workers = min(workers, _cores())
        self._waiting: dict[bool, tuple[_Plan, DataLoader[Tensor | DataError]]] = {}

    def decoded(self, batches: Sequence[Tensor], pinned: bool) -> Iterator[Tensor]:
        """Yield uint8 [B,C,H,W] for batches of places of files, int64 [B]; what workers decode may be page-locked.

        Raises:
            DataError: an image is damaged.
        """
        alone = self._workers == 0 or len(batches) == 1
        for pixels in self._here(batches) if alone else self._there(batches, pinned):
            if isinstance(pixels, DataError):
                raise pixels
            yield pixels

    def _here(self, batches: Sequence[Tensor]) -> Iterator[Tensor | DataError]:
        return (_collate([self._decoder[place] for place in batch.tolist()]) for batch in batches)

    def _there(self, batches: Sequence[Tensor], pinned: bool) -> Iterator[Tensor | DataError]:
        # taken out while in use: another pass at the same time starts processes of its own
        plan, loader = self._waiting.pop(pinned) if pinned in self._waiting else self._start(pinned)
        plan.batches = batches
        try:
            yield from loader
            self._waiting[pinned] = plan, loader
        finally:
            del loader  # which ends its processes, unless they wait for the next pass

    def _start(self, pinned: bool) -> tuple[_Plan, DataLoader[Tensor | DataError]]:
        plan = _Plan()
        loader: DataLoader[Tensor | DataError] = DataLoader(
            self._decoder,
            batch_sampler=plan,
            collate_fn=_collate,
            num_workers=self._workers,
            persistent_workers=True,
            pin_memory=pinned,
            worker_init_fn=_begin,
            generator=torch.Generator(),  # workers draw nothing, so torch's own generator stays where it is
        )
        return plan, loader


def _begin(_: int) -> None:
    """Leave Ctrl-C to the main process, which then ends its workers, by a SIGTERM that kills."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _cores() -> int:
    """How many cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _collate(parts: list[Tensor | DataError]) -> Tensor | DataError:
    for part in parts:
        if isinstance(part, DataError):
            return part
    return default_collate(parts)  # type: ignore[no-any-return]


def hidden(name: str) -> bool:
    """Whether a file or folder is none of the user's: its name begins with a dot, or is one that programs leave."""
    return name.startswith(".") or name.lower() in LITTER


def list_images(folder: Path, root: Path) -> Listing:
    """Find the images of every class, in the order of torchvision's `ImageFolder`, and name them from the root.

    Hidden names are passed over at any depth (see `hidden`), and a folder or file that several links lead to is taken
    once.

    Raises:
        DataError: no folder of classes, fewer than two of them, one without images, or a link that leads nowhere.
    """
    joined, lengths, labels = bytearray(), array.array("q"), array.array("q")
    empty = []
    try:
        classes = _classes(folder)
        # no link leads out of a class into what is another's, or the whole
        walls = {_identity(above) for above in (folder.resolve(), *folder.resolve().parents)}
        for name in classes:
            if (own := _identity(folder / name)) in walls:
                raise DataError(f"class folder {str(folder / name)!r} is a link to another class, or to what it is in")
            walls.add(own)
        for label, name in enumerate(classes):
            before = len(labels)
            for place, files in _walk(folder / name, set(walls)):
                below = os.path.relpath(place, root)
                for file in files:
                    encoded = os.fsencode(os.path.join(below, file))
                    joined += encoded
                    lengths.append(len(encoded))
                    labels.append(label)
            if len(labels) == before:
                empty.append(name)
        if empty:
            extensions = ", ".join(IMG_EXTENSIONS)
            raise FileNotFoundError(
                f"Found no valid file for the classes {', '.join(empty)}. Supported extensions are: {extensions}"
            )
    except OSError as error:
        cause = " ".join(str(error).split())
        raise DataError(f"{str(folder)!r} is not an image folder (one sub-folder of images a class): {cause}") from None
    if len(classes) < 2:
        raise DataError(f"{str(folder)!r} has one class ({classes[0]!r}): a classifier needs two or more")
    return Listing(tuple(classes), joined, _int64(lengths), _int64(labels))


def _classes(folder: Path) -> list[str]:
    with os.scandir(folder) as entries:
        shown = [entry for entry in entries if not hidden(entry.name)]
    for entry in shown:
        _check_link(entry)
    classes = sorted(entry.name for entry in shown if entry.is_dir())
    if not classes:
        raise FileNotFoundError(f"Couldn't find any class folder in {folder}.")
    return classes


def _walk(start: Path, seen: set[tuple[int, int]]) -> list[tuple[str, list[str]]]:
    """Return every folder from `start` down with its images' names; both sorted. None in `seen` is entered.

    Links are followed last, so that what stands in the class is named by its own place.
    """
    found: list[tuple[str, list[str]]] = []
    folders, links = [os.fspath(start)], list[str]()
    inside, targets = os.path.join(os.path.realpath(start), ""), set[str]()
    while folders or links:
        place = folders.pop() if folders else links.pop()
        if place != os.fspath(start):
            if (about := _identity(place)) in seen:
                continue
            seen.add(about)
        files = []
        with os.scandir(place) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                if hidden(entry.name):
                    continue
                _check_link(entry)
                if entry.is_dir():
                    (links if entry.is_symlink() else folders).append(entry.path)
                elif entry.name.lower().endswith(IMG_EXTENSIONS) and entry.is_file():
                    if entry.is_symlink():
                        target = os.path.realpath(entry.path)
                        if target in targets or _listed(target, inside):
                            continue
                        targets.add(target)
                    files.append(entry.name)
        found.append((place, files))
    return sorted(found)


def _listed(target: str, inside: str) -> bool:
    """Whether a file that a link leads to stands in the class itself, as an image that is listed."""
    below = target.removeprefix(inside)
    return (
        below != target
        and target.lower().endswith(IMG_EXTENSIONS)
        and not any(hidden(part) for part in below.split(os.sep))
    )


def _check_link(entry: os.DirEntry[str]) -> None:
    if entry.is_symlink() and not os.path.exists(entry.path):
        name, suffix = entry.name.lower(), os.path.splitext(entry.name)[1]
        if not suffix or name.endswith(IMG_EXTENSIONS):  # a class, a folder or an image
            raise DataError(f"{entry.path!r} is a link to {os.readlink(entry.path)!r}, which does not exist")


def _identity(path: str | Path) -> tuple[int, int]:
    """Return what tells a folder from others, whatever link leads to it."""
    about = os.stat(path)
    return about.st_dev, about.st_ino


def _int64(values: array.array[int]) -> Tensor:
    return torch.frombuffer(values, dtype=torch.int64).clone()
