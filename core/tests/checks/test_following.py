"""Whether a gradient that is not the slope is smoothed on purpose or masked: known by how the defence was rigged."""

import functools
from itertools import product
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from defend.attacks.iterated import Pgd
from defend.attacks.options import PgdOptions
from defend.checks import Subject
from defend.checks.common import Case, Findings
from defend.checks.following import (
    BY_CHANCE,
    LENGTHS,
    Followed,
    chance_of_ranks,
    choose_count,
    choose_left,
    follow,
)
from defend.checks.probes import gradients
from defend.datasets.base import Batch
from defend.defence import Defence
from defend.records.rows import ArmRecord
from defend.testing import rigged
from defend.values.threats import Threat


@functools.cache
def victim():
    return rigged.train_victim(rigged.toy_dataset())


CASES = {
    "smooth": (None, "exact", "pass"),
    "saturated": (lambda: Defence(rigged.Saturated(victim())), "exact", "warn"),  # of the cross-entropy alone
    "random": (lambda: Defence(victim(), rigged.Randomiser()), "exact", "pass"),
    "smoothed on purpose": (lambda: Defence(victim(), rigged.StraightThrough(64)), "smoothed", "pass"),
    "smoothed, coarse steps": (lambda: Defence(victim(), rigged.StraightThrough(16)), "smoothed", "pass"),
    "stepped": (lambda: Defence(victim(), rigged.Quantiser()), "masked", "fail"),
    "stepped, with a false slope": (lambda: Defence(victim(), rigged.FalseSteps()), "masked", "fail"),
    "downhill": (lambda: Defence(victim(), rigged.Blinder()), "masked", "fail"),
    "fine ripple": (lambda: Defence(victim(), rigged.FineRipple()), "short-sighted", "warn"),
}


def subject(defence, count=8):
    dataset = rigged.toy_dataset()
    batch = next(dataset.batches("test", dataset.keys("test", count, 0), count, torch.device("cpu")))
    return Subject(
        defence=defence,
        undefended=Defence(victim()),
        images=batch.images,
        labels=batch.labels,
        keys=batch.keys,
        eps=rigged.EPS,
        classes=rigged.CLASSES,
    )


def check(defence, records=()):
    found = Findings()
    gradients(Case(records, subject(defence), "basic"), found)
    return found.finding()


@pytest.mark.parametrize("name", CASES)
def test_a_gradient_is_told_by_what_the_loss_delivers(name):
    build, verdict, status = CASES[name]
    found = check(Defence(victim()) if build is None else build())
    assert found.numbers["followed"]["linf 0.1"]["verdict"] == verdict, found.detail
    assert found.status == status, found.detail
    if name.startswith("smoothed"):
        assert found.numbers["difference_error"] > 0.25 and "smoothed on purpose" in found.detail
    if verdict == "masked":
        assert "masked" in found.detail and "bpda" in found.detail


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("count", [1, 3])
def test_few_images_are_enough_in_either_norm(norm, count):
    eps = rigged.EPS if norm == "linf" else rigged.EPS * 2
    assert follow(subject(Defence(victim()), count), norm, eps).verdict == "exact"
    assert follow(subject(Defence(victim(), rigged.Blinder()), count), norm, eps).verdict == "masked"


