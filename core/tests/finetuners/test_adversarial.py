"""Adversarial training: update rules by hand, what is crafted, what crafting leaves alone, and what comes out."""

import math
from functools import partial

import attrs
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from defend.assembly.composition import Composition
from defend.assembly.load import open_dataset
from defend.attacks import balls
from defend.attacks.balls import random_start, unit
from defend.attacks.host import craft
from defend.attacks.iterated import Pgd
from defend.attacks.options import PgdOptions
from defend.attacks.target import Target
from defend.datasets.base import Batch, MemoryDataset
from defend.defence import Defence
from defend.errors import ConfigError
from defend.finetuners import adversarial
from defend.finetuners.adversarial import build, climb, divergence, still, train, warm
from defend.finetuners.plugin import AdversarialRecipe
from defend.options import NoOptions, make
from defend.plugins import Registry
from defend.randomness import uniform_like
from defend.stages import Task
from defend.testing.contracts import FinetunerContract
from defend.testing.toys import Multiplied, TinyVictim, images
from defend.training.loop import FitSettings, fit
from defend.training.stage import train_stage
from defend.util.tensors import content_hash
from defend.weights.card import read_card

TASK = Task("tiny", 1, 14, 14, 4)
SIZES = {"train": 96, "val": 48, "test": 8}
QUICK = {"eps": 0.1, "steps": 3, "batch_size": 24, "epochs": 2, "shift": 0, "warmup": 0.0}
CPU = torch.device("cpu")


class TestAdversarial(FinetunerContract):
    name = "adversarial"
    recipe = {**QUICK, "epochs": 1, "steps": 1}


class Normed(nn.Module):
    """A victim with batch norm and dropout, which tell train mode from eval mode."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.layers = nn.Sequential(
            nn.Conv2d(1, 4, 3, stride=2), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Dropout(0.5), nn.Linear(144, 4)
        )

    def forward(self, batch):
        return self.layers(batch)


class Linear(nn.Module):
    """Two pixels to two classes, without a bias."""

    def __init__(self, weight):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(weight))

    def forward(self, batch):
        return batch.flatten(1) @ self.weight.T


class Scale(nn.Module):
    """A purifier with a weight of its own."""

    random = False

    def __init__(self, factor=0.5):
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(factor))

    def forward(self, batch):
        return 0.5 + self.factor * (batch - 0.5)


class Jitter(nn.Module):
    """A random purifier, which remembers its draws."""

    random = True

    def __init__(self):
        super().__init__()
        self.draws = []

    def forward(self, batch):
        noise = uniform_like(batch, 0.0, 0.1)
        self.draws.append(noise)
        return 0.9 * batch + noise


class Blocking(nn.Module):
    random = False

    def forward(self, batch):
        return batch.detach()


@pytest.fixture(scope="module")
def tiny():
    """14x14 images of noise, one quadrant brighter than the others: that one's number is the class."""
    torch.manual_seed(0)
    pixels, labels = {}, {}
    for split, count in SIZES.items():
        labels[split] = torch.arange(count) % 4
        bright = F.one_hot(labels[split], 4).view(-1, 1, 2, 2).float()
        raised = F.interpolate(bright, scale_factor=7) * 0.4
        pixels[split] = ((raised + torch.rand(count, 1, 14, 14) * 0.6) * 255).byte()
    return MemoryDataset("tiny", list("abcd"), pixels, labels)


def prepare(victim=None, purifier=None, **recipe):
    """A training as `fit` would have it before its first step."""
    options = make(AdversarialRecipe, {**QUICK, **recipe}, "the recipe")
    training = train(None, options, TASK, (victim or TinyVictim(TASK)).eval(), purifier)
    for module in training.frozen.values():
        module.requires_grad_(False)
    training.optimisers(8)
    training.stage.train()
    return training


def run(training, dataset, folder=None):
    return fit(training, dataset, FitSettings(seed=1, folder=folder, checkpoint_seconds=0.0), {"what": "test"})


def batch_of(count=8, seed=0):
    pictures = images(TASK, count, seed)
    return Batch(pictures, TinyVictim(TASK)(pictures).argmax(1), torch.arange(count))


# ---- the rules, by hand ----


