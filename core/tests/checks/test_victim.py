"""`defend check` names what is odd about a victim, and what to do."""

import attrs
import pytest
import torch
from torch import nn

from defend.checks.guessing import find_guessing
from defend.checks.victim import inspect
from defend.custom.build import OneLogit
from defend.testing.toys import TASK, TinyVictim, images


@pytest.fixture
def sample():
    torch.manual_seed(0)
    victim = TinyVictim(TASK).eval()
    batch = images(TASK, 60)
    with torch.no_grad():
        return victim, batch, victim(batch).argmax(1)


class Through(nn.Module):
    def __init__(self, victim, function, before=lambda batch: batch):
        super().__init__()
        self.victim, self.function, self.before = victim, function, before

    def forward(self, batch):
        return self.function(self.victim(self.before(batch)))


def statuses(victim, sample, classes=TASK.classes):
    return {each.name: each.status for each in inspect(victim, sample[1], sample[2], classes)}


def test_a_victim_passes(sample):
    assert set(statuses(sample[0], sample).values()) == {"pass"}


@pytest.mark.parametrize(
    ("function", "name", "status"),
    [
        (lambda logits: logits.softmax(1), "logits", "warn"),
        (lambda logits: logits.sigmoid(), "logits", "warn"),
        (lambda logits: logits.detach(), "gradient", "fail"),
        (lambda logits: logits.round(), "gradient", "fail"),
        (lambda logits: logits + torch.randn_like(logits), "repetition", "warn"),
        (lambda logits: logits - logits.mean(0), "batch", "fail"),
        (lambda logits: logits.roll(1, 1), "accuracy", "fail"),
        (lambda logits: logits * float("nan"), "answer", "fail"),
        (lambda logits: logits.argmax(1), "answer", "fail"),
        (lambda logits: 1 / 0, "answer", "fail"),
    ],
)
def test_each_oddness_is_named(sample, function, name, status):
    assert statuses(Through(sample[0], function), sample)[name] == status


def test_one_output_behind_a_sigmoid_is_named_and_no_brighter_images_are_advised():
    """At 255 times the brightness it answers 0 or 1, and an attack finds no gradient."""
    torch.manual_seed(0)
    task = attrs.evolve(TASK, classes=2)
    number = nn.Linear(TASK.channels * TASK.height * TASK.width, 1)
    batch = images(task, 60)
    z = number(batch.flatten(1)).detach()
    number.bias.data -= z.median()
    labels = (number(batch.flatten(1)) > 0)[:, 0].long()
    victim = OneLogit(nn.Sequential(nn.Flatten(), number, nn.Sigmoid())).eval()
    found = {each.name: each for each in inspect(victim, batch, labels, 2)}
    assert found["logits"].status == "warn" and "sigmoid" in found["logits"].said
    assert "255" not in found["accuracy"].said + found["accuracy"].cure
    plain = OneLogit(nn.Sequential(nn.Flatten(), number)).eval()
    assert {each.name: each.status for each in inspect(plain, batch, labels, 2)}["logits"] == "pass"


def test_normalisation_that_is_missing_is_found(sample):
    wants = Through(sample[0], lambda logits: logits, before=lambda batch: batch * 0.5 + 0.5)
    found = {each.name: each for each in inspect(wants, sample[1], sample[2], TASK.classes)}
    if found["accuracy"].status == "fail":  # only where it costs this toy its accuracy
        assert "--mean half --std half" in found["accuracy"].said


def test_another_number_of_classes_ends_it(sample):
    assert statuses(sample[0], sample, classes=TASK.classes + 1)["answer"] == "fail"


def test_training_mode_is_told(sample):
    moving = nn.Sequential(sample[0], nn.Dropout(0.1)).train()
    assert statuses(moving, sample)["mode"] == "warn"


class Answers(nn.Module):
    """Answers to images that carry a class in their first pixel: that class, or what a function makes of them all."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, batch):
        told = 6 * (2 * batch[:, 0, 0, 0] - 1)
        logits = torch.stack([-told, told], 1)
        return logits + 0 * batch.sum() if self.function is None else self.function(batch, logits)


def binary(share, n, right):
    """Return images of two classes, a `share` of them the first, whose first pixel tells `right` of them rightly."""
    labels = (torch.arange(n) >= round(share * n)).long()
    told = labels.clone()
    wrong = torch.linspace(0, n - 1, n - right).round().long()
    told[wrong] = 1 - told[wrong]
    batch = torch.full((n, 1, 8, 8), 0.5)
    batch[:, 0, 0, 0] = told.float()
    return batch, labels


def accuracy_of(victim, batch, labels):
    (found,) = (each for each in inspect(victim, batch, labels, 2) if each.name == "accuracy")
    return found


@pytest.mark.parametrize(("n", "right", "status"), [(80, 52, "pass"), (80, 40, "fail"), (8, 5, "warn")])
def test_a_binary_victim_is_judged_as_a_runs_clean_accuracy_is(n, right, status):
    batch, labels = binary(0.5, n, right)
    found = accuracy_of(Answers(None), batch, labels)
    assert found.status == status, found
    assert f"chance is {100 * find_guessing((batch[:, 0, 0, 0]).long(), labels).chance:.0f} %" in found.said


def test_an_answer_that_is_always_the_same_fails_however_often_it_is_right():
    batch, labels = binary(0.9, 100, 100)
    constant = Answers(lambda batch, logits: torch.tensor([3.0, -3.0]) + 0 * logits)
    found = accuracy_of(constant, batch, labels)
    assert found.status == "fail" and "right on 90 % of 100 clean images; chance is 90 %" in found.said
