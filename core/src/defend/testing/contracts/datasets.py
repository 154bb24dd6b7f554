"""What holds for data sets."""

from __future__ import annotations

import torch

from defend.assembly.load import open_dataset
from defend.datasets.base import SPLITS, ImageDataset
from defend.testing.contracts.stage import StageContract


class DatasetContract(StageContract):
    """Labelled images; see `defend.datasets.base.ImageDataset`."""

    stage = "dataset"

    def dataset(self) -> ImageDataset:
        """Open the data set."""
        return open_dataset(self.name, options=self.options)

    def test_splits(self) -> None:
        dataset = self.dataset()
        for split in SPLITS:
            pictures, labels = dataset.tensors(split, limit=8)
            assert pictures.shape == (len(labels), *dataset.shape) and pictures.dtype == torch.float32
            assert pictures.min() >= 0 and pictures.max() <= 1 and labels.dtype == torch.int64
            everything = dataset.labels(split)
            assert int(everything.min()) >= 0 and int(everything.max()) < len(dataset.classes)

    def test_samples_are_seeded_stratified_and_nested(self) -> None:
        dataset = self.dataset()
        labels = dataset.labels("test")
        count = min(len(labels), 4 * len(dataset.classes))
        keys = dataset.keys("test", count, seed=1)
        assert torch.equal(keys, dataset.keys("test", count, seed=1)), "the same seed gave another sample"
        assert torch.equal(keys[: count // 2], dataset.keys("test", count // 2, seed=1)), "samples are not nested"
        assert len(keys.unique()) == count
        share = torch.bincount(labels, minlength=len(dataset.classes)).double() / len(labels)
        got = torch.bincount(labels[keys], minlength=len(dataset.classes)).double()
        assert ((got - share * count).abs() <= 1.5).all(), f"the sample is not stratified: {got.tolist()}"

    def test_batches_follow_the_keys(self) -> None:
        dataset = self.dataset()
        keys = dataset.keys("test", 5, seed=2)
        cpu = torch.device("cpu")
        whole = next(iter(dataset.batches("test", keys, 5, cpu)))
        singles = list(dataset.batches("test", keys, 1, cpu))
        assert torch.equal(whole.keys, keys) and torch.equal(whole.labels, dataset.labels("test")[keys])
        assert torch.equal(whole.images, torch.cat([single.images for single in singles]))