def test_pgd_steps_by_hand():
    # Logit 1 rises with pixel 0 and falls with pixel 1: away from class 0 is up and down. Steps of 0.03 in a ball of
    # 0.05, so the second one is cut; 0.98 meets the box first, and a pixel without weight stays where it started.
    model = Linear([[0.0, 0.0, 0.0], [2.0, -1.0, 0.0]])
    pictures = torch.tensor([[0.5, 0.5, 0.5], [0.98, 0.01, 0.2]]).view(2, 1, 1, 3)
    away = partial(F.cross_entropy, target=torch.tensor([0, 0]), reduction="none")
    rule = {"eps": 0.05, "step_size": 0.03}
    one = climb(model, pictures, pictures, away, steps=1, **rule).flatten(1)
    two = climb(model, pictures, pictures, away, steps=2, **rule).flatten(1)
    torch.testing.assert_close(one, torch.tensor([[0.53, 0.47, 0.5], [1.0, 0.0, 0.2]]))
    torch.testing.assert_close(two, torch.tensor([[0.55, 0.45, 0.5], [1.0, 0.0, 0.2]]))
    far = climb(model, pictures, pictures + 0.2, away, steps=1, **rule).flatten(1)
    torch.testing.assert_close(far[0], torch.tensor([0.55, 0.52, 0.55]))


def test_l2_steps_by_hand():
    # Away from class 0 is along (2, -1): steps of 0.02 in a ball of 0.03, so the second one is cut.
    model = Linear([[0.0, 0.0], [2.0, -1.0]])
    pictures = torch.tensor([[0.5, 0.5], [0.5, 0.5]]).view(2, 1, 1, 2)
    away = partial(F.cross_entropy, target=torch.tensor([0, 0]), reduction="none")
    along = torch.tensor([2.0, -1.0]) / math.sqrt(5)
    for steps, length in ((1, 0.02), (2, 0.03)):
        found = climb(model, pictures, pictures, away, eps=0.03, steps=steps, step_size=0.02, norm="l2").flatten(1)
        torch.testing.assert_close(found, (0.5 + length * along).expand(2, 2))
    assert unit(torch.zeros(1, 1, 2, 2)).abs().sum() == 0


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_random_starts_fill_their_ball(norm):
    torch.manual_seed(0)
    moved = random_start(torch.full((400, 1, 3, 3), 0.5), 0.2, norm) - 0.5
    length = moved.flatten(1).norm(dim=1) if norm == "l2" else moved.abs().flatten(1).amax(1)
    assert length.max() <= 0.2 + 1e-6 and length.max() > 0.19
    assert moved.flatten(1).mean(0).abs().max() < 0.02
    if norm == "l2":
        assert length.mean().item() == pytest.approx(0.1, abs=0.01)


def test_divergence_by_hand():
    even, three_to_one = [0.0, 0.0], [math.log(3.0), 0.0]
    found = divergence(torch.tensor([three_to_one, even]), torch.tensor([[5.0, 5.0], three_to_one]))
    to_even = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)
    from_even = 0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(0.5 / 0.25)
    assert found.tolist() == pytest.approx([to_even, from_even], abs=1e-6)


def test_loss_and_gradient_of_trades_by_hand(monkeypatch):
    training = prepare(Linear([[0.4, -0.3], [-0.2, 0.5]]), mode="trades", beta=3.0)
    pictures = torch.tensor([[0.2, 0.9], [0.7, 0.4]])
    crafted = torch.tensor([[0.3, 0.8], [0.6, 0.5]])
    monkeypatch.setattr(training, "craft", lambda *_: crafted.view(2, 1, 1, 2))
    labels = torch.tensor([0, 1])
    (loss,) = training.losses(Batch(pictures.view(2, 1, 1, 2), labels, labels))
    loss.value.backward()

    weight = training.stage.weight.detach().double()
    value, slope = 0.0, torch.zeros(2, 2, dtype=torch.float64)
    for x, near, label in zip(pictures.double(), crafted.double(), labels, strict=True):
        p, q = (weight @ x).softmax(0), (weight @ near).softmax(0)
        right = F.one_hot(label, 2)
        kl = (p * (p / q).log()).sum()
        value += (-p[label].log() + 3 * kl) / 2
        clean = (p - right) + 3 * p * ((p / q).log() - kl)  # d loss / d clean logits
        slope += (torch.outer(clean, x) + 3 * torch.outer(q - p, near)) / 2
    assert loss.value.item() == pytest.approx(value.item(), abs=1e-6)
    torch.testing.assert_close(training.stage.weight.grad.double(), slope, atol=1e-6, rtol=0)
    assert loss.metrics["accuracy"] in (0.0, 0.5, 1.0)


