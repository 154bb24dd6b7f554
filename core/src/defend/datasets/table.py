"""Which images a CSV of paths and labels names, read once."""

from __future__ import annotations

import csv
import os
from collections.abc import Sequence
from pathlib import Path

import torch

from defend.datasets.classes import number_classes, read_lines
from defend.datasets.listing import Listing
from defend.errors import DataError

HEADERS = (["label"], ["labels"], ["class"], ["target"])
MOST_NUMBERED = 99_999


def list_table(path: Path, class_names: Sequence[str] = ()) -> Listing:
    """Read a CSV of `path,label`, one image a line; the paths are relative to the file, or whole.

    A first line whose second column is "label" or the like is a header. Labels are class names, or the numbers of
    classes where all of them are whole numbers and no names are given: these count by value, names by their text.

    Raises:
        DataError: a file that cannot be read or is no CSV; a line that has other than two columns, or names no file;
            labels that are numbers, but not whole ones from 0; fewer than two classes. The message names the line.
    """
    places: list[str] = []
    said: list[str] = []
    root = path.parent
    rows = csv.reader(read_lines(path, "table of images"), strict=True)
    try:
        for row in rows:
            if not row or (rows.line_num == 1 and [each.strip().lower() for each in row[1:]] in HEADERS):
                continue
            where = f"{str(path)!r}, line {rows.line_num}"
            if len(row) != 2 or not all(each.strip() for each in row):
                raise DataError(f"{where}: {','.join(row)[:80]!r} is not path,label")
            place, label = (each.strip() for each in row)
            if not os.path.isfile(root / place):
                raise DataError(f"{where}: image {place!r} does not exist (paths are relative to the table)")
            places.append(place)
            said.append(label)
    except csv.Error as error:
        raise DataError(f"{str(path)!r}, line {rows.line_num}: no CSV of path,label: {error}") from None
    if class_names:
        classes = tuple(class_names)
    elif said and all(label.isascii() and label.isdecimal() and len(label) < 10 for label in said):
        highest = max(map(int, said))
        if highest > MOST_NUMBERED:
            raise DataError(f"{str(path)!r} has a label {highest}: expected class names, or numbers of classes from 0")
        said = [str(int(label)) for label in said]
        classes = tuple(map(str, range(highest + 1)))
    elif (odd := next((each for each in said if not each.isdecimal()), None)) and all(map(_is_number, said)):
        # as text they would be counted in an order that nobody means
        raise DataError(
            f"{str(path)!r} has a label {odd!r}: expected whole numbers from 0, or names; in pandas, "
            "labels.astype(int) makes whole numbers of floats"
        )
    else:
        classes = tuple(sorted(set(said)))
    if len(classes) < 2:
        had = f"one class ({classes[0]!r})" if classes else "no images"
        raise DataError(
            f"{str(path)!r} has {had}: a classifier needs two classes or more, one line path,label an image"
        )
    numbers = number_classes(classes if not class_names else sorted(set(said)), class_names, f"table {str(path)!r}")
    names = [os.fsencode(place) for place in places]
    labels = torch.tensor([numbers[label] for label in said], dtype=torch.int64)
    return Listing(classes, bytearray(b"".join(names)), torch.tensor([*map(len, names)], dtype=torch.int64), labels)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
