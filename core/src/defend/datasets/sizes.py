"""How large images are shown to a network, where the user does not say: as the files are, if they agree."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterable

from PIL import Image

SAMPLE = 64
USUAL = (32, 64, 96, 128, 160, 192, 224)
SMALLEST, LARGEST_OWN = 8, 512


def choose_side(sizes: Iterable[tuple[int, int]], what: str) -> int:
    """Return the side in pixels of the squares that images become, for a sample's (width, height).

    Their own where all are one square of at most 512. Else the largest usual side, up to 224, that the smallest of them
    fills, and a warning that names both.
    """
    found = sorted(set(sizes))
    if not found:
        return USUAL[-1]
    if len(found) == 1 and found[0][0] == found[0][1] and SMALLEST <= found[0][0] <= LARGEST_OWN:
        return found[0][0]
    least, most = (pick(found, key=lambda size: (min(size), size)) for pick in (min, max))
    side = max((usual for usual in USUAL if usual <= min(least)), default=USUAL[0])
    between = f" to {most[0]}x{most[1]}" if most != least else ""
    warnings.warn(
        f"the images of {what} are {least[0]}x{least[1]}{between} pixels, and are scaled and centre-cropped to "
        f"{side}x{side}: choose another side with --set dataset.image_size=N",
        stacklevel=3,
    )
    return side


def sizes_of(paths: Iterable[object]) -> list[tuple[int, int]]:
    """Return the (width, height) of image files; those that cannot be read are left for whoever decodes them."""
    sizes = []
    for path in paths:
        with contextlib.suppress(Exception), Image.open(str(path)) as image:  # decoders raise whatever they like
            sizes.append(image.size)
    return sizes
