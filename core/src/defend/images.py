"""Image files to tensors and back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from defend.errors import DataError

SMALLEST = 4


def read_image(path: Path, channels: int) -> Tensor:
    """Read an image file as uint8 [channels,H,W]; 16-bit is scaled, transparency laid over white.

    Raises:
        DataError: a file that is missing, empty, no image, or under 4 pixels a side.
    """
    try:
        if path.is_file() and path.stat().st_size == 0:
            raise DataError(f"image {str(path)!r} is empty")
        with Image.open(path) as opened:
            image = ImageOps.exif_transpose(opened)
            image.load()
    except FileNotFoundError:
        raise DataError(f"image {str(path)!r} does not exist") from None
    except UnidentifiedImageError:
        raise DataError(f"{str(path)!r} is not an image that can be read (PNG, JPEG, WebP, ...)") from None
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"image {str(path)!r} cannot be read: {error}") from None
    if min(image.size) < SMALLEST:
        raise DataError(f"image {str(path)!r} is {image.width}x{image.height}: expected at least {SMALLEST}x{SMALLEST}")
    if image.mode.startswith(("I", "F")):  # 16-bit grey and wider
        values = np.asarray(image, dtype=np.float64)
        top = 65535.0 if image.mode.startswith("I") else max(float(values.max()), 1.0)
        image = Image.fromarray((values.clip(0, top) * (255 / top)).round().astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    pixels = np.array(image.convert("L" if channels == 1 else "RGB"))
    tensor = torch.from_numpy(pixels)
    return tensor[None] if tensor.ndim == 2 else tensor.permute(2, 0, 1).contiguous()


def write_image(path: Path, image: Tensor) -> None:
    """Write a float image [C,H,W] in [0,1] as PNG."""
    pixels = (image.detach().cpu().clamp(0, 1) * 255).round().to(torch.uint8)
    array = pixels[0].numpy() if pixels.shape[0] == 1 else pixels.permute(1, 2, 0).numpy()
    temporary = path.with_name(path.name + ".part")
    Image.fromarray(array).save(temporary, format="PNG")
    temporary.replace(path)
