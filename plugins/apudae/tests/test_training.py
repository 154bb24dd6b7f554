"""What the autoencoder is trained on: noisy images, whole or in squares, clipped or not."""

import pytest
import torch
from torch import nn

from defend.datasets.base import Batch
from defend.stages import Task
from defend_apudae.config import ApudaeOptions, ApudaeRecipe
from defend_apudae.training import crop, train


class Kept(nn.Module):
    """Remembers what it was given, and gives it back."""

    def forward(self, images):
        self.images = images
        return images


def noisy(**recipe):
    """Return the images that a step is made on, and what they are made of."""
    training = train(ApudaeOptions(depth=2, width=2), ApudaeRecipe(**recipe), Task("toy", 1, 12, 12, 2))
    training.modules["dae"] = kept = Kept()
    images = torch.rand(64, 1, 12, 12)
    torch.manual_seed(0)
    (loss,) = training.losses(Batch(images, torch.zeros(64, dtype=torch.long), torch.arange(64)))
    assert float(loss.value) == pytest.approx(float((kept.images - images).square().mean()))
    return kept.images, images


def test_noise_is_as_strong_as_the_paper_s_formula_says():
    dirty, images = noisy(s_max=0.4)
    spread = (dirty - images).flatten(1).std(1)
    assert 0.3 < float(spread.max()) < 0.5
    assert float(spread.min()) < 0.1
    assert float(spread.mean()) == pytest.approx(0.2, abs=0.05)
    assert float(dirty.min()) < 0 and float(dirty.max()) > 1


def test_noisy_images_are_clipped_where_that_is_asked_for():
    plain, _ = noisy(s_max=0.4)
    clipped, _ = noisy(s_max=0.4, clip=True)
    assert float(clipped.min()) == 0 and float(clipped.max()) == 1
    assert plain.shape == clipped.shape


@pytest.mark.parametrize("side", [8, 24, 40])
def test_a_crop_is_a_piece_of_the_image_or_all_of_it(side):
    images = torch.arange(2 * 24 * 32.0).view(2, 1, 24, 32)
    piece = crop(images, side)
    assert piece.shape == (2, 1, min(side, 24), min(side, 32))
    top, left = divmod(int(piece[0, 0, 0, 0]), 32)
    assert torch.equal(piece, images[..., top : top + side, left : left + side])


def test_crops_reach_every_place():
    images = torch.arange(16.0).view(1, 1, 4, 4)
    assert {float(crop(images, 3)[0, 0, 0, 0]) for _ in range(100)} == {0.0, 1.0, 4.0, 5.0}
