"""Which images a split has, where not every split came with images of its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

import attrs
import torch
from torch import Tensor

from defend.datasets.base import SPLIT_SEED, Split, hold_out, stratified_order
from defend.datasets.plugin import EVERYTHING
from defend.errors import DataError, did_you_mean

T = TypeVar("T")

VAL_SHARE = 5
"""One in how many of the images that were given is held out for val, where there is no train to hold it out of."""
USUAL_SHARES: Mapping[Split, int] = {"test": 5, "val": 10}
"""One in how many images of train is held out; val's are taken of what test leaves."""
SPLIT_NAMES: Mapping[Split, tuple[str, ...]] = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}
MOST_VAL, LEAST_VAL_OF_CLASS = 1000, 2


@attrs.frozen(eq=False)
class Part:
    """The images of a split.

    Attributes:
        source: the split whose images it takes.
        places: which of these, int64 [n].
        seed: by which it was cut off; None where it is whole, or what others were held out of.
    """

    source: Split
    places: Tensor
    seed: int | None = None


def name_split(name: str) -> Split | None:
    """Return the split that a folder, an array or a part of a data set is of by its name, None of none."""
    return next((split for split, words in SPLIT_NAMES.items() if name.lower() in words), None)


def let_val_stand_in(own: Mapping[Split, T]) -> tuple[dict[Split, T], bool]:
    """Return what each split is, and whether val's became test: it does beside train, where there is no test.

    A share of train for test would be judged by images beside which the user set others aside.
    """
    if "test" in own or not {"train", "val"} <= set(own):
        return dict(own), False
    return {"train": own["train"], "test": own["val"]}, True


def choose_splits(found: Mapping[str, T], judged: str | None, what: str) -> tuple[dict[Split, T], bool]:
    """Return what each split is, of parts by the names that a file or a hub has for them, and whether val is test.

    Without test, val is (`let_val_stand_in`). A lone part that is of no split by its name is train, which others are
    held out of; with "all" for `judged`, test. One without a name, beside others, is train too.

    Args:
        found: the parts by name.
        judged: the part to judge, or "all" of one that has no others; None takes that which is called test.
        what: whose they are, for the error.

    Raises:
        DataError: there is no such part, two are of one split, or none says which it is.
    """
    lone = next(iter(found)) if len(found) == 1 else None
    if judged is not None:
        chosen = judged if judged in found else lone if judged == EVERYTHING else None
        if chosen is None:
            known = [name for name in found if name] or [EVERYTHING]
            raise DataError(f"{what} has no split {judged!r} (dataset.split): {did_you_mean(judged, known)}")
        others = {name: part for name, part in found.items() if name and name != chosen and name_split(name) != "test"}
        return {**_by_split(others, what), "test": found[chosen]}, False
    own = _by_split(found, what)
    if not own and lone is not None:
        return {"train": found[lone]}, False
    if not {"train", "test"} & set(own):
        listed = ", ".join(name or "one without a name" for name in found)
        raise DataError(f"{what} has the splits {listed}: say which is judged with --set dataset.split=NAME")
    return let_val_stand_in(own)


def _by_split(found: Mapping[str, T], what: str) -> dict[Split, T]:
    own: dict[Split, T] = {}
    for name, part in found.items():
        split = name_split(name) if name else "train"
        if split in own:
            raise DataError(f"{what} has images and labels for {split} twice: expected one part a split")
        if split is not None:
            own[split] = part
    return own


def share_out(labels: Mapping[Split, Tensor], shares: Mapping[Split, int], seed: int = SPLIT_SEED) -> dict[Split, Part]:
    """Return each split's images, given the labels of those that came with images.

    With train, a stratified share of it becomes what is missing, one in `shares[split]`, in that order. Without, val is
    held out of test (`hold_out_of_given`); a split that would be empty is left out.
    """
    parts = {split: Part(split, torch.arange(len(own))) for split, own in labels.items()}
    if "train" in labels:
        for split, share in shares.items():
            if split not in labels:
                whole = parts["train"].places
                kept, held = hold_out(labels["train"][whole], max(len(whole) // share, 1), seed)
                parts[split], parts["train"] = Part("train", whole[held], seed), Part("train", whole[kept], seed)
    elif "val" in shares and "val" not in labels:
        kept, held = hold_out_of_given(labels["test"], seed)
        if len(held):
            parts["test"], parts["val"] = Part("test", kept), Part("test", held, seed)
    return parts


def hold_out_of_given(labels: Tensor, seed: int = SPLIT_SEED) -> tuple[Tensor, Tensor]:
    """Split indices into (kept, held out), both ascending: a fifth of each class, at most 1,000 in all.

    At least 2 of each class, but never more than half of it, so that all classes stay among what is judged.
    """
    order = stratified_order(labels, seed)
    counts = torch.bincount(labels)
    share = min(1 / VAL_SHARE, MOST_VAL / max(len(labels), 1))
    quota = torch.minimum((counts * share).round().long().clamp_min(LEAST_VAL_OF_CLASS), counts // 2)
    sorted_labels, by_class = torch.sort(labels[order], stable=True)
    rank = torch.arange(len(labels)) - (torch.cumsum(counts, 0) - counts)[sorted_labels]
    chosen = by_class[rank < quota[sorted_labels]].sort().values  # in the seeded order again, which is cut at the most
    held = torch.zeros(len(labels), dtype=torch.bool)
    held[order[chosen[:MOST_VAL]]] = True
    return (~held).nonzero().flatten(), held.nonzero().flatten()
