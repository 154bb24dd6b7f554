"""Held-out images that stand in another split too: which images are the same, whatever form they came in."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import attrs
import torch
from torch import Tensor

from defend.datasets.digests import SIZE

if TYPE_CHECKING:
    from defend.datasets.base import Split

MOST_NAMED = 5
# of 1/255: 8-bit pixels come back from a division, a multiplication, or half a precision in float64 within it
ROUNDED = 1e-3


@attrs.frozen
class Duplicates:
    """Images that are to be held out and stand in another split too: how many, and a few with their twins, by name.

    Attributes:
        n, pairs: test images that stand in train or val too.
        n_val, pairs_val: val images that stand in train too.
    """

    n: int
    pairs: tuple[tuple[str, str], ...] = ()
    n_val: int = 0
    pairs_val: tuple[tuple[str, str], ...] = ()

    def sentences(self) -> tuple[str, ...]:
        """Say how many they are, and which: a sentence for test and one for val, none where there are none."""
        said = (
            _say("test", self.n, self.pairs, "in train or val too"),
            _say(
                "val",
                self.n_val,
                self.pairs_val,
                "in train too, so that thresholds and selection are by images that were trained on",
            ),
        )
        return tuple(filter(None, said))


def _say(split: Split, n: int, pairs: tuple[tuple[str, str], ...], where: str) -> str:
    if not n:
        return ""
    named = "; ".join(f"{image!r} is {other!r}" for image, other in pairs)
    more = f"; and {n - len(pairs)} more" if n > len(pairs) else ""
    return f"{n} {split} {'images stand' if n > 1 else 'image stands'} {where}: {named}{more}"


def pixel_digests(images: Tensor) -> bytes:
    """Return the SHA-256 of each image, 32 bytes each: of its 8-bit pixels where it has such, uint8 or in [0,1].

    Args:
        images: uint8 or floats in [0,1], [B,C,H,W].
    """
    images = images.cpu().contiguous()
    if images.dtype == torch.uint8:
        return b"".join(hashlib.sha256(image.tobytes()).digest() for image in images.numpy())
    scaled = images.double() * 255
    whole = scaled.round()
    eight_bits = ((scaled - whole).abs() < ROUNDED).flatten(1).all(1)
    pixels, floats = whole.clamp(0, 255).to(torch.uint8).numpy(), images.float().numpy()
    return b"".join(
        hashlib.sha256((pixels if plain else floats)[at].tobytes()).digest()
        for at, plain in enumerate(eight_bits.tolist())
    )


def find_twins(contents: Mapping[Split, bytes], show: Callable[[Split, int], str]) -> Duplicates:
    """Return the test images whose content stands in train or val too, and the val images whose content is in train.

    Args:
        contents: by split, a SHA-256 of each image's content, 32 bytes each.
        show: names an image by its split and place.
    """
    digests = {split: [each[at : at + SIZE] for at in range(0, len(each), SIZE)] for split, each in contents.items()}

    def find(split: Split, *others: Split) -> tuple[int, tuple[tuple[str, str], ...]]:
        known: dict[bytes, tuple[Split, int]] = {}
        for other in others:
            for at, digest in enumerate(digests.get(other, ())):
                known.setdefault(digest, (other, at))
        found = [(at, known[digest]) for at, digest in enumerate(digests.get(split, ())) if digest in known]
        return len(found), tuple((show(split, at), show(*twin)) for at, twin in found[:MOST_NAMED])

    return Duplicates(*find("test", "val", "train"), *find("val", "train"))
