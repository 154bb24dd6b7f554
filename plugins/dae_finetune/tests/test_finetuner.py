"""Fine-tuning: sets, schedule, loss, batch norm, the epoch that is kept."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from defend.training.loop import FitSettings, fit
from defend.util.tensors import content_hash
from defend.victims.training import augment
from defend_dae_finetune.config import FineTuneRecipe
from defend_dae_finetune.finetuner import FineTuning, Phase, build, name_figure, phases, train
from defend_dae_finetune.sets import CRAFTED, PURIFIED

CPU = torch.device("cpu")
QUICK = {"eps": 0.1, "pgd_steps": 2, "pgd_step_size": 0.05, "batch_size": 16}
ALL = (*CRAFTED, *PURIFIED)


class Fade(nn.Module):
    random = False

    def forward(self, batch):
        return 0.25 + batch * 0.5


class Small(nn.Module):
    """A victim with batch norm."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.layers = nn.Sequential(
            nn.Conv2d(1, 4, 3, stride=2), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 4)
        )

    def forward(self, batch):
        return self.layers(batch)


class Watched(FineTuning):
    """Remembers what it is given, and can be cut off."""

    stop_at = None

    def losses(self, batch):
        if len(self.seen) == self.stop_at:
            raise KeyboardInterrupt
        for loss in super().losses(batch):
            self.seen.append((self.epoch, self._adam.param_groups[0]["lr"], batch, self.modules["victim"].training))
            yield loss

    def score(self, dataset, device):
        self.scores.append(super().score(dataset, device))
        return self.scores[-1]


def prepare(purifier=None, stop_at=None, **recipe):
    original = Small().eval()
    training = Watched(build(None, None, original), FineTuneRecipe(**{**QUICK, **recipe}), original, purifier)
    training.seen, training.scores, training.stop_at = [], [], stop_at
    return training


def run(training, dataset, folder=None):
    return fit(training, dataset, FitSettings(seed=1, folder=folder, checkpoint_seconds=0.0), {"what": "test"})


def test_schedule_of_the_code():
    assert phases(FineTuneRecipe(), purified=True) == (
        Phase(3, 1e-4, ALL),
        Phase(1, 1e-4, ("clean", *PURIFIED)),
        Phase(3, 1e-5, ("clean", *PURIFIED)),
    )


def test_schedule_of_the_paper_for_resnet20():
    assert phases(FineTuneRecipe(schedule="mix"), purified=True) == (Phase(3, 1e-4, ALL),)


def test_repeats_multiply_every_count():
    assert [phase.epochs for phase in phases(FineTuneRecipe(repeats=4), purified=True)] == [12, 4, 12]


def test_without_a_purifier_the_purified_kinds_are_left_out():
    assert {phase.kinds for phase in phases(FineTuneRecipe(), purified=False)} == {CRAFTED}


