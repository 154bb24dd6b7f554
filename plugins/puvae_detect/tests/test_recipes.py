"""The recipes that come with this plugin, and the ladders that are kept with them."""

from pathlib import Path

import pytest
import torch

import defend
from defend.build import build_stage, build_tuned, open_dataset
from defend.config import to_toml
from defend.ladders import kept
from defend.stages import Task
from defend_puvae_detect.recipes import RECIPES

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
BY_NAME = {recipe.name: recipe for recipe in RECIPES}


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DEFEND_CACHE_DIR", str(tmp_path))


@pytest.mark.parametrize("name", BY_NAME)
def test_a_recipe_is_the_defence_that_its_ladder_was_measured_of(name):
    recipe, ladder = BY_NAME[name], kept(BY_NAME[name])
    assert ladder.recipe == name and not ladder.failed
    assert ladder.config == to_toml(recipe.run_config())
    config = recipe.run_config()
    task = Task(config.dataset, 1, 28, 28, 10)
    victim = build_stage("victim", config.victim, task)
    tuned = build_tuned(config.finetune, task, config.victim, victim.module, config.purifier)
    assert ladder.weights["victim"] == victim.card.content_sha256
    assert ladder.weights["finetuner"] == tuned.card.content_sha256
    assert tuned.card.recipe["eps"] == config.eps


@pytest.mark.parametrize("name", BY_NAME)
def test_nothing_that_it_was_held_against_leaves_more(name):
    ladder = kept(BY_NAME[name])
    assert len(ladder.compared) >= 3
    assert all(each.worst_case.accuracy <= ladder.worst_case.accuracy for each in ladder.compared)


@pytest.mark.parametrize("name", BY_NAME)
def test_the_readme_says_what_was_measured(name):
    ladder = kept(BY_NAME[name])
    for each in (ladder, *ladder.compared):
        norms = (ladder.worst_case if each is ladder else each).norms
        low, high = (f"{100 * end:.1f}" for end in each.worst_case.ci95)
        cells = [f"{100 * each.clean.accuracy:.1f}", f"{100 * each.worst_case.accuracy:.1f} [{low}, {high}]",
                 *(f"{100 * one['accuracy']:.1f}" for one in norms.values()), str(each.worst_case.n)]  # fmt: skip
        assert f"| {' | '.join(cells)} |" in README


@pytest.mark.parametrize("name", BY_NAME)
def test_it_loads_without_its_data_set_and_classifies(name):
    loaded = defend.load_recipe(name)
    images, labels = open_dataset("digits").tensors("test", limit=200)
    right = (loaded(images).argmax(1) == labels).float().mean()
    assert right > 0.5 or "fashion" in name, "digits of another data set look alike"
    assert not loaded.training and loaded(torch.zeros(2, 1, 28, 28)).shape == (2, 10)
