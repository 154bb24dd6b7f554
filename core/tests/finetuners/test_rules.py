"""MART, adversarial weight perturbation and overfitting to one step: equations by hand, and trainings that use them."""

import math
import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from defend.datasets.base import Batch, MemoryDataset
from defend.errors import ConfigError
from defend.finetuners import adversarial
from defend.finetuners.adversarial import train
from defend.finetuners.plugin import AdversarialRecipe
from defend.finetuners.rules import Overfitting, mart, misleads, raise_weights
from defend.options import make
from defend.stages import Task
from defend.testing.toys import TinyVictim, images
from defend.training.loop import FitSettings, fit

TASK = Task("tiny", 1, 14, 14, 4)
QUICK = {"eps": 0.1, "steps": 3, "batch_size": 24, "epochs": 2, "shift": 0, "warmup": 0.0}


class Linear(nn.Module):
    def __init__(self, weight):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(weight))
        self.bias = nn.Parameter(torch.zeros(len(weight)))

    def forward(self, batch):
        return batch.flatten(1) @ self.weight.T + self.bias


class Normed(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.layers = nn.Sequential(nn.Conv2d(1, 4, 3, stride=2), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, 4))

    def forward(self, batch):
        return self.layers(batch)


def prepare(victim=None, **recipe):
    victim = (victim or TinyVictim(TASK)).eval()
    training = train(None, make(AdversarialRecipe, {**QUICK, **recipe}, "the recipe"), TASK, victim, None)
    training.optimisers(8)
    training.stage.train()
    return training


def quadrants():
    """14x14 images of noise, one quadrant brighter than the others: that one's number is the class."""
    torch.manual_seed(0)
    pixels, labels = {}, {}
    for split, count in {"train": 96, "val": 48, "test": 8}.items():
        labels[split] = torch.arange(count) % 4
        raised = F.interpolate(F.one_hot(labels[split], 4).view(-1, 1, 2, 2).float(), scale_factor=7) * 0.4
        pixels[split] = ((raised + torch.rand(count, 1, 14, 14) * 0.6) * 255).byte()
    return MemoryDataset("tiny", list("abcd"), pixels, labels)


# ---- MART ----


def test_mart_by_hand():
    # q = (2, 1, 1)/4 of class 0: -log(1/2) - log(1 - 1/4). p = (1, 2, 1)/4: KL(p||q) = (1/4)log(1/2) + (1/2)log 2,
    # and 1 - p_y = 3/4.
    robust = torch.tensor([[2.0, 1.0, 1.0]]).log() + 7
    clean = torch.tensor([[1.0, 2.0, 1.0]]).log() - 3
    boosted, penalty = math.log(2) - math.log(0.75), 0.25 * math.log(2) * 0.75
    found = mart(clean, robust, torch.tensor([0]), 5.0)
    assert found.tolist() == pytest.approx([boosted + 5 * penalty], abs=1e-6)
    assert mart(clean, robust, torch.tensor([0]), 0.0).tolist() == pytest.approx([boosted], abs=1e-6)


def test_mart_is_that_of_its_code_where_that_is_exact():
    torch.manual_seed(0)
    clean, robust, labels = torch.randn(6, 5), torch.randn(6, 5), torch.arange(6) % 5
    p, q = clean.softmax(1).double(), robust.softmax(1).double()
    for place, label in enumerate(labels.tolist()):
        others = torch.cat([q[place, :label], q[place, label + 1 :]]).max()
        kl = (p[place] * (p[place] / q[place]).log()).sum()
        expected = -q[place, label].log() - (1 - others).log() + 6 * kl * (1 - p[place, label])
        assert mart(clean, robust, labels, 6.0)[place].item() == pytest.approx(expected.item(), abs=1e-5)


def test_mart_of_a_wrong_and_certain_answer_is_finite_and_has_a_slope():
    robust = torch.tensor([[0.0, 60.0]], requires_grad=True)
    loss = mart(torch.tensor([[50.0, 0.0]]), robust, torch.tensor([0]), 5.0)
    loss.sum().backward()
    assert torch.isfinite(loss).all() and torch.isfinite(robust.grad).all() and robust.grad[0, 1] > 1


# ---- AWP ----


def test_weights_are_raised_by_a_share_of_their_length_by_hand():
    weights = {"a": torch.tensor([[3.0, 4.0]]), "b": torch.tensor([5.0]), "c": torch.ones(1, 2)}
    slopes = {"a": torch.tensor([[0.0, -2.0]]), "b": torch.tensor([1.0]), "c": torch.zeros(1, 2)}
    moved = raise_weights(weights, slopes, 0.1)
    torch.testing.assert_close(moved["a"], torch.tensor([[3.0, 3.5]]))  # 0.1 * 5 along (0, -1)
    torch.testing.assert_close(moved["c"], weights["c"])
    assert "b" not in moved


def test_the_gradient_of_awp_is_that_at_the_raised_weights(monkeypatch):
    start, share = [[0.4, -0.3], [-0.2, 0.5]], 0.2
    training = prepare(Linear(start), awp=share)
    pictures, labels = torch.tensor([[0.2, 0.9], [0.7, 0.4]]).view(2, 1, 1, 2), torch.tensor([0, 1])
    monkeypatch.setattr(training, "craft", lambda some, _: some)
    (loss,) = training.losses(Batch(pictures, labels, labels))
    loss.value.backward()

    weight = torch.tensor(start, requires_grad=True)
    (slope,) = torch.autograd.grad(F.cross_entropy(pictures.flatten(1) @ weight.T, labels), weight)
    raised = (weight + share * weight.norm() * slope / slope.norm()).detach().requires_grad_()
    value = F.cross_entropy(pictures.flatten(1) @ raised.T, labels)
    value.backward()
    assert loss.value.item() == pytest.approx(value.item(), abs=1e-6)
    torch.testing.assert_close(training.stage.weight.grad, raised.grad)
    torch.testing.assert_close(training.stage.weight.detach(), torch.tensor(start))  # where it was