def test_loss_of_pgd_is_cross_entropy_on_what_was_crafted(monkeypatch):
    training, batch = prepare(clean_share=0.3), batch_of(8)
    monkeypatch.setattr(training, "craft", lambda some, _: 1 - some)
    (loss,) = training.losses(batch)
    mixed = torch.cat([batch.images[:2], 1 - batch.images[2:]])
    torch.testing.assert_close(loss.value, F.cross_entropy(training.stage(mixed), batch.labels))


@pytest.mark.parametrize(
    ("warmup", "shares"), [(0.0, [1, 1, 1, 1]), (0.5, [0.5, 1, 1, 1]), (1.0, [0.25, 0.5, 0.75, 1]), (0.1, [1, 1, 1, 1])]
)
def test_eps_grows_linearly_to_its_full_size(warmup, shares):
    assert [warm(step, 4, warmup) for step in range(4)] == pytest.approx(shares)


# ---- what is crafted ----

BUDGETS, LENGTHS = st.floats(0, 1, exclude_min=True), st.floats(0, 3, exclude_min=True)


@settings(max_examples=40)
@given(eps=BUDGETS, size=BUDGETS, mode=st.sampled_from(["pgd", "trades"]), seed=st.integers(0, 99))
def test_what_is_crafted_keeps_to_eps_and_box(eps, size, mode, seed):
    torch.manual_seed(seed)
    batch = batch_of(2, seed)
    found = prepare(mode=mode, eps=eps, steps=2, step_size=size).craft(batch.images, batch.labels)
    assert (found - batch.images).abs().max() <= eps + 1e-6
    assert found.min() >= 0 and found.max() <= 1
    assert not found.requires_grad


@settings(max_examples=40)
@given(
    eps=st.floats(0, 3, exclude_min=True),
    share=st.just(0.0) | st.floats(1 / 24, 1),
    mode=st.sampled_from(["pgd", "trades"]),
    seed=st.integers(0, 99),
)
def test_a_share_is_crafted_in_l2_and_keeps_to_its_budget(eps, share, mode, seed):
    torch.manual_seed(seed)
    batch = batch_of(4, seed)
    training = prepare(mode=mode, eps=0.05, steps=2, l2_share=share, eps_l2=eps if share else None)
    found = training.craft(batch.images, batch.labels)
    count, moved = round(4 * share), (found - batch.images).flatten(1)
    assert (moved[:count].norm(dim=1) <= eps + 1e-5).all()
    assert moved[count:].numel() == 0 or moved[count:].abs().max() <= 0.05 + 1e-6
    assert found.shape == batch.images.shape and found.min() >= 0 and found.max() <= 1


def test_the_l2_budget_is_that_of_a_run_unless_given(monkeypatch):
    seen = []

    def watched(*arguments, eps, step_size, norm, **others):
        seen.append((norm, eps, step_size, len(arguments[1])))
        return climb(*arguments, eps=eps, step_size=step_size, norm=norm, **others)

    monkeypatch.setattr(adversarial, "climb", watched)
    batch = batch_of(8)
    for given_eps, expected in ((None, 0.1 * 14 / 4), (0.6, 0.6)):
        seen.clear()
        prepare(l2_share=0.25, eps_l2=given_eps, step_size=0.07).craft(batch.images, batch.labels)
        assert seen == [("l2", pytest.approx(expected), pytest.approx(2.5 * expected / 3), 2), ("linf", 0.1, 0.07, 6)]


@pytest.mark.parametrize("mode", ["pgd", "trades"])
def test_crafting_raises_the_objective_beyond_its_random_start(mode):
    training, batch = prepare(mode=mode, steps=8, eps=0.05), batch_of(16)
    crafted = training.craft(batch.images, batch.labels)
    started = (batch.images + 0.05 * uniform_like(batch.images, -1, 1)).clamp(0, 1)
    with torch.no_grad():
        clean, near, far = (training.stage(some) for some in (batch.images, started, crafted))
    if mode == "trades":
        assert divergence(clean, far).mean() > 5 * divergence(clean, near).mean()
    else:
        assert F.cross_entropy(far, batch.labels) > 2 * F.cross_entropy(near, batch.labels)


