"""A row's attacked images as files: 8 bits a number, lossless, one .npz or one folder of PNG a row."""

from __future__ import annotations

import csv
import io
import re
from pathlib import Path

import numpy as np
from torch import Tensor

from defend.errors import ConfigError
from defend.records.rows import PlannedRow, RowRecord
from defend.util.files import atomic, make_folder, write_bytes, write_text
from defend.values.references import number_twin

FOLDER, WHAT = "attacked", "attacked images"
PNG, NPZ = "png", "npz"
GREY, COLOUR = 1, 3  # channels of a PNG


def check_format(kind: str, channels: int) -> None:
    """Refuse a format that does not hold images of so many channels.

    Raises:
        ConfigError: a PNG of neither one nor three.
    """
    if kind == PNG and channels not in (GREY, COLOUR):
        raise ConfigError(f"save_images is png, which holds 1 or 3 channels, and the images have {channels}: take npz")


def name_file(plan: PlannedRow, taken: set[str], begin: str = "") -> str:
    """Return what a row's files are called: ATTACK-THREAT[-VARIANT][-EPS beside the headline], and take the name."""
    eps = "" if plan.headline or plan.threat.eps is None else f"{plan.threat.eps:.4g}"
    named = "-".join(part for part in (plan.name, plan.threat.kind, plan.variant, eps) if part)
    return number_twin(f"{begin}{re.sub(r'[^a-z0-9_.-]+', '_', named.lower())}", taken)


def write_attacked(folder: Path, record: RowRecord, name: str, kind: str) -> Path:
    """Write the attacked images of a row, which must have kept them; return the file, or the folder of PNG.

    A .npz holds "adversarial", uint8 [N,H,W,C], "keys", int64 [N] (places in the test split), "labels", "norm" and, of
    a row with a budget, "eps": what `--attack file:` reads. A folder holds KEY.png, and index.csv.

    Raises:
        WriteError: it cannot be written.
    """
    assert record.attacked is not None
    make_folder(folder, WHAT)
    images = record.attacked.permute(0, 2, 3, 1).contiguous()
    if kind == PNG:
        return _write_pictures(folder / name, images, record)
    threat = record.plan.threat
    arrays = {"adversarial": images.numpy(), "keys": record.keys.numpy(), "labels": record.labels.numpy()}
    arrays |= {"norm": np.array(threat.norm)} | ({} if threat.eps is None else {"eps": np.array(threat.eps)})
    path = folder / f"{name}.{NPZ}"
    with atomic(path, WHAT) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
    return path


def _write_pictures(folder: Path, images: Tensor, record: RowRecord) -> Path:
    from PIL import Image

    make_folder(folder, WHAT)
    text = io.StringIO()
    index = csv.writer(text, lineterminator="\n")
    index.writerow(("file", "image", "label"))
    for pixels, key, label in zip(images.numpy(), record.keys.tolist(), record.labels.tolist(), strict=True):
        buffer, name = io.BytesIO(), f"{key:06d}.{PNG}"
        Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == GREY else pixels).save(buffer, format="PNG")
        write_bytes(folder / name, buffer.getvalue(), WHAT)
        index.writerow((name, key, label))
    write_text(folder / "index.csv", text.getvalue(), WHAT)  # last: who finds it finds every image
    return folder
