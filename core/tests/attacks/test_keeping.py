"""Against a random target the image that fools most draws is kept, at no more passes than that takes."""

import pytest
import torch
from torch import nn

from defend.attacks.apgd import Apgd
from defend.attacks.goals import Goal
from defend.attacks.host import craft
from defend.attacks.iterated import Pgd
from defend.attacks.keeping import Attempts, Best, Keeper, choose
from defend.attacks.options import ApgdOptions, PgdOptions
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
