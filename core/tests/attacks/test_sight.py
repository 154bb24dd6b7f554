"""What an attack saw: absent, zero and broken gradients are written down, mended where they can be, and told."""

import functools
import math

import attrs
import pytest
import torch
from torch import nn

from defend.attacks.apgd import Apgd
from defend.attacks.detector_aware import joint, orthogonal, selective
from defend.attacks.fab import FabTargeted
from defend.attacks.host import craft
from defend.attacks.iterated import Bim, Pgd
from defend.attacks.objectives import (
    choose_cross_entropy,
    cross_entropy,
    log_odds,
    probability_margin,
    steady_cross_entropy,
)
from defend.attacks.options import (
    ApgdOptions,
    BimOptions,
    DetectorAwareOptions,
    FabOptions,
    FgsmOptions,
    JointOptions,
    PgdOptions,
    StandardOptions,
)
from defend.attacks.sight import Sight
from defend.attacks.single_step import Fgsm
from defend.attacks.standard import Standard
from defend.attacks.target import Target
from defend.checks import check_run
from defend.defence import Defence
from defend.errors import ContractError
from defend.evaluation.evaluate import EvaluationSettings, Evaluator
from defend.plugins import registry
from defend.records.looks import curve_of, find_left_blind, gradients_of
from defend.records.per_image import to_csv
from defend.records.rows import PlannedRow
from defend.records.seen import Seen
from defend.testing import rigged
from defend.values.threats import Threat


class Linear(nn.Module):
    """Two or more logits, linear in the pixels."""

    def __init__(self, classes=3, scale=1.0):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.weights, self.scale = torch.randn(classes, 16, generator=generator), scale

    def forward(self, images):
        return self.scale * images.flatten(1) @ self.weights.T


def batch(count=6):
    images = 0.2 + 0.6 * torch.rand(count, 1, 4, 4, generator=torch.Generator().manual_seed(1))
    return images, Linear()(images).argmax(1), torch.arange(count) + 100


def look(module, images, labels, keys, objective=cross_entropy, **more):
    target = Target(module, **more)
    target.watch(keys, labels)
    return target.slope(images, labels, keys, 0, objective), target.sight.seen


class Through(nn.Module):
    """A victim behind something that is done to the images."""

    def __init__(self, change, random=False):
        super().__init__()
        self.change, self.victim, self.random = change, Linear(), random

    def forward(self, images):
        return self.victim(self.change(images))


def stepped(images):
    return (16 * images).round() / 16


def only_bright(images):
    """No gradient for images that are dark in the mean."""
    bright = (images.mean((1, 2, 3), keepdim=True) > 0.5).float()
    return images * bright + images.detach() * (1 - bright)


def test_a_clean_look_counts_and_nothing_is_blind():
    images, labels, keys = batch()
    _, seen = look(Linear(), images, labels, keys)
    assert seen.looks.tolist() == [1] * 6 and not seen.blind.any() and not seen.never.any()


def test_an_absent_gradient_is_told_from_a_zero_one():
    images, labels, keys = batch()
    _, detached = look(Through(lambda x: x.detach()), images, labels, keys)
    assert detached.absent.tolist() == [1] * 6 and detached.zero.sum() == 0 and bool(detached.never.all())
    slope, steps = look(Through(stepped), images, labels, keys)
    assert steps.zero.tolist() == [1] * 6 and steps.absent.sum() == 0 and not slope.gradient.any()


def test_blindness_is_counted_image_by_image():
    images, labels, keys = batch()
    images[:2] *= 0.2
    images[2:] = 0.5 + 0.5 * images[2:]
    _, seen = look(Through(only_bright), images, labels, keys)
    assert seen.zero.tolist() == [1, 1, 0, 0, 0, 0] and seen.first_blind.tolist() == [1, 1, 0, 0, 0, 0]


