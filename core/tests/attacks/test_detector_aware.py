"""Attacks that know the detector: their steps by hand, and what they do to a defence that plain PGD cannot pass."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from defend.attacks.detector_aware import _Best, joint, orthogonal, selective, without
from defend.attacks.host import craft
from defend.attacks.iterated import Pgd
from defend.attacks.options import DetectorAwareOptions, JointOptions, PgdOptions
from defend.attacks.target import Slopes, Target
from defend.defence import Defence
from defend.errors import ConfigError
from defend.randomness import uniform_like
from defend.testing.toys import TASK, TinyVictim, images


def attacks(**options):
    return {
        "joint": joint(JointOptions(**options)),
        "selective": selective(DetectorAwareOptions(**options)),
        "orthogonal": orthogonal(DetectorAwareOptions(**options)),
    }


NAMES = ("joint", "selective", "orthogonal")


class Detector(nn.Module):
    """A detector whose score is a function of the images."""

    def __init__(self, score, threshold, random=False):
        super().__init__()
        self.score, self.random = score, random
        self.register_buffer("threshold", torch.tensor(float(threshold)))

    def forward(self, batch, purified):
        return self.score(batch)


def roughness(batch):
    """How far images are from themselves smoothed: clean ones are smooth, signs of gradients are not."""
    smooth = F.avg_pool2d(F.pad(batch, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    return (batch - smooth).square().flatten(1).mean(1)


@pytest.fixture
def guarded():
    """A defence that accepts all clean images, with images and labels."""
    pictures = images(TASK, 40)
    defence = Defence(TinyVictim(), detector=Detector(roughness, 1.02 * float(roughness(pictures).max())))
    return defence.requires_grad_(False), pictures, defence(pictures).argmax(1)


def test_plain_pgd_is_rejected(guarded):
    defence, pictures, labels = guarded
    assert defence.judge(pictures).accepted.all()
    verdict = defence.judge(craft(Pgd(PgdOptions(steps=20)), Target(defence), pictures, labels, eps=0.1))
    assert (verdict.labels != labels).all() and not verdict.accepted.any()


@pytest.mark.parametrize("name", NAMES)
def test_each_gets_images_accepted_and_misclassified(guarded, name):
    defence, pictures, labels = guarded
    found = craft(attacks(steps=40)[name], Target(defence), pictures, labels, eps=0.1)
    assert (found - pictures).abs().max() <= 0.1 + 1e-6
    verdict = defence.judge(found)
    assert (verdict.accepted & (verdict.labels != labels)).double().mean() >= 0.9


@pytest.mark.parametrize("name", NAMES)
def test_a_stricter_threshold_is_aimed_at(guarded, name):
    defence, pictures, labels = guarded
    own = float(defence.detector.threshold)
    strict = 0.8 * own
    scores = []
    for threshold in (None, strict):
        target = Target(defence, threshold=threshold)
        verdict = defence.judge(craft(attacks(steps=40)[name], target, pictures, labels, eps=0.1))
        scores.append(verdict.score[verdict.labels != labels])
    reached = [float((score < strict).double().mean()) for score in scores]
    assert reached[0] < 0.5 < 0.7 < reached[1]


# The steps, by hand: two classes, three pixels; the classifier answers to CLASSIFIER, the detector to DETECTOR

CLASSIFIER, DETECTOR = torch.tensor([1.0, 1.0, 0.0]), torch.tensor([1.0, 0.0, 1.0])


class Linear(nn.Module):
    """Logits (0, CLASSIFIER x), so that the cross-entropy of label 0 rises along CLASSIFIER; remembers its images."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, batch):
        self.seen.append(batch.detach().clone())
        rise = 4 * (batch.flatten(1) - 0.5) @ CLASSIFIER
        return torch.stack((torch.zeros_like(rise), rise), 1)


def second_point(attack, start):
    """Return the signs of an attack's first step on an image of label 0, which it looks at once before."""
    victim = Linear()
    defence = Defence(victim, detector=Detector(lambda batch: batch.flatten(1) @ DETECTOR, 0.2))
    picture = torch.tensor(start).view(1, 1, 1, 3)
    craft(attack, Target(defence), picture, torch.tensor([0]), eps=0.1)
    return ((victim.seen[2] - victim.seen[1]) / 0.01).flatten().round().tolist()


