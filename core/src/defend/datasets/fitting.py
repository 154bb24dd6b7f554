"""How an image of any size becomes one that a network is shown: scaled and centre-cropped, measured or predicted."""

from __future__ import annotations

from torch import Tensor


def fit(image: Tensor, height: int, width: int, resize: int | None = None) -> Tensor:
    """Return an image [C,H,W] as [C,height,width]: scaled so that it covers that, and cropped to its centre.

    Args:
        image: uint8, or floats.
        resize: the side of the square that it is scaled to cover before the crop, where that is larger.
    """
    from torchvision.transforms.v2 import functional  # its import takes seconds: only where images are scaled

    side = resize or 0
    high, wide = cover((image.shape[-2], image.shape[-1]), (max(side, height), max(side, width)))
    scaled: Tensor = functional.resize(image, [high, wide], antialias=True)
    cropped: Tensor = functional.center_crop(scaled, [height, width])
    return cropped


def cover(size: tuple[int, int], wanted: tuple[int, int]) -> tuple[int, int]:
    """Return the smallest (height, width) of the proportions of `size` that covers what is wanted, in whole pixels."""
    (high, wide), (height, width) = size, wanted
    # one side fits exactly; the other is cut to whole pixels, as torchvision does
    if high * width <= wide * height:
        return height, max(wide * height // high, width)
    return max(high * width // wide, height), width
