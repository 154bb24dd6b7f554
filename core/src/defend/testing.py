"""Contract suites: subclass one in a plugin's tests and pytest says what the stage does wrong.

    from defend.testing import PurifierContract

    class TestBlur(PurifierContract):
        name = "blur"

Stages are found through their hooks, by name, and built untrained; `options` sets their options and
`task` the images they are built for. What needs another way to build overrides `stage_module`.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import attrs
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from defend import testing_rigged as rigged  # noqa: F401 - defences that the sanity checks must catch, see there
from defend.attacks.target import Target
from defend.build import build_module, build_parts, open_dataset
from defend.config import to_toml
from defend.datasets.base import SPLITS, ImageDataset, MemoryDataset
from defend.defence import Defence
from defend.errors import ConfigError
from defend.ladders import Ladder, find, kept, load_recipe
from defend.options import describe, make
from defend.plugins import Found, registry
from defend.randomness import keyed
from defend.report.recipe import markdown
from defend.stages import Attack, Stage, Task
from defend.train import FitSettings, Training, fit

TASK = Task("digits", 1, 28, 28, 10, (0.3,), (0.38,))
SEED = 3


def images(task: Task, count: int, seed: int = 0) -> Tensor:
    """Return smooth random images [count,C,H,W] in [0,1], a few pixels at exactly 0 and 1."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, task.channels, 7, 7, generator=generator)
    fine = F.interpolate(coarse, size=(task.height, task.width), mode="bilinear", align_corners=False)
    return ((fine - 0.5) * 2 + 0.5).clamp(0, 1)


