"""The rules that the attacks follow, each against numbers worked out by hand."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch import nn
from torch.nn import functional as F

from defend.attacks.apgd import Apgd
from defend.attacks.balls import clip
from defend.attacks.cw import CarliniWagner
from defend.attacks.host import craft
from defend.attacks.iterated import Bim, Pgd
from defend.attacks.minimum_norm import FastMinimumNorm
from defend.attacks.noise import Noise
from defend.attacks.objectives import scaled_cross_entropy
from defend.attacks.options import (
    ApgdOptions,
    BimOptions,
    CwOptions,
    FgsmOptions,
    FmnOptions,
    PgdOptions,
    RfgsmOptions,
    bim_steps,
)
from defend.attacks.single_step import Fgsm, Rfgsm
from defend.attacks.target import Target
from defend.errors import ConfigError, ContractError
from defend.plugins import registry
from defend.randomness import uniform_like
from defend.testing.toys import TASK, TinyVictim, images

# draw number d of an image has the image's key plus d of these, see `Target`
NEXT_DRAW = 1 << 40


class Brightest(nn.Module):
    """Logits are the pixels times 4: the gradient of the cross-entropy is 4 (p - one hot), pixel by pixel.

    So a step away from a label darkens its pixel and brightens the others, and a step towards it does the reverse.
    """

    def forward(self, batch):
        return 4 * batch.flatten(1)


class Counting(nn.Module):
    """Counts the images of every pass through another module, and keeps them."""

    def __init__(self, inner, random=False):
        super().__init__()
        self.inner, self.random, self.passes, self.seen = inner, random, [], []

    def forward(self, batch):
        self.passes.append(len(batch))
        self.seen.append(batch.detach().clone())
        return self.inner(batch)


class Jittered(nn.Module):
    """A random classifier: noise of the host's generator goes in with the image."""

    random = True

    def __init__(self):
        super().__init__()
        self.inner = TinyVictim()

    def forward(self, batch):
        return self.inner(batch + uniform_like(batch, -0.3, 0.3))


def row(*pixels):
    """One image of height 1."""
    return torch.tensor(pixels).view(1, 1, 1, -1)


def victim_and_batch(count=12):
    """A victim, images, and labels of which every third is wrong already."""
    victim, pictures = TinyVictim().eval(), images(TASK, count)
    labels = victim(pictures).argmax(1)
    labels[::3] = (labels[::3] + 1) % TASK.classes
    return victim, pictures, labels


def linf(found, pictures):
    return (found - pictures).abs().flatten(1).amax(1)


# BIM's number of steps


@pytest.mark.parametrize(
    ("eps", "step", "steps"),
    [(8 / 255, 1 / 255, 18), (8 / 255, 2 / 255, 10), (0.1, 0.01, 22), (8 / 255, 3 / 255, 7), (0.1, 0.0, 1)],
)
def test_bim_steps(eps, step, steps):
    assert bim_steps(eps, step) == steps


@pytest.mark.parametrize("eps", [8 / 255, 3 / 255, 0.1, 0.3])
def test_bim_takes_22_steps_of_a_tenth_by_default(eps):
    counting = Counting(Brightest())
    craft(Bim(BimOptions(early_stop=False)), Target(counting), row(0.5, 0.4, 0.3), torch.tensor([0]), eps=eps)
    assert counting.passes == [1] * 22


@given(eps=st.integers(1, 64), step=st.integers(1, 8), base=st.sampled_from([100, 255, 1000]))
@settings(deadline=None, max_examples=50)
def test_bim_takes_as_many_steps_as_whole_numbers_say(eps, step, base):
    counting = Counting(Brightest())
    attack = Bim(BimOptions(step_size=step / base, early_stop=False))
    craft(attack, Target(counting), row(0.5, 0.4, 0.3), torch.tensor([0]), eps=eps / base)
    assert len(counting.passes) == 2 * eps // step + 2