@pytest.mark.parametrize("mode", ["pgd", "trades", "mart", "fgsm"])
def test_what_is_crafted_is_what_the_literal_objective_says_where_it_says_anything(mode, monkeypatch):
    batch, found = batch_of(16), []
    for literal in (False, True):
        if literal:
            monkeypatch.setattr(adversarial, "steady_divergence", divergence)
            away = partial(partial, F.cross_entropy, reduction="none")
            monkeypatch.setattr(adversarial, "away_from", lambda labels, away=away: away(target=labels))
        torch.manual_seed(0)
        found.append(prepare(mode=mode, l2_share=0.5).craft(batch.images, batch.labels))
    torch.testing.assert_close(*found, atol=1e-4, rtol=0)


@pytest.mark.parametrize("mode", ["pgd", "mart", "fgsm"])
def test_a_saturated_victims_images_are_crafted_as_an_unsaturated_ones(mode):
    # of two classes the steps are along the difference of logits, whatever it is multiplied by
    weight = torch.randn(2, 196, generator=torch.Generator().manual_seed(0)).tolist()
    pictures, found = images(TASK, 8, 0), []
    labels = Linear(weight)(pictures).argmax(1)
    for factor in (1.0, 1e4):
        torch.manual_seed(0)
        found.append(prepare(Multiplied(Linear(weight), factor), mode=mode, l2_share=0.5).craft(pictures, labels))
    torch.testing.assert_close(*found, atol=1e-5, rtol=0)


@pytest.mark.parametrize("mode", ["pgd", "trades", "mart", "fgsm"])
def test_a_saturated_victims_images_are_attacked(mode):
    batch, victim = batch_of(32), TinyVictim(TASK)
    training = prepare(Multiplied(victim, 1e5), mode=mode, l2_share=0.5, eps=0.2)
    training._look(batch.images, batch.labels)
    crafted = training.craft(batch.images, batch.labels)
    with torch.no_grad():
        before, after = (
            F.cross_entropy(victim(some), batch.labels, reduction="none") for some in (batch.images, crafted)
        )
    assert (after > before).all()


def test_the_card_judges_a_saturated_victim_as_another(tiny):
    victim = Linear((0.2 * torch.randn(4, 196, generator=torch.Generator().manual_seed(0))).tolist())
    with torch.no_grad():
        victim.weight += F.interpolate(torch.eye(4).view(4, 1, 2, 2), scale_factor=7).flatten(1) * 0.2
    plain, saturated = (
        adversarial.accuracies(Defence(Multiplied(victim, factor)), tiny, 0.08, 48, CPU, 0.6, True)
        for factor in (1, 1e5)
    )
    assert plain["clean"] == 1 and max(plain["fgsm"], plain["pgd_l2"]) < 0.7
    assert all(saturated[kind] < plain[kind] + 0.1 for kind in plain)


def test_free_training_of_a_saturated_victim_is_refused_or_told_of():
    def take_two_steps(factor):
        training, batch = prepare(Multiplied(TinyVictim(TASK), factor), mode="free", eps=1e-4), batch_of(24)
        for _ in range(2):
            next(iter(training.losses(batch)))

    told = "mode=free needs the gradient of the cross-entropy itself, and float32 rounds that to zero at "
    with pytest.raises(ConfigError, match=f"{told}every image, .* take mode=fgsm, or divide the logits"):
        take_two_steps(1e6)
    with pytest.warns(UserWarning, match=rf"{told}\d\d of 24 images"):
        take_two_steps(150.0)
    take_two_steps(1.0)


@pytest.mark.parametrize(("given_size", "sizes"), [(None, [0.0125, 0.025, 0.025]), (0.04, [0.02, 0.04, 0.04])])
def test_eps_and_step_grow_together_while_training(tiny, monkeypatch, given_size, sizes):
    seen = []

    def watched(*arguments, eps, step_size, **others):
        seen.append((eps, step_size))
        return climb(*arguments, eps=eps, step_size=step_size, **others)

    monkeypatch.setattr(adversarial, "climb", watched)
    run(prepare(eps=0.1, steps=10, step_size=given_size, warmup=2 / 3, epochs=1, batch_size=32, select="last"), tiny)
    assert [eps for eps, _ in seen] == pytest.approx([0.05, 0.1, 0.1])
    assert [size for _, size in seen] == pytest.approx(sizes)


