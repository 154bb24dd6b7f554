"""Shared by this plugin's tests: a cache of their own, a tiny data set, small victims."""

import pytest
import torch

from defend.datasets.base import MemoryDataset
from defend.stages import Task
from defend.testing.toys import TinyVictim, images

SIZES = {"train": 20, "val": 8, "test": 6}
TASK = Task("tiny", 1, 14, 14, 4)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """Nothing this user trained may decide a test."""
    monkeypatch.setenv("DEFEND_CACHE_DIR", str(tmp_path / "cache"))


@pytest.fixture
def task():
    return TASK


@pytest.fixture
def tiny():
    """Smooth random 14x14 images, labelled as `victim` classifies them."""
    pixels = {split: images(TASK, count, seed).mul(255).byte() for seed, (split, count) in enumerate(SIZES.items())}
    with torch.no_grad():
        labels = {split: TinyVictim(TASK)(batch / 255).argmax(1) for split, batch in pixels.items()}
    return MemoryDataset("tiny", list("abcd"), pixels, labels)


@pytest.fixture
def victim():
    return TinyVictim(TASK).eval()
