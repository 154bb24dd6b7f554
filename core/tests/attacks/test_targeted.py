"""Attacks on one wrong class after another: their order, their budget, who is left alone, and others' of the kind."""

import logging

import pytest
import torch
from torch import nn

from defend.attacks.apgd_targeted import ApgdTargeted
from defend.attacks.fab import FabTargeted, cross_plane
from defend.attacks.host import craft
from defend.attacks.options import ApgdTargetedOptions, FabOptions, StandardOptions, TargetsOptions
from defend.attacks.standard import Standard
from defend.attacks.target import Target
from defend.attacks.wrong_classes import choose_classes
from defend.defence import Defence
from defend.randomness import normal_like
from defend.testing.contracts import AttackContract
from defend.testing.toys import TASK, TinyVictim, images

NORMS = {"linf": "Linf", "l2": "L2"}


class TestApgdT(AttackContract):
    name = "apgd_t"
    options = {"steps": 4, "targets": 2}


class TestApgdTL2(AttackContract):
    name = "apgd_t_l2"
    options = {"steps": 4, "targets": 2, "restarts": 2, "order": "rank"}


class TestFabT(AttackContract):
    name = "fab_t"
    options = {"steps": 4, "targets": 2}


class TestFabTL2(AttackContract):
    name = "fab_t_l2"
    options = {"steps": 4, "targets": 2}
    eps = 1.0


class Linear(nn.Module):
    """Logits that are linear in the pixels."""

    def __init__(self, weight, bias=None):
        super().__init__()
        self.weight, self.bias = weight, torch.zeros(len(weight)) if bias is None else bias

    def forward(self, batch):
        return batch.flatten(1) @ self.weight.to(batch).T + self.bias.to(batch)


class Counting(nn.Module):
    """Counts the images that another module is differentiated on."""

    def __init__(self, inner):
        super().__init__()
        self.inner, self.count = inner, 0

    def forward(self, batch):
        self.count += len(batch) if batch.requires_grad else 0
        return self.inner(batch)


class Noisy(nn.Module):
    """A victim that adds noise to what it is shown."""

    random = True

    def __init__(self):
        super().__init__()
        self.inner = TinyVictim()

    def forward(self, batch):
        return self.inner((batch + 0.1 * normal_like(batch)).clamp(0, 1))


def left(victim, found, labels):
    with torch.no_grad():
        return int((victim(found).argmax(1) == labels).sum())


def given(count, victim=None):
    victim = (victim or TinyVictim()).eval().requires_grad_(False)
    pictures = images(TASK, count)
    return victim, pictures, victim(pictures).argmax(1)


# The order


@pytest.mark.parametrize(
    ("order", "norm", "expected"),
    [("rank", "linf", [1, 2, 3]), ("malt", "linf", [2, 3, 1]), ("malt", "l2", [3, 2, 1])],
)
def test_the_order_of_the_wrong_classes(order, norm, expected):
    # away by 0.2, 0.3, 0.4; slopes in L1 1, 4, 4, in L2 1, 2, 4: nearest by budget 2 and 3, by 3 and 2
    weight = torch.tensor([[0.0] * 4, [1, 0, 0, 0], [1, 1, 1, 1], [4, 0, 0, 0]])
    module = Linear(weight, torch.tensor([0.0, -0.2, -0.3, -0.4]))
    pictures, labels, keys = torch.zeros(2, 1, 2, 2), torch.zeros(2, dtype=torch.int64), torch.arange(2)
    target = Target(module)
    config = TargetsOptions(order=order, targets=20)
    found = choose_classes(config, target, pictures, labels, module(pictures), keys, norm=norm, stream="t")
    assert found.tolist() == [expected] * 2, "as many as there are, at most"
    config = TargetsOptions(order=order, targets=1, candidates=2)
    found = choose_classes(config, target, pictures, labels, module(pictures), keys, norm=norm, stream="t")
    assert found.tolist() == [[1 if order == "rank" else 2]] * 2, "of the first two by rank"


