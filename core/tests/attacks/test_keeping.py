"""Against a random target the image that fools most draws is kept, at no more passes than that takes."""

import pytest
import torch
from torch import nn

from defend.attacks.apgd import Apgd
from defend.attacks.cw import CarliniWagner
from defend.attacks.goals import Goal
from defend.attacks.hop_skip_jump import HopSkipJump
from defend.attacks.host import craft
from defend.attacks.iterated import Pgd
from defend.attacks.keeping import Attempts, Best, Keeper, Nearest, choose
from defend.attacks.minimum_norm import FastMinimumNorm
from defend.attacks.options import ApgdOptions, CwOptions, FmnOptions, HopSkipJumpOptions, PgdOptions, SquareOptions
from defend.attacks.square import SquareAttack
from defend.attacks.target import Slope, Target
from defend.randomness import uniform_per_image


class Slit(nn.Module):
    """One pixel; class 1 within 0.1 of a half, give or take a draw. Steps of a quarter jump over it and back."""

    random = True

    def __init__(self, jitter=0.05):
        super().__init__()
        self.jitter, self.passes = jitter, []

    def forward(self, images):
        self.passes.append(len(images))
        pixel = images.flatten(1)[:, 0]
        near = 0.1 - (pixel - 0.5).abs() + self.jitter * uniform_per_image(images, -1, 1)
        return torch.stack([torch.zeros_like(near), 10 * near], 1)


def pixels(*values):
    return torch.tensor(values).view(-1, 1, 1, 1)


def test_the_iterate_that_fools_is_kept_and_not_the_last():
    slit, images = Slit(), pixels(0.3, 0.3)
    attack = Pgd(PgdOptions(steps=4, step_size=0.25, random_start=False))
    found = craft(attack, Target(slit, draws=12), images, torch.tensor([0, 0]), eps=0.4)
    assert found.flatten().tolist() == pytest.approx([0.55, 0.55]), "of 0.3, 0.55, 0.3, 0.55 and, last, 0.3"
    assert slit.passes == [2 * 12] * (4 + 2), "four gradients, and two candidates before the same new draws"


@pytest.mark.parametrize(("random", "draws"), [(False, 12), (True, 1)])
def test_one_draw_costs_no_pass_more(random, draws):
    slit = Slit(jitter=0.0)
    slit.random = random
    target = Target(slit, draws=draws)
    craft(Pgd(PgdOptions(steps=3, random_start=False)), target, pixels(0.2), torch.tensor([0]), eps=0.01)
    assert slit.passes == [1, 1, 1]


def test_auto_pgd_answers_with_what_fools_most_draws():
    slit = Slit()
    found = craft(
        Apgd(ApgdOptions(steps=8), "ce"), Target(slit, draws=12), pixels(0.25, 0.8), torch.tensor([0, 0]), eps=0.4
    )
    votes = Target(slit, draws=50).votes(found, torch.arange(2), "after")
    assert votes.shape == (50, 2) and votes.float().mean() == 1


def slope(*votes, loss=0.0):
    """One image's, of so many draws."""
    return Slope(pixels(0.0), torch.tensor([loss]), torch.zeros(1, 3), torch.tensor(votes)[:, None])


def test_more_draws_count_before_a_higher_loss_and_that_before_the_order():
    keeper, goal = Keeper(pixels(0.0)), Goal(torch.tensor([0]), 1)
    for value, seen in ((0.1, slope(0, 1, 0)), (0.2, slope(1, 2, 0)), (0.3, slope(0, 0, 1, loss=9.0))):
        keeper.take(pixels(value), seen, goal, seen.loss)
    assert keeper.images.item() == pytest.approx(0.2)
    for value, loss in ((0.4, 1.0), (0.5, 1.0)):
        keeper.take(pixels(value), slope(1, 0, 1, loss=loss), goal, torch.tensor([loss]))
    assert keeper.images.item() == pytest.approx(0.4)
    towards = Goal(torch.tensor([2]), -1)
    assert towards.share(torch.tensor([[2], [1], [2], [0]])).item() == 0.5


def test_two_candidates_meet_the_same_draws_and_the_second_wins_a_draw():
    target, goal, keys = Target(Slit(), draws=3), Goal(torch.zeros(3, dtype=torch.int64), 1), torch.arange(3)
    first, second = pixels(0.5, 0.1, 0.45), pixels(0.1, 0.5, 0.55)
    chosen = choose(target, goal, first, second, keys, "choose")
    assert chosen.flatten().tolist() == pytest.approx([0.5, 0.5, 0.55])
    assert target.module.module.passes == [3 * 3] * 2