def test_images_that_the_share_leaves_clean_are_not_crafted(monkeypatch):
    training, batch, crafted = prepare(clean_share=0.5), batch_of(8), []
    monkeypatch.setattr(training, "craft", lambda some, labels: crafted.append((some, labels)) or some)
    list(training.losses(batch))
    assert torch.equal(crafted[0][0], batch.images[4:]) and torch.equal(crafted[0][1], batch.labels[4:])


# ---- what crafting leaves alone ----


@pytest.mark.parametrize("mode", ["pgd", "trades"])
def test_crafting_leaves_batch_norm_modes_and_gradients_alone(mode):
    training, batch = prepare(Normed(), mode=mode), batch_of(8)
    training.stage.layers[1].eval()
    before = content_hash(training.stage.state_dict())
    training.craft(batch.images, batch.labels)
    assert content_hash(training.stage.state_dict()) == before
    assert [part.training for part in training.stage.layers] == [True, False, True, True, True, True]
    assert all(parameter.requires_grad and parameter.grad is None for parameter in training.stage.parameters())


def test_crafting_sees_eval_mode_and_frozen_weights_the_loss_train_mode(tiny):
    class Watching(TinyVictim):
        def forward(self, batch):
            seen.append((self.training, self.head.weight.requires_grad, len(batch)))
            return super().forward(batch)

    # the first pass looks for a gradient; trades has one for each reference, and both kinds in its loss
    for mode, passes, size in (("pgd", 4, 8), ("trades", 6, 16)):
        seen = []
        list(prepare(Watching(TASK), mode=mode).losses(batch_of(8)))
        assert seen == [(False, False, 8)] * passes + [(True, True, size)]


def test_a_network_held_still_is_let_go_after_an_error():
    network = Normed().train()
    network.layers[0].weight.requires_grad_(False)

    def fail():
        with still(network):
            assert not network.layers[1].training and not network.layers[1].weight.requires_grad
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert network.layers[1].training and network.layers[1].weight.requires_grad
    assert not network.layers[0].weight.requires_grad


def test_what_holds_the_weights_is_a_copy_that_learns():
    victim = Normed().eval().requires_grad_(False)
    tuned = build(None, TASK, victim)
    assert content_hash(tuned.state_dict()) == content_hash(victim.state_dict())
    assert all(parameter.requires_grad for parameter in tuned.parameters())
    assert not any(parameter.requires_grad for parameter in victim.parameters())


@pytest.mark.parametrize("ema", [False, True])
@pytest.mark.filterwarnings("ignore:.*torch.jit", "ignore:.*weight_norm")
def test_victims_of_any_kind_are_copied_with_what_was_set_on_them(ema):
    layer = nn.Linear(TASK.height * TASK.width, TASK.classes)
    layer.bias.requires_grad_(False)
    plain = nn.Sequential(nn.Flatten(), layer)
    script = torch.jit.script(plain.eval())
    weighed = nn.Sequential(nn.Flatten(), torch.nn.utils.weight_norm(nn.Linear(layer.in_features, TASK.classes)))
    for victim in (script, weighed):
        victim.random, before = True, victim(images(TASK, 2)).detach()
        tuned = build(NoOptions(), TASK, victim)
        training = train(NoOptions(), AdversarialRecipe(ema=0.9 if ema else 0.0), TASK, tuned, None)
        for copied in (tuned, training._learner):
            assert copied is not victim and copied.random
            torch.testing.assert_close(copied(images(TASK, 2)), before)
            flags = [parameter.requires_grad for parameter in copied.parameters()]
            assert flags == [parameter.requires_grad for parameter in victim.parameters()]
            assert not {id(one) for one in copied.parameters()} & {id(one) for one in victim.parameters()}


class Owned(Normed):
    """A victim whose owner keeps its normalisation, its backbone and a table of whole numbers as they are."""

    def __init__(self):
        super().__init__()
        self.mean = nn.Parameter(torch.tensor(0.5), requires_grad=False)
        self.order = nn.Parameter(torch.arange(4), requires_grad=False)
        self.layers[0].requires_grad_(False)

    def forward(self, batch):
        return self.layers(batch - self.mean)[:, self.order]


