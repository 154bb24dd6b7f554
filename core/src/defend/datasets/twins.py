"""Test images that stand in another split too: which images are the same, whatever form they came in."""

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
    """Test images that stand in train or val too: how many, and a few with their twins, by name."""

    n: int
    pairs: tuple[tuple[str, str], ...] = ()

    def sentence(self) -> str:
        """Say how many they are, and which."""
        named = "; ".join(f"{test!r} is {other!r}" for test, other in self.pairs)
        more = f"; and {self.n - len(self.pairs)} more" if self.n > len(self.pairs) else ""
        what = "test images stand" if self.n > 1 else "test image stands"
        return f"{self.n} {what} in train or val too: {named}{more}"


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
    """Return the test images whose content stands in train or val too.

    Args:
        contents: by split, a SHA-256 of each image's content, 32 bytes each.
        show: names an image by its split and place.
    """
    digests = {split: [each[at : at + SIZE] for at in range(0, len(each), SIZE)] for split, each in contents.items()}
    known: dict[bytes, tuple[Split, int]] = {}
    others: tuple[Split, ...] = ("val", "train")
    for split in others:
        for at, digest in enumerate(digests.get(split, ())):
            known.setdefault(digest, (split, at))
    found = [(at, known[digest]) for at, digest in enumerate(digests.get("test", ())) if digest in known]
    return Duplicates(len(found), tuple((show("test", at), show(*other)) for at, other in found[:MOST_NAMED]))