@pytest.mark.parametrize("edge", [0.0, 1.0])
def test_a_gradient_that_is_not_finite_on_the_edge_of_the_box_is_taken_a_hair_inside(edge):
    images, labels, keys = batch()
    images[:, :, 0] = edge
    root = (lambda x: x.sqrt().square()) if edge == 0 else (lambda x: 1 - (1 - x).sqrt().square())
    expected, _ = look(Linear(), images, labels, keys)
    slope, seen = look(Through(root), images, labels, keys)
    torch.testing.assert_close(slope.gradient, expected.gradient, rtol=1e-3, atol=1e-4)
    assert bool(seen.mended.all()) and not seen.broken.any() and not seen.blind.any()


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_gradient_that_stays_broken_is_zero_there_and_blind(value):
    images, labels, keys = batch()

    class Broken(torch.autograd.Function):
        @staticmethod
        def forward(_, values):
            return values.clone()

        @staticmethod
        def backward(_, outer):
            outer = outer.clone()
            outer[:3, :, 0] = value
            return outer

    slope, seen = look(Through(Broken.apply), images, labels, keys)
    assert bool(torch.isfinite(slope.gradient).all()) and not slope.gradient[:3, :, 0].any()
    assert seen.broken.tolist() == [1, 1, 1, 0, 0, 0] and bool(slope.gradient[:, :, 1:].any())


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_attacks_fool_through_nan_gradients_as_without_them(norm):
    images, _, keys = batch(64)
    images[:, :, 0] = 0
    labels = Linear()(images).argmax(1)
    attack = Apgd(ApgdOptions(steps=10), "ce", norm)
    eps = 0.1 if norm == "linf" else 0.4
    found = [
        craft(attack, Target(module), images, labels, eps=eps, keys=keys)
        for module in (Linear(), Through(lambda x: x.sqrt().square()))
    ]
    left = [int((Linear()(one).argmax(1) == labels).sum()) for one in found]
    assert left[1] <= left[0] + 1 < 64


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_attacks_see_the_same_whatever_surrounds_them(mode):
    images, labels, keys = batch(32)
    expected = craft(Pgd(PgdOptions(steps=5)), Target(Linear()), images, labels, eps=0.1, keys=keys)
    module = Linear()
    with mode():
        inside = images.clone(), labels.clone(), keys.clone()
        found = craft(Pgd(PgdOptions(steps=5)), Target(module), *inside[:2], eps=0.1, keys=inside[2])
        slope = Target(module).slope(*inside, 0)
    assert torch.equal(found, expected) and bool(slope.gradient.flatten(1).any(1).all())


def test_a_module_built_in_inference_mode_is_refused():
    with torch.inference_mode():
        module = nn.Linear(4, 2)
    with pytest.raises(ContractError, match=r"built inside torch.inference_mode.*build it outside"):
        Target(module)


def test_log_odds_are_the_cross_entropy_seen_through_a_logarithm():
    logits, labels = torch.randn(5, 4, dtype=torch.float64), torch.tensor([0, 1, 2, 3, 0])
    expected = nn.functional.cross_entropy(logits, labels, reduction="none")
    torch.testing.assert_close(nn.functional.softplus(log_odds(logits, labels)), expected)


def probability_above(module, images, labels):
    """The probability margin, from [-1, 1] to [0, 1], to the letter."""
    logits = module(images)
    shares = logits.softmax(1)
    own = nn.functional.one_hot(labels, logits.shape[1]).bool()
    return (1 + shares.masked_fill(own, 0).amax(1) - shares[own]) / 2, logits


STEADY = {"ce": (cross_entropy, steady_cross_entropy), "pm": (probability_above, probability_margin)}