def test_a_class_that_no_pixel_reaches_comes_last():
    module = Linear(torch.tensor([[0.0] * 4, [0.0] * 4, [1.0] * 4]), torch.tensor([0.0, -0.1, -5.0]))
    pictures, labels = torch.zeros(1, 1, 2, 2), torch.tensor([0])
    found = choose_classes(
        TargetsOptions(), Target(module), pictures, labels, module(pictures), labels, norm="linf", stream="t"
    )
    assert found.tolist() == [[2, 1]]


# Auto-PGD


@pytest.mark.parametrize(("order", "gradients"), [("rank", 2 * 6), ("malt", 2 * 6 + 9)])
def test_the_budget_is_spent_and_no_more(order, gradients):
    victim, pictures, labels = given(5)
    counting = Counting(victim)
    attack = ApgdTargeted(ApgdTargetedOptions(steps=5, targets=2, order=order))
    craft(attack, Target(counting), pictures, labels, eps=0.0)
    assert counting.count == 5 * gradients
    counting.count = 0
    craft(attack, Target(counting), pictures, (labels + 1) % 10, eps=0.1)
    assert counting.count == 0, "images that are wrong already"


def test_an_image_that_is_fooled_is_attacked_no_further():
    victim, pictures, labels = given(6)
    counting = Counting(victim)
    craft(ApgdTargeted(ApgdTargetedOptions(steps=5)), Target(counting), pictures, labels, eps=0.5)
    assert counting.count <= 6 * (6 + 9), "more than one class was tried"


def test_where_something_else_judges_every_image_gets_every_class():
    """An image that the attacked model gets wrong may be right for what judges it, and is attacked like the others."""
    victim, pictures, labels = given(6)
    labels[:3] = (labels[:3] + 1) % 10
    counting = Counting(victim)
    attack = ApgdTargeted(ApgdTargetedOptions(steps=5, targets=3, order="rank", early_stop=False))
    found = craft(attack, Target(counting), pictures, labels, eps=0.2)
    assert counting.count >= 6 * 5 * 3
    assert (found != pictures).flatten(1).any(1).all()


@pytest.mark.parametrize("loss", ["ce", "dlr", "margin", "pm"])
@pytest.mark.parametrize("classes", [2, 3, 4])
def test_with_few_classes_every_loss_has_a_slope(classes, loss):
    module = Linear(torch.randn(classes, 784, generator=torch.Generator().manual_seed(0)) / 28)
    victim, pictures, labels = given(12, module)
    attack = ApgdTargeted(ApgdTargetedOptions(steps=5, loss=loss))
    assert left(victim, craft(attack, Target(victim), pictures, labels, eps=0.3), labels) == 0


@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.02), ("l2", 0.4)])
def test_as_strong_as_the_published_one(norm, eps):
    from pyautoattack.autopgd_base import APGDAttack_targeted

    victim, pictures, labels = given(80)
    theirs = APGDAttack_targeted(
        victim, n_iter=10, norm=NORMS[norm], eps=eps, n_target_classes=3, device="cpu", logger=logging.getLogger("aa")
    )
    judged = left(victim, theirs.perturb(pictures, labels), labels)
    assert 15 < judged < 75, "choose another eps"
    for order in ("rank", "malt"):
        attack = ApgdTargeted(ApgdTargetedOptions(steps=10, targets=3, order=order), norm)
        found = left(victim, craft(attack, Target(victim), pictures, labels, eps=eps), labels)
        assert found <= judged + 1, f"by {order} ours leaves {found}, pyautoattack's {judged}"


