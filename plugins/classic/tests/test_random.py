"""What is drawn: total variation's missing pixels, sizes and places, noise."""

import itertools

import pytest
import scipy.optimize
import torch
from torch.nn import functional as F

from defend.randomness import keyed
from defend.testing import TASK, images
from defend_classic.config import TvOptions
from defend_classic.purifiers import Noise, ResizePad, Tv
from defend_classic.variation import cost, minimise


def drawn(module, batch, seed=0):
    with keyed(torch.arange(len(batch)), seed=seed, stream="test"):
        return module(batch)


def test_total_variation_comes_as_low_as_scipys():
    batch = images(TASK, 1)[..., 8:16, 8:15].double()
    mask = (torch.rand(batch.shape, generator=torch.Generator().manual_seed(0)) >= 0.5).double()

    def value(flat):
        z = torch.tensor(flat, dtype=torch.float64).view_as(batch).requires_grad_()
        found = cost(z, batch, mask, 0.03).sum()
        return found.item(), torch.autograd.grad(found, z)[0].flatten().numpy()

    start = batch.flatten().numpy() + 0.01 * torch.linspace(-1, 1, batch.numel()).square().numpy()
    theirs = scipy.optimize.minimize(value, start, jac=True, method="L-BFGS-B", options={"maxiter": 2000})
    ours = cost(minimise(batch, mask, 0.03, 3000), batch, mask, 0.03).item()
    assert ours <= theirs.fun * (1 + 1e-6)
    assert cost(minimise(batch, mask, 0.03, 50), batch, mask, 0.03).item() < ours * 1.02


def test_pixels_left_out_say_nothing():
    batch, mask = images(TASK, 2), torch.ones(2, 1, 28, 28)
    mask[..., 10:14, 10:14] = 0
    other = torch.where(mask == 0, 1 - batch, batch)
    assert torch.equal(minimise(batch, mask, 0.03, 20), minimise(other, mask, 0.03, 20))


def test_the_gradient_of_total_variation_is_that_of_differences():
    batch, mask = images(TASK, 1).double().requires_grad_(), torch.ones(1, 1, 28, 28, dtype=torch.float64)
    mask[..., ::2, ::3] = 0
    direction = torch.randn(batch.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    (slope,) = torch.autograd.grad(minimise(batch, mask, 0.03, 30).square().sum(), batch)
    ahead, behind = (minimise(batch.detach() + way * direction, mask, 0.03, 30).square().sum() for way in (1e-6, -1e-6))
    torch.testing.assert_close((slope * direction).sum(), (ahead - behind) / 2e-6, rtol=1e-4, atol=1e-4)


def test_every_image_is_resized_and_placed_as_torch_would():
    batch = images(TASK, 40)
    found, seen = drawn(ResizePad(299 / 331), batch), set()
    for image, got in zip(batch, found, strict=True):
        fits = []
        for size in (25, 26, 27):
            shrunk = F.interpolate(image[None], size=(size, size), mode="nearest")[0]
            for top, left in itertools.product(range(29 - size), repeat=2):
                padded = F.pad(shrunk, (left, 28 - size - left, top, 28 - size - top))
                if torch.equal(padded, got):
                    fits.append((size, top, left))
        assert len(fits) == 1
        seen |= set(fits)
    assert {size for size, _, _ in seen} == {25, 26, 27} and len(seen) > 15  # of 29


def test_the_whole_size_leaves_an_image_as_it_is():
    batch = images(TASK, 3)
    assert torch.equal(ResizePad(1.0)(batch), batch)


@pytest.mark.parametrize("module", [Noise(0.25), Tv(TvOptions(steps=5)), ResizePad(0.9)])
def test_another_seed_draws_otherwise(module):
    batch = images(TASK, 4)
    assert module.random and torch.equal(drawn(module, batch), drawn(module, batch))
    assert not torch.equal(drawn(module, batch), drawn(module, batch, seed=1))


def test_noise_is_gaussian_and_clipped():
    grey = torch.full((50, 1, 28, 28), 0.5)
    added = drawn(Noise(0.1), grey) - 0.5
    assert abs(added.mean()) < 0.002 and abs(added.std() - 0.1) < 0.002
    assert drawn(Noise(1.0), grey).aminmax() == (0, 1)


@pytest.mark.parametrize("steps", [1, 2, 12])
def test_the_start_is_part_of_the_gradient(steps):
    generator = torch.Generator().manual_seed(0)
    batch = torch.rand(1, 1, 4, 4, generator=generator, dtype=torch.float64).requires_grad_()
    mask = (torch.rand(1, 1, 4, 4, generator=generator) < 0.7).double()
    torch.autograd.gradcheck(lambda images: minimise(images, mask, 0.03, steps), (batch,), eps=1e-7, atol=1e-5)
