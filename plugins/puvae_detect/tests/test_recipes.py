"""The recipes that come with this plugin, and the ladders that are kept with them."""

from pathlib import Path

import pytest

import defend
from defend.assembly.load import open_dataset
from defend.testing.contracts import RecipeContract
from defend_puvae_detect.recipes import RECIPES

README = Path(__file__).parents[1] / "README.md"


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DEFEND_CACHE_DIR", str(tmp_path))


class TestMnist(RecipeContract):
    name = "mnist-robust"
    readme = README


class TestFashionMnist(RecipeContract):
    name = "fashion-mnist-robust"
    readme = README


def test_every_recipe_has_its_contract():
    assert {recipe.name for recipe in RECIPES} == {TestMnist.name, TestFashionMnist.name}


def test_mnists_knows_other_digits_too():
    images, labels = open_dataset("digits").tensors("test", limit=200)
    assert (defend.load_recipe("mnist-robust")(images).argmax(1) == labels).float().mean() > 0.5