@pytest.mark.parametrize("kind", [ApgdTargeted, FabTargeted])
def test_a_random_defence_gets_every_class_and_is_fooled_under_other_draws(kind):
    options = {"steps": 8, "targets": 2}
    config = ApgdTargetedOptions(**options) if kind is ApgdTargeted else FabOptions(**options)
    noisy, pictures = Noisy().eval().requires_grad_(False), images(TASK, 10)
    keys = torch.arange(10)
    judge = Target(noisy, seed=77, draws=20)
    labels = judge.logits(pictures, keys, "truth").argmax(1)
    counting = Counting(noisy)
    counting.random = True
    found = craft(kind(config), Target(counting, draws=4), pictures, labels, eps=0.2)
    assert counting.count == 4 * 10 * (2 * (9 if kind is ApgdTargeted else 8) + 9)
    assert int((judge.logits(found, keys, "judge").argmax(1) == labels).sum()) <= 2


# FAB


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_the_way_to_a_plane_in_the_box_is_theirs(norm):
    from pyautoattack.fab_projections import projection_l2, projection_linf

    generator = torch.Generator().manual_seed(0)
    points = torch.rand(60, 1, 4, 4, generator=generator)
    slope = torch.randn(60, 1, 4, 4, generator=generator)
    slope[:20, :, 0] = 0
    gap = torch.randn(60, generator=generator) * torch.linspace(0.1, 12, 60)  # the last planes do not meet the box
    ours = cross_plane(points, slope, gap, norm)
    level = (slope * points).flatten(1).sum(1) - gap
    their = {"linf": projection_linf, "l2": projection_l2}[norm](points.flatten(1), slope.flatten(1), level)
    torch.testing.assert_close(ours.flatten(1), their, atol=2e-5, rtol=1e-4)
    met = ((slope * ours).flatten(1).sum(1) + gap).abs() < 1e-4
    assert 30 < int(met.sum()) < 60 and (points + ours).min() >= -1e-6 and (points + ours).max() <= 1 + 1e-6


@pytest.mark.parametrize("size", [0.0, 1e-42, 1e-30, 1e30])
def test_a_slope_of_any_size_gives_a_finite_way(size):
    points, slope = torch.full((2, 1, 2, 2), 0.5), torch.tensor([1.0, -2.0, 0.0, 4.0]).view(1, 1, 2, 2) * size
    for norm in NORMS:
        found = cross_plane(points, slope.expand(2, 1, 2, 2), torch.tensor([1e20, -1e-20]), norm)
        assert torch.isfinite(found).all() and found.abs().max() <= 0.5


@pytest.mark.parametrize(("norm", "nearest"), [("linf", 0.1 / 3), ("l2", 0.1 / 3**0.5)])
def test_fab_finds_the_smallest_change_of_a_plane(norm, nearest):
    module = Linear(torch.tensor([[0.0] * 4, [1, 1, 1, 0]]), torch.tensor([0.0, -1.6]))
    pictures, labels = torch.full((2, 1, 2, 2), 0.5), torch.tensor([0, 0])
    eps = nearest * torch.tensor([0.99, 1.06])  # a step goes 1.05 times as far
    found = craft(FabTargeted(FabOptions(steps=3), norm), Target(module), pictures, labels, eps=eps)
    assert module(found).argmax(1).tolist() == [0, 1]
    assert torch.equal(found[0], pictures[0]), "nothing was found within the budget"


@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.02), ("l2", 0.4)])
def test_fab_is_as_strong_as_the_published_one(norm, eps):
    from pyautoattack.fab_pt import FABAttack_PT

    victim, pictures, labels = given(80)
    theirs = FABAttack_PT(
        victim, norm=NORMS[norm], n_restarts=1, n_iter=10, eps=eps, targeted=True, n_target_classes=3, device="cpu"
    )
    judged = victim(theirs.perturb(pictures, labels)).argmax(1) == labels
    attack = FabTargeted(FabOptions(steps=10, targets=3, order="rank"), norm)
    ours = victim(craft(attack, Target(victim), pictures, labels, eps=eps)).argmax(1) == labels
    assert 15 < int(judged.sum()) < 75, "choose another eps"
    assert int((ours != judged).sum()) <= 1, "both are deterministic"


