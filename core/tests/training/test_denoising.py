"""How well a purifier takes noise away: what is measured, and what the contract suite refuses."""

import math

import attrs
import pytest
import torch
from torch import nn

from defend.datasets.base import MemoryDataset
from defend.errors import ContractError
from defend.stages import Task
from defend.testing import images
from defend.training.denoising import SIGMAS, blur, find_fault, measure_denoising
from defend.weights.card import Card

CPU = torch.device("cpu")


@pytest.fixture
def smooth():
    """Images [8,1,16,16] of one grey each, which a blur leaves as they are, and their labels."""
    greys = torch.linspace(60, 200, 8).view(8, 1, 1, 1).expand(8, 1, 16, 16)
    shown = {split: greys.to(torch.uint8).contiguous() for split in ("train", "val", "test")}
    return MemoryDataset("greys", ("a", "b"), shown, {split: torch.arange(8) % 2 for split in shown})


class Blur(nn.Module):
    random = False

    def forward(self, images):
        return blur(images)


class Searching(nn.Module):
    """Makes all images black when it is used; what it was trained as blurs."""

    random = False

    def forward(self, images):
        return torch.zeros_like(images)

    def denoiser(self):
        return Blur()


def test_doing_nothing_is_the_noisy_image_and_a_blur_is_a_blur(smooth):
    nothing, blurring = (measure_denoising(one, smooth, CPU) for one in (nn.Identity(), Blur()))
    for sigma in SIGMAS:
        noisy = 20 * math.log10(255 / sigma)
        assert nothing[f"val_psnr_{sigma}"] == nothing[f"val_psnr_{sigma}_noisy"] == pytest.approx(noisy, abs=0.7)
        assert blurring[f"val_psnr_{sigma}"] == nothing[f"val_psnr_{sigma}_blur"] > noisy + 5
    assert measure_denoising(Searching(), smooth, CPU) == blurring


def test_a_purifier_that_changes_the_shape_is_refused(smooth):
    with pytest.raises(ContractError, match="purifier"):
        measure_denoising(nn.Flatten(), smooth, CPU)


def test_a_blur_keeps_the_mean_and_repeats_the_edges():
    batch = images(Task("toy", 3, 6, 5, 2), 2)
    flat = torch.full((1, 3, 4, 4), 0.3)
    assert torch.allclose(blur(flat), flat)
    assert blur(batch)[0, 1, 2, 2] == pytest.approx(
        float((batch[0, 1, 1:4, 1:4] * torch.tensor([1.0, 2, 1])[:, None] * torch.tensor([1.0, 2, 1])).sum() / 16)
    )


def card(channels, **figures):
    dataset = {"name": "x", "shape": (channels, 8, 8), "classes": ("a", "b"), "mean": (), "std": (), "flips": False}
    return Card(stage="purifier", name="one", config={}, dataset=dataset, figures=figures)


def test_weights_are_held_to_the_better_of_blur_and_nothing():
    at_25 = {"val_psnr_25": 24.0, "val_psnr_25_noisy": 20.0, "val_psnr_25_blur": 25.0}
    assert "24.0 dB, where the noisy image has 20.0 and a 3x3 blur of it 25.0" in find_fault(card(1, **at_25))
    assert "no val_psnr_8" in find_fault(card(3, **at_25)), "colour is held to 8/255"
    assert "24.0 dB" in find_fault(card(3, **at_25), 25)
    good = attrs.evolve(card(1, **at_25), figures={**at_25, "val_psnr_25": 25.0})
    assert find_fault(good) == ""