def test_epochs_take_their_set_once_at_their_rate(tiny):
    training = prepare(Fade(), batch_size=20)
    run(training, tiny)
    for epoch in range(7):
        keys = torch.cat([batch.keys for number, _, batch, _ in training.seen if number == epoch]).tolist()
        rates = {rate for number, rate, _, _ in training.seen if number == epoch}
        first = [*range(120)]
        second = [*range(20), *range(60, 120)]  # clean and the three purified kinds
        assert sorted(keys) == (first if epoch < 3 else second)
        assert keys != sorted(keys)
        assert rates == {1e-4 if epoch < 4 else 1e-5}
    kinds = {int(kind) for kind in training.seen[0][2].keys // 20}
    assert len(kinds) > 2  # a batch is of mixed kinds


def test_loss_is_cross_entropy_on_logits(tiny):
    training = prepare(Fade())
    run(training, tiny)
    batch = training.seen[0][2]
    (loss,) = training.losses(batch)
    torch.testing.assert_close(loss.value, F.cross_entropy(training.stage(batch.images), batch.labels))


def test_shift_moves_the_images_at_random(tiny):
    training = prepare(Fade(), shift=2)
    run(training, tiny)
    batch = training.seen[0][2]
    torch.manual_seed(5)
    (loss,) = training.losses(batch)
    torch.manual_seed(5)
    moved = augment(batch.images, 2, flips=False)
    torch.testing.assert_close(loss.value, F.cross_entropy(training.stage(moved), batch.labels))
    assert not torch.equal(moved, batch.images)


def test_batch_norm_is_in_training_mode(tiny):
    training = prepare(Fade(), repeats=2, lr=1e-2, low_lr=1e-2)
    before = training.stage.layers[1].running_mean.clone()
    run(training, tiny)
    assert all(mode for *_, mode in training.seen)
    assert not torch.equal(training.stage.layers[1].running_mean, before)


def test_the_victim_before_tuning_is_left_as_it_was(tiny):
    training = prepare(Fade(), lr=1e-2)
    before = content_hash(training.frozen["victim"].state_dict())
    run(training, tiny)
    assert content_hash(training.frozen["victim"].state_dict()) == before
    assert content_hash(training.stage.state_dict()) != before


def test_the_tuned_victim_has_the_shape_of_the_victim():
    victim = Small().eval().requires_grad_(False)
    tuned = build(None, None, victim)
    assert tuned is not victim
    assert content_hash(tuned.state_dict()) == content_hash(victim.state_dict())
    assert all(parameter.requires_grad for parameter in tuned.parameters())
    assert not any(parameter.requires_grad for parameter in victim.parameters())
    assert tuned(torch.rand(2, 1, 14, 14)).shape == (2, 4)


def test_what_the_victims_owner_froze_is_not_trained(tiny):
    victim = Small()
    victim.layers[0].requires_grad_(False)
    training = train(None, FineTuneRecipe(**{**QUICK, "lr": 1e-2}), None, victim, None)
    before = {name: value.clone() for name, value in training.stage.named_parameters()}
    run(training, tiny)
    still = {name for name, value in training.stage.named_parameters() if torch.equal(value, before[name])}
    assert still == {"layers.0.weight", "layers.0.bias"}


def test_a_figure_says_what_the_attacker_knew():
    # made on the victim before tuning: white-box of that, transfer to the tuned one, oblivious of a purifier
    kinds = ("clean", "pgd", "purified_clean", "purified_fgsm")
    assert [[name_figure("val", kind, when) for when in ("before", "after")] for kind in kinds] == [
        ["val_clean_before", "val_clean_after"],
        ["val_pgd_before", "val_pgd_transfer_after"],
        ["val_purified_clean_before", "val_purified_clean_after"],
        ["val_purified_fgsm_oblivious_before", "val_purified_fgsm_transfer_after"],
    ]


def test_pgd_made_anew_finds_what_the_old_images_do_not(tiny):
    figures = run(prepare(None, schedule="mix", repeats=8, lr=1e-2), tiny)
    assert figures["val_pgd_anew_after"] <= figures["val_pgd_transfer_after"]


@pytest.mark.parametrize("purifier", [None, Fade()])
def test_figures_before_and_after(tiny, purifier):
    training = prepare(purifier, schedule="mix", repeats=8, lr=1e-2)
    figures = run(training, tiny)
    kinds = CRAFTED if purifier is None else ALL
    made = {name_figure(s, k, w) for s in ("val", "test") for k in kinds for w in ("before", "after")}
    assert set(figures) == made | {"val_images", "test_images", "val_pgd_anew_after"}
    assert figures["val_images"] == len(tiny.labels("val")) and figures["test_images"] == len(tiny.labels("test"))
    seen = CRAFTED if purifier is None else PURIFIED
    before, after = (sum(figures[name_figure("val", kind, when)] for kind in seen) for when in ("before", "after"))
    assert after > before
    assert after / 3 == pytest.approx(max(training.scores))


@pytest.mark.parametrize(("purifier", "kinds"), [(None, CRAFTED), (Fade(), PURIFIED)])
def test_score_is_the_validation_accuracy_as_the_defence_sees_the_images(tiny, purifier, kinds):
    training = prepare(purifier, schedule="mix")
    training.data(tiny, CPU)
    training.stage.eval()
    right = []
    for kind in kinds:
        place = training._sets.kinds.index(kind)
        images = training._sets.pixels("val", CPU).unflatten(0, (-1, 8))[place].float() / 255
        right.append(training.stage(images).argmax(1) == tiny.labels("val"))
    assert training.score(tiny, CPU) == pytest.approx(float(torch.stack(right).float().mean()))


@pytest.mark.parametrize("stop_at", [3, 10, 33])
def test_an_interrupted_tuning_ends_as_an_uninterrupted_one(tmp_path, tiny, stop_at):
    whole = prepare(Fade(), lr=1e-2, low_lr=1e-3)
    run(whole, tiny, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(prepare(Fade(), stop_at=stop_at, lr=1e-2, low_lr=1e-3), tiny, tmp_path / "cut")
    again = prepare(Fade(), lr=1e-2, low_lr=1e-3)
    run(again, tiny, tmp_path / "cut")
    assert len(again.seen) == len(whole.seen) - stop_at
    assert content_hash(again.stage.state_dict()) == content_hash(whole.stage.state_dict())


def test_train_is_called_as_core_calls_it():
    victim = Small().eval()
    training = train(None, FineTuneRecipe(), None, victim, None)
    assert training.stage is training.modules["victim"]
    assert training.epochs == 7
    assert training.batch_size == 256