def test_bim_moves_by_its_step_until_the_budget_holds_it():
    picture, label = row(0.5, 0.45, 0.05), torch.tensor([0])
    for steps, moved in ((1, 0.02), (2, 0.04), (5, 0.05)):
        attack = Bim(BimOptions(steps=steps, step_size=0.02, early_stop=False))
        found = craft(attack, Target(Brightest()), picture, label, eps=0.05)
        torch.testing.assert_close(found, row(0.5 - moved, 0.45 + moved, 0.05 + moved), atol=1e-6, rtol=0)


# PGD's start and step


def test_pgd_starts_anywhere_in_the_ball():
    picture, counting = torch.full((1, 1, 1, 4000), 0.5), Counting(Brightest())
    craft(Pgd(PgdOptions(steps=1)), Target(counting), picture, torch.tensor([0]), eps=0.1)
    start = counting.seen[0] - picture
    assert start.abs().max() <= 0.1 + 1e-6
    assert abs(float(start.mean())) < 0.005
    assert float(start.std()) == pytest.approx(0.2 / 12**0.5, rel=0.05)


@pytest.mark.parametrize(("options", "step"), [({"steps": 10}, 0.025), ({"steps": 10, "step_size": 0.01}, 0.01)])
def test_pgd_steps_by_its_step_size_or_by_two_and_a_half_eps_over_the_steps(options, step):
    picture, counting = row(0.5, 0.4, 0.3), Counting(Brightest())
    attack = Pgd(PgdOptions(random_start=False, early_stop=False, **options))
    craft(attack, Target(counting), picture, torch.tensor([0]), eps=0.1)
    torch.testing.assert_close(counting.seen[1], row(0.5 - step, 0.4 + step, 0.3 + step), atol=1e-6, rtol=0)


# What FGSM aims at


@pytest.mark.parametrize(
    ("options", "signs"),
    [
        ({}, (-1, 1, 1)),  # away from the true label 0
        ({"labels": "predicted"}, (0, 0, 0)),  # wrong as it is: a step away from the prediction 1 would make it right
        ({"labels": "predicted", "keep_wrong": False}, (1, -1, 1)),  # away from the prediction 1, to the letter
        ({"target": "next"}, (-1, 1, -1)),  # towards 0 + 1
        ({"target": "next", "labels": "predicted"}, (-1, -1, 1)),  # towards 1 + 1
        ({"target": "least_likely"}, (-1, -1, 1)),  # towards the darkest, 2
    ],
)
def test_fgsm_steps_away_from_a_label_or_towards_one(options, signs):
    picture = row(0.5, 0.6, 0.4)
    found = craft(Fgsm(FgsmOptions(**options)), Target(Brightest()), picture, torch.tensor([0]), eps=0.1)
    torch.testing.assert_close(found, picture + 0.1 * row(*map(float, signs)), atol=1e-6, rtol=0)


def test_random_labels_are_an_images_own_and_every_class_is_drawn():
    pictures, labels = row(0.5, 0.5, 0.5).repeat(300, 1, 1, 1), torch.zeros(300, dtype=torch.int64)
    attack = Fgsm(FgsmOptions(labels="random"))
    found = craft(attack, Target(Brightest()), pictures, labels, eps=0.1)
    left = (found < 0.5).flatten(1).int().argmax(1)  # the pixel of the label that was left got darker
    assert min(left.bincount(minlength=3)) > 70
    keys = torch.arange(300)
    some = craft(attack, Target(Brightest()), pictures[7:9], labels[7:9], eps=0.1, keys=keys[7:9])
    assert torch.equal(some, found[7:9])


def test_next_after_the_last_label_is_the_first():
    picture = row(0.5, 0.6, 0.4)
    found = craft(Fgsm(FgsmOptions(target="next")), Target(Brightest()), picture, torch.tensor([2]), eps=0.1)
    torch.testing.assert_close(found, row(0.6, 0.5, 0.3), atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("options", "passes"),
    [({}, 1), ({"labels": "predicted"}, 2), ({"target": "next"}, 2), ({"target": "least_likely"}, 2)],
)
def test_only_the_true_labels_cost_no_pass_of_their_own(options, passes):
    counting, pictures, labels = Counting(Brightest()), row(0.5, 0.6, 0.4).repeat(3, 1, 1, 1), torch.tensor([1, 0, 1])
    craft(Fgsm(FgsmOptions(**options)), Target(counting), pictures, labels, eps=0.1)
    asked_again = [1] if options else []  # about the image that was wrong before
    assert counting.passes == [3] * passes + asked_again


