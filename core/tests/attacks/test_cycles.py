"""Climbs that walk in circles are cut short, to the same images."""

import pytest
import torch

from defend.attacks import iterated
from defend.attacks.cycles import Cycles
from defend.attacks.host import craft
from defend.attacks.iterated import Pgd
from defend.attacks.options import PgdOptions
from defend.attacks.target import Target
from defend.testing.toys import TASK, TinyVictim, images


class Counting(torch.nn.Module):
    """Counts the images that are differentiated."""

    def __init__(self, random=False):
        super().__init__()
        self.inner, self.count, self.random = TinyVictim(), 0, random

    def forward(self, batch):
        self.count += len(batch)
        return self.inner(batch)


def attacked(monkeypatch, module=None, travel=None, every=None, **options):
    """The attacked images and how many were differentiated, with cycles looked for or not."""
    if travel is not None:
        monkeypatch.setattr(iterated, "TRAVEL", travel)
    module = module or Counting()
    pictures = images(TASK, 30)
    attack = Pgd(PgdOptions(steps=151, **options))
    found = craft(attack, Target(module, compact_every=every), pictures, module.inner(pictures).argmax(1), eps=0.015)
    monkeypatch.undo()
    return found, module.count


@pytest.mark.parametrize(("early_stop", "every"), [(True, None), (False, None), (True, 40)])
def test_cut_short_the_images_are_the_same(monkeypatch, early_stop, every):
    options = {"step_size": 0.004, "early_stop": early_stop, "every": every}
    whole, many = attacked(monkeypatch, travel=torch.inf, **options)
    short, few = attacked(monkeypatch, **options)
    assert torch.equal(whole, short) and few < 0.7 * many, (few, many)


@pytest.mark.parametrize(
    ("module", "options"),
    [
        (lambda: Counting(random=True), {"step_size": 0.004}),
        (Counting, {"step_size": 0.015, "schedule": "linear", "early_stop": False}),
        (Counting, {"early_stop": False}),
    ],
    ids=["random", "falling steps", "steps that add up to little"],
)
def test_what_never_repeats_itself_takes_all_its_steps(monkeypatch, module, options):
    _, count = attacked(monkeypatch, module(), **options)
    assert count == 151 * 30


def test_the_steps_left_after_a_cycle_are_counted_modulo_it():
    path = [float(n) for n in range(7)] + [7.0, 8.0, 9.0] * 40
    for steps in (60, 61, 62, 63):
        cycles, stopped = Cycles(torch.zeros(1, 1, 1, 1), steps), None
        for step in range(steps):
            if bool(cycles.over(torch.full((1, 1, 1, 1), path[step]), step)):
                stopped = step
                break
        assert stopped is not None and stopped < 25 and path[stopped] == path[steps]
