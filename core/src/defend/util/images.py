"""Image files to tensors and back."""

from __future__ import annotations

import io
import os
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from defend.errors import DataError
from defend.util.files import atomic

SMALLEST = 4
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What undoes a camera's orientation, by the value of its EXIF tag."""
ORIENTATION = 0x0112
GREY = ("1", "L", "LA", "La", "I", "I;16", "I;16B", "I;16L", "I;16N", "F")
SIXTEEN = ("PNG", "PPM")  # formats of 16 bits at most, which Pillow may hand out in 32
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
SPARE = (b"tEXt", b"zTXt", b"iTXt", b"iCCP")  # chunks of a PNG that hold no pixels


def read_image(path: Path, channels: int) -> Tensor:
    """Read an image file as uint8 [channels,H,W]; 16-bit is scaled, transparency laid over white.

    A camera's orientation is undone where it can be read; text and colour profiles are not looked at.

    Raises:
        DataError: a file that is missing, empty, no image, under 4 pixels a side, holds numbers of which nothing says
            what is white (see `to_pixels`), or is refused by its decoder for whatever reason; the message names it.
    """
    try:
        return _read(path, channels)
    except DataError:
        raise
    except FileNotFoundError:
        raise DataError(f"image {str(path)!r} {_explain_missing(path)}") from None
    except UnidentifiedImageError:
        raise DataError(f"{str(path)!r} is not an image that can be read (PNG, JPEG, WebP, ...)") from None
    except Exception as error:  # decoders raise whatever they like
        raise DataError(f"image {str(path)!r} cannot be read: {_cause(error)}") from None


def _explain_missing(path: Path) -> str:
    return f"is a link to {os.readlink(path)!r}, which does not exist" if path.is_symlink() else "does not exist"


def _cause(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if text and isinstance(error, OSError) else f"{type(error).__name__}{f': {text}' if text else ''}"


def _read(path: Path, channels: int) -> Tensor:
    if path.is_file() and path.stat().st_size == 0:
        raise DataError(f"image {str(path)!r} is empty")
    image = _open(path)
    if min(image.size) < SMALLEST:
        raise DataError(f"image {str(path)!r} is {image.width}x{image.height}: expected at least {SMALLEST}x{SMALLEST}")
    return to_pixels(image, f"image {str(path)!r}", channels)


def to_pixels(image: Image.Image, what: str, channels: int | None = None) -> Tensor:
    """Turn a decoded image into uint8 [channels,H,W]; 16-bit is scaled, transparency laid over white.

    White is 255, 65535 of 16-bit grey, 1 of floats; never an image's own maximum, which differs from image to image.

    Args:
        what: what an error calls the image.
        channels: 1 or 3; None takes the image's own, 1 where it is grey.

    Raises:
        DataError: it holds floats that are not finite or outside [0,1], or whole numbers of 32 bits.
    """
    grey = image.mode in GREY if channels is None else channels == 1
    if image.mode.startswith(("I", "F")):  # 16-bit grey and wider
        values = np.asarray(image, dtype=np.float64)
        if not np.isfinite(values).all():
            raise DataError(f"{what} holds values that are not finite (NaN or infinity)")
        low, high = float(values.min()), float(values.max())
        if image.mode == "I" and image.format not in SIXTEEN:
            raise DataError(
                f"{what} holds whole numbers of 32 bits ({low:.0f} to {high:.0f}), and nothing says what is white: "
                "expected 8 or 16 bits; scale all images alike"
            )
        if image.mode == "F" and (low < 0 or high > 1):
            raise DataError(
                f"{what} holds floats from {low:.4g} to {high:.4g}, expected 0 to 1, or whole numbers of 8 or 16 bits: "
                "scale all images alike"
            )
        image = Image.fromarray((values * (255.0 if image.mode == "F" else 255 / 65535)).round().astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    pixels = np.array(image.convert("L" if grey else "RGB"))
    tensor = torch.from_numpy(pixels)
    return tensor[None] if tensor.ndim == 2 else tensor.permute(2, 0, 1).contiguous()


def _open(path: Path) -> Image.Image:
    """Decode a file, upright. A PNG that is refused for its text or colour profile is read without them."""
    try:
        with Image.open(path) as opened:
            return _upright(opened)
    except ValueError:
        content = path.read_bytes()
        if not content.startswith(PNG_SIGNATURE):
            raise
    with Image.open(io.BytesIO(_without_spare(content))) as opened:
        return _upright(opened)


def _upright(opened: Image.Image) -> Image.Image:
    try:
        turn = UPRIGHT.get(opened.getexif().get(ORIENTATION, 1))
    except Exception:  # a damaged description says nothing of the pixels
        turn = None
    opened.load()
    image = opened.copy() if turn is None else opened.transpose(turn)
    image.format = opened.format  # a copy has none
    return image


def _without_spare(content: bytes) -> bytes:
    """Return a PNG without the chunks that hold no pixels."""
    kept, place = [PNG_SIGNATURE], len(PNG_SIGNATURE)
    while place + 8 <= len(content):
        end = place + 12 + int.from_bytes(content[place : place + 4], "big")
        if content[place + 4 : place + 8] not in SPARE:
            kept.append(content[place:end])
        place = end
    return b"".join(kept)


def write_image(path: Path, image: Tensor) -> None:
    """Write a float image [C,H,W] in [0,1] as PNG."""
    pixels = (image.detach().cpu().clamp(0, 1) * 255).round().to(torch.uint8)
    array = pixels[0].numpy() if pixels.shape[0] == 1 else pixels.permute(1, 2, 0).numpy()
    with atomic(path, "image") as temporary:
        Image.fromarray(array).save(temporary, format="PNG")