def test_targeted_pgd_ends_in_the_class_it_aims_at():
    victim, pictures, labels = victim_and_batch()
    found = craft(Pgd(PgdOptions(steps=40, target="next", early_stop=False)), Target(victim), pictures, labels, eps=0.5)
    wanted = (labels + 1) % TASK.classes
    assert (victim(found).argmax(1) == wanted).double().mean() >= 0.9


@pytest.mark.parametrize("aim", ["none", "next", "least_likely"])
@pytest.mark.parametrize("name", ["pgd", "mi_fgsm", "apgd_ce", "apgd_dlr", "apgd_ce_l2"])
def test_what_an_attack_saw_fooled_is_fooled_whatever_class_it_aimed_at(name, aim):
    victim, pictures = TinyVictim().requires_grad_(False), images(TASK, 60)
    labels = victim(pictures).argmax(1)
    found = registry().find("attack", name)
    attack = found.spec.resolve(found.spec.build)(found.config({"steps": 8, "target": aim}))
    target, eps = Target(victim), 0.15 if attack.norm == "l2" else 0.015
    ended = victim(craft(attack, target, pictures, labels, eps=eps)).argmax(1)
    seen = target.sight.seen.fooled_at > 0
    assert 0 < seen.sum() < len(seen), "choose another eps"
    assert not (ended == labels)[seen].any()


def test_carlini_wagner_fools_and_stays_near():
    victim, pictures, labels = victim_and_batch()
    found = craft(CarliniWagner(CwOptions(clip="none", steps=60)), Target(victim), pictures, labels, eps=1.0)
    assert (victim(found).argmax(1) != labels).all()
    already = victim(pictures).argmax(1) != labels
    length = (found - pictures).flatten(1).norm(dim=1)
    assert length[already].max() == 0 < length[~already].min(), "what is wrong already needs no perturbation"


@pytest.mark.parametrize(("steps", "most"), [(10, 1.2), (100, 1.05)])
def test_carlini_wagner_finds_its_way_from_pixels_at_0_and_1(steps, most):
    victim, pictures, labels = victim_and_batch()
    black_and_white = pictures.round()
    right = victim(black_and_white).argmax(1) == labels
    attack = CarliniWagner(CwOptions(clip="none", steps=steps))
    found = craft(attack, Target(victim), black_and_white, labels, eps=1.0)
    assert right.any() and (victim(found).argmax(1) != labels).all()
    nearest = craft(FastMinimumNorm(FmnOptions(), "l2"), Target(victim), black_and_white, labels, eps=1.0)
    ours, theirs = ((points - black_and_white)[right].flatten(1).norm(dim=1).mean() for points in (found, nearest))
    assert ours <= most * theirs


def test_carlini_wagner_s_rate_is_the_one_given_and_else_goes_as_far_in_fewer_steps():
    assert [CwOptions(steps=steps).rate for steps in (10, 50, 100, 1000)] == [0.1, 0.02, 0.01, 0.01]
    assert CwOptions(steps=10, lr=5e-3).rate == 5e-3


def test_carlini_wagner_reaches_the_confidence_it_is_asked_for():
    victim, pictures, labels = victim_and_batch()
    attack = CarliniWagner(CwOptions(clip="none", steps=60, lr=0.05, confidence=1.0))
    logits = victim(craft(attack, Target(victim), pictures, labels, eps=1.0)).detach()
    true = logits.gather(1, labels[:, None])[:, 0]
    other = logits.scatter(1, labels[:, None], -torch.inf).amax(1)
    assert (other - true).min() >= 1 - 1e-4


# R-FGSM


def rfgsm(picture, eps, key=0, **options):
    labels = torch.zeros(len(picture), dtype=torch.int64)
    keys = torch.arange(len(picture)) + key
    return craft(Rfgsm(RfgsmOptions(**options)), Target(Brightest()), picture, labels, eps=eps, keys=keys)


