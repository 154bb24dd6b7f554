"""Planted examples: found by an attack that works, missed by one that is blind; and they are what they are said to."""

import functools
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from defend.attacks.given import Replay
from defend.attacks.iterated import Pgd
from defend.attacks.options import PgdOptions
from defend.checks import Subject
from defend.checks.common import Case, Findings, judge
from defend.checks.following import group_rows
from defend.checks.planted import Features, plant, planted
from defend.defence import Defence
from defend.records.rows import ArmRecord
from defend.testing import rigged
from defend.values.threats import Threat


@functools.cache
def victims():
    dataset = rigged.toy_dataset()
    victim = rigged.train_victim(dataset)
    return victim, rigged.adversarially_tuned(victim, dataset, epochs=5, steps=3)


def subject(defence, **more):
    dataset = rigged.toy_dataset()
    batch = next(dataset.batches("test", dataset.keys("test", 8, 0), 8, torch.device("cpu")))
    return Subject(
        defence=defence,
        undefended=Defence(victims()[0]),
        images=batch.images,
        labels=batch.labels,
        keys=batch.keys,
        eps=rigged.EPS,
        classes=rigged.CLASSES,
        draws=4,
        **more,
    )


def check(defence, norm="linf", level="full", plant=False, attack=None, **options):
    whole = subject(defence, plant=plant)
    said = ArmRecord(whole.labels, torch.ones(8), torch.ones(8, dtype=torch.bool), torch.zeros(8))
    eps = rigged.EPS * (1 if norm == "linf" else 2)
    attack = attack or Pgd(PgdOptions(steps=20, **options), norm=norm)
    plan = SimpleNamespace(
        name="pgd", threat=Threat("adaptive", norm, eps), variant="", headline=True, steps=20, attack=attack
    )
    arms = {"undefended": said, "defended": said}
    row = SimpleNamespace(plan=plan, keys=whole.keys, labels=whole.labels, arms=arms)
    found = Findings()
    planted(Case([row], whole, level), found)
    return found.finding()


HONEST = {
    "bare": lambda: Defence(victims()[0]),
    "adversarially tuned": lambda: Defence(victims()[1]),
    "smooth purifier": lambda: Defence(victims()[1], rigged.Descender()),
    "random, averaged over": lambda: Defence(victims()[0], rigged.Randomiser()),
    "saturated": lambda: Defence(rigged.Saturated(victims()[1])),
}
SHATTERED = {
    "stepped": lambda: Defence(victims()[0], rigged.Quantiser()),
    "downhill": lambda: Defence(victims()[0], rigged.Blinder()),
}


@pytest.mark.parametrize("name", HONEST)
def test_what_is_planted_in_an_honest_defence_is_found(name):
    found = check(HONEST[name]())
    assert found.status == "pass", found.detail
    assert "adversarial examples that were planted" in found.detail and found.numbers["linf 0.1"]["planted"] >= 4


@pytest.mark.parametrize("name", SHATTERED)
def test_an_attack_on_shattered_gradients_misses_what_is_there(name):
    found = check(SHATTERED[name]())
    assert found.status == "fail" and "the attack is too weak" in found.detail, found.detail


def test_an_attack_of_too_small_steps_misses_it_in_an_honest_defence():
    assert check(Defence(victims()[0]), step_size=1e-5, random_start=False).status == "fail"


class Far:
    """Looks for any change, however large."""

    norm, minimal, nearest = "linf", True, True

    def __call__(self, target, images, labels, *, eps, keys):
        return Pgd(PgdOptions(steps=20))(target, images, labels, eps=torch.ones_like(eps), keys=keys)


def test_what_lies_beyond_the_budget_is_not_what_was_planted():
    found = check(Defence(victims()[0]), attack=Far())
    assert found.status == "fail" and found.numbers["linf 0.1"]["found"] == 0, found.detail


def test_images_that_were_there_already_are_no_attack_to_try():
    keys, right = torch.arange(2), torch.ones(2, dtype=torch.bool)

    def row(attack, predicted):
        plan = SimpleNamespace(name="pgd", threat=Threat("adaptive", "linf", 0.1), headline=True, steps=20)
        plan.attack = attack
        said = ArmRecord(torch.tensor(predicted), torch.ones(2), right, torch.zeros(2))
        return SimpleNamespace(plan=plan, keys=keys, labels=torch.zeros(2), arms={"undefended": said, "defended": said})

    replay = Replay("linf", keys, torch.zeros(2, 1, 2, 2))
    rows = [row("attack", [0, 1]), row(replay, [1, 1])]
    (group,) = group_rows(Case(rows, None, "basic"))
    assert group.row.plan.attack == "attack" and group.left == {0: False, 1: False}
    assert group_rows(Case(rows[1:], None, "basic")) == []


@pytest.mark.parametrize(("purifier", "status"), [(None, "pass"), (rigged.Blinder(), "fail")])
def test_it_is_planted_and_found_in_l2(purifier, status):
    assert check(Defence(victims()[0], purifier), norm="l2").status == status


@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.1), ("l2", 0.3)])
def test_the_image_stays_right_and_so_does_most_of_its_ball(norm, eps):
    one = subject(Defence(victims()[0])).part(slice(3, 4))
    copy = plant(one, norm, eps)
    assert bool(judge(SimpleNamespace(**{**_plain(one), "defence": copy, "pack": 8}), one.images)[0])
    torch.manual_seed(5)
    around = (one.images + eps * 0.3 * (2 * torch.rand(200, 1, 8, 8) - 1)).clamp(0, 1)
    answers = copy(around)
    assert answers.shape == (200, rigged.CLASSES)
    assert (answers.argmax(1) == one.labels).double().mean() > 0.8, "what is planted is not all around"
    assert set(answers.argmax(1).unique().tolist()) <= {int(one.labels), (int(one.labels) + 1) % rigged.CLASSES}


def _plain(one):
    return {name: getattr(one, name) for name in ("keys", "labels", "seed")}


def test_features_are_what_the_last_linear_layer_sees_or_the_logits():
    victim, images = victims()[0], torch.rand(3, 1, 8, 8)
    body = victim.body
    torch.testing.assert_close(Features(victim)(images), body[:-1]((images - 0.45) / 0.2))
    plain = nn.Sequential(nn.Conv2d(1, 4, 8), nn.Flatten())
    torch.testing.assert_close(Features(plain)(images), plain(images))
    assert not any(part._forward_pre_hooks for part in victim.modules())


def test_it_runs_where_it_was_asked_for():
    quick = check(Defence(victims()[0]), level="basic")
    assert quick.status == "skip" and quick.detail == "needs --checks full, or --thorough"
    assert check(Defence(victims()[0]), level="basic", plant=True).status == "pass"
    found = Findings()
    planted(Case([], subject(Defence(victims()[0])), "full"), found)
    assert found.finding().status == "skip" and "no white-box row" in found.finding().detail
