"""The autoencoder's training: inputs, targets, the plateau rule, resuming."""

import json

import pytest
import torch
from torch import nn

from defend.plugins import registry
from defend.training.loop import FitSettings, fit
from defend.training.stage import train_stage
from defend.util.tensors import content_hash
from defend_dae_finetune.config import AutoencoderOptions, AutoencoderRecipe
from defend_dae_finetune.purifier import AutoencoderTraining, EpochPlateau, build
from defend_dae_finetune.sets import CRAFTED

CPU = torch.device("cpu")
QUICK = {"eps": 0.1, "pgd_steps": 2, "pgd_step_size": 0.05, "epochs": 3, "batch_size": 16}


class Watched(AutoencoderTraining):
    """Remembers what it is given, and can be cut off."""

    def __init__(self, *arguments, stop_at=None):
        super().__init__(*arguments)
        self.batches, self.stop_at = [], stop_at

    def losses(self, batch):
        if len(self.batches) == self.stop_at:
            raise KeyboardInterrupt
        self.batches.append((self.epoch, batch))
        yield from super().losses(batch)


@pytest.fixture
def prepare(task, victim):
    def prepared(stop_at=None, **recipe):
        torch.manual_seed(0)
        return Watched(
            build(AutoencoderOptions(), task), AutoencoderRecipe(**{**QUICK, **recipe}), victim, stop_at=stop_at
        )

    return prepared


def run(training, dataset, folder=None):
    return fit(training, dataset, FitSettings(seed=1, folder=folder, checkpoint_seconds=0.0), {"what": "test"})


def rates(losses, steps=1, lr=1e-3, **rule):
    """The rate during each epoch, for the epochs' losses."""
    adam = torch.optim.Adam([nn.Parameter(torch.zeros(1))], lr=lr)
    plateau = EpochPlateau(adam, steps, AutoencoderRecipe(**rule))
    seen = []
    for loss in losses:
        seen.append(adam.param_groups[0]["lr"])
        for offset in torch.linspace(-0.1, 0.1, steps) if steps > 1 else torch.zeros(1):
            plateau.observe(torch.tensor(loss, dtype=torch.float64) + offset)
            plateau.step()
    return seen


def test_plateau_rule_by_hand():
    # 1.0 is best; 0.95 is no better by 0.1, so epochs 2 and 3 are bad: patience 2 is used up, epoch 4 goes slower
    losses = [1.0, 0.95, 0.91, 0.5, 0.45, 0.3, 0.3, 0.3, 0.3]
    expected = [1e-3, 1e-3, 1e-3, 2e-4, 2e-4, 2e-4, 2e-4, 2e-4, 1e-4]  # 4e-5 is below the least rate
    assert rates(losses, patience=2, min_delta=0.1) == pytest.approx(expected)


def test_plateau_rule_by_default():
    # the rate falls to 2e-4 after five bad epochs, then to 1e-4 after five more, and no further
    expected = [1e-3] * 6 + [2e-4] * 5 + [1e-4] * 7
    assert rates([0.01] * 18) == pytest.approx(expected)
    assert rates([0.01 - 2e-4 * epoch for epoch in range(18)]) == pytest.approx([1e-3] * 18)


@pytest.mark.parametrize("steps", [2, 5])
def test_plateau_sees_the_mean_of_an_epoch(steps):
    losses = [1.0, 0.95, 0.91, 0.5, 0.45, 0.3, 0.3, 0.3, 0.3]
    assert rates(losses, steps, patience=2, min_delta=0.1) == pytest.approx(rates(losses, patience=2, min_delta=0.1))


@pytest.mark.parametrize("cut", [1, 3, 4, 7])
def test_plateau_goes_on_from_its_state(cut):
    def make():
        adam = torch.optim.Adam([nn.Parameter(torch.zeros(1))], lr=1e-3)
        return adam, EpochPlateau(adam, 2, AutoencoderRecipe(patience=1, min_delta=0.0))

    losses = [torch.tensor(value) for value in (0.9, 0.7, 0.8, 0.85, 0.6, 0.1, 0.9, 0.9, 0.2, 0.3)]
    adam, plateau = make()
    first, second = [], []
    for number, loss in enumerate(losses):
        if number == cut:
            group, state = adam.state_dict(), json.loads(json.dumps(plateau.state_dict()))
        plateau.observe(loss)
        plateau.step()
        first.append(adam.param_groups[0]["lr"])
    adam, plateau = make()
    adam.load_state_dict(group)
    plateau.load_state_dict(state)
    for loss in losses[cut:]:
        plateau.observe(loss)
        plateau.step()
        second.append(adam.param_groups[0]["lr"])
    assert second == first[cut:]
    assert len(set(first)) > 1