class TinyVictim(nn.Module):
    """A small fixed classifier for contracts and tests: pooling, one hidden layer, smooth everywhere."""

    def __init__(self, task: Task = TASK, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.pool = nn.AdaptiveAvgPool2d(7)
        self.hidden = nn.Linear(49 * task.channels, 32)
        self.head = nn.Linear(32, task.classes)
        for layer in (self.hidden, self.head):
            with torch.no_grad():
                layer.weight.copy_(torch.randn(layer.weight.shape, generator=generator) * 0.4)
                layer.bias.zero_()

    def forward(self, batch: Tensor) -> Tensor:
        """Return logits [B,classes]."""
        logits: Tensor = self.head(torch.tanh(self.hidden(self.pool(batch - 0.5).flatten(1))))
        return logits


class StageContract:
    """What holds for every stage."""

    stage: ClassVar[Stage]
    name: ClassVar[str]
    options: ClassVar[Mapping[str, Any]] = {}
    task: ClassVar[Task] = TASK

    def found(self) -> Found:
        """Return the stage as the registry finds it."""
        return registry().find(self.stage, self.name)

    def test_hook_imports_no_torch(self) -> None:
        code = (
            "import sys; from defend.plugins import registry\n"
            f"assert any(e.spec.name == {self.found().spec.name!r} for e in registry().entries({self.stage!r}))\n"
            "assert 'torch' not in sys.modules, 'a hook module imports torch: import it in the module that builds'"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr

    def test_every_option_has_help(self) -> None:
        for option in describe(self.found().spec.config):
            assert option.help, f"option {option.name} has no help: declare it with defend.option(default, help=...)"

    def test_unknown_option_is_refused(self) -> None:
        with pytest.raises(ConfigError, match="no_such_option"):
            self.found().config({"no_such_option": 1})

    def test_references_resolve(self) -> None:
        spec = self.found().spec
        for reference in filter(None, (spec.build, spec.train, spec.members)):
            assert callable(spec.resolve(reference)), f"{reference} is not callable"


class _ModuleContract(StageContract):
    """What holds for every stage that is a network."""

    def stage_module(self) -> nn.Module:
        """Build the stage, untrained, in eval mode."""
        found = self.found()
        torch.manual_seed(SEED)
        return build_module(found, found.config(self.options), self.task).eval()

    def run(self, module: nn.Module, batch: Tensor, keys: Tensor | None = None) -> Tensor:
        """Call the stage on images, its random draws keyed."""
        identity = torch.arange(len(batch)) if keys is None else keys
        with keyed(identity, seed=SEED, stream="contract"):
            answer: Tensor = module(batch)
        return answer

    def test_state_dict_round_trip(self) -> None:
        first, second = self.stage_module(), self.stage_module()
        second.load_state_dict(first.state_dict())
        batch = images(self.task, 2)
        assert torch.equal(self.run(first, batch), self.run(second, batch)), "the state_dict does not hold everything"

    def test_input_is_left_alone(self) -> None:
        batch = images(self.task, 2)
        before = batch.clone()
        self.run(self.stage_module(), batch)
        assert torch.equal(batch, before), "the stage changed its input in place"

    def test_batch_size_and_order_change_nothing(self) -> None:
        module, batch, keys = self.stage_module().double(), images(self.task, 5).double(), torch.arange(10, 15)
        with torch.no_grad():
            whole = self.run(module, batch, keys)
            singles = torch.cat([self.run(module, batch[i : i + 1], keys[i : i + 1]) for i in range(5)])
            turned = self.run(module, batch.flip(0), keys.flip(0)).flip(0)
        message = "images influence each other: draw with defend.randomness, and use no statistics of the batch"
        torch.testing.assert_close(whole, singles, atol=1e-6, rtol=0, msg=message)
        torch.testing.assert_close(whole, turned, atol=1e-6, rtol=0, msg=message)

    def test_randomness_is_declared(self) -> None:
        module, batch = self.stage_module(), images(self.task, 3)
        torch.manual_seed(0)
        with torch.no_grad():
            same = torch.equal(module(batch), module(batch))
        if not getattr(module, "random", False):
            assert same, "two passes differ: set `random = True` on the module"

    def test_differentiable(self) -> None:
        module, batch = self.stage_module(), images(self.task, 2).requires_grad_()
        answer = self.run(module, batch)
        assert answer.requires_grad, "the output carries no gradient: a purifier must not detach"
        (gradient,) = torch.autograd.grad(answer.square().sum(), batch)
        assert torch.isfinite(gradient).all(), "the gradient is not finite"
        assert gradient.abs().sum() > 0, "the gradient is zero everywhere: an adaptive attack would be blind"


class PurifierContract(_ModuleContract):
    """Images [B,C,H,W] in [0,1] to the same; see `defend.stages.Purifier`."""

    stage = "purifier"

    def test_shape_and_range(self) -> None:
        for count in (1, 3):
            batch = images(self.task, count)
            purified = Defence(nn.Identity(), self.stage_module()).purify(batch)
            assert torch.isfinite(purified).all(), "purified images are not finite"
            low, high = purified.min().item(), purified.max().item()
            assert low >= 0 and high <= 1, f"purified images reach from {low:.3g} to {high:.3g}: clamp to [0,1]"

    def test_black_and_white_images(self) -> None:
        for value in (0.0, 1.0):
            batch = torch.full((1, self.task.channels, self.task.height, self.task.width), value)
            assert torch.isfinite(self.run(self.stage_module(), batch)).all(), f"not finite on an image of {value}"

    def test_works_without_gradients(self) -> None:
        module, batch = self.stage_module(), images(self.task, 2)
        expected = self.run(module, batch.clone().requires_grad_()).detach()
        with torch.no_grad():
            without = self.run(module, batch)
        assert not without.requires_grad
        message = "gradients on or off must not change the result"
        torch.testing.assert_close(without, expected, atol=1e-5, rtol=0, msg=message)
        with torch.inference_mode():
            torch.testing.assert_close(self.run(module, batch), expected, atol=1e-5, rtol=0, msg=message)

    def test_parameters_keep_no_gradient(self) -> None:
        module = self.stage_module()
        with torch.no_grad():
            self.run(module, images(self.task, 2))
        assert all(parameter.grad is None for parameter in module.parameters()), "a pass left gradients behind"


class VictimContract(_ModuleContract):
    """Images [B,C,H,W] in [0,1] to logits [B,classes]; normalisation inside."""

    stage = "victim"

    def test_logits(self) -> None:
        with torch.no_grad():
            logits = self.stage_module()(images(self.task, 3))
        assert logits.shape == (3, self.task.classes), f"logits have shape {list(logits.shape)}"
        assert torch.isfinite(logits).all()

    def test_not_probabilities(self) -> None:
        with torch.no_grad():
            logits = self.stage_module()(images(self.task, 3))
        sums = logits.sum(1)
        assert not torch.allclose(sums, torch.ones_like(sums), atol=1e-4), "these are probabilities: return logits"


class DetectorContract(_ModuleContract):
    """(images, purified) to scores [B], with a threshold; see `defend.stages.Detector`."""

    stage = "detector"

    def run(self, module: nn.Module, batch: Tensor, keys: Tensor | None = None) -> Tensor:
        identity = torch.arange(len(batch)) if keys is None else keys
        with keyed(identity, seed=SEED, stream="contract"):
            answer: Tensor = module(batch, batch)
        return answer

    def test_randomness_is_declared(self) -> None:
        module, batch = self.stage_module(), images(self.task, 3)
        with torch.no_grad():
            same = torch.equal(module(batch, batch), module(batch, batch))
        assert same or getattr(module, "random", False), "two passes differ: set `random = True` on the module"

    def test_scores(self) -> None:
        module = self.stage_module()
        scores = self.run(module, images(self.task, 3))
        assert scores.shape == (3,), f"scores have shape {list(scores.shape)}, expected [B]"
        assert torch.isfinite(scores).all()
        assert torch.as_tensor(module.threshold).numel() == 1, "a detector needs one `threshold`"


class AttackContract(StageContract):
    """Adversarial images within a budget; see `defend.stages.Attack`. `eps` is in the attack's norm."""

    stage = "attack"
    eps: ClassVar[float] = 0.1

    def attack(self) -> Attack:
        """Build the attack."""
        found = self.found()
        built = found.spec.resolve(found.spec.build)(found.config(self.options))
        assert isinstance(built, Attack), f"{type(built).__name__} is no defend.stages.Attack: norm and __call__"
        return built

    def target(self) -> Target:
        """Return what is attacked."""
        return Target(Defence(TinyVictim(self.task)), seed=SEED)

    def craft(self, batch: Tensor, eps: Tensor | None = None, keys: Tensor | None = None) -> Tensor:
        """Run the attack itself, without the host's clipping."""
        target = self.target()
        labels = target.logits(batch, torch.arange(len(batch)), "labels").argmax(1)
        budget = torch.full((len(batch),), self.eps, dtype=batch.dtype) if eps is None else eps
        identity = torch.arange(len(batch)) if keys is None else keys
        return self.attack()(target, batch, labels, eps=budget, keys=identity)

    def test_keeps_to_shape_range_and_budget(self) -> None:
        batch = images(self.task, 4)
        found = self.craft(batch)
        assert found.shape == batch.shape and torch.isfinite(found).all()
        assert found.min() >= 0 and found.max() <= 1, "adversarial images leave [0,1]"
        if self.has_budget():
            budget = self.eps + getattr(self.attack(), "excess", 0.0)
            most = self.distances(found, batch).max().item()
            assert most <= budget + 1e-6, f"adversarial images are {most:.4g} away, the budget is {budget:.4g}"

    def test_every_image_has_its_own_budget(self) -> None:
        if not self.has_budget():
            return
        batch, eps = images(self.task, 4), self.eps * torch.tensor([0.0, 0.1, 0.5, 2.0])
        most = self.distances(self.craft(batch, eps), batch)
        excess = getattr(self.attack(), "excess", 0.0)
        assert (most <= eps + excess + 1e-6).all(), f"budgets {eps.tolist()} were exceeded: {most.tolist()}"

    def has_budget(self) -> bool:
        """Whether the attack keeps to a budget, rather than minimise the distance."""
        return not getattr(self.attack(), "minimal", False)

    def distances(self, found: Tensor, batch: Tensor) -> Tensor:
        """Return how far each image is from where it was, in the attack's norm: [B]."""
        difference = (found - batch).flatten(1)
        return difference.norm(dim=1) if self.attack().norm == "l2" else difference.abs().amax(1)

    def test_batch_size_and_order_change_nothing(self) -> None:
        batch, keys = images(self.task, 5), torch.arange(20, 25)
        whole = self.craft(batch, keys=keys)
        singles = torch.cat([self.craft(batch[i : i + 1], keys=keys[i : i + 1]) for i in range(5)])
        turned = self.craft(batch.flip(0), keys=keys.flip(0)).flip(0)
        message = "an image's attack depends on the others in its batch"
        torch.testing.assert_close(whole, singles, atol=1e-4, rtol=0, msg=message)
        torch.testing.assert_close(whole, turned, atol=1e-4, rtol=0, msg=message)

    def test_target_and_images_are_left_alone(self) -> None:
        target, batch = self.target(), images(self.task, 2)
        before, state = batch.clone(), {k: v.clone() for k, v in target.module.state_dict().items()}
        self.attack()(target, batch, torch.tensor([0, 1]), eps=torch.full((2,), self.eps), keys=torch.arange(2))
        assert torch.equal(batch, before), "the attack changed the images in place"
        assert all(torch.equal(v, state[k]) for k, v in target.module.state_dict().items())
        assert all(parameter.grad is None for parameter in target.module.parameters()), "gradients were left behind"


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
        for purifier in (None, _Negative()):
            victim, untouched = TinyVictim(self.task), TinyVictim(self.task).state_dict()
            tuned = self.tune(victim, purifier)
            same = all(torch.equal(value, untouched[key]) for key, value in victim.state_dict().items())
            assert same, "tuning changed the victim itself: tune a copy"
            after = tuned.state_dict()
            moved = any(key not in untouched or not torch.equal(after[key], untouched[key]) for key in after)
            assert moved, "tuning changed no weight"

    def test_tuned_weights_load_into_what_build_makes(self) -> None:
        spec = self.found().spec
        tuned = self.tune(TinyVictim(self.task), _Negative())
        fresh = spec.resolve(spec.build)(self.found().config(self.options), self.task, TinyVictim(self.task))
        fresh.load_state_dict(tuned.state_dict())
        batch = images(self.task, 3)
        with torch.no_grad():
            torch.testing.assert_close(fresh.eval()(batch), tuned.eval()(batch))


class RecipeContract:
    """A recipe with its weights and its kept ladder: what loads is what was measured, and nothing measured is better.

    `readme` holds the ladder between <!-- recipe NAME --> and <!-- end NAME --> (`defend recipe NAME --readme FILE`).
    """

    name: ClassVar[str] = ""
    task: ClassVar[Task] = TASK
    readme: ClassVar[Path | None] = None

    def ladder(self) -> Ladder:
        """Return the ladder that came with the recipe."""
        ladder = kept(find(self.name))
        assert ladder is not None, f"recipe {self.name} has no kept ladder: `defend recipe {self.name} RUN... --keep`"
        return ladder

    def test_it_is_the_defence_that_was_measured(self) -> None:
        recipe, ladder = find(self.name), self.ladder()
        config = recipe.run_config()
        assert ladder.recipe == self.name and not ladder.failed
        assert ladder.config == to_toml(config), "the ladder is of an earlier version of the recipe"
        task = attrs.evolve(self.task, dataset=config.dataset)
        parts = build_parts(
            config.victim, task, config.purifier, config.detector, finetune=config.finetune, options=config.options,
            weights=config.weights,
        )  # fmt: skip
        assert ladder.weights == {name: part.card.content_sha256 for name, part in parts.items() if part.card}

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
        assert written == markdown(find(self.name), self.ladder()).strip(), f"defend recipe {self.name} --readme FILE"


class _Negative(nn.Module):
    """A purifier that turns every image into its negative."""

    random = False

    def forward(self, batch: Tensor) -> Tensor:
        return 1 - batch


def tiny_dataset(task: Task) -> MemoryDataset:
    """Return 32 smooth random images a split, with labels by turns, for a training that should take a second."""
    pixels = (images(task, 32) * 255).byte()
    labels = torch.arange(32) % task.classes
    classes = [str(number) for number in range(task.classes)]
    return MemoryDataset("tiny", classes, dict.fromkeys(SPLITS, pixels), dict.fromkeys(SPLITS, labels))


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
