"""Attacked images in 8 bits: the nearest levels that keep to the budget."""

import pytest
import torch

from defend.attacks.rounding import round_to_levels


def on_grid(*shape):
    return torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(0)) / 255


@pytest.mark.parametrize("eps", [8 / 255, 0.1, 0.5 / 255, 0.0])
def test_levels_keep_to_the_l_inf_budget_and_are_the_nearest_that_do(eps):
    clean = on_grid(4, 3, 8, 8)
    attacked = (clean + eps * torch.randn(clean.shape).clamp(-1, 1)).clamp(0, 1)
    levels = round_to_levels(attacked, clean, eps, "linf")
    assert levels.dtype == torch.uint8
    assert ((levels / 255 - clean).abs() <= eps + 1e-6).all()
    inside = ((255 * attacked).round() / 255 - clean).abs() <= eps
    assert torch.equal(levels[inside], (255 * attacked).round().byte()[inside])


def test_a_whole_number_of_levels_is_not_lost_to_rounding():
    clean = torch.arange(0, 240).view(1, 1, 15, 16) / 255
    assert torch.equal(round_to_levels(clean + 8 / 255, clean, 8 / 255, "linf"), (255 * clean).round().byte() + 8)


@pytest.mark.parametrize("eps", [0.5, 0.03, 0.002])
def test_levels_keep_to_the_l2_budget(eps):
    clean = on_grid(6, 1, 16, 16)
    change = torch.randn(clean.shape)
    attacked = (clean + eps * change / change.flatten(1).norm(dim=1).view(-1, 1, 1, 1)).clamp(0, 1)
    levels = round_to_levels(attacked, clean, eps, "l2")
    assert ((levels / 255 - clean).flatten(1).norm(dim=1) <= eps + 1e-6).all()
    if eps == 0.5:
        assert ((levels / 255 - clean).flatten(1).norm(dim=1) > 0.4).all()


def test_without_a_budget_they_are_the_nearest():
    attacked = torch.rand(2, 1, 4, 4)
    assert torch.equal(round_to_levels(attacked, attacked, None, "l2"), (255 * attacked).round().byte())