def test_processes_share_the_plateau(monkeypatch):
    def other_process_had(*losses):
        waiting = iter(losses)
        monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
        monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
        monkeypatch.setattr(torch.distributed, "all_reduce", lambda total: total.add_(next(waiting)))

    rule = {"patience": 1, "factor": 0.5, "min_lr": 0.0, "min_delta": 0.0, "lr": 1.0}
    assert rates([1.0, 0.9, 0.8, 0.7], **rule) == [1.0, 1.0, 1.0, 1.0]
    other_process_had(1.0, 1.2, 1.1, 0.9)  # means 1.0, 1.05, 0.95, 0.8
    assert rates([1.0, 0.9, 0.8, 0.7], **rule) == [1.0, 1.0, 0.5, 0.5]


def test_targets_are_the_clean_images(tiny, prepare):
    training = prepare(epochs=1)
    run(training, tiny)
    clean = next(tiny.batches("train", torch.arange(20), 20, CPU)).images
    batch = training.batches[0][1]
    (loss,) = training.losses(batch)
    expected = (training.stage(batch.images) - clean[batch.keys % 20]).square().mean()
    torch.testing.assert_close(loss.value, expected)
    assert (batch.images - clean[batch.keys % 20]).abs().amax() > 0.05  # some of them were attacked


@pytest.mark.parametrize(("inputs", "first"), [("all", 0), ("adversarial", 20)])
def test_every_epoch_takes_every_input_once(tiny, prepare, inputs, first):
    training = prepare(inputs=inputs, batch_size=10)
    run(training, tiny)
    orders = []
    for epoch in range(3):
        keys = torch.cat([batch.keys for number, batch in training.batches if number == epoch])
        assert sorted(keys.tolist()) == list(range(first, 60))
        orders.append(keys.tolist())
    assert orders[0] != orders[1] != orders[2]
    mixed = {kind.item() for kind in training.batches[0][1].keys // 20}
    assert len(mixed) > 1


def test_settings_of_the_code(prepare):
    training = prepare()
    recipe = AutoencoderRecipe()
    assert (recipe.epochs, recipe.batch_size, recipe.lr) == (100, 64, 1e-3)
    assert (recipe.eps, recipe.pgd_steps, recipe.pgd_step_size) == (8 / 255, 10, 0.01)
    assert (recipe.inputs, recipe.victim, recipe.train_subset) == ("all", "resnet20", None)
    assert (recipe.factor, recipe.patience, recipe.min_lr, recipe.min_delta) == (0.2, 5, 1e-4, 1e-4)
    assert AutoencoderOptions().widths == (16, 8)
    optimiser = training.optimisers(30)["dae"]
    assert type(optimiser.optimizer) is torch.optim.Adam
    assert optimiser.optimizer.param_groups[0]["lr"] == 1e-3
    assert isinstance(optimiser.schedule, EpochPlateau)


@pytest.mark.parametrize("stop_at", [2, 3, 5])
def test_an_interrupted_training_ends_as_an_uninterrupted_one(tmp_path, tiny, prepare, stop_at):
    rule = {"patience": 1, "min_delta": 1.0, "lr": 1e-2}  # the rate falls after every epoch
    whole = prepare(**rule)
    run(whole, tiny, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(prepare(**rule, stop_at=stop_at), tiny, tmp_path / "cut")
    again = prepare(**rule)
    run(again, tiny, tmp_path / "cut")
    assert len(again.batches) == 9 - stop_at
    assert content_hash(again.stage.state_dict()) == content_hash(whole.stage.state_dict())


def test_training_lowers_the_error_and_measures_it(tiny, prepare):
    training = prepare(epochs=50, lr=2e-2)
    figures = run(training, tiny)
    bare = {f"val_{what}_{kind}" for what in ("mse", "bare") for kind in CRAFTED}
    behind = {"val_purified_clean", "val_purified_fgsm_oblivious", "val_purified_pgd_oblivious"}
    assert set(figures) == bare | behind | {"val_images"} and figures["val_images"] == len(tiny.labels("val"))
    untrained = run(prepare(epochs=1, lr=1e-7), tiny)
    assert all(figures[f"val_mse_{kind}"] < 0.5 * untrained[f"val_mse_{kind}"] for kind in CRAFTED)
    assert figures["val_bare_clean"] >= figures["val_bare_pgd"]


def test_the_command_trains_it_against_the_victim_that_it_names(tmp_path, tiny):
    found = registry()
    path, _ = train_stage(
        "victim", "resnet20", tiny, options={"epochs": 1, "batch_size": 8}, settings=FitSettings(device="cpu")
    )
    assert path.name == "victim-resnet20-tiny.safetensors"
    quick = {**QUICK, "epochs": 1}
    _, card = train_stage(
        "purifier", "dae", tiny, options=quick, settings=FitSettings(device="cpu"), out=tmp_path / "x.safetensors"
    )
    assert card.recipe["victim"] == "resnet20"
    assert card.figures["val_psnr_25"] > 0, "every purifier's training measures how it takes noise away"
    assert found.find("purifier", "dae").spec.recipes["digits"]["eps"] == 0.1