@pytest.mark.parametrize("options", [{}, {"mode": "trades", "awp": 0.01}, {"mode": "free"}, {"ema": 0.5}])
def test_what_the_victims_owner_froze_is_not_trained(tiny, options):
    victim = Owned()
    training = train(None, make(AdversarialRecipe, {**QUICK, **options}, "r"), TASK, victim, None)
    before = {name: value.clone() for name, value in training.stage.named_parameters()}
    flags = {name: value.requires_grad for name, value in victim.named_parameters()}
    run(training, tiny)
    moved = {name for name, value in training.stage.named_parameters() if not torch.equal(value, before[name])}
    assert {"layers.5.weight", "layers.1.weight"} <= moved
    assert not moved & {"mean", "order", "layers.0.weight", "layers.0.bias"}
    assert {name: value.requires_grad for name, value in training.stage.named_parameters()} == flags
    every = build(None, TASK, victim.requires_grad_(False))
    assert {name for name, value in every.named_parameters() if not value.requires_grad} == {"order"}


# ---- behind a purifier ----


def test_crafting_goes_through_the_purifier(monkeypatch):
    # A purifier that turns images into negatives turns every gradient around.
    batch, found = batch_of(8), []
    for purifier in (None, Scale(-1.0)):
        training = prepare(purifier=purifier, steps=1, step_size=0.02)
        shown = batch.images if purifier is None else (1 - batch.images)
        monkeypatch.setattr(balls, "uniform_like", lambda some, *_: torch.zeros_like(some))
        found.append(training.craft(shown, batch.labels) - shown)
    inside = (batch.images > 0.02) & (batch.images < 0.98)
    torch.testing.assert_close(found[0][inside], -found[1][inside], atol=1e-6, rtol=0)
    assert found[0].abs().max() > 0.019


@pytest.mark.parametrize("mode", ["pgd", "trades"])
def test_the_loss_is_of_the_purified_images_and_leaves_the_purifier_alone(mode, monkeypatch):
    purifier, batch = Scale(), batch_of(8)
    training = prepare(purifier=purifier, mode=mode, **({"beta": 2.0} if mode == "trades" else {}))
    monkeypatch.setattr(training, "craft", lambda some, _: 1 - some)
    (loss,) = training.losses(batch)
    loss.value.backward()
    clean, logits = training.stage(purifier(batch.images)), training.stage(purifier(1 - batch.images))
    trades = F.cross_entropy(clean, batch.labels) + 2 * divergence(clean, logits).mean()
    expected = trades if mode == "trades" else F.cross_entropy(logits, batch.labels)
    torch.testing.assert_close(loss.value, expected)
    assert purifier.factor.grad is None


@pytest.mark.parametrize(("mode", "passes"), [("pgd", 4), ("trades", 5)])
def test_a_random_purifier_draws_anew_for_every_step_and_for_the_loss(mode, passes):
    purifier = Jitter()
    list(prepare(purifier=purifier, mode=mode).losses(batch_of(8)))
    others = purifier.draws[-passes:]  # the first say whether there is a gradient at all
    assert len(others) == passes
    assert len({draws[:8].sum().item() for draws in others}) == passes


def test_a_purifier_that_lets_no_gradient_through_is_refused():
    with pytest.raises(ConfigError, match="needs a gradient, and victim or purifier lets none through"):
        list(prepare(purifier=Blocking()).losses(batch_of(8)))


class Rounding(nn.Module):
    """A purifier whose gradient is there, and zero."""

    random = False

    def forward(self, batch):
        return (4 * batch).round() / 4


@pytest.mark.parametrize("mode", ["pgd", "trades", "mart", "fgsm", "free"])
def test_a_purifier_whose_gradient_is_zero_is_refused(mode):
    training = prepare(purifier=Rounding(), mode=mode, step_size=None)
    next(iter(training.losses(batch_of(8))))  # as of a network that begins with zeros
    with pytest.raises(ConfigError, match="is zero at every image: what it would learn and measure are unattacked"):
        next(iter(training.losses(batch_of(8))))


# ---- whole trainings ----


def measured(model, dataset, eps):
    keys = dataset.keys("val")
    (batch,) = dataset.batches("val", keys, len(keys), CPU)
    attack = Pgd(make(PgdOptions, {"steps": 10}, "pgd"))
    attacked = craft(attack, Target(model), batch.images, batch.labels, eps=eps, keys=batch.keys)
    with torch.no_grad():
        return [float((model(some).argmax(1) == batch.labels).float().mean()) for some in (batch.images, attacked)]