RIGHT, WRONG = [0.4, 0.4, 0.5], [0.6, 0.6, 0.5]


def test_selective_follows_the_classifier_until_it_is_wrong_then_the_detector():
    attack = attacks(steps=2, step_size=0.01, random_start=False)["selective"]
    assert second_point(attack, RIGHT) == [1, 1, 0]
    assert second_point(attack, WRONG) == [-1, 0, -1]


def test_orthogonal_takes_from_each_gradient_what_lies_along_the_other():
    attack = attacks(steps=2, step_size=0.01, random_start=False)["orthogonal"]
    assert second_point(attack, RIGHT) == [1, 1, -1]  # (1,1,0) - (1,0,1)/2 = (1/2,1,-1/2)
    assert second_point(attack, WRONG) == [-1, 1, -1]  # -(1,0,1) + (1,1,0)/2 = (-1/2,1/2,-1)


@pytest.mark.parametrize(("weight", "signs"), [(0.0, [1, 1, 0]), (0.2, [1, 1, -1]), (100.0, [-1, 1, -1])])
def test_joint_weighs_the_score_by_its_threshold(weight, signs):
    # the cross-entropy rises by 4 p = 4 / (1 + e^0.8) = 1.24 a pixel, the score falls by weight / 0.2
    attack = joint(JointOptions(weights=(weight,), steps=2, step_size=0.01, random_start=False))
    assert second_point(attack, RIGHT) == signs


@pytest.mark.parametrize(
    ("vector", "other", "rest"),
    [
        ((3, 4), (1, 0), (0, 4)),
        ((3, 4), (-2, 0), (0, 4)),
        ((2, 0), (1, 1), (1, -1)),
        ((3, 4), (0, 0), (3, 4)),
        ((0, 0), (1, 1), (0, 0)),
        ((3, 4), (3, 4), (0, 0)),
        ((3, 4), (1e-18, 0), (0, 4)),
    ],
)
def test_the_projection_by_hand(vector, other, rest):
    vector, other, rest = (torch.tensor(v, dtype=torch.float32).view(1, 1, 1, 2) for v in (vector, other, rest))
    torch.testing.assert_close(without(vector, other), rest, atol=1e-6, rtol=0)


def test_every_image_has_its_own_projection():
    generator = torch.Generator().manual_seed(0)
    vectors, others = torch.randn(2, 5, 3, 4, 4, generator=generator)
    rest = without(vectors, others)
    torch.testing.assert_close((rest * others).flatten(1).sum(1), torch.zeros(5), atol=1e-4, rtol=0)
    assert torch.equal(without(vectors[2:3], others[2:3]), rest[2:3])


# Which candidate is kept


def test_draws_come_first_then_misclassified_then_the_score_then_the_loss():
    best = _Best(torch.zeros(1, 1, 1, 1))
    right, wrong = torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 2.0]])
    story = [
        (1.0, right, 0.5, 0.0, 0.0, 1.0),  # the first of all
        (2.0, right - torch.tensor([[1.0, 0.0]]), 0.9, 0.0, 0.0, 2.0),  # a higher loss
        (3.0, right, 0.1, 0.0, 0.0, 2.0),  # a lower one
        (4.0, wrong, 0.8, 0.0, 0.0, 4.0),  # misclassified
        (5.0, wrong, 0.9, 0.0, 0.0, 4.0),  # a higher score
        (6.0, wrong, 0.3, 0.0, 0.0, 6.0),  # a lower one
        (7.0, right, 0.0, 0.0, 0.0, 6.0),  # right again
        (8.0, right, 0.9, 0.25, 0.0, 8.0),  # right on the average, and a quarter of the draws are fooled
        (9.0, wrong, 0.1, 0.0, 0.0, 8.0),  # misclassified on the average, and no draw accepted
        (10.0, wrong, 0.4, 0.75, 0.0, 10.0),
        (11.0, wrong, 0.1, 0.5, 0.5, 10.0),  # fewer draws as it is judged, more at the stricter threshold
        (12.0, right, 0.6, 0.75, 0.25, 12.0),  # as many as it is judged, more at the stricter threshold
    ]
    for value, logits, score, share, strict, kept in story:
        said = Slopes([], logits, *(torch.tensor([number]) for number in (score, share, strict)))
        best.record(torch.tensor([0]), torch.full((1, 1, 1, 1), value), said, torch.tensor([0]))
        assert best.images.item() == kept


