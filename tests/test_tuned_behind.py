"""A victim that was tuned behind a purifier, whose options are no part of any weights."""

import warnings

import pytest
import torch

from defend.assembly.composition import Composition
from defend.assembly.load import open_dataset
from defend.datasets.base import MemoryDataset
from defend.train import FitSettings
from defend.training.stage import train_stage

VICTIM = "mobilenetv3_small_050"


def few():
    digits = open_dataset("digits")
    pixels = {split: digits.pixels(split, torch.device("cpu"))[:16] for split in ("train", "val", "test")}
    return MemoryDataset("digits", digits.classes, pixels, {split: digits.labels(split)[:16] for split in pixels})


def behind(quality, finetune=None):
    return Composition.of(VICTIM, "jpeg", finetune=finetune, options={"jpeg": {"quality": str(quality)}})


def tune(quality):
    options = {"epochs": 1, "steps": 1, "batch_size": 8, "select": "last"}
    settings = FitSettings(device="cpu")
    return train_stage("finetuner", "adversarial", few(), adapted=behind(quality), options=options, settings=settings)


def test_another_option_of_the_purifier_is_another_training_and_is_told_of():
    _, first = tune(90)
    _, other = tune(5)
    assert first.recipe["purifier_options"]["jpeg"]["quality"] == 90
    assert other.content_sha256 != first.content_sha256, "the weights of the first were taken for the second's"
    task = few().task()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        behind(5, "adversarial").build(task)
    with pytest.warns(UserWarning, match="was tuned behind jpeg with quality=5, and stands behind quality=75"):
        behind(75, "adversarial").build(task)
