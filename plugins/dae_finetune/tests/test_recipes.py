"""The recipe that comes with this plugin, and the ladder that is kept with it."""

from pathlib import Path

import pytest

from defend.stages import Task
from defend.testing.contracts import RecipeContract
from defend_dae_finetune.recipes import RECIPES


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DEFEND_CACHE_DIR", str(tmp_path))


class TestCifar10(RecipeContract):
    name = "cifar10-robust"
    task = Task("cifar10", 3, 32, 32, 10)
    readme = Path(__file__).parents[1] / "README.md"


def test_every_recipe_has_its_contract():
    assert [recipe.name for recipe in RECIPES] == [TestCifar10.name]
