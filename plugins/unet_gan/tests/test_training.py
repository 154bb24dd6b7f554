"""Both stages of the training, their losses by hand, and the loop of core around them."""

import pytest
import torch
from torch import nn

from defend.assembly.load import open_dataset
from defend.assembly.stage import build_module
from defend.datasets.base import Batch, MemoryDataset
from defend.errors import ConfigError, WeightsError
from defend.options import make
from defend.plugins import registry
from defend.records.watcher import TrainingWatcher
from defend.stages import Task
from defend.testing.toys import TASK, TinyVictim
from defend.training.loop import FitSettings, fit
from defend_unet_gan.config import UnetGanOptions, UnetGanRecipe
from defend_unet_gan.model import Discriminator, adversarial_loss, discriminator_loss, feature_matching
from defend_unet_gan.plugin import RECIPES
from defend_unet_gan.purifier import build
from defend_unet_gan.training import TopFeatures, UnetGanTraining, train


def training(sources=1, mode="image", **values):
    torch.manual_seed(0)
    recipe = make(UnetGanRecipe, {"epochs": 1, "post_epochs": 1, "batch_size": 4, **values}, "test")
    purifier = build(make(UnetGanOptions, {"width": 8, "mode": mode}, "test"), TASK)
    victims = {f"source {number}": TinyVictim(seed=number) for number in range(sources)}
    return UnetGanTraining(purifier, Discriminator(1, 8), victims, TinyVictim(), recipe)


@pytest.fixture
def dataset():
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (12, 1, 28, 28), generator=generator, dtype=torch.uint8)
    labels = torch.arange(12) % 10
    splits = {"train": 12, "val": 4, "test": 4}
    return MemoryDataset(
        "tiny",
        [str(number) for number in range(10)],
        {split: images[:count] for split, count in splits.items()},
        {split: labels[:count] for split, count in splits.items()},
    )


def batch(count=4):
    return Batch(torch.rand(count, 1, 28, 28), torch.arange(count), torch.arange(count))


def test_a_source_without_a_gradient_is_told_of_once():
    own, flat = training(clean_share=0.0), TinyVictim()
    with torch.no_grad():
        flat.head.weight.zero_()
    own = UnetGanTraining(own.stage, own.modules["discriminator"], {"source flat": flat}, TinyVictim(), own._recipe)
    with pytest.warns(UserWarning, match=r"FGSM on flat left 4 of 4 images as they were.*name other sources"):
        next(own.losses(batch(8)))
    next(own.losses(batch(8)))


def test_lsgan_by_hand():
    real, painted = torch.tensor([1.0, 0.5]), torch.tensor([0.0, 0.2])
    assert float(discriminator_loss(real, painted)) == pytest.approx((0.125 + 0.02) / 2)
    assert float(adversarial_loss(painted)) == pytest.approx((1 + 0.64) / 2)
    assert float(discriminator_loss(torch.ones(3), torch.zeros(3))) == 0
    assert float(adversarial_loss(torch.ones(3))) == 0


def test_feature_matching_by_hand():
    painted = torch.tensor([[1.0, 2.0]]), torch.tensor([[0.0, 4.0, 2.0]])
    clean = torch.tensor([[2.0, 4.0]]), torch.tensor([[3.0, 4.0, -1.0]])
    assert float(feature_matching(painted, clean)) == pytest.approx(1.5 + 2.0)


class Paints(nn.Module):
    """A generator that returns the same images whatever it is given."""

    def __init__(self, images):
        super().__init__()
        self.images = images

    def forward(self, images):
        return self.images


class Unsure(nn.Module):
    """A discriminator that answers 0.5 for every patch."""

    def forward(self, images):
        return torch.full((len(images), 1, 3, 3), 0.5)


def test_stage_1_loss_by_hand():
    state, clean = training(l1=7, adversarial=2, cross_entropy=3), batch()
    brighter = clean.images + 0.1
    state.modules = {"generator": Paints(brighter), "discriminator": Unsure()}
    discriminator, generator = state.losses(clean)
    confused = nn.functional.cross_entropy(TinyVictim()(brighter), clean.labels).detach()
    assert float(discriminator.value) == pytest.approx(0.25)
    assert float(generator.value.detach()) == pytest.approx(7 * 0.1 + 2 * 0.25 + 3 * float(confused))
    assert float(generator.metrics["l1"]) == pytest.approx(0.1)


def test_stage_2_loss_by_hand():
    state, clean = training(post_adversarial="true", adversarial=2), batch()
    brighter, victim = clean.images + 0.1, TinyVictim()
    state.modules = {"generator": Paints(brighter), "discriminator": Unsure()}
    state.epoch = 1
    _, post = state.losses(clean)
    hidden = [torch.tanh(victim.hidden(victim.pool(images - 0.5).flatten(1))) for images in (brighter, clean.images)]
    logits = [victim.head(features) for features in hidden]
    apart = sum(float((a - b).abs().mean().detach()) for a, b in (hidden, logits))
    assert float(post.value.detach()) == pytest.approx(apart + 2 * 0.25, rel=1e-5)