@pytest.mark.parametrize("mode", ["pgd", "trades"])
def test_training_in_both_norms_raises_what_stands_both(tiny, mode):
    training = prepare(mode=mode, epochs=10, lr=1e-2, warmup=0.25, eps=0.06, l2_share=0.5, eps_l2=0.6)
    figures = run(training, tiny)
    kinds = ("clean", "pgd", "pgd_l2", "pgd_both")
    assert set(figures) == {"val_images", *(f"val_{kind}_{when}" for kind in kinds for when in ("before", "after"))}
    assert figures["val_pgd_both_after"] > figures["val_pgd_both_before"] + 0.4
    for when in ("before", "after"):
        each = [figures[f"val_{kind}_{when}"] for kind in ("pgd", "pgd_l2")]
        assert max(0, sum(each) - 1) - 1e-6 <= figures[f"val_pgd_both_{when}"] <= min(each)
    assert training.score(tiny, CPU) == pytest.approx(figures["val_pgd_both_after"]), "both decide which epoch is kept"


@pytest.mark.parametrize(("mode", "purifier"), [("pgd", None), ("trades", None), ("pgd", Scale()), ("trades", Scale())])
def test_training_raises_the_robust_accuracy_and_the_card_says_so(tiny, mode, purifier):
    training = prepare(purifier=purifier, mode=mode, epochs=8, lr=1e-2, warmup=0.25, eps=0.08)
    figures = run(training, tiny)
    assert figures["val_pgd_after"] > figures["val_pgd_before"] + 0.4
    assert figures["val_images"] == SIZES["val"]
    for when, victim in (("before", training.frozen["victim"]), ("after", training.stage)):
        clean, robust = measured(Defence(victim, purifier), tiny, 0.08)
        assert (figures[f"val_clean_{when}"], figures[f"val_pgd_{when}"]) == pytest.approx((clean, robust))
    assert len(figures) == 5


def test_the_card_is_filled_from_a_limited_sample(tiny, monkeypatch):
    monkeypatch.setattr(adversarial, "MEASURED", 10)
    figures = run(prepare(epochs=1), tiny)
    assert figures["val_images"] == 10
    shares = [value for name, value in figures.items() if name != "val_images"]
    assert [10 * share for share in shares] == pytest.approx([round(10 * share) for share in shares], abs=1e-5)


class Misled(adversarial.AdversarialTraining):
    """Learns for two epochs, then is taught the wrong labels."""

    def losses(self, batch):
        yield from super().losses(attrs.evolve(batch, labels=(batch.labels + (self.epoch > 1)) % 4))

    def score(self, dataset, device):
        self.scores = [*getattr(self, "scores", []), super().score(dataset, device)]
        return self.scores[-1]


@pytest.mark.parametrize("select", ["best", "last"])
def test_the_epoch_that_stands_pgd_best_is_kept_or_the_last(tiny, select):
    recipe = make(AdversarialRecipe, {**QUICK, "epochs": 6, "lr": 0.2, "select": select}, "the recipe")
    training = Misled(build(None, TASK, TinyVictim(TASK)), recipe, TASK, TinyVictim(TASK), None)
    figures = run(training, tiny)
    if select == "last":
        assert training.scores == [None] * 6
        assert figures["val_pgd_after"] < 0.3
    else:
        assert figures["val_pgd_after"] == pytest.approx(max(training.scores))
        assert max(training.scores) > 0.6 > 0.3 > training.scores[-1]


class Cut(adversarial.AdversarialTraining):
    left = -1

    def losses(self, batch):
        self.left -= 1
        if self.left == -1:
            raise KeyboardInterrupt
        yield from super().losses(batch)


