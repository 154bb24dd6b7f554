"""Channels-last where it works, and the plain layout, with a word about it, where it does not."""

import random
import warnings

import numpy as np
import pytest
import torch
from torch import nn

from defend.stages import Task
from defend.testing.toys import tiny_dataset
from defend.train import FitSettings, Loss, Optimiser, Training, fit
from defend.training.layout import find_unfit

TASK = Task("colour", 3, 28, 28, 10, (0.3,) * 3, (0.38,) * 3)  # of one channel both layouts are one


class Viewing(nn.Module):
    """Takes it for granted that what a convolution answers lies in one piece."""

    def __init__(self, only_in_training=False):
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 4, 3, stride=4), nn.Linear(4 * 7 * 7, 10)
        self.always = not only_in_training

    def forward(self, images):
        seen = self.conv(images)
        return self.head(seen.view(len(seen), -1) if self.always or self.training else seen.flatten(1))


class Deep(nn.Module):
    """Convolves in three dimensions."""

    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv3d(3, 2, (1, 3, 3), stride=(1, 4, 4)), nn.Linear(2 * 7 * 7, 10)

    def forward(self, images):
        return self.head(self.conv(images[:, :, None]).flatten(1))


class Flattening(Viewing):
    def forward(self, images):
        return self.head(self.conv(images).flatten(1))


class Classify(Training):
    def __init__(self, network, frozen=None):
        super().__init__(network, {"victim": network}, epochs=1, batch_size=16, frozen=frozen)

    def optimisers(self, steps):
        return {"victim": Optimiser(torch.optim.SGD(self.modules["victim"].parameters(), lr=0.1))}

    def losses(self, batch):
        logits = self.modules["victim"](batch.images)
        for teacher in self.frozen.values():
            logits = logits - teacher(batch.images)
        yield Loss("victim", nn.functional.cross_entropy(logits, batch.labels))


@pytest.mark.parametrize(
    ("network", "frozen", "why"),
    [
        (Viewing, None, "the stage: .*view size is not compatible"),
        (lambda: Viewing(only_in_training=True), None, "the stage: .*view size is not compatible"),
        (Deep, None, "the stage: .*rank 4 tensor"),
        (Flattening, Viewing, "teacher: .*view size is not compatible"),
    ],
)
def test_a_network_that_needs_the_plain_layout_is_trained_in_it(network, frozen, why):
    training = Classify(network(), {"teacher": frozen()} if frozen else None)
    before = training.stage.conv.weight.detach().clone()
    with pytest.warns(UserWarning, match=f"this training keeps its networks in the plain layout.*{why}"):
        fit(training, tiny_dataset(TASK), FitSettings(), {})
    assert training.stage.conv.weight.is_contiguous()
    assert not torch.equal(training.stage.conv.weight, before)


def test_what_works_in_channels_last_is_trained_in_it():
    training = Classify(Flattening(), {"teacher": Flattening()})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit(training, tiny_dataset(TASK), FitSettings(), {})
    for network in (training.stage, training.frozen["teacher"]):
        weight = network.conv.weight
        assert weight.is_contiguous(memory_format=torch.channels_last) and not weight.is_contiguous()


class Drawing(Flattening):
    """Draws from everybody's random numbers."""

    def forward(self, images):
        torch.rand(1), random.random(), np.random.rand()
        return super().forward(images)


def test_the_trial_leaves_networks_and_random_numbers_as_they_were():
    def drawn():
        return torch.rand(1).item(), random.random(), np.random.rand()

    network = Drawing().train()
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()
    expected = drawn()
    torch.set_rng_state(states[0]), random.setstate(states[1]), np.random.set_state(states[2])
    assert find_unfit({"victim": network}, TASK) == ""
    assert drawn() == expected
    assert network.training and network.conv.weight.is_contiguous()


def test_what_takes_no_images_is_not_judged():
    decoder = nn.Sequential(nn.Linear(3, 16), nn.Unflatten(1, (4, 2, 2)), nn.Conv2d(4, 1, 1))
    assert find_unfit({"decoder": decoder}, TASK) == ""