def along_the_gradient(found, picture):
    """How far each pixel went in the direction of the gradient's sign, for label 0."""
    signs = torch.ones_like(picture)
    signs[..., 0] = -1
    return ((found - picture) * signs).flatten()


def test_tramer_goes_the_whole_eps_or_eps_less_twice_the_random_step():
    picture = torch.full((1, 1, 1, 2000), 0.5)
    moved = along_the_gradient(rfgsm(picture, 0.2, share=0.25), picture)
    # the random sign step of 0.05, then 0.15 along the gradient
    agreed, opposed = (moved - 0.20).abs() < 1e-6, (moved - 0.10).abs() < 1e-6
    assert (agreed | opposed).all()
    assert 0.45 < agreed.double().mean() < 0.55


def test_tramer_clips_to_the_image_between_its_steps():
    picture = torch.full((1, 1, 1, 2000), 0.02)
    found = rfgsm(picture, 0.2, share=0.25).flatten()[1:]
    # up to 0.07 or down to 0, not to -0.03; then 0.15 brighter
    up, down = (found - 0.22).abs() < 1e-6, (found - 0.15).abs() < 1e-6
    assert (up | down).all() and up.any() and down.any()


def test_tramer_with_no_random_step_is_fgsm():
    picture = images(TASK, 3)
    labels = torch.zeros(3, dtype=torch.int64)
    plain = craft(Fgsm(FgsmOptions()), Target(Brightest()), picture, labels, eps=0.1)
    assert torch.equal(rfgsm(picture, 0.1, share=0), plain)


def test_tramer_whose_random_step_takes_all_of_eps_is_no_attack():
    with pytest.raises(ConfigError, match=r"share=1\.0 leaves nothing of eps"):
        RfgsmOptions(share=1.0)
    assert RfgsmOptions(share=1.0, variant="apudae")


def test_apudae_adds_a_full_step_to_a_uniform_one():
    picture, eps, most = torch.full((1, 1, 1, 4000), 0.5), 0.1, 2 / 255
    moved = along_the_gradient(rfgsm(picture, eps, variant="apudae", strict_code=True), picture)
    first = moved - eps
    assert first.abs().max() <= most + 1e-6
    assert abs(float(first.mean())) < most / 20
    assert float(first.std()) == pytest.approx(2 * most / 12**0.5, rel=0.05)
    assert moved.max() > eps + 0.9 * most, "as its code does, the total goes beyond eps"


def test_apudae_is_projected_to_eps_unless_strict():
    picture, eps = torch.full((1, 1, 1, 500), 0.5), 0.1
    strict = along_the_gradient(rfgsm(picture, eps, variant="apudae", strict_code=True), picture)
    kept = along_the_gradient(rfgsm(picture, eps, variant="apudae"), picture)
    torch.testing.assert_close(kept, strict.clamp_max(eps), atol=1e-6, rtol=0)


def test_random_steps_belong_to_the_key_and_the_seed():
    picture, labels = torch.full((1, 1, 1, 200), 0.5), torch.tensor([0])
    for attack in (Noise(), Rfgsm(RfgsmOptions()), Pgd(PgdOptions(steps=1, step_size=0.01))):
        found = [
            craft(attack, Target(Brightest(), seed=seed), picture, labels, eps=0.1, keys=torch.tensor([key]))
            for seed, key in ((0, 5), (0, 5), (0, 6), (1, 5))
        ]
        assert torch.equal(found[0], found[1])
        assert not torch.equal(found[0], found[2]) and not torch.equal(found[0], found[3])


# Budgets


@pytest.mark.parametrize(
    "attack",
    [Fgsm(FgsmOptions()), Bim(BimOptions(early_stop=False)), Pgd(PgdOptions(early_stop=False, random_start=False))],
    ids=["fgsm", "bim", "pgd"],
)
def test_every_image_uses_its_own_budget_up(attack):
    victim, pictures, labels = victim_and_batch(4)
    eps = torch.tensor([0.0, 0.01, 0.05, 0.2])
    found = craft(attack, Target(victim), pictures, labels, eps=eps)
    torch.testing.assert_close(linf(found, pictures), eps, atol=1e-6, rtol=0)


