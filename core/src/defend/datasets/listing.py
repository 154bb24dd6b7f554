"""Which images a folder of classes holds: their names and labels, read once.

Links are followed, but no image is listed twice for them; what programs leave in folders is passed over.
"""

from __future__ import annotations

import array
import os
import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import attrs
import torch
from torch import Tensor

from defend.datasets.classes import number_classes
from defend.errors import DataError

EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
"""Of image files: those of torchvision's `ImageFolder`, whose import takes seconds."""
UNREAD = (".gif", ".jfif", ".jpe", ".jp2", ".avif", ".heic", ".heif", ".jxl", ".tga", ".dib", ".pnm", ".pbm", ".pcx")
"""Of images that nobody lists: where there are some, what is judged is a part of the folder."""
LITTER = ("__macosx", "__pycache__", "@eadir", "$recycle.bin", "system volume information", "lost+found")
"""Folders that programs leave in others, beside those whose names begin with a dot."""


@attrs.frozen(eq=False)
class Listing:
    """The images of one folder, in order: their names below the root joined to one, the names' lengths, labels.

    `folder` is the folder's own name, "" where it is the root or a table.
    """

    classes: tuple[str, ...]
    joined: bytearray
    lengths: Tensor
    labels: Tensor
    folder: str = ""


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


def is_hidden(name: str) -> bool:
    """Whether a file or folder is none of the user's: its name begins with a dot, or is one that programs leave."""
    return name.startswith(".") or name.lower() in LITTER


def list_images(folder: Path, root: Path, class_names: Sequence[str] = ()) -> Listing:
    """Find the images of every class, in the order of torchvision's `ImageFolder`, and name them from the root.

    Labels are by `class_names` where there are any: each folder is one of them, and one without a folder has no images.
    Hidden names are passed over at any depth (see `is_hidden`), and a folder or file that several links lead to is
    taken once.

    Raises:
        DataError: no folder of classes, fewer than two of them, one without images or not among the names, or a link
            that leads nowhere.
    """
    joined, lengths, labels = bytearray(), array.array("q"), array.array("q")
    empty, unread = [], Counter[str]()
    try:
        classes = list_classes(folder)
        numbers = number_classes(classes, class_names, f"folder {str(folder)!r}")
        # no link leads out of a class into what is another's, or the whole
        walls = {_identity(above) for above in (folder.resolve(), *folder.resolve().parents)}
        for name in classes:
            if (own := _identity(folder / name)) in walls:
                raise DataError(f"class folder {str(folder / name)!r} is a link to another class, or to what it is in")
            walls.add(own)
        for name in classes:
            before = len(labels)
            for place, files in _walk(folder / name, set(walls), unread):
                below = os.path.relpath(place, root)
                for file in files:
                    encoded = os.fsencode(os.path.join(below, file))
                    joined += encoded
                    lengths.append(len(encoded))
                    labels.append(numbers[name])
            if len(labels) == before:
                empty.append(name)
        if empty:
            extensions = ", ".join(EXTENSIONS)
            raise FileNotFoundError(
                f"Found no valid file for the classes {', '.join(empty)}. Supported extensions are: {extensions}"
            )
    except OSError as error:
        cause = " ".join(str(error).split())
        raise DataError(f"{str(folder)!r} is not an image folder (one sub-folder of images a class): {cause}") from None
    if unread:
        counted = ", ".join(f"{count} {ending}" for ending, count in sorted(unread.items()))
        warnings.warn(
            f"folder {str(folder)!r} has images that are left out ({counted}), beside {len(labels)} that are read "
            f"({', '.join(EXTENSIONS)}): convert them, or list all in a .csv of path,label",
            stacklevel=2,
        )
    named = tuple(class_names or classes)
    if len(named) < 2:
        raise DataError(f"{str(folder)!r} has one class ({classes[0]!r}): a classifier needs two or more")
    return Listing(named, joined, _int64(lengths), _int64(labels), folder.name if folder != root else "")


def list_classes(folder: Path) -> list[str]:
    """Return the names of the folders in a folder: one a class."""
    with os.scandir(folder) as entries:
        shown = [entry for entry in entries if not is_hidden(entry.name)]
    for entry in shown:
        check_link(entry)
    classes = sorted(entry.name for entry in shown if entry.is_dir())
    if not classes:
        raise FileNotFoundError(f"Couldn't find any class folder in {folder}.")
    return classes


def _walk(start: Path, seen: set[tuple[int, int]], unread: Counter[str]) -> list[tuple[str, list[str]]]:
    """Return every folder from `start` down with its images' names; both sorted. None in `seen` is entered.

    Links are followed last, so that what stands in the class is named by its own place. How many images are left out
    for their ending is added to `unread`.
    """
    found: list[tuple[str, list[str]]] = []
    folders, links = [os.fspath(start)], list[str]()
    inside, targets = os.path.join(os.path.realpath(start), ""), set[str]()
    while folders or links:
        place = folders.pop() if folders else links.pop()
        # every class folder is itself in `seen`, which keeps the other classes out of it
        if place != os.fspath(start):
            if (about := _identity(place)) in seen:
                continue
            seen.add(about)
        files = []
        with os.scandir(place) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                if is_hidden(entry.name):
                    continue
                check_link(entry)
                if entry.is_dir():
                    (links if entry.is_symlink() else folders).append(entry.path)
                elif entry.name.lower().endswith(EXTENSIONS) and entry.is_file():
                    if entry.is_symlink():
                        target = os.path.realpath(entry.path)
                        if target in targets or _is_listed(target, inside):
                            continue
                        targets.add(target)
                    files.append(entry.name)
                elif (ending := os.path.splitext(entry.name)[1].lower()) in UNREAD:
                    unread[ending] += 1
        found.append((place, files))
    return sorted(found)


def _is_listed(target: str, inside: str) -> bool:
    """Whether a file that a link leads to stands in the class itself, as an image that is listed."""
    below = target.removeprefix(inside)
    return (
        below != target
        and target.lower().endswith(EXTENSIONS)
        and not any(is_hidden(part) for part in below.split(os.sep))
    )


def check_link(entry: os.DirEntry[str]) -> None:
    """Refuse a link to nothing where a class or an image is expected."""
    if entry.is_symlink() and not os.path.exists(entry.path):
        name, suffix = entry.name.lower(), os.path.splitext(entry.name)[1]
        if not suffix or name.endswith(EXTENSIONS):  # a class, a folder or an image
            raise DataError(f"{entry.path!r} is a link to {os.readlink(entry.path)!r}, which does not exist")


def _identity(path: str | Path) -> tuple[int, int]:
    """Return what tells a folder from others, whatever link leads to it."""
    about = os.stat(path)
    return about.st_dev, about.st_ino


def _int64(values: array.array[int]) -> Tensor:
    return torch.frombuffer(values, dtype=torch.int64).clone()
