"""What holds for recipes."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import attrs
import pytest
import torch

from defend.assembly.composition import Composition
from defend.report.recipe import markdown
from defend.reproduce.ladders import Ladder, find, find_kept, load_recipe
from defend.stages import Task
from defend.testing.toys import TASK, images
from defend.values.commands import say_command
from defend.values.toml import to_toml


class RecipeContract:
    """A recipe with its weights and its kept ladder: what loads is what was measured, and nothing measured is better.

    `readme` holds the ladder between <!-- recipe NAME --> and <!-- end NAME --> (`defend recipe NAME --readme FILE`).
    """

    name: ClassVar[str] = ""
    task: ClassVar[Task] = TASK
    readme: ClassVar[Path | None] = None

    def ladder(self) -> Ladder:
        """Return the ladder that came with the recipe."""
        ladder = find_kept(find(self.name))
        assert ladder is not None, f"recipe {self.name} has no kept ladder: defend recipe --keep makes one"
        return ladder

    def test_it_is_the_defence_that_was_measured(self) -> None:
        recipe, ladder = find(self.name), self.ladder()
        config = recipe.run_config()
        assert ladder.recipe == self.name and not ladder.failed
        assert ladder.config == to_toml(config), "the ladder is of an earlier version of the recipe"
        task = attrs.evolve(self.task, dataset=config.dataset)
        built = Composition.of_config(config).build(task)
        assert ladder.weights == {key: made.content_hash for key, made in built.items() if made.card}

    def test_nothing_that_it_was_held_against_leaves_more(self) -> None:
        ladder = self.ladder()
        assert len(ladder.compared) >= 3, "hold it against the bare victim and each of its parts alone, at least"
        assert all(each.worst_case.accuracy <= ladder.worst_case.accuracy for each in ladder.compared)

    def test_it_loads_without_its_data_set(self) -> None:
        loaded = load_recipe(self.name)
        assert not loaded.training
        with torch.no_grad():
            assert loaded(images(self.task, 2)).shape == (2, self.task.classes)

    def test_the_readme_holds_what_was_measured(self) -> None:
        if self.readme is None:
            pytest.skip("no README was named")
        _, _, rest = self.readme.read_text(encoding="utf-8").partition(f"<!-- recipe {self.name} -->")
        written = rest.partition(f"<!-- end {self.name} -->")[0].strip()
        assert written == markdown(find(self.name), self.ladder()).strip(), say_command(
            "recipe", self.name, "--readme", "FILE"
        )