def test_noise_fills_its_budget_evenly():
    pictures = torch.full((4, 1, 28, 28), 0.5)
    labels = torch.zeros(4, dtype=torch.int64)
    noise = craft(Noise(), Target(Brightest()), pictures, labels, eps=0.2) - pictures
    assert noise.abs().max() <= 0.2 + 1e-6
    assert abs(float(noise.mean())) < 0.01
    assert float(noise.std()) == pytest.approx(0.4 / 12**0.5, rel=0.05)


PIXELS = arrays(np.float32, (2, 1, 2, 3), elements=st.floats(0, 1, width=32, allow_subnormal=False))
BUDGET = st.floats(0, 1, width=32, allow_subnormal=False)


@pytest.mark.parametrize(
    "attack",
    [
        Fgsm(FgsmOptions()),
        Pgd(PgdOptions(steps=3)),
        Noise(),
        Rfgsm(RfgsmOptions()),
        Rfgsm(RfgsmOptions(variant="apudae")),
        Rfgsm(RfgsmOptions(variant="apudae", strict_code=True)),
    ],
    ids=["fgsm", "pgd", "noise", "tramer", "apudae", "apudae strict"],
)
@given(pixels=PIXELS, eps=BUDGET, label=st.integers(0, 5))
@settings(deadline=None, max_examples=60)
def test_budget_and_range_hold_before_the_host_clips(attack, pixels, eps, label):
    pictures, labels = torch.from_numpy(pixels), torch.full((2,), label)
    found = attack(Target(Brightest()), pictures, labels, eps=torch.full((2,), eps), keys=torch.arange(2))
    assert found.min() >= 0 and found.max() <= 1
    assert linf(found, pictures).max() <= eps + getattr(attack, "excess", 0.0) + 1e-6


# Stopping early


def test_images_already_fooled_are_not_attacked_again():
    victim, pictures, labels = victim_and_batch()
    counting = Counting(victim)
    found = craft(Pgd(PgdOptions(steps=6, random_start=False)), Target(counting), pictures, labels, eps=0.02)
    assert counting.passes[:2] == [12, 8], "a third is fooled from the start and drops out after one pass"
    assert counting.passes == sorted(counting.passes, reverse=True)
    assert torch.equal(found[::3], pictures[::3])
    assert (linf(found, pictures)[[1, 2, 4, 5, 7, 8, 10, 11]] > 0).all()


def test_an_attack_ends_when_everything_is_fooled():
    victim, pictures, _ = victim_and_batch()
    counting = Counting(victim)
    wrong = (victim(pictures).argmax(1) + 1) % TASK.classes
    found = craft(Bim(BimOptions()), Target(counting), pictures, wrong, eps=0.1)
    assert counting.passes == [12] and torch.equal(found, pictures)


class Saturated(nn.Module):
    """Two logits so far apart that the softmax of the larger is 1, to the last bit."""

    def forward(self, batch):
        score = 40 * (batch.flatten(1).mean(1) - 0.4)
        return torch.stack([score + 100, -score], 1)


@pytest.mark.parametrize(
    "build",
    [
        lambda **more: Fgsm(FgsmOptions(**more)),
        lambda **more: Rfgsm(RfgsmOptions(variant="apudae", **more)),
        lambda **more: Bim(BimOptions(steps=3, **more)),
    ],
    ids=["fgsm", "rfgsm", "bim"],
)
def test_a_smaller_scale_of_the_logits_finds_the_gradient_behind_a_saturated_softmax(build):
    pictures, labels = torch.full((1, 1, 4, 4), 0.5), torch.zeros(1, dtype=torch.long)
    stuck = craft(build(), Target(Saturated()), pictures, labels, eps=0.25)
    moved = craft(build(logit_scale=0.01), Target(Saturated()), pictures, labels, eps=0.25)
    assert float(stuck.mean()) > 0.4
    assert float(moved.mean()) < float(stuck.mean()) - 0.05


