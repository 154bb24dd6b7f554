"""Images and labels as users have them, to those that are reckoned with; what they are not is one line that says so."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from defend.boundary.given import as_images
from defend.errors import DataError
from defend.util.images import to_pixels

UNDO = "undo the normalisation, and pass mean= and std= for the victim"
WANTED = "expected uint8 from 0 to 255, or floats in [0,1]"
CHANNELS = (1, 3)


def to_images(given: Any, who: str, channels: int | None = None) -> Tensor:
    """Return images as uint8 or float32 [N,C,H,W], floats in [0,1].

    Args:
        given: a tensor or array [N,H,W], [N,C,H,W] or [N,H,W,C], of uint8 or floats; or a list of images, each a PIL
            image, or a tensor or array of two or three dimensions.
        who: what an error says that they are of.
        channels: what PIL images become, 1 or 3; their own if None.

    Raises:
        DataError: they are something else; what to pass.
    """
    if isinstance(given, (list, tuple)):
        each = [_one(image, who, channels) for image in given]
        for image in each:
            if image.shape != each[0].shape or image.dtype != each[0].dtype:
                raise DataError(f"{who}: {_differ(image, each[0])}")
        if not each:
            raise DataError(f"{who}: there are no images")
        return torch.stack(each)
    if isinstance(given, np.ndarray):
        if given.dtype == object:
            raise DataError(f"{who}: images are an array of objects, {WANTED}: pass np.stack(images)")
        if given.dtype.kind != "f" and given.dtype != np.uint8:
            raise DataError(f"{who}: images are {given.dtype}, {WANTED}")
        given = torch.from_numpy(np.array(given, dtype=np.float32 if given.dtype.kind == "f" else np.uint8, order="C"))
    if not isinstance(given, Tensor):
        raise DataError(f"{who}: images are {type(given).__name__}, expected tensors, arrays or PIL images")
    images = given.detach()
    if images.dtype != torch.uint8 and not images.is_floating_point():
        raise DataError(f"{who}: images are {images.dtype}, {WANTED}")
    if images.ndim == 3:
        images = images[:, None]
    if images.ndim != 4:
        raise DataError(f"{who}: images have shape {list(images.shape)}, expected [N,C,H,W], [N,H,W,C] or [N,H,W]")
    if images.shape[1] not in CHANNELS and images.shape[3] in (*CHANNELS, 4):
        images = images.permute(0, 3, 1, 2)
    if images.is_floating_point():
        try:
            images = as_images(images, UNDO).float()
        except DataError as error:
            raise DataError(f"{who}: {error}") from None
    return images.contiguous()


def _one(image: Any, who: str, channels: int | None) -> Tensor:
    if isinstance(image, Image.Image):
        return to_pixels(image, f"{who}: an image", channels)
    if isinstance(image, (Tensor, np.ndarray)) and image.ndim not in (2, 3):
        raise DataError(f"{who}: an image has shape {list(image.shape)}, expected [C,H,W], [H,W,C] or [H,W]")
    if not isinstance(image, (Tensor, np.ndarray)):
        raise DataError(f"{who}: an image is {type(image).__name__}, expected a tensor, an array or a PIL image")
    return to_images(image[None], who)[0]


def _differ(image: Tensor, first: Tensor) -> str:
    if image.dtype != first.dtype:
        return f"one image is {image.dtype} and another {first.dtype}: pass all of one type"
    return (
        f"one image has shape {list(image.shape)} and another {list(first.shape)}: scale and crop them to one size, "
        "for example in the data set's transform"
    )


def to_labels(given: Any, who: str) -> Tensor:
    """Return labels as int64 [N] on the CPU.

    Args:
        given: whole numbers of any type, [N] or [N,1]: a tensor, an array, or a list of numbers or one-element tensors.
        who: what an error says that they are of.

    Raises:
        DataError: they are text, no whole numbers, one-hot, or negative; what to pass.
    """
    wanted = "expected whole numbers [N], one class an image"
    if isinstance(given, Tensor):
        given = given.detach().cpu()
        _check_shape(given.shape, who, wanted)
        if given.is_floating_point() or given.is_complex() or given.dtype == torch.bool:
            raise DataError(f"{who}: labels are {given.dtype}, {wanted}: pass labels.long()")
        labels: Tensor = given.long()
    else:
        try:
            if isinstance(given, (list, tuple)):
                given = [each.tolist() if isinstance(each, (Tensor, np.ndarray)) else each for each in given]
                given = [each[0] if isinstance(each, list) and len(each) == 1 else each for each in given]
            array = np.asarray(given)
        except ValueError:  # of different lengths
            raise DataError(f"{who}: labels are lists of different lengths, {wanted}") from None
        if array.dtype.kind in "US" or (array.size and isinstance(array.flat[0], (str, bytes))):
            raise DataError(
                f"{who}: labels are text, for example {str(array.flat[0])[:40]!r}, {wanted}: pass each one's place in "
                "the list of class names, and the list as classes="
            )
        _check_shape(array.shape, who, wanted)
        if array.size and array.dtype.kind not in "iu":
            kind = "objects" if array.dtype == object else str(array.dtype)
            raise DataError(f"{who}: labels are {kind}, {wanted}: pass labels.astype('int64'), if they are whole")
        labels = torch.from_numpy(array.astype(np.int64))
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    labels = labels.reshape(-1)
    if len(labels) and int(labels.min()) < 0:
        raise DataError(f"{who}: a label is {int(labels.min())}, {wanted}, from 0: leave images without a class out")
    return labels


def _check_shape(shape: Sequence[int], who: str, wanted: str) -> None:
    """Refuse labels of more than one number an image, before their type, whose cure would not help."""
    if len(shape) > 2 or (len(shape) == 2 and shape[1] != 1):
        cure = ": pass labels.argmax(1), if one-hot" if len(shape) == 2 else ""
        raise DataError(f"{who}: labels have shape {list(shape)}, {wanted}{cure}")


def to_pair(item: Any, who: str) -> tuple[Any, Any]:
    """Return the image and the label of what a data set yields, or the images and labels of a batch.

    Raises:
        DataError: it is something else; what to pass.
    """
    cure = "pass a Dataset that yields (image, label), or a DataLoader whose collate_fn returns (images, labels)"
    if isinstance(item, dict):
        keys = ", ".join(map(str, item))[:100]
        raise DataError(f"{who} yields dictionaries (keys {keys}): {cure}")
    if not isinstance(item, (tuple, list)):
        raise DataError(f"{who} yields {type(item).__name__} without a label: {cure}")
    if len(item) != 2:
        raise DataError(f"{who} yields {len(item)} elements: {cure}")
    return item[0], item[1]
