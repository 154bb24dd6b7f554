"""Rows of attacks that minimise the distance: each image's smallest change, and the accuracy at any eps from it."""

import math

import attrs
import pytest
import torch
from torch import nn

from defend.attacks.minimum_norm import FastMinimumNorm
from defend.attacks.options import FmnOptions
from defend.datasets.base import SPLITS, MemoryDataset
from defend.defence import Defence
from defend.evaluation.evaluate import EvaluationSettings, Evaluator
from defend.randomness import normal_like
from defend.records.distances import distances_of
from defend.records.looks import curve_of
from defend.records.per_image import to_csv
from defend.records.rows import PlannedRow, right
from defend.testing.toys import TASK, images
from defend.values.threats import DEFENDED, UNDEFENDED, Threat


class Brightness(nn.Module):
    """Class 1 above a mean of one half, class 0 below: the boundary is as far away as the mean is from it."""

    def forward(self, batch):
        mean = batch.flatten(1).mean(1)
        return torch.stack([0.5 - mean, mean - 0.5, *[mean * 0 - 9] * (TASK.classes - 2)], 1)


class Moved:
    """An attack that says what it is told: images moved by so much, whatever that does."""

    norm, minimal, nearest, strays = "linf", True, True, True

    def __init__(self, far):
        self.far = far

    def __call__(self, target, pictures, labels, *, eps, keys):
        assert torch.isinf(eps).all()
        return pictures + self.far[keys].view(-1, 1, 1, 1)


def dataset(levels):
    """Flat images of these grey levels; all of class 0."""
    side = images(TASK, 1).shape[1:]
    pixels = torch.tensor(levels, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, *side).contiguous()
    labels = torch.zeros(len(levels), dtype=torch.int64)
    classes = [str(number) for number in range(TASK.classes)]
    return MemoryDataset("flat", classes, dict.fromkeys(SPLITS, pixels), dict.fromkeys(SPLITS, labels))


class Darkness(nn.Module):
    """Rejects what is darker than a third."""

    random, threshold = False, -1 / 3

    def forward(self, batch, purified):
        return -batch.flatten(1).mean(1)


def row(attack, levels, eps, detector=None):
    arms = {UNDEFENDED: Defence(Brightness()), DEFENDED: Defence(Brightness(), detector=detector)}
    plan = PlannedRow(
        "it", Threat("adaptive", attack.norm, eps), attack, torch.arange(len(levels)), 9, DEFENDED, tuple(arms)
    )
    return Evaluator(arms, dataset(levels), EvaluationSettings(device=torch.device("cpu"))).row(plan)


LEVELS = [115, 115, 102, 76, 153]  # the last is wrong as it is
FAR = [0.06, 0.01, 0.2, 0.1, 0.3]  # fools; fools not; fools, beyond eps; fools not, beyond; beyond, and wrong already


def test_a_row_at_eps_says_what_the_smallest_changes_say():
    made = row(Moved(torch.tensor(FAR)), LEVELS, 0.1 - 1e-4)
    torch.testing.assert_close(made.arms[DEFENDED].distance, torch.tensor([0.06, torch.inf, 0.2, torch.inf, 0.0]))
    assert right(made, DEFENDED).tolist() == [False, True, True, True, False]
    assert (made.linf <= 0.1).all() and made.linf[2] == 0, "beyond the budget the clean image is judged"
    said = distances_of(made)
    assert said["found"] == 3 and said["median"] == pytest.approx(0.2) and said["images"][1] is None
    at = dict(zip(said["curve"]["eps"], said["curve"]["accuracy"], strict=True))
    assert at[0.0] == 0.8 and at[0.1 - 1e-4] == right(made, DEFENDED).double().mean() == 0.6 and min(at.values()) == 0.4
    assert [line.split(",")[-1] for line in to_csv([made]).splitlines()[1:6]] == ["0.06", "inf", "0.2", "inf", "0"]


def test_what_lies_at_the_budget_is_within_it_in_the_curve_too():
    far = row(Moved(torch.tensor([0.06])), [115], 0.1).arms[DEFENDED].distance.item()
    eps = math.nextafter(far, 0)  # the same number in the type of the images
    made = row(Moved(torch.tensor([0.06])), [115], eps)
    curve = distances_of(made)["curve"]
    assert right(made, DEFENDED).tolist() == [False]
    assert dict(zip(curve["eps"], curve["accuracy"], strict=True))[eps] == 0


def test_an_attack_without_a_budget_has_distances_too():
    made = row(Moved(torch.tensor(FAR)), LEVELS, None)
    assert made.arms[DEFENDED].distance.isfinite().tolist() == [True, False, True, False, True]
    assert distances_of(made)["curve"]["accuracy"][-1] == 0.4 == right(made, DEFENDED).double().mean()


@pytest.mark.parametrize("eps", [0.31, None])
def test_an_arm_that_rejects_the_clean_image_needs_no_attack(eps):
    """But of an image that the row leaves right: the accuracy at its eps stays what the row says."""
    made = row(Moved(torch.tensor([0.06, 0.3, 0.1])), [115, 76, 76], eps, Darkness())
    assert right(made, DEFENDED).tolist() == [False, False, True]
    torch.testing.assert_close(made.arms[DEFENDED].distance, torch.tensor([0.06, 0, torch.inf]))
    torch.testing.assert_close(made.arms[UNDEFENDED].distance, torch.tensor([0.06, 0.3, torch.inf]))
    curve = distances_of(made)["curve"]
    assert curve["accuracy"][0] == pytest.approx(2 / 3)
    assert curve["accuracy"][-1] == right(made, DEFENDED).double().mean()


def test_a_random_arm_is_asked_about_the_clean_image_with_the_draws_of_its_clean_row():
    class Shaken(nn.Module):
        random = True

        def forward(self, batch):
            return (batch + 0.2 * normal_like(batch[:, :, :1, :1])).clamp(0, 1)

    levels, arms = [115] * 24, {UNDEFENDED: Defence(Brightness()), DEFENDED: Defence(Brightness(), Shaken())}
    plan = PlannedRow("it", Threat("adaptive", "linf", 0.5), None, torch.arange(24), 9, DEFENDED, tuple(arms))
    evaluator = Evaluator(arms, dataset(levels), EvaluationSettings(device=torch.device("cpu")))
    clean = right(evaluator.row(plan), DEFENDED)
    made = evaluator.row(attrs.evolve(plan, attack=Moved(torch.full((24,), 0.4))))
    assert 0 < clean.sum() < 24 and not right(made, DEFENDED)[~clean].any()
    assert (made.arms[DEFENDED].distance > 0).tolist() == clean.tolist()


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_the_smallest_change_is_found_where_it_is_known(norm):
    made = row(FastMinimumNorm(FmnOptions(steps=25), norm), LEVELS[:4], 0.08)
    wanted = 0.5 - torch.tensor(LEVELS[:4]) / 255
    if norm == "l2":
        wanted = wanted * images(TASK, 1)[0].numel() ** 0.5
    torch.testing.assert_close(made.arms[DEFENDED].distance, wanted, rtol=0.02, atol=0)


def test_looks_beyond_the_budget_fool_nobody_in_the_curve():
    made = row(FastMinimumNorm(FmnOptions(steps=25), "linf"), LEVELS, 0.08)
    curve = curve_of(made)
    assert curve["at"][-1] == 25 and curve["left"][0] == 0.8, "one is wrong as it is"
    assert curve["left"][-1] == right(made, DEFENDED).double().mean() == 0.4
    assert made.seen.fooled_at.tolist()[2:] == [0, 0, 1], "two are fooled, and further off than eps"