@pytest.mark.parametrize("mode", ["pgd", "trades", "mart", "fgsm"])
def test_awp_raises_the_loss_and_moves_batch_norms_statistics_once(mode, monkeypatch):
    pictures = images(TASK, 16, 0)
    batch, found, seen = Batch(pictures, torch.arange(16) % 4, torch.arange(16)), {}, {}
    for size in (0.0, 0.05):
        training = prepare(Normed(), mode=mode, awp=size)
        monkeypatch.setattr(training, "craft", lambda some, _: 1 - some)
        (loss,) = training.losses(batch)
        loss.value.backward()
        found[size], seen[size] = loss.value.item(), int(training.stage.layers[1].num_batches_tracked)
        assert all(parameter.grad is not None for parameter in training.stage.parameters())
    assert found[0.05] > found[0.0] and seen == {0.0: 1, 0.05: 1}


# ---- one step, and overfitting to it ----


def test_fgsm_takes_one_step_of_one_and_a_quarter_eps_from_a_random_start(monkeypatch):
    seen = []

    def watched(model, shown, start, objective, *, eps, steps, step_size, norm):
        seen.append((eps, steps, step_size, norm, float((start - shown).abs().max())))
        return shown

    monkeypatch.setattr(adversarial, "climb", watched)
    prepare(mode="fgsm", eps=0.08).craft(images(TASK, 8, 0), torch.zeros(8, dtype=torch.long))
    ((eps, steps, size, norm, far),) = seen
    assert (eps, steps, norm) == (0.08, 1, "linf") and size == pytest.approx(0.1) and 0.07 < far <= 0.08


def test_overfitting_is_a_fall_under_pgd_while_one_step_stays():
    watch = Overfitting()
    course = [(0.3, 0.5), (0.5, 0.6), (0.45, 0.6), (0.2, 0.3), (0.1, 0.9), (0.0, 1.0)]
    assert [watch.note(epoch, *each) for epoch, each in enumerate(course, 1)] == [False] * 4 + [True, False]
    assert watch.since == 5 and watch.best == (0.5, 0.6)  # the fourth lost both, which is no such overfitting
    assert misleads(0.1, 0.9) and not misleads(0.45, 0.6) and not misleads(0.6, 0.9) and not misleads(0.0, 0.1)


@pytest.mark.parametrize("select", ["best", "last"])
def test_overfitting_is_told_in_a_warning_and_in_the_card(monkeypatch, select):
    course = iter([(0.6, 0.7), (0.0, 0.9), (0.0, 0.9)])
    kept = (0.6, 0.7) if select == "best" else (0.0, 0.9)

    def judged(model, dataset, eps, limit, device, eps_l2=None, single=False):
        pgd, one = next(course) if limit == adversarial.SCORED else kept
        return {"clean": 1.0, "pgd": pgd, **({"fgsm": one} if single else {})}

    monkeypatch.setattr(adversarial, "accuracies", judged)
    training = prepare(mode="fgsm", epochs=3, select=select)
    with pytest.warns(UserWarning, match="overfit") as told:
        figures = fit(training, quadrants(), FitSettings(), {"what": "test"})
    said = [str(each.message) for each in told if "overfit" in str(each.message)]
    assert said[0].startswith("catastrophic overfitting in epoch 2: of held-out images 0% stand PGD (before, 60%), 90%")
    assert len(said) == (1 if select == "best" else 2)
    assert figures["overfitted_in_epoch"] == 2 and figures["val_fgsm_after"] == kept[1]


def test_a_training_on_single_steps_measures_one_step_too_and_others_do_not():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figures = fit(prepare(mode="fgsm", eps=0.05, epochs=4, lr=1e-2), quadrants(), FitSettings(), {"what": "test"})
    assert figures["overfitted_in_epoch"] == 0 and figures["val_pgd_after"] > figures["val_pgd_before"]
    assert figures["val_fgsm_after"] >= figures["val_pgd_after"] - 0.05


@pytest.mark.parametrize("recipe", [{"mode": "mart", "beta": 5.0}, {"awp": 5e-3}, {"mode": "trades", "awp": 5e-3}])
def test_the_modes_raise_the_robust_accuracy(recipe):
    figures = fit(
        prepare(epochs=8, lr=1e-2, warmup=0.25, eps=0.08, **recipe), quadrants(), FitSettings(), {"what": "test"}
    )
    assert figures["val_pgd_after"] > figures["val_pgd_before"] + 0.4 and "val_fgsm_after" not in figures


@pytest.mark.parametrize("recipe", [{"mode": "mart", "clean_share": 0.2}, {"mode": "fgsm", "step_size": 0.1}])
def test_what_a_mode_does_not_take_is_refused(recipe):
    with pytest.raises(ConfigError, match=f"does nothing for mode={recipe['mode']}"):
        make(AdversarialRecipe, recipe, "the recipe")