def test_images_are_those_that_the_strongest_white_box_row_leaves_right_and_the_row_is_named():
    whole = subject(Defence(victim()))

    def row(name, kind, held):
        predicted = whole.labels.where(torch.tensor(held), (whole.labels + 1) % 4)
        said = ArmRecord(predicted, torch.zeros(8), torch.ones(8, dtype=torch.bool), torch.zeros(8))
        bare = ArmRecord(whole.labels, torch.ones(8), said.accepted, said.score)
        plan = SimpleNamespace(name=name, threat=Threat(kind, "linf", rigged.EPS), variant="", headline=True, steps=10)
        plan.attack = Pgd(PgdOptions())
        return SimpleNamespace(
            plan=plan, keys=whole.keys, labels=whole.labels, arms={"undefended": bare, "defended": said}
        )

    rows = [row("pgd", "adaptive", [True] * 4 + [False] * 4), row("apgd_ce", "adaptive", [True, True] + [False] * 6)]
    assert choose_left(rows, 32).tolist() == sorted(whole.keys[:2].tolist())
    assert choose_left([row("square", "query", [True] * 8)], 32) is None
    found = Findings()
    gradients(Case(rows, whole, "basic"), found)
    said = found.numbers["followed"]["linf 0.1"]
    assert (said["row"], said["n"], said["left_right"]) == ("apgd_ce/adaptive", 2, 2)
    assert "apgd_ce/adaptive: the gradient is the slope (of 2 images that it leaves right" in found.finding().detail


def test_of_images_that_were_handed_over_only_those_are_followed_and_it_costs_little():
    asked = []

    class Counting(nn.Module):
        random = False

        def forward(self, images):
            asked.append(len(images))
            return images

    whole = subject(Defence(victim(), Counting()), 32)
    follow(whole, "linf", rigged.EPS)
    assert sum(asked) <= 32 * (1 + 3 * len(LENGTHS)) and isinstance(whole.left, Batch | None)


@pytest.mark.parametrize(("n", "others"), [(1, 3), (3, 2), (4, 4)])
def test_the_chance_of_ranks_is_what_counting_gives(n, others):
    sums = [sum(ranks) for ranks in product(range(others + 1), repeat=n)]
    for total in range(n * others + 1):
        assert chance_of_ranks(total, n, others) == pytest.approx(sum(s >= total for s in sums) / len(sums))


def test_so_many_directions_are_asked_that_one_lucky_one_decides_nothing():
    assert [choose_count(n) for n in (1, 2, 3, 4, 5, 6, 8, 32)] == [96, 16, 7, 4, 3, 2, 2, 2]
    for n in (1, 2, 5, 8, 32):
        count = choose_count(n)
        assert chance_of_ranks(n * count - (n > 1), n, count) < BY_CHANCE


@pytest.mark.parametrize(
    ("promised", "found", "chance", "verdict"),
    [
        ((1, 10, 100, 1000), (0.9, 9, 50, 80), (0, 0, 0, 0), "exact"),
        ((1, 10, 100, 1000), (0.1, 3, 50, 80), (0.5, 0.1, 0, 0), "smoothed"),
        ((1, 10, 100, 1000), (0.9, 9, 0, -5), (0, 0, 0.4, 0.4), "short-sighted"),
        ((1, 10, 100, 1000), (0.0, 0.1, -1, -5), (0.5, 0.4, 0.001, 0.001), "masked"),  # less bad is no rise
        ((0, 0, 0, 0), (0, 0, 0, 0), (0.5, 0.5, 0.5, 0.5), "masked"),
    ],
)
def test_the_verdict_by_hand(promised, found, chance, verdict):
    assert Followed(8, promised, found, (0.0,) * 4, chance).verdict == verdict


def test_a_promise_next_to_nothing_is_told_by_the_loss_itself():
    shares = Followed(8, (1, 10, 100, 1000), (0.1, 3, -900, 80), (0.0, 0.0, 5, 20), (0.5,) * 4).say()
    assert shares == (
        "of 8 images: the loss delivers of its promise -900.0 % at 0.1 eps where random directions find 5.0 %, 8.0 % "
        "at 1 eps where random directions find 2.0 %"
    )
    moves = Followed(8, (1e-6, 1e-5, 1e-4, 1e-3), (0.0, 0.0, -0.5, -4.0), (0.0, 0.0, 0.25, 3.0), (0.5,) * 4).say("left")
    assert moves == (
        "of 8 images left: the loss rises by -0.5 at 0.1 eps, where 0.0001 was promised and random directions find "
        "0.25, -4 at 1 eps, where 0.001 was promised and random directions find 3"
    )