# Odd detectors, random defences, no detector


@pytest.mark.parametrize("accepts", [True, False])
@pytest.mark.parametrize("name", NAMES)
def test_a_constant_score_leaves_the_classifier_to_attack(name, accepts):
    pictures = images(TASK, 12)
    constant = Detector(lambda batch: torch.full((len(batch),), 0.5), 0.6 if accepts else 0.4)
    defence = Defence(TinyVictim(), detector=constant)
    labels = defence(pictures).argmax(1)
    verdict = defence.judge(craft(attacks(steps=10)[name], Target(defence), pictures, labels, eps=0.1))
    assert (verdict.labels != labels).all() and (verdict.accepted == accepts).all()


@pytest.mark.parametrize("threshold", [0.0, torch.inf, -0.5])
@pytest.mark.parametrize("name", NAMES)
def test_any_threshold_will_do(name, threshold):
    pictures = images(TASK, 6)
    defence = Defence(TinyVictim(), detector=Detector(lambda batch: -batch.flatten(1).mean(1), threshold))
    labels = defence(pictures).argmax(1)
    found = craft(attacks(steps=10)[name], Target(defence), pictures, labels, eps=0.1)
    assert (defence(found).argmax(1) != labels).any()


class Counting(TinyVictim):
    """Counts the images of every pass."""

    def __init__(self):
        super().__init__()
        self.passes = []

    def forward(self, batch):
        self.passes.append(len(batch))
        return super().forward(batch)


def test_an_image_that_is_accepted_and_misclassified_is_left_alone():
    victim, pictures = Counting(), images(TASK, 8)
    labels = victim(pictures).argmax(1)
    labels[:3] = (labels[:3] + 1) % TASK.classes
    defence = Defence(victim, detector=Detector(roughness, torch.inf))
    victim.passes.clear()
    attack = attacks(steps=6, random_start=False)["selective"]
    found = craft(attack, Target(defence), pictures, labels, eps=0.01)
    assert victim.passes[:2] == [8, 5] and torch.equal(found[:3], pictures[:3])


def test_a_random_defence_is_attacked_to_the_end_over_all_its_draws():
    victim, pictures = Counting(), images(TASK, 3)
    noisy = Detector(lambda batch: roughness(batch + uniform_like(batch, -0.1, 0.1)), torch.inf, random=True)
    defence = Defence(victim, detector=noisy)
    labels = (defence(pictures).argmax(1) + 1) % TASK.classes
    victim.passes.clear()
    craft(attacks(steps=6)["orthogonal"], Target(defence, draws=4), pictures, labels, eps=0.01)
    # the images themselves, six gradients, where the last step ended; that and the best again, with other draws
    assert victim.passes == [3 * 4] * 10


@pytest.mark.parametrize("name", NAMES)
def test_without_a_detector_they_are_refused(name):
    for module in (Defence(TinyVictim()), TinyVictim()):
        with pytest.raises(ConfigError, match=f"pgd_{name} is made against a detector.*--detector"):
            craft(attacks()[name], Target(module), images(TASK, 1), torch.tensor([0]), eps=0.1)


def test_joint_needs_a_weight():
    with pytest.raises(ConfigError, match="weights is empty"):
        joint(JointOptions(weights=()))


# What an attacker is told


def test_the_answer_of_a_defence_is_its_logits_and_whether_it_accepts():
    pictures = images(TASK, 4)
    score = Detector(lambda batch: batch[:, 0, 0, 0], 0.5)
    pictures[:, 0, 0, 0] = torch.tensor([0.1, 0.6, 0.5, 0.4])
    defence = Defence(TinyVictim(), detector=score)
    logits, accepted = Target(defence).answer(pictures, torch.arange(4), 0)
    assert torch.equal(logits, defence(pictures)) and not logits.requires_grad
    assert accepted.tolist() == [True, False, False, True]
    assert Target(TinyVictim()).answer(pictures, torch.arange(4), 0)[1].all()


