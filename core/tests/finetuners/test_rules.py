"""MART, adversarial weight perturbation and overfitting to one step: equations by hand, and trainings that use them."""

import json
import math
import warnings

import attrs
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from defend.datasets.base import Batch, MemoryDataset
from defend.errors import ConfigError
from defend.finetuners import adversarial
from defend.finetuners.adversarial import train
from defend.finetuners.plugin import AdversarialRecipe
from defend.finetuners.rules import (
    Overfitting,
    Perturbation,
    average_weights,
    divergence,
    mart,
    misleads,
    raise_weights,
    steady_divergence,
)
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


class Tied(nn.Module):
    """One weight under two names."""

    def __init__(self, value):
        super().__init__()
        self.first = self.second = nn.Linear(1, 1)
        nn.init.constant_(self.first.weight, value)


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


class Wordy(TinyVictim):
    """Answers with more than its logits while it trains, as torchvision's googlenet does."""

    def forward(self, batch):
        logits = super().forward(batch)
        return (logits, logits.detach()) if self.training else logits


@pytest.mark.parametrize("recipe", [{"mode": "pgd"}, {"mode": "trades", "awp": 5e-3}, {"mode": "free", "replays": 2}])
def test_a_victim_that_answers_more_while_it_trains_is_tuned(recipe):
    figures = fit(prepare(Wordy(TASK), **recipe), quadrants(), FitSettings(), {"what": "test"})
    assert 0 <= figures["val_pgd_after"] <= 1


# ---- TRADES ----


def slope_of(loss, reference, logits):
    source = logits.clone().requires_grad_()
    (slope,) = torch.autograd.grad(loss(reference, source).sum(), source)
    return F.normalize(slope.double(), dim=1)


@pytest.mark.parametrize("factor", [0.01, 1.0, 5.0])
def test_the_steady_divergence_climbs_as_the_divergence(factor):
    torch.manual_seed(0)
    reference = factor * torch.randn(50, 5)
    near, far = reference + 0.1 * torch.randn(50, 5), factor * torch.randn(50, 5)
    for logits in (near, far):
        expected = slope_of(divergence, reference.double(), logits.double())
        torch.testing.assert_close(slope_of(steady_divergence, reference, logits), expected, atol=1e-3, rtol=0)


def test_of_a_certain_reference_the_steady_divergence_climbs_as_the_cross_entropy():
    # away from class 1: up by what the others share, which float32 rounds to zero in p - q
    reference = torch.tensor([[0.0, 600.0, 30.0]] * 2)
    logits = torch.tensor([[math.log(3.0), 600.0, 0.0], [0.0, 1.0, 600.0]])
    expected = F.normalize(torch.tensor([[0.75, -1.0, 0.25], [0.0, -1.0, 1.0]]).double(), dim=1)
    torch.testing.assert_close(slope_of(steady_divergence, reference, logits), expected, atol=1e-4, rtol=0)
    assert not slope_of(divergence, reference, logits)[0].any()


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


@pytest.mark.parametrize(("mode", "select"), [("fgsm", "best"), ("fgsm", "last"), ("free", "best")])
def test_overfitting_is_told_in_a_warning_and_in_the_card(monkeypatch, mode, select):
    course = iter([(0.6, 0.7), (0.0, 0.9), (0.0, 0.9)])
    kept = (0.6, 0.7) if select == "best" else (0.0, 0.9)

    def judged(model, dataset, eps, limit, device, eps_l2=None, single=False):
        pgd, one = next(course) if limit == adversarial.SCORED else kept
        return {"clean": 1.0, "pgd": pgd, **({"fgsm": one} if single else {})}

    monkeypatch.setattr(adversarial, "accuracies", judged)
    training = prepare(mode=mode, epochs=3, select=select)
    with pytest.warns(UserWarning, match="overfit") as told:
        figures = fit(training, quadrants(), FitSettings(), {"what": "test"})
    said = [str(each.message) for each in told if "overfit" in str(each.message)]
    assert said[0].startswith("catastrophic overfitting in epoch 2: of held-out images 0% stand PGD (before, 60%), 90%")
    assert len(said) == (1 if select == "best" else 2)
    assert figures["overfitted_in_epoch"] == 2 and figures["val_fgsm_after"] == kept[1]