def test_stages_switch_after_the_first_stage_s_epochs():
    state, seen = training(epochs=3, post_epochs=2), []
    for epoch in range(state.epochs):
        state.epoch = epoch
        seen.append([loss.optimiser for loss in state.losses(batch())])
    assert seen == [["discriminator", "generator"]] * 3 + [["post"]] * 2


def test_reconstruction_2_keeps_the_discriminator():
    state = training(post_adversarial="true")
    state.epoch = 1
    discriminator, post = state.losses(batch())
    assert (discriminator.optimiser, post.optimiser) == ("discriminator", "post")
    assert "l1" not in post.metrics


def test_stage_2_is_zero_where_the_features_agree():
    state, clean = training(), batch()
    state.modules["generator"], state.epoch = Paints(clean.images), 1
    (loss,) = state.losses(clean)
    assert float(loss.value.detach()) == 0


def test_discriminator_gets_no_generator_gradient_and_judges_clean_against_painted():
    state, seen = training(), []
    state.modules["discriminator"].register_forward_pre_hook(lambda module, given: seen.append(given[0].detach()))
    clean = batch()
    losses = state.losses(clean)
    next(losses).value.backward()
    assert all(parameter.grad is None for parameter in state.modules["generator"].parameters())
    assert all(parameter.grad is not None for parameter in state.modules["discriminator"].parameters())
    assert torch.equal(seen[0][:4], clean.images) and not torch.equal(seen[0][4:], clean.images)


def test_optimisers_are_adam_at_each_stage_s_rate():
    chosen = training(lr=0.3, post_lr=0.1).optimisers(10)
    rates = {name: optimiser.optimizer.param_groups[0]["lr"] for name, optimiser in chosen.items()}
    assert rates == {"generator": 0.3, "discriminator": 0.3, "post": 0.1}
    for optimiser in chosen.values():
        assert isinstance(optimiser.optimizer, torch.optim.Adam)
        assert optimiser.optimizer.param_groups[0]["betas"] == (0.5, 0.999)
    owned = [{id(p) for group in chosen[name].optimizer.param_groups for p in group["params"]} for name in chosen]
    assert owned[0] == owned[2] != owned[1]


@pytest.mark.parametrize(("kept", "judged"), [(False, 60), (True, 80)])
def test_every_cycle_is_as_long_as_its_stage(kept, judged):
    state = training(epochs=3, post_epochs=1, schedule="one_cycle", post_adversarial=kept)
    lengths = {name: optimiser.schedule.total_steps for name, optimiser in state.optimisers(80).items()}
    assert lengths == {"generator": 60, "discriminator": judged, "post": 20}


def test_a_training_without_stage_2_needs_no_cycle_for_it():
    assert training(post_epochs=0, schedule="one_cycle").optimisers(5)["post"].schedule is None


def test_top_features_are_what_the_last_linear_layer_is_given():
    victim, images = TinyVictim(), torch.rand(3, 1, 28, 28)
    features, logits = TopFeatures(victim)(images)
    assert features.shape == (3, 32)
    torch.testing.assert_close(logits, victim(images))
    torch.testing.assert_close(victim.head(features), logits)
    assert not victim.head._forward_pre_hooks


def test_top_features_are_pooled_convolutions_where_that_is_the_last_layer():
    convolution, head = nn.Conv2d(1, 5, 3), nn.Linear(5, 10)
    network = nn.Sequential(convolution, nn.AdaptiveAvgPool2d(1), nn.Flatten(), head)
    images = torch.rand(2, 1, 8, 8)
    features, _ = TopFeatures(network)(images)
    torch.testing.assert_close(features, convolution(images).mean((2, 3)))


def test_a_classifier_without_a_linear_layer_is_refused():
    with pytest.raises(ConfigError, match="no linear layer"):
        TopFeatures(nn.Conv2d(1, 1, 1))


@pytest.mark.parametrize("mode", ["image", "noise"])
def test_training_runs_and_changes_what_is_kept(dataset, mode):
    state = training(sources=2, mode=mode, clean_share=0.2)
    before = {key: value.clone() for key, value in state.stage.state_dict().items()}
    figures = fit(state, dataset, FitSettings(), {})
    after = state.stage.state_dict()
    learnt = [key for key in before if key.endswith("weight") and not torch.equal(before[key], after[key])]
    assert "generator.encoder.0.0.weight" in learnt and "generator.last.weight" in learnt
    assert set(figures) == {"val_clean_accuracy", "val_fgsm_oblivious_accuracy", "val_fgsm_l1"}
    assert all(0 <= value <= 1 for value in figures.values())
    victims = [module for name, module in state.frozen.items() if name.startswith("source")]
    assert all(torch.equal(a, b) for a, b in zip(victims[1].parameters(), TinyVictim(seed=1).parameters(), strict=True))