@pytest.mark.parametrize("name", NAMES)
def test_what_fools_a_random_detector_by_luck_is_not_kept(name):
    """The images as they are pass in four draws of five, all others in two of five: some step is lucky in each draw."""
    pictures = images(TASK, 60)
    corner = pictures[:, :, 0, 0].clone()

    def score(batch):
        moved = (batch[:, :, 0, 0] - corner.repeat(len(batch) // len(corner), 1)).abs().amax(1) > 1e-6
        return uniform_like(batch[:, 0, 0, 0], 0, 1) - torch.where(moved, 0.4, 0.8)

    defence = Defence(TinyVictim(), detector=Detector(score, 0.0, random=True)).requires_grad_(False)
    labels = (
        defence(pictures).argmax(1) + 1
    ) % TASK.classes  # all are misclassified, and only the detector stands in the way
    found = craft(attacks(steps=30)[name], Target(defence, draws=5), pictures, labels, eps=0.05)
    unmoved = (found - pictures).abs().amax((1, 2, 3)) <= 1e-6
    assert unmoved.all()


class Shifting(nn.Module):
    """A purifier that makes each image as a whole brighter or darker by chance."""

    random = True

    def forward(self, batch):
        return batch + uniform_like(batch[:, :, :1, :1], -0.1, 0.1)


class Bright(nn.Module):
    """Says class 1 of images that are brighter than grey by a twentieth."""

    def forward(self, batch):
        brighter = 100 * (batch.flatten(1).mean(1) - 0.55)
        return torch.stack((torch.zeros_like(brighter), brighter), 1)


@pytest.mark.parametrize("name", ["joint", "selective"])
def test_a_random_defence_is_fooled_as_it_is_judged_whatever_else_is_wanted(name):
    """The brighter an image, the more draws are fooled: two in three below 0.09, one in three at most below 0.02."""
    grey, labels, keys = torch.full((8, 1, 4, 4), 0.5), torch.zeros(8, dtype=torch.long), torch.arange(8)
    defence = Defence(Bright(), Shifting(), Detector(lambda batch: (batch.flatten(1).mean(1) - 0.5).abs(), 0.09))
    target = Target(defence, draws=20, threshold=0.02)
    found = craft(attacks(steps=10)[name], target, grey, labels, eps=0.1)
    assert Target(defence, seed=1, draws=100).scores(found, labels, keys, "judge").share.mean() > 0.5


def test_a_random_defence_accepts_what_most_draws_accept():
    noisy = Detector(lambda batch: batch[:, 0, 0, 0] + uniform_like(batch[:, 0, 0, 0], -0.2, 0.2), 0.5, random=True)
    defence = Defence(TinyVictim(), detector=noisy)
    pictures = images(TASK, 2)
    pictures[:, 0, 0, 0] = torch.tensor([0.35, 0.65])
    target = Target(defence, draws=50)
    assert target.answer(pictures, torch.arange(2), 0)[1].tolist() == [True, False]
    single = torch.stack([target.answer(pictures, torch.arange(2), step, draws=1)[1] for step in range(50)])
    assert 0 < single[:, 1].sum() < 25 < single[:, 0].sum() < 50


@pytest.mark.parametrize("random", [False, True])
def test_several_gradients_of_one_pass_are_those_of_several_passes(random):
    def score(batch):
        return roughness(batch + uniform_like(batch, -0.1, 0.1) if random else batch)

    pictures, keys = images(TASK, 3), torch.arange(3)
    defence = Defence(TinyVictim(), detector=Detector(score, 1.0, random))
    labels = defence(pictures).argmax(1)
    target = Target(defence, draws=5)
    both = target.slopes(pictures, labels, keys, 7, lambda logits, scores, _: [logits[:, 0], -scores])
    first = target.slope(pictures, labels, keys, 7, lambda module, batch, _: (module(batch)[:, 0], module(batch)))
    second = target.slope(pictures, labels, keys, 7, lambda module, batch, _: (-module.answer(batch)[1], module(batch)))
    torch.testing.assert_close(both.gradients[0], first.gradient, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(both.gradients[1], second.gradient, atol=1e-8, rtol=1e-5)
    torch.testing.assert_close(both.logits, first.logits)
    torch.testing.assert_close(both.scores, -second.loss)
    assert torch.equal(target.scores(pictures, labels, keys, 7).scores, both.scores)
