"""A detector's controls: harmless noise scores as clean images do, and random weights see nothing."""

import functools
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from defend.checks import Subject
from defend.checks.common import Case, Findings
from defend.checks.control import forget, noise, untrained
from defend.defence import Defence, PurifierSequence
from defend.records.rows import ArmRecord
from defend.testing import rigged
from defend.values.threats import Threat


@functools.cache
def victim():
    return rigged.train_victim(rigged.toy_dataset())


def subject(detector, count=25, purifier=None):
    dataset = rigged.toy_dataset()
    batch = next(dataset.batches("test", dataset.keys("test", count, 0), count, torch.device("cpu")))
    return Subject(
        defence=Defence(victim(), purifier, detector),
        undefended=Defence(victim()),
        images=batch.images,
        labels=batch.labels,
        keys=batch.keys,
        eps=rigged.EPS,
        classes=rigged.CLASSES,
        steps=10,
    )


def row(kind, scores):
    n = len(scores)
    said = ArmRecord(torch.zeros(n), torch.ones(n), torch.ones(n, dtype=torch.bool), scores)
    plan = SimpleNamespace(
        name=kind, threat=Threat(kind, "linf", rigged.EPS if kind != "none" else 0.0), variant="", headline=True
    )
    keys = torch.arange(n)
    return SimpleNamespace(plan=plan, keys=keys, labels=keys, arms={"undefended": said, "defended": said})


@pytest.mark.parametrize(
    ("noisy", "attacked", "status", "said"),
    [
        (0.0, 3.0, "pass", "no better than chance, as it should be"),
        (1.5, 4.0, "warn", "it rejects harmless noise too"),
        (3.0, 3.0, "fail", "it detects noise, not attacks"),
        (-2.0, 3.0, "pass", "as it should be"),
    ],
)
def test_noise_of_the_budget_scores_as_clean_images_do(noisy, attacked, status, said):
    draw = torch.Generator().manual_seed(0)
    clean, others, moved = (torch.randn(60, generator=draw) + shift for shift in (0.0, noisy, attacked))
    found = Findings()
    noise(Case([row("none", clean), row("noise", others), row("oblivious", moved)], None, "basic"), found)
    assert found.finding().status == status and said in found.finding().detail, found.finding().detail


def test_without_a_detector_or_without_noise_nothing_is_said():
    found = Findings()
    noise(Case([row("none", torch.zeros(9)), row("noise", torch.zeros(9))], None, "basic"), found)
    assert (found.finding().status, found.finding().detail) == ("skip", "no detector")
    found = Findings()
    noise(Case([row("none", torch.rand(9))], None, "basic"), found)
    assert "add --threat noise" in found.finding().detail


class Scorer(nn.Module):
    """Scores with a network of its own; what it is shown is all that differs."""

    random = False

    def __init__(self, rough=False, classes=None):
        super().__init__()
        self.rough, self.classes = rough, classes
        torch.manual_seed(0)
        self.layers = nn.Linear(1 if rough else 64, 1)
        self.register_buffer("threshold", torch.tensor(float("inf")))

    def forward(self, images, purified):
        if self.rough:  # however it is weighed, more of it is more: nothing need be learned
            rough = (images - F.avg_pool2d(images, 3, 1, 1)).square().flatten(1).mean(1, keepdim=True)
            return (self.layers.weight.square() * rough)[:, 0]
        return self.layers(images.flatten(1))[:, 0]


def test_a_score_that_random_weights_give_too_was_not_learned():
    found = Findings()
    whole = subject(Scorer(rough=True))
    untrained(Case([], whole, "full"), found)
    assert found.finding().status == "warn" and "was not learned" in found.finding().detail
    assert min(found.numbers["untrained"]["auroc"]) > 0.7


def test_a_score_that_was_learned_is_gone_with_the_weights():
    found = Findings()
    untrained(Case([], subject(Scorer()), "full"), found)
    assert found.finding().status == "pass" and len(found.numbers["untrained"]["auroc"]) == 5


def test_a_detector_without_weights_and_a_quick_run_have_no_such_control():
    found = Findings()
    untrained(Case([], subject(rigged.RoughnessDetector()), "full"), found)
    assert "no weights that could be random" in found.finding().detail
    found = Findings()
    untrained(Case([], subject(Scorer()), "basic"), found)
    assert found.finding().detail == "" and not found.numbers


def test_only_the_detectors_own_weights_are_forgotten():
    class Beside(nn.Module):
        random = False

        def __init__(self, shared):
            super().__init__()
            self.victim, self.own, self.alone = shared, nn.Linear(4, 1), nn.Parameter(torch.full((3,), 2.0))
            self.spread = nn.Parameter(torch.tensor([1.0, 5.0, 9.0]))
            self.register_buffer("threshold", torch.tensor(1.0))

        def forward(self, images, purified):
            return self.own(self.victim(images))[:, 0]

    before = [weight.clone() for weight in victim().parameters()]
    detector = Beside(victim())
    defence = Defence(victim(), None, detector)
    blank, again, other = (forget(defence, seed) for seed in (1, 1, 2))
    assert blank.detector.victim is victim() and blank.detector is not detector
    assert all(torch.equal(*pair) for pair in zip(before, victim().parameters(), strict=True))
    assert not torch.equal(blank.detector.own.weight, detector.own.weight)
    assert torch.equal(blank.detector.own.weight, again.detector.own.weight)
    assert not torch.equal(blank.detector.own.weight, other.detector.own.weight)
    assert blank.detector.alone.tolist() == [2.0] * 3 and not torch.equal(blank.detector.spread, detector.spread)
    assert detector.spread.tolist() == [1.0, 5.0, 9.0] and blank.detector.threshold == 1


class Restorer(nn.Module):
    """A purifier: what a network makes of an image."""

    random = False

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, images):
        return self.network(images.flatten(1)).sigmoid().view_as(images)


class Missed(Restorer):
    """A detector that scores what the purifier, of the same network, has made of an image."""

    def __init__(self, network):
        super().__init__(network)
        self.register_buffer("threshold", torch.tensor(float("inf")))

    def forward(self, images, purified):
        return (images - purified).square().flatten(1).mean(1)


@pytest.mark.parametrize("chain", [False, True])
def test_a_network_that_the_purifier_shares_is_random_in_both(chain):
    network, images = nn.Linear(64, 64), torch.rand(3, 1, 8, 8)
    purifier = PurifierSequence([nn.Identity(), Restorer(network)]) if chain else Restorer(network)
    defence = Defence(victim(), purifier, Missed(network))
    before, said = network.weight.clone(), defence.screen(images).score
    blank, again = forget(defence, 0), forget(defence, 0)
    own = blank.purifier.purifiers[1] if chain else blank.purifier
    assert own.network is blank.detector.network is not network
    assert (blank.screen(images).score - said).abs().max() > 1e-3
    assert torch.equal(blank.screen(images).score, again.screen(images).score)
    assert torch.equal(network.weight, before) and torch.equal(defence.screen(images).score, said)


def test_a_purifier_that_shares_nothing_with_the_detector_is_the_same():
    apart = Defence(victim(), Restorer(nn.Linear(64, 64)), Missed(nn.Linear(64, 64)))
    assert forget(apart, 0).purifier is apart.purifier
    alone = Defence(victim(), None, Missed(nn.Linear(64, 64)))
    assert forget(alone, 0).purifier is None
    judges = Defence(victim(), Restorer(victim()), Missed(victim()))  # the victim is known, and nobody's own
    assert forget(judges, 0) is None
