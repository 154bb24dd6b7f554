"""APGD: its schedule, its losses and its state by hand; its strength against torchattacks'."""

import pytest
import torch
import torchattacks

from defend.attacks.apgd import Apgd, _State, checkpoints
from defend.attacks.goals import Goal
from defend.attacks.host import craft
from defend.attacks.objectives import (
    difference_of_logits_ratio,
    margin,
    measure_margin,
    probability_margin,
    targeted_margin,
)
from defend.attacks.options import ApgdOptions
from defend.attacks.target import Slope, Target
from defend.testing.contracts import AttackContract
from defend.testing.toys import TASK, TinyVictim, images


class TestCe(AttackContract):
    name = "apgd_ce"
    options = {"steps": 8}


class TestDlr(AttackContract):
    name = "apgd_dlr"
    options = {"steps": 8, "restarts": 2}


class TestMarginL2(AttackContract):
    name = "apgd_margin_l2"
    options = {"steps": 4, "target": "next"}


class TestPm(AttackContract):
    name = "apgd_pm"
    options = {"steps": 4}


class TestTargeted(AttackContract):
    name = "apgd_dlr"
    options = {"steps": 5, "target": "next"}


class TestCeL2(AttackContract):
    name = "apgd_ce_l2"
    options = {"steps": 8}


class TestDlrL2(AttackContract):
    name = "apgd_dlr_l2"
    options = {"steps": 8, "restarts": 2}


def test_the_checkpoints_of_a_hundred_steps_are_the_papers():
    assert checkpoints(100) == [22, 41, 57, 70, 80, 87, 93, 99]
    assert checkpoints(1) == [1]


def test_dlr_by_hand_and_blind_to_shift_and_scale():
    logits = torch.tensor([[3.0, 1.0, 2.0, 0.0], [0.0, 4.0, 1.0, 3.0]])
    labels = torch.tensor([0, 2])
    loss, _ = difference_of_logits_ratio(torch.nn.Identity(), logits, labels)
    assert loss.tolist() == pytest.approx([-(3 - 2) / (3 - 1), -(1 - 4) / (4 - 1)])
    other, _ = difference_of_logits_ratio(torch.nn.Identity(), 7 * logits + 5, labels)
    assert other.tolist() == pytest.approx(loss.tolist(), rel=1e-6)
    two, _ = difference_of_logits_ratio(torch.nn.Identity(), torch.tensor([[2.0, 1.0]]), torch.tensor([0]))
    assert two.tolist() == pytest.approx([-1.0])


def test_margins_by_hand():
    logits = torch.tensor([[3.0, 1.0, 2.0, 0.0], [0.0, 4.0, 1.0, 3.0]])
    labels, same = torch.tensor([0, 2]), torch.nn.Identity()
    assert margin(same, logits, labels)[0].tolist() == [-1, 3]
    assert measure_margin(logits, labels).tolist() == [1, -3], "the same, as a number that falls when it is fooled"
    assert targeted_margin(same, logits, torch.tensor([[1, 0], [3, 2]]))[0].tolist() == [2, -2]
    odds, _ = probability_margin(same, logits, labels)
    shares = logits.softmax(1)
    expected = torch.stack((shares[0, 2] - shares[0, 0], shares[1, 1] - shares[1, 2]))
    torch.testing.assert_close((odds / 2).tanh(), expected)


@pytest.mark.parametrize("loss", ["margin", "pm"])
def test_margins_are_as_strong_as_the_ratio(loss):
    victim, batch = TinyVictim(TASK).requires_grad_(False), images(TASK, 100)
    labels = victim(batch).argmax(1)
    left = []
    for one in ("dlr", loss):
        found = craft(Apgd(ApgdOptions(steps=10), one), Target(victim), batch, labels, eps=0.02)
        left.append(int((victim(found).argmax(1) == labels).sum()))
    assert 20 < left[0] < 90 and left[1] <= left[0] + 2, left


def point(value):
    return torch.full((1, 1, 1, 1), float(value))


def slope(gradient, loss):
    return Slope(point(gradient), torch.tensor([float(loss)]), torch.tensor([[1.0, 0.0]]))


def test_a_step_mixes_in_the_last_move():
    state = _State.begin(point(0.5), slope(1, 0.0), torch.tensor([0.2]))
    goal = Goal(torch.tensor([0]), 1)
    wide = torch.tensor([1.0])
    assert state.step(point(0.5), wide, goal, momentum=1.0).item() == pytest.approx(0.7)
    state.record(point(0.7), slope(-1, 1.0), None)
    # reached 0.5; 0.7 + 0.75 (0.5 - 0.7) + 0.25 (0.7 - 0.5)
    assert state.step(point(0.5), wide, goal, momentum=0.75).item() == pytest.approx(0.6)
    narrow = torch.tensor([0.05])
    assert state.step(point(0.4), narrow, goal, momentum=1.0).item() == pytest.approx(0.45)


