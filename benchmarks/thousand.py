"""The data set of the whole job: digits, with a test split of 1,000 images. Offered to `defend` as any plugin's is.

The test split is the 500 test digits, and the same moved to the right by one pixel: no victim and no purifier was
trained on any of them. Train and val are those of digits, so its weights fit.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from defend import StageSpec, hookimpl
from defend.options import NoOptions

if TYPE_CHECKING:
    from torch import Tensor

    from defend.datasets.base import MemoryDataset

NAME = "digits_thousand"
DISTRIBUTION = "defend-benchmark-digits"


@hookimpl
def defend_datasets() -> Sequence[StageSpec]:
    """The data set `digits_thousand`."""
    return [StageSpec(name=NAME, summary="digits with 1,000 test images", build=f"{__name__}:build")]


def build(_: NoOptions) -> MemoryDataset:
    """Return digits with twice the test images, see the module."""
    import torch

    from defend.datasets import digits
    from defend.datasets.base import SPLITS, MemoryDataset

    known = digits.build(NoOptions())
    images = {split: known.pixels(split, torch.device("cpu")) for split in SPLITS}
    labels = {split: known.labels(split) for split in SPLITS}
    moved = torch.nn.functional.pad(images["test"], (1, 0))[..., :-1]
    images["test"] = torch.cat([images["test"], moved])
    labels["test"] = labels["test"].repeat(2)
    return MemoryDataset(NAME, known.classes, images, labels)


def tensors(limit: int) -> tuple[Tensor, Tensor]:
    """Return the images [n,1,28,28] in [0,1] and labels [n] that `defend run --limit n` takes, in its order."""
    return build(NoOptions()).tensors("test", limit)


def install(folder: Path) -> None:
    """Write what pip would to offer this module to `defend`; with `folder` on the path it is found.

    The benchmarks' own folder must be on the path too.
    """
    info = folder / f"{DISTRIBUTION.replace('-', '_')}-1.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {DISTRIBUTION}\nVersion: 1\n")
    (info / "entry_points.txt").write_text(f"[defend]\n{NAME} = {__name__}\n")
