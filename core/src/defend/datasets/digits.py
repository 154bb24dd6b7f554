"""scikit-learn's handwritten digits (Alpaydin and Kaynak, UCI): real images, embedded, no download."""

from __future__ import annotations

import gzip
import importlib.util
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from defend.datasets.base import MemoryDataset, Split, hold_out
from defend.options import NoOptions

SIDE, RAW_SIDE, RAW_TOP = 28, 8, 16
TEST, VALIDATION = 500, 200


def build(_: NoOptions) -> MemoryDataset:
    """Return the 1,797 images, 8x8 resized (bilinear) to 28x28, split 1,097 / 200 / 500 by class."""
    values = torch.from_numpy(_table()).long()
    pixels, labels = enlarge(values[:, :-1].view(-1, RAW_SIDE, RAW_SIDE)), values[:, -1].clone()
    rest, test = hold_out(labels, TEST)
    train, val = hold_out(labels[rest], VALIDATION)
    places: dict[Split, Tensor] = {"train": rest[train], "val": rest[val], "test": test}
    return MemoryDataset(
        "digits",
        [str(digit) for digit in range(10)],
        {split: pixels[place] for split, place in places.items()},
        {split: labels[place] for split, place in places.items()},
        cut=("train", "val", "test"),
    )


def _table() -> np.ndarray:
    """Return scikit-learn's table of the digits, [1797,65]: 64 pixels of 0 to 16, and the label.

    Read from the package's own file, as importing scikit-learn for it would take over a second of every start.
    """
    found = importlib.util.find_spec("sklearn")
    for folder in (found and found.submodule_search_locations) or ():
        path = Path(folder) / "datasets" / "data" / "digits.csv.gz"
        if path.is_file():
            with gzip.open(path, "rb") as file:
                return np.loadtxt(file, delimiter=",", dtype=np.int64)
    from sklearn.datasets import load_digits  # another version may keep it elsewhere

    pixels, labels = load_digits(return_X_y=True)
    return np.column_stack([pixels, labels]).astype(np.int64)


def enlarge(raw: Tensor) -> Tensor:
    """Resize int64 [N,8,8] of values 0 to 16 to uint8 [N,1,28,28], bilinear with pixel centres aligned.

    In whole numbers, so that every machine gets the same bytes: output i lies at (4i - 5)/14 of the
    input, which gives weights in fourteenths.
    """
    unit = 2 * SIDE // 4  # fourteenths
    at = (4 * torch.arange(SIDE) - 5).clamp_min(0)
    low = at // unit
    weights = torch.zeros(SIDE, RAW_SIDE, dtype=torch.int64)
    rows = torch.arange(SIDE)
    weights[rows, low] += unit - at % unit
    weights[rows, (low + 1).clamp_max(RAW_SIDE - 1)] += at % unit
    both = (weights[:, None, :, None] * weights[None, :, None, :]).flatten(2).flatten(0, 1)
    # sums stay far below 2**53, so that floats are exact; a product of whole numbers is seven times slower
    total = (both.double() @ raw.flatten(1).T.double()).long()
    whole = RAW_TOP * unit * unit
    rounded = (2 * 255 * total + whole) // (2 * whole)
    return rounded.T.reshape(-1, 1, SIDE, SIDE).to(torch.uint8)
