"""`defend check` names what is odd about a victim, and what to do."""

import pytest
import torch
from torch import nn

from defend.checks.victim import inspect
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
