"""Differentiating inside a forward pass: in every mode, and with a slope where sign has none."""

import math

import pytest
import torch

from defend.gradients import inner_gradients, smooth_sign


def descend(images):
    """One gradient step on the fourth powers: x - 4 x^3 / 8, whose derivative is 1 - 3 x^2 / 2."""
    with inner_gradients(images) as (x, outer):
        at = x if outer else x.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(at.pow(4).sum(), at, create_graph=outer)
        return x - gradient / 8


@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_a_gradient_is_found_in_every_mode(mode):
    with mode():
        moved = descend(torch.tensor([[[[1.0, 0.5]]]]))
    assert moved.flatten().tolist() == [0.5, 0.4375]
    assert not moved.requires_grad


def test_images_made_in_inference_mode_are_taken_as_they_are():
    with torch.inference_mode():
        images = torch.tensor([[[[1.0]]]])
        assert descend(images).item() == 0.5
    assert images.item() == 1.0


def test_where_gradients_are_wanted_the_second_order_is_there():
    images = torch.tensor([[[[1.0, 0.5]]]], requires_grad=True)
    (gradient,) = torch.autograd.grad(descend(images).sum(), images)
    assert gradient.flatten().tolist() == pytest.approx([-0.5, 0.625])


def test_smooth_sign_is_sign_with_the_slope_of_a_tanh_as_wide_as_the_mean():
    values = torch.tensor([[[[-3.0, 0.0, 1.0]]], [[[2.0, 2.0, -2.0]]]], requires_grad=True)
    signs = smooth_sign(values)
    assert signs.flatten().tolist() == [-1, 0, 1, 1, 1, -1]
    (slope,) = torch.autograd.grad(signs.sum(), values)
    expected = [
        (1 - math.tanh(v / w) ** 2) / w for v, w in ((-3, 4 / 3), (0, 4 / 3), (1, 4 / 3), (2, 2), (2, 2), (-2, 2))
    ]
    assert slope.flatten().tolist() == pytest.approx(expected, rel=1e-5)


def test_smooth_sign_of_nothing_is_finite():
    values = torch.zeros(1, 1, 2, 2, requires_grad=True)
    (slope,) = torch.autograd.grad(smooth_sign(values).sum(), values)
    assert torch.isfinite(slope).all()