class Stopped(Exception):
    pass


@pytest.mark.parametrize("stop", [2, 4])  # in stage 1, in stage 2
def test_resumed_training_ends_with_the_same_weights(dataset, tmp_path, stop):
    whole = training(schedule="one_cycle")
    fit(whole, dataset, FitSettings(), {})

    class Interrupt(TrainingWatcher):
        def step(self, done, total, losses):
            if done == stop:
                raise Stopped

    settings = {"folder": tmp_path, "checkpoint_seconds": 0.0}
    with pytest.raises(Stopped):
        fit(training(schedule="one_cycle"), dataset, FitSettings(progress=Interrupt(), **settings), {})
    resumed = training(schedule="one_cycle")
    fit(resumed, dataset, FitSettings(**settings), {})
    for key, value in whole.stage.state_dict().items():
        assert torch.equal(value, resumed.stage.state_dict()[key]), key


@pytest.fixture
def victims(monkeypatch):
    built = {}

    class Built:
        def __init__(self, name):
            self.module = built.setdefault(name, TinyVictim())

    monkeypatch.setattr("defend_unet_gan.training.build_stage", lambda stage, name, task: Built(name))
    return built


def test_victims_are_loaded_by_name_once_each(victims):
    recipe = make(UnetGanRecipe, {"sources": "a,b", "classifier": "b", "eps_max": 51}, "test")
    state = train(UnetGanOptions(width=8, mode="noise"), recipe, TASK)
    assert set(victims) == {"a", "b"}
    assert set(state.frozen) == {"classifier", "source a", "source b"}
    assert state.frozen["classifier"].classifier is state.frozen["source b"]
    assert float(state.stage.noise_range) == pytest.approx(0.2)


def test_a_noise_scale_that_is_asked_for_is_trained_with(victims):
    recipe = make(UnetGanRecipe, {"sources": "a", "classifier": "a"}, "test")
    state = train(UnetGanOptions(width=8, mode="noise", noise_scale=0.3), recipe, TASK)
    assert float(state.stage.noise_range) == pytest.approx(0.3)


def test_no_source_is_refused(victims):
    with pytest.raises(ConfigError, match="sources is empty"):
        train(UnetGanOptions(), make(UnetGanRecipe, {"sources": ()}, "test"), TASK)


def test_a_missing_victim_names_the_command_that_trains_it(monkeypatch, tmp_path):
    monkeypatch.setenv("DEFEND_CACHE_DIR", str(tmp_path))
    recipe = make(UnetGanRecipe, {"sources": "vgg13_bn", "classifier": "resnet18"}, "test")
    with pytest.raises(WeightsError, match="defend train victim vgg13_bn --dataset cifar10"):
        train(UnetGanOptions(), recipe, Task("cifar10", 3, 32, 32, 10))


@pytest.mark.parametrize(("dataset_name", "eps"), [("digits", 0.1), ("mnist", 0.3), ("fashion_mnist", 0.1)])
def test_recipes_cover_the_budget_that_is_evaluated(dataset_name, eps):
    assert make(UnetGanRecipe, RECIPES[dataset_name], "test").eps_max / 255 > eps


def test_paper_s_recipe_is_the_default():
    recipe = UnetGanRecipe()
    assert (recipe.batch_size, recipe.sources) == (96, ("inception_v3", "resnet18", "vgg13_bn"))
    assert (recipe.eps_max, recipe.labels, recipe.clean_share, recipe.random_step) == (16, "true", 0.0, 0.5)
    assert (recipe.l1, recipe.adversarial, recipe.cross_entropy) == (100, 1, 1)
    assert (recipe.epochs, recipe.lr, recipe.post_epochs, recipe.post_lr) == (100, 2e-4, 20, 1e-4)


@pytest.mark.parametrize(
    "task", [Task("cifar10", 3, 32, 32, 10), Task("mnist", 1, 28, 28, 10), Task("fashion_mnist", 1, 28, 28, 10)]
)
def test_every_recipe_s_victims_take_its_images(task):
    recipe = make(UnetGanRecipe, RECIPES.get(task.dataset, {}), "test")
    for name in {*recipe.sources, recipe.classifier}:
        found = registry().find("victim", name)
        with torch.device("meta"):
            victim = build_module(found, found.config({}), task).eval()
            assert victim(torch.zeros(1, task.channels, task.height, task.width)).shape == (1, 10)


def test_digits_recipe_needs_only_what_core_ships(monkeypatch, tmp_path):
    monkeypatch.setenv("DEFEND_CACHE_DIR", str(tmp_path))
    recipe = make(UnetGanRecipe, RECIPES["digits"], "digits")
    state = train(UnetGanOptions(), recipe, open_dataset("digits").task())
    features, logits = state.frozen["classifier"](torch.rand(2, 1, 28, 28))
    assert features.shape == (2, 512) and logits.shape == (2, 10)
