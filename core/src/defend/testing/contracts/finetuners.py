"""What holds for fine-tuners."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import nn

from defend.options import make
from defend.testing.contracts.stage import StageContract
from defend.testing.toys import SEED, Negative, TinyVictim, images, tiny_dataset
from defend.train import Training
from defend.training.loop import FitSettings, fit


class FinetunerContract(StageContract):
    """Adapts a copy of a victim to a purifier; see `defend.stages.StageSpec.train`.

    `recipe` should make the training as short as it can be: the data set has 32 images.
    """

    stage = "finetuner"
    recipe: ClassVar[Mapping[str, Any]] = {}

    def tune(self, victim: nn.Module, purifier: nn.Module | None) -> nn.Module:
        """Tune a copy of a victim on a tiny data set; return it."""
        spec = self.found().spec
        assert spec.train is not None, "a fine-tuner needs `train`"
        torch.manual_seed(SEED)
        recipe: Any = make(spec.recipe, self.recipe, "the recipe")
        training = spec.resolve(spec.train)(self.found().config(self.options), recipe, self.task, victim, purifier)
        assert isinstance(training, Training), f"train returned {type(training).__name__}, expected a Training"
        fit(training, tiny_dataset(self.task), FitSettings(seed=SEED), {})
        return training.stage

    def test_what_holds_the_weights_takes_what_the_victim_takes(self) -> None:
        spec = self.found().spec
        tuned = spec.resolve(spec.build)(self.found().config(self.options), self.task, TinyVictim(self.task))
        assert isinstance(tuned, nn.Module)
        with torch.no_grad():
            assert tuned(images(self.task, 3)).shape == (3, self.task.classes)

    def test_tuning_changes_a_copy_and_leaves_the_victim_alone(self) -> None:
        for purifier in (None, Negative()):
            victim, untouched = TinyVictim(self.task), TinyVictim(self.task).state_dict()
            tuned = self.tune(victim, purifier)
            same = all(torch.equal(value, untouched[key]) for key, value in victim.state_dict().items())
            assert same, "tuning changed the victim itself: tune a copy"
            after = tuned.state_dict()
            moved = any(key not in untouched or not torch.equal(after[key], untouched[key]) for key in after)
            assert moved, "tuning changed no weight"

    def test_tuned_weights_load_into_what_build_makes(self) -> None:
        spec = self.found().spec
        tuned = self.tune(TinyVictim(self.task), Negative())
        fresh = spec.resolve(spec.build)(self.found().config(self.options), self.task, TinyVictim(self.task))
        fresh.load_state_dict(tuned.state_dict())
        batch = images(self.task, 3)
        with torch.no_grad():
            torch.testing.assert_close(fresh.eval()(batch), tuned.eval()(batch))