def test_of_several_starts_the_one_counts_that_fools_most_draws():
    target, goal = Target(Slit(), draws=40), Goal(torch.zeros(2, dtype=torch.int64), 1)
    attempts = Attempts(target, goal, pixels(0.2, 0.2), torch.arange(2), 3, "toy")
    attempts.add(0, pixels(0.5, 0.6))
    assert attempts.left.tolist() == [1], "only an image that every draw is fooled by needs no other start"
    attempts.add(1, pixels(0.1))
    assert attempts.images.flatten().tolist() == pytest.approx([0.5, 0.6])
    attempts.add(2, pixels(0.52))
    assert attempts.images.flatten().tolist() == pytest.approx([0.5, 0.52]) and attempts.left.tolist() == []


def test_of_candidates_the_one_that_fools_most_draws_then_the_least_margin():
    def pictures(value):
        return torch.full((3, 1, 1, 1), value)

    best = Best(pictures(0.0), torch.tensor([0.5, 0.5, 0.0]), torch.tensor([1.0, 1.0, 1.0]))
    # more draws beat a margin; as many, a smaller margin beats; fewer never do
    best.take(torch.arange(3), pictures(0.1), torch.tensor([0.75, 0.5, 0.0]), torch.tensor([2.0, 0.5, 1.5]))
    assert best.images.flatten().tolist() == pytest.approx([0.1, 0.1, 0.0])
    best.take(torch.tensor([2, 0]), pictures(0.2)[:2], torch.tensor([1.0, 0.5]), torch.tensor([3.0, -9.0]))
    assert best.images.flatten().tolist() == pytest.approx([0.1, 0.1, 0.2])
    outside = torch.tensor([False, True])
    best.take(torch.tensor([0, 1]), pictures(0.3)[:2], torch.ones(2), torch.zeros(2), outside)
    assert best.images.flatten().tolist() == pytest.approx([0.1, 0.3, 0.2])


def test_share_is_of_single_draws_not_of_their_mean():
    target, images, keys = Target(Slit(), draws=50), torch.full((2, 1, 1, 1), 0.41), torch.arange(2)
    logits, share = target.judge(images, torch.zeros(2, dtype=torch.int64), keys, "step")
    votes = target.votes(images, keys, "step")
    assert share.tolist() == pytest.approx((votes != 0).float().mean(0).tolist())
    assert 0 < float(share[0]) < 1
    assert torch.equal(logits, target.logits(images, keys, "step"))


class Lottery(nn.Module):
    """Grey images of class 0; from a brightness of 0.3 on class 1 by luck, in one draw of five, from 0.45 on always.

    Who is lucky has logits so far apart that the mean of several draws is lucky too.
    """

    def __init__(self, random=True, chance=0.2, begin=0.3):
        super().__init__()
        self.random, self.chance, self.begin, self.passes = random, chance, begin, []

    def forward(self, images):
        self.passes.append(len(images))
        light = images.flatten(1).mean(1)
        lucky = uniform_per_image(images) < self.chance if self.random else torch.zeros(len(images), dtype=torch.bool)
        ahead = torch.where(light >= 0.45, 1.0, torch.where((light >= self.begin) & lucky, 50.0, -2.0)) + light - 0.5
        return torch.stack([torch.zeros_like(ahead), ahead], 1)


def grey(count=4):
    return torch.full((count, 1, 4, 4), 0.2), torch.zeros(count, dtype=torch.int64)


def shares(module, found):
    """In how many of 200 new draws each image fools, [B]."""
    return Target(module, draws=200).judge(found, torch.zeros(len(found), dtype=torch.int64), torch.arange(4), "new")[1]


SEARCHES = {
    "fmn": (FastMinimumNorm(FmnOptions(steps=60), "linf"), None),
    "fmn_l2": (FastMinimumNorm(FmnOptions(steps=60), "l2"), None),
    "hsj": (HopSkipJump(HopSkipJumpOptions(queries=1000), "linf"), None),
    "hsj_l2": (HopSkipJump(HopSkipJumpOptions(queries=1000), "l2"), None),
    "cw": (CarliniWagner(CwOptions(clip="none", steps=40, lr=0.1)), None),
    "cw_linf": (CarliniWagner(CwOptions(steps=40, lr=0.1)), 0.6),
    "square": (SquareAttack(SquareOptions(queries=400), "linf"), 0.7),
    "square_l2": (SquareAttack(SquareOptions(queries=400), "l2"), 3.0),
}


@pytest.mark.parametrize("name", SEARCHES)
def test_a_lucky_image_is_not_kept(name):
    attack, eps = SEARCHES[name]
    lottery, (images, labels) = Lottery(), grey()
    found = craft(attack, Target(lottery, draws=20), images, labels, eps=eps)
    assert shares(lottery, found).tolist() == [1.0] * 4, "what fools one draw of five was nearer, or came first"
    if getattr(attack, "nearest", False):
        assert float(found.flatten(1).mean(1).max()) < 0.6, "and of those that always fool a near one is wanted"


