"""Workload 15, small files: CIFAR-10 as a folder of PNG files, opened; and files of two sizes, hashed.

    python -m benchmarks small_files

Of a file of 3 kB nearly all the time is Python's own, and threads take turns at that: one after the other is faster.
Large files are hashed in threads. Both are held against the other way, and what comes of them is the same (checked).
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from benchmarks.contest import Bar, Result, Scale, compete, ratio
from defend.datasets.digests import LARGE, digests_of, hash_file
from defend.datasets.downloaded import cifar10
from defend.datasets.plugin import DownloadedOptions
from defend.util.images import read_image

WORKLOAD = "15 small files"
OURS, OTHER = "ours", "the other way"
CLASSES, SIDE = 10, 32
IMAGES, QUICK_IMAGES = 3000, 40  # of both splits together
SIZES = {"3 kB": (3_000, 3_000), "400 kB": (400_000, 100)}  # bytes, and how many files: too few to be remembered
OPENED, HASHED = 0.8, 0.6  # of the time in threads


def run(scale: Scale) -> Iterator[Result]:
    """Yield the opening of a data set, and hashing for each size of file."""
    with tempfile.TemporaryDirectory() as folder:
        yield open_folder(scale, Path(folder))
        for what, (size, count) in SIZES.items():
            yield hash_files(scale, Path(folder), what, size, min(count, QUICK_IMAGES) if scale.quick else count)


def open_folder(scale: Scale, root: Path) -> Result:
    """Time the data set's opening against decoding its files in threads, as many as Python's pool takes."""
    files = write_images(root / "cifar10", QUICK_IMAGES if scale.quick else IMAGES)
    works: dict[str, Callable[[], object]] = {
        OURS: lambda: cifar10(DownloadedOptions(data_dir=str(root))),
        OTHER: lambda: decode_in_threads(files),
    }
    timings = compete(works, per=len(files), rounds=scale.rounds, device=torch.device("cpu"))
    bar = Bar("opened one after the other / in threads", ratio(timings, OURS, OTHER), OPENED, "at most")
    return Result(WORKLOAD, f"{len(files)} PNG files of {SIDE} px", "ms a file", timings, () if scale.quick else (bar,))


def hash_files(scale: Scale, root: Path, what: str, size: int, count: int) -> Result:
    """Time what `digests_of` does with files of a size against what it does with others.

    Raises:
        ArithmeticError: the hashes differ.
    """
    folder = root / str(size)
    folder.mkdir()
    files = [folder / f"{index}.bin" for index in range(count)]
    for index, file in enumerate(files):
        file.write_bytes(bytes([index % 256]) * size)
    other = hash_in_threads if size < LARGE else hash_in_order
    if digests_of(files) != other(files):
        raise ArithmeticError(f"files of {what} have other hashes in threads")
    works: dict[str, Callable[[], object]] = {OURS: lambda: digests_of(files), OTHER: lambda: other(files)}
    timings = compete(works, per=count, rounds=scale.rounds, device=torch.device("cpu"))
    bar = Bar(f"files of {what}, ours / the other way", ratio(timings, OURS, OTHER), HASHED, "at most")
    promised = (bar,) if size < LARGE and not scale.quick else ()
    way = "in threads" if size < LARGE else "one after the other"
    return Result(WORKLOAD, f"{count} files of {what}; the other way is {way}", "ms a file", timings, promised)


def write_images(root: Path, count: int) -> list[Path]:
    """Write noise as PNG files of about 3 kB, in folders of splits and classes; return them."""
    pixels = torch.randint(0, 256, (count, SIDE, SIDE, 3), generator=torch.Generator().manual_seed(0)).byte().numpy()
    files = []
    for index in range(count):
        split = "test" if index % 2 else "train"
        file = root / split / f"class_{index // 2 % CLASSES}" / f"{index}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels[index]).save(file)
        files.append(file)
    return files


def decode_in_threads(files: Sequence[Path]) -> Tensor:
    """Return images uint8 [N,3,H,W]."""
    with ThreadPoolExecutor() as pool:
        return torch.stack(list(pool.map(lambda file: read_image(file, 3), files)))


def hash_in_threads(files: Sequence[Path]) -> bytes:
    """Return the SHA-256 of every file, 32 bytes each."""
    with ThreadPoolExecutor() as pool:
        return b"".join(pool.map(hash_file, files))


def hash_in_order(files: Sequence[Path]) -> bytes:
    """Return the SHA-256 of every file, 32 bytes each."""
    return b"".join(map(hash_file, files))