@pytest.mark.parametrize(
    "attack",
    [Pgd(PgdOptions(steps=3)), Apgd(ApgdOptions(steps=4), "ce"), Apgd(ApgdOptions(steps=4), "ce", "l2")],
    ids=["pgd", "apgd_ce", "apgd_ce_l2"],
)
def test_attacks_of_many_steps_climb_a_saturated_softmax_as_it_is(attack):
    pictures, labels = torch.full((1, 1, 4, 4), 0.5), torch.zeros(1, dtype=torch.long)
    target = Target(Saturated())
    moved = craft(attack, target, pictures, labels, eps=0.25)
    assert float(moved.mean()) < 0.48 and not target.sight.seen.zero.any()


def test_the_scale_of_the_logits_is_that_of_the_loss():
    pictures, labels = torch.rand(3, 1, 4, 4), torch.tensor([0, 1, 0])
    module = nn.Sequential(nn.Flatten(), nn.Linear(16, 2))
    loss, logits = scaled_cross_entropy(3.0)(module, pictures, labels)
    assert torch.equal(logits, module(pictures))
    assert torch.allclose(loss, F.cross_entropy(3 * module(pictures), labels, reduction="none"))


def test_without_early_stopping_every_step_sees_every_image():
    victim, pictures, labels = victim_and_batch()
    counting = Counting(victim)
    craft(Pgd(PgdOptions(steps=6, early_stop=False)), Target(counting), pictures, labels, eps=0.02)
    assert counting.passes == [12] * 6


@pytest.mark.parametrize("every", [2, 3, 100])
def test_how_often_fooled_images_are_dropped_changes_no_result(every):
    victim, pictures, labels = victim_and_batch()
    eps = torch.linspace(0.05, 0.005, 12)
    attack = Pgd(PgdOptions(steps=7))
    seldom = Counting(victim)
    at_once = craft(attack, Target(victim, compact_every=1), pictures, labels, eps=eps)
    later = craft(attack, Target(seldom, compact_every=every), pictures, labels, eps=eps)
    torch.testing.assert_close(later, at_once, atol=1e-6, rtol=0)
    assert seldom.passes[:every] == [12] * min(every, 7)
    assert all(seen < 12 for seen in seldom.passes[every:])


def test_a_restart_sees_only_what_is_still_right():
    victim, pictures, labels = victim_and_batch()
    once, twice = (Pgd(PgdOptions(steps=1, restarts=n, logit_scale=1.0)) for n in (1, 2))
    first = craft(once, Target(victim), pictures, labels, eps=0.02)
    left = int((victim(first).argmax(1) == labels).sum())
    assert 0 < left < 8
    counting = Counting(victim)
    second = craft(twice, Target(counting), pictures, labels, eps=0.02)
    # a step and the judging of the first start, then a step of the second
    assert counting.passes == [12, 12, left]
    fooled = victim(first).argmax(1) != labels
    assert torch.equal(second[fooled], first[fooled])
    assert not torch.equal(second[~fooled], first[~fooled])


def test_a_random_defence_is_never_stopped_early():
    victim, pictures, _ = victim_and_batch()
    wrong = (victim(pictures).argmax(1) + 1) % TASK.classes
    counting = Counting(victim, random=True)
    found = craft(Pgd(PgdOptions(steps=5, early_stop=True)), Target(counting, draws=3), pictures, wrong, eps=0.1)
    last_or_most_fooling = 2 * [12 * 3]
    assert counting.passes == [12 * 3] * 5 + last_or_most_fooling
    assert (linf(found, pictures) > 0).all()


# Expectation over transformation


def test_draws_average_the_gradient_the_loss_and_the_logits():
    module, pictures, labels, keys = Jittered().eval(), images(TASK, 3), torch.tensor([1, 2, 3]), torch.arange(40, 43)
    together = Target(module, seed=7, draws=4).slope(pictures, labels, keys, "step")
    single = Target(module, seed=7)
    apart = [single.slope(pictures, labels, keys + draw * NEXT_DRAW, "step") for draw in range(4)]
    assert not torch.allclose(apart[0].gradient, apart[1].gradient)
    for name in ("gradient", "loss", "logits"):
        mean = torch.stack([getattr(slope, name) for slope in apart]).mean(0)
        torch.testing.assert_close(getattr(together, name), mean, atol=1e-6, rtol=1e-5)