@pytest.mark.parametrize("select", ["best", "last"])
@pytest.mark.filterwarnings("ignore:(catastrophic|the weights that are kept)")
def test_overfitting_is_remembered_whenever_a_training_is_resumed(monkeypatch, tmp_path, select):
    course, known = [(0.5, 0.55), (0.05, 0.95), (0.3, 0.35)], {}

    def judged(model, dataset, eps, limit, device, eps_l2=None, single=False):
        at = training.epoch if limit == adversarial.SCORED else -1
        if at == known.get("stop"):
            raise KeyboardInterrupt
        return {"clean": 1.0, "pgd": course[at][0], "fgsm": course[at][1]}

    def run(folder, stop=None, records=True):
        nonlocal training
        known["stop"], training = stop, prepare(mode="fgsm", epochs=3, select=select)
        if not records:  # as what older code kept
            training.records = {}
        settings = FitSettings(folder=tmp_path / folder, checkpoint_seconds=0.0)
        return fit(training, quadrants(), settings, {"what": "test"}).get("overfitted_in_epoch")

    training = None
    monkeypatch.setattr(adversarial, "accuracies", judged)
    assert [run("whole"), run("whole")] == [2.0, 2.0]
    with pytest.raises(KeyboardInterrupt):
        run("cut", stop=2)
    assert run("cut") == 2.0
    with pytest.raises(KeyboardInterrupt):
        run("old", stop=2, records=False)
    assert run("old") is None, "of epochs that nobody knows, never is not said"


def test_weights_that_never_withstood_pgd_are_seen_to_overfit_too():
    watch = Overfitting()
    seen = [watch.note(epoch, *pair) for epoch, pair in enumerate([(0.15, 0.25), (0.19, 0.35), (0.02, 0.9), (0, 1)], 1)]
    assert seen == [False, False, True, False] and watch.since == 3


@pytest.mark.parametrize(("name", "share"), [("clean_share", 0.2), ("l2_share", 0.1)])
def test_a_share_of_a_batch_that_is_no_image_is_refused(name, share):
    with pytest.raises(ConfigError, match=f"{name}={share} is no image of a batch of 2"):
        prepare(batch_size=2, **{name: share})


@pytest.mark.parametrize("frozen", [True, False])
def test_a_norm_that_its_owner_froze_keeps_its_statistics(frozen):
    victim = Normed()
    victim.layers[1].requires_grad_(not frozen)
    before = victim.layers[1].running_mean.clone()
    training = prepare(victim, epochs=2)
    fit(training, quadrants(), FitSettings(), {"what": "test"})
    norm = training.stage.layers[1]
    assert torch.equal(norm.running_mean, before) is frozen and int(norm.num_batches_tracked > 0) is int(not frozen)


def test_average_moves_tied_weights_once():
    learner, average = Tied(1.0), Tied(0.0)
    average_weights(average, learner, 0.5, step=100)
    assert average.first.weight is average.second.weight and average.first.weight.item() == pytest.approx(0.5)


@pytest.mark.parametrize("mode", ["pgd", "trades", "mart"])
def test_one_step_is_a_training_on_single_steps_in_any_mode(mode):
    assert prepare(mode=mode, steps=1).records and not prepare(mode=mode, steps=2).records


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


@pytest.mark.parametrize(
    "recipe",
    [
        {"mode": "mart", "clean_share": 0.2},
        {"mode": "fgsm", "step_size": 0.1},
        {"mode": "free", "step_size": 0.1},
        {"mode": "free", "l2_share": 0.5},
        {"mode": "pgd", "replays": 4},
        {"mode": "pgd", "beta": 5.0},
        {"mode": "free", "beta": 5.0},
    ],
)
def test_what_a_mode_does_not_take_is_refused(recipe):
    with pytest.raises(ConfigError, match=f"does nothing for mode={recipe['mode']}"):
        make(AdversarialRecipe, recipe, "the recipe")


