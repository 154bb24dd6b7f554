"""ImageNet's way through the whole: its folders, timm's own weights, a denoiser for 224 pixels, the paper's Table 4.

The images are synthetic and few, the autoencoder is small and hardly trained, and no weights are downloaded: what is
shown is that the way is open, not what stands at its end.
"""

import attrs
import numpy as np
import pytest
import timm
import torch
from PIL import Image

from defend.assembly.load import open_dataset
from defend.records.watcher import Watcher
from defend.reproduce.jobs import MeasureSettings
from defend.reproduce.measure import reproduce
from defend.train import FitSettings
from defend.training.stage import train_stage
from defend_apudae.tables import TABLES

CLASSES = 1000  # timm's weights take no fewer
ARMS, ATTACKS = ("None", "A n=12"), ("Clean", "BIM 5/255")
VICTIM = "mobilenetv3_small_050"  # the quickest at 224 pixels


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("imagenet")
    generator = np.random.default_rng(0)
    for split in ("train", "val"):
        for number in range(CLASSES):
            place = root / split / f"n{number:08d}"
            place.mkdir(parents=True)
            Image.fromarray(generator.integers(0, 256, (12, 16, 3), dtype=np.uint8)).save(place / "0.png")
    return root


@pytest.fixture
def downloads(monkeypatch):
    """The names of timm's weights that would have been downloaded; the networks are untrained."""
    asked, create = [], timm.create_model

    def untrained(name, pretrained=False, **arguments):
        asked.extend([name] if pretrained else [])
        torch.manual_seed(0)
        return create(name, **arguments)

    monkeypatch.setattr(timm, "create_model", untrained)
    return asked


def test_table_4_from_the_folders_to_the_figures(folder, tmp_path, monkeypatch, downloads):
    monkeypatch.setenv("DEFEND_CACHE_DIR", str(tmp_path / "cache"))
    images = open_dataset("imagenet", str(folder), {"workers": 0})
    assert (images.shape, len(images.classes), len(images.labels("test"))) == ((3, 224, 224), CLASSES, CLASSES)
    small = {"depth": 2, "width": 4, "batch_size": 512, "crop": 32}
    path, card = train_stage("purifier", "apudae", images, options=small, settings=FitSettings(device="cpu"))
    assert path.name == "purifier-apudae-imagenet.safetensors"
    assert 0 < card.figures["sigma"] < card.figures["mu"]

    whole = next(table for table in TABLES if table.short == "table-4")
    table = attrs.evolve(
        whole,
        victim=VICTIM,
        arms=tuple(whole.arm(name) for name in ARMS),
        attacks=tuple(whole.attack(name) for name in ATTACKS),
        cells={(name, arm): cell for (name, arm), cell in whole.cells.items() if arm in ARMS and name in ATTACKS},
        adaptive=None,
    )
    settings = MeasureSettings(out=tmp_path / "out", limit=2, device="cpu", data_dir=str(folder))
    result = reproduce(table, settings, Watcher())
    assert not result.partial
    assert set(downloads) == {VICTIM}
    figures = {(cell.attack, cell.arm): cell for cell in result.cells}
    assert set(figures) == set(table.cells)
    assert all(cell.n == 2 and 0 <= cell.ours <= 1 for cell in figures.values())
