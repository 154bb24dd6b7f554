"""HopSkipJump: it sees labels and rejections alone, counts what it asks, and keeps to its budget of questions."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from defend.attacks.hop_skip_jump import HopSkipJump
from defend.attacks.host import craft
from defend.attacks.options import HopSkipJumpOptions
from defend.attacks.target import Target
from defend.defence import Defence
from defend.randomness import normal_like
from defend.testing.toys import TASK, TinyVictim, images

OPTIONS = HopSkipJumpOptions(queries=90, initial_evals=15, starts=20)


class Labels(nn.Module):
    """A victim that says its label and nothing else; it counts the images it is shown."""

    def __init__(self):
        super().__init__()
        self.victim, self.shown = TinyVictim(), 0

    def forward(self, batch):
        self.shown += len(batch)
        return F.one_hot(self.victim(batch).argmax(1), TASK.classes).float()


class Noisy(nn.Module):
    """A purifier that adds noise."""

    random = True

    def forward(self, batch):
        return batch + 0.02 * normal_like(batch)


class Bright(nn.Module):
    """A detector of images whose mean is above one half."""

    random = False

    def __init__(self):
        super().__init__()
        self.register_buffer("threshold", torch.tensor(0.5))

    def forward(self, batch, purified):
        return batch.flatten(1).mean(1)


@pytest.fixture
def batch():
    pictures = 0.8 * images(TASK, 4)
    return pictures, TinyVictim()(pictures).argmax(1)


def search(target, batch, norm="linf", options=OPTIONS):
    found = craft(HopSkipJump(options, norm), target, *batch, eps=None)
    return found, target.queries


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_it_needs_labels_alone_and_counts_every_question(norm, batch):
    module = Labels()
    found, queries = search(Target(module), batch, norm)
    assert module.shown == int(queries.sum()) and 50 < int(queries.max()) <= OPTIONS.queries
    assert (module(found).argmax(1) != batch[1]).all()
    assert torch.equal(found, search(Target(TinyVictim()), batch, norm)[0])


def test_more_questions_find_smaller_changes(batch):
    few, many = (
        search(Target(TinyVictim()), batch, "l2", HopSkipJumpOptions(queries=count, initial_evals=15))[0]
        for count in (60, 200)
    )
    shorter = [(found - batch[0]).flatten(1).norm(dim=1) for found in (many, few)]
    assert (shorter[0] <= shorter[1]).all() and (shorter[0] < shorter[1]).any()


def test_what_it_finds_is_accepted(batch):
    defence = Defence(TinyVictim(), detector=Bright())
    found, _ = search(Target(defence), batch)
    said = defence.judge(found)
    fooled = said.labels != batch[1]
    assert said.accepted[fooled].all() and fooled.any()
    assert torch.equal(found[~fooled], batch[0][~fooled]), "what fools nobody comes back as it was"


class Grainy(nn.Module):
    """A detector of noise: how much neighbours differ."""

    random = False

    def __init__(self, threshold):
        super().__init__()
        self.register_buffer("threshold", torch.tensor(threshold))

    def forward(self, batch, purified):
        return (batch[..., 1:] - batch[..., :-1]).abs().flatten(1).mean(1)


def test_it_begins_behind_a_detector_that_rejects_all_noise(batch):
    pictures, labels = batch
    detector = Grainy(0.0)
    # what the images themselves and their mirror images have, and no noise mixed in by a fifth
    detector.threshold.fill_(float(detector(pictures, pictures).max()) * 1.01)
    noise = torch.rand(pictures.shape, generator=torch.Generator().manual_seed(0))
    assert (detector(pictures + 0.2 * (noise - pictures), None) > detector.threshold).sum() >= 3
    defence = Defence(TinyVictim(), detector=detector)
    found, _ = search(Target(defence), batch)
    said = defence.judge(found)
    assert ((said.labels != labels) & said.accepted).sum() >= 3


class Known(nn.Module):
    """A detector that accepts what lies within 0.3 of an image that it knows, in L-inf."""

    random = False

    def __init__(self, known):
        super().__init__()
        self.known = known
        self.register_buffer("threshold", torch.tensor(0.3))

    def forward(self, batch, purified):
        return (batch[:, None] - self.known).flatten(2).abs().amax(2).amin(1)


def test_it_begins_at_other_images_where_nothing_else_is_accepted(batch):
    pictures, labels = (part[:2] for part in batch)
    others = 0.8 * images(TASK, 12)[4:]
    target = Target(Defence(TinyVictim(), detector=Known(others)))
    options = HopSkipJumpOptions(queries=120, initial_evals=15)
    found, _ = search(target, (pictures, labels), options=options)
    assert torch.equal(found, pictures), "it found a start by itself, so the test says nothing"
    target.others = others
    found, queries = search(target, (pictures, labels), options=options)
    said = target.module.judge(found)
    assert (said.accepted & (said.labels != labels)).all() and int(queries.max()) <= 120


def test_an_image_that_nothing_fools_comes_back_after_its_starts(batch):
    module = nn.Sequential(nn.Flatten(), nn.Linear(28 * 28, 10))
    nn.init.zeros_(module[1].weight)
    with torch.no_grad():
        module[1].bias.copy_(torch.arange(10.0).flip(0))
    found, queries = search(Target(module), (batch[0], torch.zeros(4, dtype=torch.int64)))
    assert torch.equal(found, batch[0]) and queries.tolist() == [OPTIONS.starts + 1] * 4
    wrong, queries = search(Target(module), (batch[0], torch.ones(4, dtype=torch.int64)))
    assert torch.equal(wrong, batch[0]) and queries.tolist() == [1] * 4, "one that is wrong already needs no search"


def test_an_image_of_a_random_defence_has_answers_of_its_own(batch):
    pictures, labels = batch
    target = Target(Defence(TinyVictim(), Noisy()), seed=3)
    whole, queries = search(target, batch)
    assert int(queries.max()) <= OPTIONS.queries
    alone = craft(HopSkipJump(OPTIONS, "linf"), target, pictures[2:], labels[2:], eps=None, keys=torch.tensor([2, 3]))
    torch.testing.assert_close(whole[2:], alone, atol=1e-4, rtol=0)