@pytest.mark.parametrize("mode", [{}, {"mode": "trades"}, {"mode": "free", "replays": 3}, {"ema": 0.9}])
@pytest.mark.filterwarnings("ignore:(catastrophic|the weights that are kept)")
def test_an_interrupted_training_ends_as_an_uninterrupted_one(tmp_path, tiny, mode):
    def started(left):
        recipe = make(AdversarialRecipe, {**QUICK, "warmup": 1.0, "lr": 1e-2, "shift": 1, **mode}, "the recipe")
        training = Cut(build(None, TASK, Normed().eval()), recipe, TASK, Normed().eval(), Jitter())
        training.left = left
        return training

    whole = started(100)
    run(whole, tiny, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(started(6), tiny, tmp_path / "cut")
    again = started(100)
    run(again, tiny, tmp_path / "cut")
    assert again.left == whole.left + 6
    assert content_hash(again.stage.state_dict()) == content_hash(whole.stage.state_dict())


@pytest.mark.parametrize("mode", ["pgd", "trades"])
def test_several_processes_may_share_a_training(tmp_path, tiny, mode):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/meeting", rank=0, world_size=1)
    try:
        training, alone = prepare(Normed(), mode=mode), prepare(Normed(), mode=mode)
        training.modules = {"victim": nn.parallel.DistributedDataParallel(training.modules["victim"])}
        for _ in range(2):  # the second pass finds what the first one left
            values = []
            for one in (training, alone):
                torch.manual_seed(0)
                (loss,) = one.losses(batch_of(8))
                loss.value.backward()
                values.append(loss.value.item())
            assert values[0] == pytest.approx(values[1])
        for ours, theirs in zip(training.stage.parameters(), alone.stage.parameters(), strict=True):
            torch.testing.assert_close(ours.grad, theirs.grad)
    finally:
        torch.distributed.destroy_process_group()


# ---- as the command sees it ----


def test_the_command_trains_it_from_a_victims_name(tmp_path):
    digits = open_dataset("digits")
    pixels = {split: digits.pixels(split, CPU)[:16] for split in ("train", "val", "test")}
    few = MemoryDataset("digits", digits.classes, pixels, {split: digits.labels(split)[:16] for split in pixels})
    options = {"epochs": 1, "steps": 2, "batch_size": 8, "mode": "trades", "select": "last"}
    plain = Registry(entry_points=[])
    path, card = train_stage(
        "finetuner",
        "adversarial",
        few,
        adapted=Composition.of("mobilenetv3_small_050", plugins=plain),
        options=options,
        settings=FitSettings(device="cpu"),
        plugins=plain,
    )
    assert path.name == "finetuner-adversarial-mobilenetv3_small_050-none-digits.safetensors"
    assert read_card(path) == card
    assert card.recipe["eps"] == 0.1 and card.recipe["mode"] == "trades"
    assert set(card.figures) == {"val_images", "val_clean_before", "val_clean_after", "val_pgd_before", "val_pgd_after"}


def test_the_recipes_of_known_data_sets_are_recipes():
    spec = Registry(entry_points=[]).find("finetuner", "adversarial").spec
    made = {name: make(spec.recipe, values, name) for name, values in spec.recipes.items()}
    assert {name: recipe.eps for name, recipe in made.items()} == {
        "digits": 0.1,
        "mnist": 0.3,
        "fashion_mnist": 0.1,
        "cifar10": 8 / 255,
    }
    assert made["mnist"].warmup >= 0.25


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "trade"}, "mode='trade' is not accepted: did you mean 'trades'?"),
        ({"eps": "8"}, "eps=8.0 is out of range: expected above 0, to 1"),
        ({"eps": 0}, "eps=0.0 is out of range: expected above 0, to 1"),
        ({"l2_share": 0.5, "eps_l2": 0}, "eps_l2=0.0 is out of range: expected above 0"),
        ({"step_size": 0}, "step_size=0.0 is out of range: expected above 0, to 1"),
        ({"clean_share": 1}, "clean_share=1.0 is out of range: expected 0 to 0.9"),
        ({"mode": "trades", "clean_share": 0.5}, "clean_share=0.5 does nothing for mode=trades"),
        ({"eps_l2": 2.0}, "eps_l2=2.0 does nothing while l2_share is 0"),
        ({"l2_share": 2}, "l2_share=2.0 is out of range: expected 0 to 1"),
        ({"select": "first"}, "select='first' is not accepted"),
        ({"warm_up": 0.5}, "unknown option 'warm_up' of the recipe: did you mean 'warmup'?"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, message):
    with pytest.raises(ConfigError) as caught:
        make(AdversarialRecipe, options, "the recipe")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_defaults_are_the_papers():
    recipe = AdversarialRecipe()
    assert attrs.asdict(recipe) | {"mode": "pgd", "eps": 8 / 255, "steps": 10, "beta": 6.0} == attrs.asdict(recipe)
    assert recipe.step_size is None and recipe.clean_share == recipe.l2_share == 0