@pytest.mark.parametrize("name", [name for name, (attack, _) in SEARCHES.items() if getattr(attack, "minimal", False)])
def test_half_of_the_draws_is_enough_for_the_smallest_change(name):
    attack, eps = SEARCHES[name]
    lottery, (images, labels) = Lottery(chance=0.9), grey()
    found = craft(attack, Target(lottery, draws=20), images, labels, eps=eps)
    assert float(shares(lottery, found).min()) > 0.8
    assert float(found.flatten(1).mean(1).max()) < 0.4, "what fools nine draws of ten lies nearer than what always does"


@pytest.mark.parametrize("name", SEARCHES)
def test_of_a_deterministic_target_no_draws_are_asked_for(name):
    attack, eps = SEARCHES[name]
    images, labels = grey()
    found, passes = [], []
    for draws in (20, 1):
        module = Lottery(random=False)
        found.append(craft(attack, Target(module, draws=draws), images, labels, eps=eps))
        passes.append(module.passes)
    assert torch.equal(*found) and passes[0] == passes[1]


@pytest.mark.parametrize("name", SEARCHES)
def test_an_image_that_is_wrong_by_luck_as_it_is_is_attacked_all_the_same(name):
    attack, eps = SEARCHES[name]
    lottery, (images, labels) = Lottery(begin=0.0), grey()
    found = craft(attack, Target(lottery, draws=20, seed=1), images, labels, eps=eps)
    assert shares(lottery, found).tolist() == [1.0] * 4


@pytest.mark.parametrize("clip", ["none", "linf"])
def test_a_single_lucky_draw_does_not_pin_cw_to_the_image_itself(clip):
    """Nothing undercuts a distance of nothing."""
    lottery, (images, labels) = Lottery(begin=0.0), grey(24)
    attack = CarliniWagner(CwOptions(clip=clip, steps=40, lr=0.1))
    found = craft(attack, Target(lottery, draws=1), images, labels, eps=0.6 if clip == "linf" else None)
    assert not any(torch.equal(*pair) for pair in zip(found, images, strict=True))


def test_hop_skip_jump_with_few_questions_is_not_led_to_the_image_by_luck():
    lottery, (images, labels) = Lottery(begin=0.0), grey(24)
    attack = HopSkipJump(HopSkipJumpOptions(queries=250), "linf")
    found = craft(attack, Target(lottery, draws=20), images, labels, eps=None)
    fooling = Target(lottery, draws=50).judge(found, labels, torch.arange(24), "new")[1] == 1
    assert int(fooling.sum()) >= 22, "nearer, as near as the image itself, one draw of five is fooled"
    assert float(found.flatten(1).mean(1)[fooling].median()) < 0.5


def test_square_and_hop_skip_jump_keep_to_their_questions():
    images, labels = grey()
    for attack in (
        SquareAttack(SquareOptions(queries=150), "linf"),
        HopSkipJump(HopSkipJumpOptions(queries=150), "linf"),
    ):
        lottery = Lottery(chance=0.7)
        target = Target(lottery, draws=20)
        craft(attack, target, images, labels, eps=0.3)
        assert int(target.queries.max()) <= 150 and sum(lottery.passes) == int(target.queries.sum())


def test_three_points_stand_by_and_new_draws_decide():
    lottery, goal, keys = Lottery(), Goal(torch.zeros(3, dtype=torch.int64), 1), torch.arange(3)
    target, images = Target(lottery, draws=40), grey(3)[0]
    nearest = Nearest(images)
    assert torch.equal(nearest.choose(target, goal, images, keys, "none"), images)
    far = torch.tensor([0.2, 0.2, torch.inf])
    nearest.take(images + 0.2, far, torch.tensor([0.6, 0.6, 0.0]))  # by luck
    nearest.take(images + 0.5, far + 0.3, torch.tensor([1.0, 0.4, 0.0]))
    nearest.take(images + 0.6, far + 0.4, torch.tensor([1.0, 0.4, 0.0]))
    before = len(lottery.passes)
    chosen = nearest.choose(target, goal, images, keys, "choose").flatten(1)[:, 0]
    # the second has nothing better than the lucky one, the third nothing at all
    assert chosen.tolist() == pytest.approx([0.7, 0.4, 0.2])
    assert lottery.passes[before:] == [3 * 40] * 3
    cut = nearest.choose(target, goal, images, keys, "choose", enough=1.0, cut=lambda points: points.clamp_max(0.65))
    assert cut.flatten(1)[:, 0].tolist() == pytest.approx([0.65, 0.4, 0.2])