# ---- free: a batch several times ----


def test_a_perturbation_goes_on_within_eps_and_leaves_clean_what_is_to_be():
    kept = Perturbation(3, (1, 1, 2))
    pictures = torch.tensor([[0.5, 0.95], [0.5, 0.5]]).view(2, 1, 1, 2)
    assert torch.equal(kept.apply_to(pictures, 0.1, 0), pictures)
    kept.step(torch.tensor([[1.0, 2.0], [-3.0, 0.0]]).view(2, 1, 1, 2), 0.1)
    torch.testing.assert_close(kept.apply_to(pictures, 0.1, 0).flatten(), torch.tensor([0.6, 1.0, 0.4, 0.5]))
    kept.step(torch.tensor([[1.0, -2.0], [3.0, 1.0]]).view(2, 1, 1, 2), 0.1)
    torch.testing.assert_close(kept.values.flatten(), torch.tensor([0.1, 0.0, 0.0, 0.1, 0.0, 0.0]))
    torch.testing.assert_close(kept.apply_to(pictures, 0.05, 1).flatten(), torch.tensor([0.5, 0.95, 0.5, 0.55]))


def test_free_steps_by_hand():
    # two pixels, two classes, plain gradient descent: what is shown, the loss and the weights, three times
    start, eps, rate = [[0.4, -0.3], [-0.2, 0.5]], 0.1, 0.5
    training = prepare(Linear(start), mode="free", replays=3, eps=eps)
    training._perturbation = Perturbation(2, (1, 1, 2))
    pictures, labels = torch.tensor([[0.2, 0.95], [0.7, 0.4]]).view(2, 1, 1, 2), torch.tensor([0, 1])
    weight, bias, change = torch.tensor(start), torch.zeros(2), torch.zeros(2, 2)
    count = 0
    for loss in training.losses(Batch(pictures, labels, labels)):
        shown = (pictures.flatten(1) + change).clamp(0, 1).requires_grad_()
        weight.requires_grad_(), bias.requires_grad_()
        value = F.cross_entropy(shown @ weight.T + bias, labels)
        by_weight, by_bias, by_image = torch.autograd.grad(value, (weight, bias, shown))
        assert loss.value.item() == pytest.approx(value.item(), abs=1e-6)
        loss.value.backward()
        torch.testing.assert_close(training.stage.weight.grad, by_weight)
        with torch.no_grad():
            for parameter in training.stage.parameters():
                parameter -= rate * parameter.grad
                parameter.grad = None
        weight, bias = (weight - rate * by_weight).detach(), (bias - rate * by_bias).detach()
        change = (change + eps * by_image.sign()).clamp(-eps, eps)
        count += 1
    torch.testing.assert_close(training._perturbation.values.flatten(1), change)
    assert count == 3 and float(change.abs().max()) == pytest.approx(eps)


def test_the_schedule_and_what_is_logged_count_every_replay(tmp_path):
    lines = {}
    for replays in (1, 4):
        training = prepare(mode="free", replays=replays, epochs=1, lr=1e-6, eps=1e-5)
        fit(training, quadrants(), FitSettings(folder=tmp_path / str(replays)), {"what": "test"})
        lines[replays] = json.loads((tmp_path / str(replays) / "metrics.jsonl").read_text().splitlines()[-1])
        assert training._cycle.last_epoch == training._steps == 4 * replays
    # hardly anything is changed and hardly anything learned, so the means over one and over four replays are the same
    assert lines[4]["victim_loss"] == pytest.approx(lines[1]["victim_loss"], rel=0.01)
    assert lines[4]["robust"] == pytest.approx(lines[1]["robust"], abs=0.05)