@pytest.mark.parametrize("loss", STEADY)
@pytest.mark.parametrize("draws", [1, 7])
def test_the_steady_loss_points_where_the_plain_one_does(draws, loss):
    images, labels, keys = batch(30)
    usual, images = Linear(scale=4), images.double()  # float32 loses digits of 1 - p, which the steady form does not
    usual.weights = usual.weights.double()
    some = (usual(images).amax(1) - usual(images).amin(1) - 20).abs() < 8  # the spread of a usual network
    images, labels, keys = images[some], labels[some], keys[some]
    assert len(images) > 3
    noisy = Through(
        lambda x: x + 0.001 * torch.randn(x.shape, generator=torch.Generator().manual_seed(3), dtype=x.dtype),
        random=True,
    )
    noisy.victim = usual
    slopes = [look(noisy, images, labels, keys, one, draws=draws)[0] for one in STEADY[loss]]
    plain, steady = (slope.gradient.flatten(1) for slope in slopes)
    torch.testing.assert_close(nn.functional.normalize(steady), nn.functional.normalize(plain), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(slopes[1].loss.exp(), slopes[0].loss, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_a_loss_of_what_is_asked_otherwise_is_that_of_a_module_that_answers_so(scale):
    """Its steady form too, with the usual size that a target brings logits to."""
    (images, labels, keys), inner = batch(), Linear(scale=scale)
    objective = choose_cross_entropy(None, lambda module, pictures: module(pictures**2))
    ours, _ = look(inner, images, labels, keys, objective)
    whole = Through(lambda pictures: pictures**2)
    whole.victim = inner
    theirs, _ = look(whole, images, labels, keys, steady_cross_entropy)
    torch.testing.assert_close(ours.gradient, theirs.gradient)
    torch.testing.assert_close(ours.loss, theirs.loss)
    assert ours.gradient.flatten(1).any(1).all()


@pytest.mark.parametrize("scale", [1e-6, 1e-2, 1e3, 1e6])
def test_a_factor_of_the_logits_changes_no_success_of_many_steps(scale):
    images, _, keys = batch(64)
    labels = Linear(10)(images).argmax(1)
    left = []
    for factor in (1.0, scale):
        module = Linear(10, factor)
        found = craft(Pgd(PgdOptions(steps=5)), Target(module), images, labels, eps=0.03, keys=keys)
        left.append(int((module(found).argmax(1) == labels).sum()))
    assert abs(left[1] - left[0]) <= 3 and 8 < left[0] < 56, left


@pytest.mark.parametrize("late", [True, False])
def test_an_attack_that_sees_at_its_beginning_alone_is_told(late):
    arms = behind(
        toy()[1],
        lambda x: (
            x
            if x.requires_grad and bool((255 * x - (255 * x).round()).abs().max() < 1e-3)
            else (x.detach() if late else x * 1)
        ),
    )
    attack = Bim(BimOptions(steps=8))
    rows = evaluated(arms, [planned("adaptive bim", arms, attack)])
    assert (int(find_left_blind(rows[-1]).sum()) > 20) is late
    assert (check_run(rows, None, "basic")[4].status == "fail") is late


@pytest.mark.parametrize("loss", STEADY)
def test_the_steady_loss_does_not_underflow(loss):
    images, labels, keys = batch()
    (plain, blind), (steady, seen) = (look(Linear(scale=1e5), images, labels, keys, one) for one in STEADY[loss])
    assert bool(blind.zero.all()) and not plain.gradient.any()
    assert not seen.zero.any() and bool(torch.isfinite(steady.loss).all()) and len(steady.loss.unique()) == 6


@pytest.mark.parametrize("loss", STEADY)
def test_logits_that_are_all_alike_do_not_decide_the_scale_of_those_to_come(loss):
    images, labels, keys = batch()
    straight, _ = look(Linear(scale=1e5), images, labels, keys, STEADY[loss][1])
    target = Target(Linear(scale=1e5))
    target.watch(keys, labels)
    target.slope(torch.zeros_like(images), labels, keys, 0, STEADY[loss][1])  # a black image: no class leads
    later = target.slope(images, labels, keys, 1, STEADY[loss][1])
    assert torch.equal(later.loss, straight.loss) and torch.equal(later.gradient, straight.gradient)


def test_keys_that_are_not_under_attack_change_nothing():
    sight = Sight(torch.tensor([5, 3, 9]), torch.tensor([0, 1, 2]))
    sight.note(torch.tensor([9, 4]), gradient=torch.zeros(2, 1, 2, 2), logits=torch.eye(3)[[0, 0]])
    assert sight.seen.looks.tolist() == [0, 0, 1] and sight.seen.zero.tolist() == [0, 0, 1]
    assert sight.seen.fooled_at.tolist() == [0, 0, 1]


def test_parts_join_in_their_order_and_an_unknown_one_leaves_nothing():
    one, two = Seen.nothing(2), Seen.nothing(1)
    two.looks[0] = 7
    assert Seen.join([one, two]).looks.tolist() == [0, 0, 7]
    assert Seen.join([one, None]) is None


# rows and checks


@functools.cache
def toy():
    dataset = rigged.toy_dataset()
    victim = rigged.train_victim(dataset)
    return dataset, victim, rigged.adversarially_tuned(victim, dataset)


def planned(what, arms, attack=None, count=60):
    kind, name = what.split()
    attack = attack or {"fgsm": Fgsm(FgsmOptions()), "pgd": Pgd(PgdOptions())}[name]
    attacked = "undefended" if kind == "oblivious" else "defended"
    keys = toy()[0].keys("test", count, 0)
    return PlannedRow(name, Threat(kind, "linf", rigged.EPS), attack, keys, 20, attacked, tuple(arms))


def evaluated(arms, plans):
    keys = plans[0].keys
    clean = PlannedRow("none", Threat("none", "none", 0.0), None, keys, None, "undefended", tuple(arms))
    evaluator = Evaluator(arms, toy()[0], EvaluationSettings(device=torch.device("cpu"), batch_size=64))
    return [evaluator.row(plan) for plan in (clean, *plans)]


def behind(victim, change=lambda x: x * 1):
    return {"undefended": Defence(victim), "defended": Defence(victim, Change(change))}


WAYS = {
    "detached": (lambda x: x.detach(), "absent"),
    "stepped": (stepped, "zero"),
    "partly detached": (lambda x: torch.where(x.mean((1, 2, 3), keepdim=True) > 0, x.detach(), x), "zero"),
}


class Change(nn.Module):
    random = False

    def __init__(self, change):
        super().__init__()
        self.change = change

    def forward(self, images):
        return self.change(images)


@pytest.mark.parametrize("way", WAYS)
def test_every_way_of_losing_a_gradient_strikes_the_headline_out(way):
    change, how = WAYS[way]
    arms = behind(toy()[1], change)
    rows = evaluated(arms, [planned("oblivious pgd", arms), planned("adaptive pgd", arms)])
    assert gradients_of(rows[-1], 1)[how] == 60 and int(find_left_blind(rows[-1]).sum()) > 30
    check = check_run(rows, None, "basic")[4]
    assert check.name == "gradients" and check.status == "fail" and "hardly ever had a usable gradient" in check.detail


def test_a_saturated_softmax_is_climbed_and_an_attack_that_cannot_is_told():
    loud = rigged.Saturated(toy()[1])
    arms = {"undefended": Defence(loud), "defended": Defence(loud)}
    steady = evaluated(arms, [planned("oblivious pgd", arms)])
    assert int(find_left_blind(steady[-1]).sum()) == 0 and check_run(steady, None, "basic")[4].status == "pass"
    literal = evaluated(arms, [planned("oblivious fgsm", arms)])
    assert int(find_left_blind(literal[-1]).sum()) > 30
    assert check_run(literal, None, "basic")[4].status == "fail"


def test_an_honest_defence_passes_and_its_curve_falls_to_what_the_row_leaves():
    arms = behind(toy()[2])
    rows = evaluated(arms, [planned("adaptive pgd", arms)])
    curve, row = curve_of(rows[-1]), rows[-1]
    left = (row.arms["defended"].predicted == row.labels).float().mean()
    assert curve["at"][0] == 0 and curve["left"][-1] == pytest.approx(float(left))
    assert curve["left"] == sorted(curve["left"], reverse=True)
    assert check_run(rows, None, "basic")[4].status == "pass"


def test_the_records_tell_what_was_seen_of_each_image():
    arms = behind(toy()[1], stepped)
    clean, attacked = evaluated(arms, [planned("adaptive pgd", arms, count=5)])
    lines = [line.split(",")[-4:-1] for line in to_csv([clean, attacked]).splitlines()]
    assert lines[0] == ["looks", "blind", "fooled_at"] and lines[1] == ["", "", ""]
    said = zip(
        *(column.tolist() for column in (attacked.seen.looks, attacked.seen.blind, attacked.seen.fooled_at)),
        strict=True,
    )
    assert lines[-5:] == [[str(each) for each in one] for one in said] and lines[-1][0] == lines[-1][1] != "0"


def test_an_attack_stopped_early_is_told_from_one_that_had_come_to_its_end():
    arms = behind(toy()[1])
    short = Pgd(PgdOptions(steps=4, step_size=0.012, random_start=False))
    ended = Pgd(PgdOptions(steps=30, step_size=0.05))
    rows = [evaluated(arms, [planned("adaptive pgd", arms, attack)]) for attack in (short, ended)]
    assert [curve_of(each[-1])["flattened"] for each in rows] == [False, True]
    assert [check_run(each, None, "basic")[3].status for each in rows] == ["warn", "pass"]
    # of nothing more steps take nothing, however late the last image fell
    (_, row), seen = rows[0], rows[0][-1].seen
    all_late = attrs.evolve(row, seen=attrs.evolve(seen, fooled_at=torch.full_like(seen.fooled_at, 4)))
    assert curve_of(all_late)["late"] == len(row.keys) and curve_of(all_late)["flattened"]


def test_an_attack_of_one_step_or_with_logits_of_its_own_has_no_curve():
    arms = behind(toy()[1])
    own = planned("adaptive pgd", arms, Pgd(PgdOptions(steps=8), judged=False), count=20)
    single, other = evaluated(arms, [planned("adaptive fgsm", arms, count=20), own])[1:]
    assert curve_of(single) is None and curve_of(other) is None
    assert gradients_of(other, 1)["looks"]["max"] == 8


@pytest.mark.parametrize("name", ["torchattacks:PGD", "foolbox:LinfPGD"])
def test_a_library_that_sees_nothing_is_told_of(name):
    pytest.importorskip(name.partition(":")[0])
    found = registry().find("attack", name)
    attack = found.spec.resolve(found.spec.build)(found.config({}))
    images, labels, keys = batch()
    for module, blind in ((Linear(), 0), (Through(stepped), 2)):
        target = Target(module)
        craft(attack, target, images, labels, eps=0.01, keys=keys)
        assert target.sight.seen.looks.tolist() == [2] * 6 and target.sight.seen.zero.tolist() == [blind] * 6


# Attacks made of several


def test_answers_do_not_hide_that_there_was_no_gradient():
    """Square's queries, the last part of the ensemble, are no looks at a gradient."""
    images, labels, keys = batch()
    target = Target(Through(stepped))
    options = {"apgd_steps": 3, "fab_steps": 3, "square_queries": 100, "targets": 2}
    craft(Standard(StandardOptions(**options)), target, images, labels, eps=0.001, keys=keys)
    seen = target.sight.seen
    assert (seen.looks > 2 * seen.blind).all(), "of all looks the blind ones are few"
    assert (seen.blind == seen.differentiated).all() and seen.never.all() and seen.mostly.all()


class Rough(nn.Module):
    """A detector that looks at the images themselves, and never rejects or always does."""

    random = False

    def __init__(self, threshold):
        super().__init__()
        self.register_buffer("threshold", torch.tensor(float(threshold)))

    def forward(self, images, purified):
        return images.square().flatten(1).mean(1)


class Stepped(nn.Module):
    random = False

    def forward(self, images):
        return stepped(images)


DETECTOR_AWARE = {
    "joint": lambda: joint(JointOptions(steps=3)),
    "selective": lambda: selective(DetectorAwareOptions(steps=3)),
    "orthogonal": lambda: orthogonal(DetectorAwareOptions(steps=3)),
}


@pytest.mark.parametrize("name", DETECTOR_AWARE)
@pytest.mark.parametrize("threshold", [10.0, 0.0])
def test_the_detectors_gradient_does_not_pass_for_the_classifiers(name, threshold):
    images, _, keys = batch()
    target = Target(Defence(Linear(), Stepped(), Rough(threshold)))
    craft(DETECTOR_AWARE[name](), target, images, stepped_labels(images), eps=0.001, keys=keys)
    assert target.sight.seen.never.all()


def stepped_labels(images):
    return Linear()(stepped(images)).argmax(1)


@pytest.mark.parametrize("name", DETECTOR_AWARE)
def test_a_detector_that_always_says_the_same_needs_no_gradient(name):
    images, labels, keys = batch()

    class Same(Rough):
        def forward(self, images, purified):
            return images.new_zeros(len(images))

    target = Target(Defence(Linear(), None, Same(1.0)))
    craft(DETECTOR_AWARE[name](), target, images, labels, eps=0.001, keys=keys)
    assert not target.sight.seen.blind.any() and target.sight.seen.looks.all()


@pytest.mark.parametrize("attack", [FabTargeted(FabOptions(steps=10)), Standard(StandardOptions(square_queries=5))])
def test_a_boundary_that_is_crossed_beyond_the_budget_is_no_success(attack):
    images, labels, keys = batch(20)
    target = Target(Linear())
    found = craft(attack, target, images, labels, eps=0.02, keys=keys)
    fooled = Linear()(found).argmax(1) != labels
    assert fooled.any() and not fooled.all()
    assert torch.equal(target.sight.seen.fooled_at > 0, fooled)
