"""The victim of the paper's MNIST tables."""

import pytest
import torch
from torch import nn

from defend.assembly.stage import build_module, build_stage
from defend.datasets.base import MemoryDataset
from defend.errors import ConfigError
from defend.options import make
from defend.plugins import registry
from defend.stages import Task
from defend.testing.toys import images
from defend.training.stage import train_stage

TASK = Task("mnist", 1, 28, 28, 10, (0.13,), (0.31,))


def mlp(options=None, task=TASK):
    found = registry().find("victim", "mlp")
    return build_module(found, found.config(options or {}), task).eval()


def parameters(module):
    return sum(parameter.numel() for parameter in module.parameters())


def test_it_has_one_hidden_layer_of_128():
    victim = mlp()
    assert parameters(victim) == 101_770
    assert [(layer.in_features, layer.out_features) for layer in victim.modules() if isinstance(layer, nn.Linear)] == [
        (784, 128),
        (128, 10),
    ]


def test_hidden_and_other_sizes():
    assert parameters(mlp({"hidden": 16})) == 784 * 16 + 16 + 16 * 10 + 10
    colour = mlp(task=Task("small", 3, 8, 6, 4, (0.5,) * 3, (0.2,) * 3))
    assert colour(torch.rand(2, 3, 8, 6)).shape == (2, 4)
    with pytest.raises(ConfigError, match="hidden"):
        mlp({"hidden": 0})


def test_normalisation_is_inside():
    torch.manual_seed(0)
    victim = mlp()
    flatten, first, relu, second = [part for part in victim.modules() if not list(part.children())]
    batch = images(TASK, 3)
    expected = second(relu(first(flatten((batch - TASK.mean[0]) / TASK.std[0]))))
    assert torch.allclose(victim(batch), expected, atol=1e-6)


def test_recipes_are_options_of_victims():
    spec = registry().find("victim", "mlp").spec
    for values in spec.recipes.values():
        recipe = make(spec.recipe, values, "test")
        assert (recipe.shift, recipe.weight_decay) == (0, 0.0)


def test_it_trains_and_is_found(tmp_path, monkeypatch):
    monkeypatch.setenv("DEFEND_CACHE_DIR", str(tmp_path))
    task = Task("tiny", 1, 14, 14, 4)
    pixels = {
        split: images(task, count, seed).mul(255).byte()
        for seed, (split, count) in enumerate({"train": 24, "val": 8, "test": 8}.items())
    }
    labels = {split: torch.arange(len(batch)) % 4 for split, batch in pixels.items()}
    dataset = MemoryDataset("tiny", list("abcd"), pixels, labels)
    path, card = train_stage("victim", "mlp", dataset, options={"epochs": 2, "batch_size": 8, "hidden": 8})
    assert set(card.figures) == {"val_accuracy", "test_accuracy"}
    built = build_stage("victim", "mlp", dataset.task())
    assert built.path == path and parameters(built.module) == 196 * 8 + 8 + 8 * 4 + 4
