"""The user's own images: ROOT/CLASS/*.png, or ROOT/{train,val,test}/CLASS/*.png; streamed."""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from defend.datasets.base import Batch, ImageDataset, Split, channel_statistics, hold_out
from defend.datasets.plugin import FolderOptions
from defend.errors import DataError
from defend.images import read_image

TEST_SHARE, VALIDATION_SHARE = 5, 10  # one image in five to test, one in ten of the rest to val
STATISTICS_SAMPLE = 512


def build(config: FolderOptions) -> FolderDataset:
    """Read the folder's class names and file list; images are decoded when they are asked for.

    Raises:
        DataError: a folder that is missing, empty, or has fewer than two classes.
    """
    if config.data_dir is None:
        raise DataError("imagefolder needs --data-dir: a folder with one folder of images a class")
    return FolderDataset(Path(config.data_dir), config.image_size, config.workers)


class FolderDataset(ImageDataset):
    """Images on disk, resized and centre-cropped to a square of `image_size`, in RGB.

    Where the folder has no `test` (or `val`) of its own, a stratified fifth of train becomes test
    and a tenth of the rest val.
    """

    name = "imagefolder"
    flips = True

    def __init__(self, root: Path, image_size: int, workers: int) -> None:
        self.shape = (3, image_size, image_size)
        self._workers = workers
        self._resize = v2.Compose([v2.Resize(image_size, antialias=True), v2.CenterCrop(image_size)])
        if not root.is_dir():
            raise DataError(f"data folder {str(root)!r} does not exist: name one with --data-dir")
        named = (root / "train").is_dir()
        listing = _list(root / "train" if named else root)
        self.classes = tuple(listing.classes)
        self._root = root
        self._files: dict[Split, tuple[list[str], Tensor]] = {}
        files, labels = [path for path, _ in listing.samples], torch.tensor(listing.targets)
        for split, share in (("test", TEST_SHARE), ("val", VALIDATION_SHARE)):
            if named and (root / split).is_dir():
                own = _list(root / split)
                if tuple(own.classes) != self.classes:
                    raise DataError(f"{str(root / split)!r} has other classes than {str(root / 'train')!r}")
                self._files[split] = [path for path, _ in own.samples], torch.tensor(own.targets)  # type: ignore[index]
            else:
                kept, held = hold_out(labels, max(len(files) // share, 1))
                self._files[split] = [files[i] for i in held], labels[held]  # type: ignore[index]
                files, labels = [files[i] for i in kept], labels[kept]
        if not files:
            raise DataError(f"{str(root)!r} has {len(listing)} images: too few to hold some out for val and test")
        self._files["train"] = files, labels

    def labels(self, split: Split) -> Tensor:
        return self._files[split][1]

    def batches(self, split: Split, keys: Tensor, batch_size: int, device: torch.device) -> Iterator[Batch]:
        files, labels = self._files[split]
        order = keys.tolist()
        loader: DataLoader[Tensor | DataError] = DataLoader(
            _Decoder([files[key] for key in order], self._resize),
            batch_size=batch_size,
            collate_fn=_collate,
            num_workers=min(self._workers, os.cpu_count() or 1) if len(order) > batch_size else 0,
            pin_memory=device.type == "cuda",
        )
        start = 0
        for pixels in loader:
            if isinstance(pixels, DataError):
                raise pixels
            part = keys[start : start + len(pixels)]
            start += len(pixels)
            images = pixels.to(device, non_blocking=True).float().div_(255)
            yield Batch(images, labels[part].to(device), part.to(device))

    @functools.cache  # noqa: B019 - a data set lives as long as the process
    def sha256(self, split: Split) -> str:
        digest = hashlib.sha256()
        for path, label in zip(self._files[split][0], self._files[split][1].tolist(), strict=True):
            file = Path(path)
            digest.update(f"{file.relative_to(self._root)}\0{file.stat().st_size}\0{label}\n".encode())
        return digest.hexdigest()

    @functools.cache  # noqa: B019
    def statistics(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        keys = self.keys("train", STATISTICS_SAMPLE)
        parts = self.batches("train", keys, 64, torch.device("cpu"))
        return channel_statistics([(part.images * 255).round().to(torch.uint8) for part in parts])


class _Decoder(Dataset[Tensor | DataError]):
    """Gives an image, or the error that it is damaged: raised in a worker, torch would bury it in a traceback."""

    def __init__(self, files: list[str], resize: Any) -> None:
        self._files, self._resize = files, resize

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> Tensor | DataError:
        try:
            return self._resize(read_image(Path(self._files[index]), channels=3))  # type: ignore[no-any-return]
        except DataError as error:
            return error


def _collate(parts: list[Tensor | DataError]) -> Tensor | DataError:
    for part in parts:
        if isinstance(part, DataError):
            return part
    return default_collate(parts)  # type: ignore[no-any-return]


def _list(folder: Path) -> ImageFolder:
    try:
        found = ImageFolder(str(folder), allow_empty=False)
    except (FileNotFoundError, OSError) as error:
        cause = " ".join(str(error).split())
        raise DataError(f"{str(folder)!r} is not an image folder (one sub-folder of images a class): {cause}") from None
    if len(found.classes) < 2:
        raise DataError(f"{str(folder)!r} has one class ({found.classes[0]!r}): a classifier needs two or more")
    return found