def test_free_training_needs_a_gradient_of_the_images():
    class Cutting(nn.Module):
        def forward(self, batch):
            return batch.detach()

    victim = TinyVictim(TASK).eval()
    recipe = make(AdversarialRecipe, {**QUICK, "mode": "free"}, "the recipe")
    training = train(None, recipe, TASK, victim, Cutting())
    training.optimisers(8)
    losses = training.losses(Batch(images(TASK, 4, 0), torch.arange(4), torch.arange(4)))
    with pytest.raises(ConfigError, match="lets none through to the images"):
        next(losses)


def test_free_training_raises_the_robust_accuracy():
    figures = fit(
        prepare(mode="free", epochs=2, lr=1e-2, warmup=0.25, eps=0.08), quadrants(), FitSettings(), {"what": "test"}
    )
    assert figures["val_pgd_after"] > figures["val_pgd_before"] + 0.4 and figures["overfitted_in_epoch"] == 0


# ---- an average of the weights ----


def test_the_average_by_hand():
    average, learner = Normed(), Normed()
    with torch.no_grad():
        for value in learner.parameters():
            value += 1
        learner.layers[1].running_mean += 2
        learner.layers[1].num_batches_tracked += 5
    before = {name: value.clone() for name, value in average.state_dict().items()}
    average_weights(average, learner, 0.9, 1)  # the first: d = 2/11, so 9/11 of the way
    name = "layers.0.weight"
    torch.testing.assert_close(average.state_dict()[name], before[name] + 9 / 11)
    torch.testing.assert_close(average.layers[1].running_mean, before["layers.1.running_mean"] + 2 * 9 / 11)
    assert int(average.layers[1].num_batches_tracked) == 5
    average_weights(average, learner, 0.9, 10_000)
    torch.testing.assert_close(average.state_dict()[name], before[name] + 1 - 0.1 * 0 - (1 - 9 / 11) * 0.9)
    assert all(value.requires_grad for value in average.parameters())


def test_what_learns_is_attacked_and_the_average_is_kept():
    training = prepare(Normed(), ema=0.5)
    learner = training.modules["victim"]
    assert learner is not training.stage and training.modules["average"] is training.stage
    learner.register_forward_hook(lambda *_: seen.append("learner"))
    training.stage.register_forward_hook(lambda *_: seen.append("average"))
    seen = []
    for loss in training.losses(Batch(images(TASK, 8, 0), torch.arange(8) % 4, torch.arange(8))):
        loss.value.backward()
        with torch.no_grad():
            learner.layers[0].weight += 1
        before = training.stage.layers[0].weight.clone()
    # after the step: 1 - d of the way, d = min(0.5, 1/10) at the schedule's first count
    torch.testing.assert_close(training.stage.layers[0].weight, before + 0.9)
    assert set(seen) == {"learner"}
    assert prepare(Normed()).modules.keys() == {"victim"}


class Jumping(adversarial.AdversarialTraining):
    """A rate that never falls, and three labels of ten that are wrong by chance: the last weights jump about."""

    def optimisers(self, steps):
        found = super().optimisers(steps)["victim"]
        self._cycle = torch.optim.lr_scheduler.LambdaLR(found.optimizer, lambda _: 1.0)
        return {"victim": attrs.evolve(found, schedule=self._cycle)}

    def losses(self, batch):
        wrong = torch.rand(len(batch.labels)) < 0.3
        yield from super().losses(attrs.evolve(batch, labels=(batch.labels + wrong) % 4))


def test_the_average_stands_more_than_weights_that_jump():
    stood = {}
    for ema in (0.0, 0.95):
        options = {"epochs": 12, "lr": 0.2, "batch_size": 8, "select": "last", "steps": 2, "ema": ema}
        recipe, victim = make(AdversarialRecipe, {**QUICK, **options}, "the recipe"), Linear([[0.0] * 196] * 4).eval()
        training = Jumping(adversarial.build(None, TASK, victim), recipe, TASK, victim, None)
        stood[ema] = fit(training, quadrants(), FitSettings(), {"what": "test"})["val_pgd_after"]
    assert stood[0.95] > stood[0.0] + 0.1, stood