# The ensemble


class TestStandard(AttackContract):
    name = "standard"
    options = {"apgd_steps": 3, "fab_steps": 3, "square_queries": 10, "targets": 2}


class TestStandardL2(AttackContract):
    name = "standard_l2"
    options = {"apgd_steps": 3, "fab_steps": 3, "square_queries": 10, "targets": 2}
    eps = 1.0


def standard(norm="linf", **options):
    return Standard(StandardOptions(apgd_steps=8, fab_steps=8, square_queries=40, targets=3, **options), norm)


@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.02), ("l2", 0.4)])
def test_the_ensemble_fools_whom_autoattack_does(norm, eps):
    from pyautoattack import AutoAttack

    victim, pictures, labels = given(80)
    logging.getLogger("auto-attack").disabled = True
    theirs = AutoAttack(victim, norm=NORMS[norm], eps=eps, seed=0)
    theirs.verbose = False
    theirs.apgd.n_iter = theirs.apgd.n_iter_orig = theirs.fab.n_iter = 8
    theirs.apgd_targeted.n_iter = theirs.apgd_targeted.n_iter_orig = 8
    theirs.square.n_queries, theirs.square.rescale_schedule = 40, True
    theirs.apgd_targeted.n_target_classes = theirs.fab.n_target_classes = 3
    judged = victim(theirs.run_standard_evaluation(pictures, labels)[0]).argmax(1) == labels
    ours = victim(craft(standard(norm, order="rank"), Target(victim), pictures, labels, eps=eps)).argmax(1) == labels
    assert 15 < int(judged.sum()) < 75, "choose another eps"
    assert int((ours != judged).sum()) <= 1


class Recording:
    """An attack that notes whom it was given, and darkens all of them."""

    norm = "linf"

    def __init__(self, seen):
        self.seen = seen

    def __call__(self, target, pictures, labels, *, eps, keys):
        self.seen.append(keys.tolist())
        target.queries = torch.ones(len(pictures), dtype=torch.int64)
        return torch.where((keys == len(self.seen)).view(-1, 1, 1, 1), 0.0, pictures)


class Bright(nn.Module):
    """Says class 0 of images that are not black; random where told to be."""

    def __init__(self, random=False):
        super().__init__()
        self.random = random

    def forward(self, batch):
        black = (batch.flatten(1).amax(1) == 0).float()
        return torch.stack((0.5 - black, black - 0.5), 1)


class NoBlack(nn.Module):
    """A detector that rejects black images."""

    random = False

    def __init__(self):
        super().__init__()
        self.register_buffer("threshold", torch.tensor(0.5))

    def forward(self, batch, purified):
        return (batch.flatten(1).amax(1) == 0).float()


def cascade(module):
    attack, seen = standard(), []
    attack._parts = {name: Recording(seen) for name in attack._parts}
    target, pictures = Target(module), torch.full((4, 1, 2, 2), 0.5)
    labels = torch.tensor([1, 0, 0, 0])  # the first is wrong as it is
    found = craft(attack, target, pictures, labels, eps=1.0, keys=torch.arange(4))
    assert target.queries is None, "queries of some of the images"
    return seen, (found.flatten(1).amax(1) == 0).tolist()


def test_who_is_fooled_is_not_attacked_by_the_next():
    assert cascade(Bright()) == ([[1, 2, 3], [2, 3], [3]], [False, True, True, True])


def test_of_a_random_defence_everyone_is_attacked_by_all():
    assert cascade(Bright(random=True)) == ([[0, 1, 2, 3]] * 4, [False, True, True, True])


def test_who_is_rejected_is_not_done():
    seen, black = cascade(Defence(Bright(), detector=NoBlack()))
    assert seen == [[1, 2, 3]] * 4 and black == [False, True, True, True], "fooled at least"
