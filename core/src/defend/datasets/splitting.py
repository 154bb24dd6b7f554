"""Which images a split has, where not every split came with images of its own."""

from __future__ import annotations

from collections.abc import Mapping

import attrs
import torch
from torch import Tensor

from defend.datasets.base import SPLIT_SEED, Split, hold_out, stratified_order

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