def test_logits_are_averaged_over_the_same_draws_as_the_gradient():
    target = Target(Jittered().eval(), draws=4)
    pictures, labels, keys = images(TASK, 2), torch.tensor([0, 1]), torch.arange(2)
    slope = target.slope(pictures, labels, keys, 3)
    torch.testing.assert_close(target.logits(pictures, keys, 3), slope.logits, atol=1e-6, rtol=1e-5)


def test_a_step_draws_the_same_again_and_another_step_other_numbers():
    target = Target(Jittered().eval(), draws=2)
    pictures, labels, keys = images(TASK, 2), torch.tensor([0, 1]), torch.arange(2)
    first, again, other = (target.slope(pictures, labels, keys, step).gradient for step in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_a_module_without_randomness_is_passed_once_whatever_the_draws():
    counting = Counting(Brightest())
    target = Target(counting, draws=20)
    target.slope(row(0.5, 0.4, 0.3), torch.tensor([0]), torch.tensor([0]), 0)
    assert counting.passes == [1]


# Crafting in bfloat16


class FooledInHaste(nn.Module):
    """Wrong about label 0 in reduced precision only; the gradient's signs are the same in both."""

    def __init__(self):
        super().__init__()
        self.hasty = []

    def forward(self, batch):
        self.hasty.append(torch.is_autocast_enabled(batch.device.type))
        return 4 * batch.flatten(1) + torch.tensor([-9.0 if self.hasty[-1] else 0.0, 0.0, 0.0])


def test_success_in_bfloat16_counts_only_if_float32_agrees():
    picture, label = row(0.9, 0.2, 0.1), torch.tensor([0])
    module = FooledInHaste()
    attack = Pgd(PgdOptions(steps=4, random_start=False))
    found = craft(attack, Target(module, precision=torch.bfloat16), picture, label, eps=0.1)
    torch.testing.assert_close(found, row(0.8, 0.3, 0.2), atol=1e-6, rtol=0)
    assert module.hasty == [True, False] * 4, "each claim of success is checked in full precision"


def test_success_that_float32_confirms_ends_the_attack():
    picture, label = row(0.5, 0.45, 0.1), torch.tensor([0])
    module = FooledInHaste()
    attack = Pgd(PgdOptions(steps=10, step_size=0.02, random_start=False))
    found = craft(attack, Target(module, precision=torch.bfloat16), picture, label, eps=0.1)
    torch.testing.assert_close(found, row(0.46, 0.49, 0.14), atol=1e-6, rtol=0)


def test_crafting_in_bfloat16_is_about_as_strong():
    victim, pictures, labels = victim_and_batch(48)
    seen = []
    victim.hidden.register_forward_hook(lambda module, given, out: seen.append(out.dtype))
    robust = {}
    for precision in (None, torch.bfloat16):
        found = craft(Pgd(PgdOptions(steps=10)), Target(victim, precision=precision), pictures, labels, eps=0.03)
        assert found.dtype == torch.float32 and linf(found, pictures).max() <= 0.03 + 1e-6
        if precision is not None:
            assert torch.bfloat16 in seen, "the gradient is meant to come from a pass in bfloat16"
        else:
            assert set(seen) == {torch.float32}
        robust[precision] = float((victim(found).argmax(1) == labels).double().mean())
    assert 0 < robust[None] < 0.6
    assert abs(robust[None] - robust[torch.bfloat16]) <= 0.05


def test_logits_are_in_full_precision_while_crafting_is_not():
    victim, pictures, _ = victim_and_batch()
    logits = Target(victim, precision=torch.bfloat16).logits(pictures, torch.arange(12), 0)
    assert torch.equal(logits, victim(pictures).detach())


# The host


class Returning:
    """An attack that returns what a function makes of the images."""

    def __init__(self, make, norm="linf", **attributes):
        self.make, self.norm = make, norm
        self.__dict__.update(attributes)

    def __call__(self, target, images, labels, *, eps, keys):
        return self.make(images)


def hosted(attack, pictures=None, eps=0.1):
    pictures = images(TASK, 3) if pictures is None else pictures
    labels = torch.zeros(len(pictures), dtype=torch.int64)
    return craft(attack, Target(Brightest()), pictures, labels, eps=eps)


def test_host_names_an_attack_that_changes_the_shape():
    with pytest.raises(ContractError, match=r"Returning .*\[3, 1, 28, 27\].*\[3, 1, 28, 28\]"):
        hosted(Returning(lambda batch: batch[..., :-1]))


@pytest.mark.parametrize("number", [torch.nan, torch.inf, -torch.inf])
def test_host_names_an_attack_that_is_not_finite(number):
    def spoil(batch):
        spoiled = batch.clone()
        spoiled[1, 0, 5, 5] = number
        return spoiled

    with pytest.raises(ContractError, match="Returning returned 1 of 3 images that are not finite"):
        hosted(Returning(spoil))


def test_host_clips_to_the_ball_and_to_the_image():
    pictures = row(0.5, 0.95, 0.02)
    assert torch.allclose(hosted(Returning(lambda batch: batch + 0.7), pictures), row(0.6, 1.0, 0.12))
    assert torch.allclose(hosted(Returning(lambda batch: batch - 0.7), pictures), row(0.4, 0.85, 0.0))
    assert torch.allclose(hosted(Returning(lambda batch: batch + 0.7, excess=0.05), pictures), row(0.65, 1.0, 0.17))


def test_host_clips_each_image_to_its_own_ball():
    pictures = torch.full((3, 1, 2, 2), 0.5)
    eps = torch.tensor([0.0, 0.1, 0.3])
    found = clip(pictures + 0.4, pictures, eps, "linf")
    torch.testing.assert_close(linf(found, pictures), eps, atol=1e-6, rtol=0)


def test_host_clips_a_minimal_attack_to_the_image_only():
    pictures = row(0.5, 0.95, 0.02)
    assert torch.allclose(
        hosted(Returning(lambda batch: batch + 0.3, norm="l2", minimal=True), pictures), row(0.8, 1.0, 0.32)
    )


def test_host_hands_back_images_without_a_graph():
    found = hosted(Returning(lambda batch: batch + torch.zeros(1, requires_grad=True)))
    assert not found.requires_grad


def test_without_keys_an_image_is_its_place_in_the_batch():
    pictures, labels = images(TASK, 3), torch.zeros(3, dtype=torch.int64)
    named = craft(Noise(), Target(Brightest()), pictures, labels, eps=0.1, keys=torch.arange(3))
    assert torch.equal(craft(Noise(), Target(Brightest()), pictures, labels, eps=0.1), named)


# Large batches


@pytest.mark.parametrize(("inner", "draws", "most"), [(TinyVictim(), 1, 5), (Jittered(), 2, 4)])
def test_on_a_cpu_of_large_images_few_are_taken_at_once(inner, draws, most, monkeypatch):
    monkeypatch.setattr("defend.util.memory.CPU_PIXELS", 5 * TASK.height * TASK.width)
    module = Counting(inner.eval(), random=draws > 1)
    keys = torch.arange(10)
    Target(module, draws=draws).slope(images(TASK, 10), keys, keys, 0)
    assert max(module.passes) == most and sum(module.passes) == 10 * draws


@pytest.mark.parametrize(("inner", "draws"), [(TinyVictim(), 1), (Jittered(), 20)], ids=["fixed", "random"])
def test_on_a_cpu_a_large_batch_is_taken_in_parts_and_says_the_same(inner, draws):
    pictures, keys = images(TASK, 150).double(), torch.arange(150)
    labels = keys % TASK.classes
    module = Counting(inner.double().eval(), random=draws > 1)
    target = Target(module, draws=draws)
    whole = target.slope(pictures, labels, keys, 0)
    assert max(module.passes) <= 64
    assert sum(module.passes) == 150 * draws
    for place in (0, 77, 149):
        alone = target.slope(pictures[[place]], labels[[place]], keys[[place]], 0)
        for name in ("gradient", "loss", "logits"):
            assert torch.allclose(getattr(whole, name)[[place]], getattr(alone, name), rtol=1e-5, atol=1e-12)