def test_a_loss_that_rises_too_seldom_halves_the_step_and_goes_back_to_the_best():
    state = _State.begin(point(0.5), slope(1, 0.0), torch.tensor([0.2]))
    for place, loss in ((0.6, 2.0), (0.7, 1.0), (0.8, 0.5), (0.9, 0.4)):
        state.record(point(place), slope(1, loss), None)
    state.check(4, rho=0.75)
    assert state.size.item() == pytest.approx(0.1)
    assert (state.now.item(), state.loss.item()) == (pytest.approx(0.6), 2.0)


def test_a_loss_that_rises_keeps_the_step_until_the_best_stands_still():
    state = _State.begin(point(0.5), slope(1, 0.0), torch.tensor([0.2]))
    for loss in (1.0, 2.0, 3.0, 4.0):
        state.record(point(0.6), slope(1, loss), None)
    state.check(4, rho=0.75)
    assert state.size.item() == pytest.approx(0.2)
    for loss in (1.0, 2.0, 3.0, 3.5):  # rises three times of four, and never past 4
        state.record(point(0.7), slope(1, loss), None)
    state.check(4, rho=0.75)
    assert state.size.item() == pytest.approx(0.1)
    for loss in (1.0, 2.0, 3.0, 3.5):  # halved at the last check: the second condition waits a turn
        state.record(point(0.7), slope(1, loss), None)
    state.rises += 1
    state.check(4, rho=0.75)
    assert state.size.item() == pytest.approx(0.1)


def test_a_start_that_fools_is_the_answer():
    goal = Goal(torch.tensor([1]), 1)  # the logits above say class 0: fooled
    state = _State.begin(point(0.5), slope(1, 0.0), torch.tensor([0.2]), goal=goal)
    state.record(point(0.6), slope(1, 1.0), goal)
    assert state.fooled.all() and state.answer().item() == pytest.approx(0.5)


def test_the_first_fooling_image_is_the_answer():
    state = _State.begin(point(0.5), slope(1, 0.0), torch.tensor([0.2]))
    goal = Goal(torch.tensor([1]), 1)  # the logits above say class 0: fooled
    state.record(point(0.6), slope(1, 1.0), goal)
    state.record(point(0.7), slope(1, 9.0), goal)
    assert state.answer().item() == pytest.approx(0.6)


def test_a_step_in_l2_goes_along_the_gradient_and_ends_on_the_ball():
    origin = torch.full((1, 1, 1, 2), 0.5)
    gradient = Slope(torch.tensor([3.0, 4.0]).view(1, 1, 1, 2), torch.zeros(1), torch.tensor([[1.0, 0.0]]))
    state, goal = _State.begin(origin, gradient, torch.tensor([0.2]), "l2"), Goal(torch.tensor([0]), 1)
    moved = state.step(origin, torch.tensor([0.3]), goal, momentum=1.0)
    assert (moved - origin).flatten().tolist() == pytest.approx([0.12, 0.16])
    short = state.step(origin, torch.tensor([0.1]), goal, momentum=1.0)
    assert (short - origin).flatten().tolist() == pytest.approx([0.06, 0.08])
    assert state.part(torch.tensor([0])).step(origin, torch.tensor([0.3]), goal, momentum=1.0).equal(moved)


@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.02), ("l2", 0.15)])
@pytest.mark.parametrize("loss", ["ce", "dlr"])
def test_as_strong_as_torchattacks(loss, norm, eps):
    victim, pictures = TinyVictim(TASK).requires_grad_(False), images(TASK, 200)
    labels = victim(pictures).argmax(1)
    steps, named = 10, {"linf": "Linf", "l2": "L2"}
    judge = torchattacks.APGD(victim, norm=named[norm], eps=eps, steps=steps, n_restarts=1, loss=loss, seed=0)
    theirs = judge(pictures, labels)
    ours = craft(Apgd(ApgdOptions(steps=steps), loss, norm), Target(victim), pictures, labels, eps=eps)
    left = [int((victim(found).argmax(1) == labels).sum()) for found in (theirs, ours)]
    assert 20 < left[0] < 180, "the budget should tell attacks apart"
    assert left[1] <= left[0] + 4, left  # their random start is another one


def test_stronger_than_pgd_of_as_many_steps_on_a_small_budget():
    from defend.attacks.iterated import Pgd
    from defend.attacks.options import PgdOptions

    victim, batch = TinyVictim(TASK), images(TASK, 200)
    labels = victim(batch).argmax(1)
    left = []
    for attack in (Pgd(PgdOptions(steps=20)), Apgd(ApgdOptions(steps=20), "ce")):
        found = craft(attack, Target(victim), batch, labels, eps=0.02)
        left.append(int((victim(found).argmax(1) == labels).sum()))
    assert 10 < left[1] <= left[0] + 1 < 200, left
