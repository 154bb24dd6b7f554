"""Bit depth, median, blur and JPEG against SciPy, Pillow and cases computed by hand."""

import io

import numpy as np
import pytest
import scipy.ndimage
import torch
from PIL import Image

from defend.testing import TASK, images
from defend_classic.filters import blur, gaussian, reduce_depth, take_median
from defend_classic.jpeg import CHROMINANCE, LUMINANCE, compress, quantisation
from defend_classic.rounding import round_softly, round_straight

GREY = images(TASK, 6)


def colour(height, width):
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(6, 3, 9, 9, generator=generator)
    return torch.nn.functional.interpolate(coarse, size=(height, width), mode="bilinear")


def test_bits_by_hand():
    pixels = torch.tensor([0.0, 0.1, 0.4, 0.6, 1.0]).view(1, 1, 1, 5)
    assert reduce_depth(pixels, 1).flatten().tolist() == [0, 0, 0, 1, 1]
    torch.testing.assert_close(reduce_depth(pixels, 2).flatten(), torch.tensor([0, 0, 1, 2, 3]) / 3)


def test_roundings_and_their_slopes():
    values = torch.tensor([-0.6, 0.2, 0.5, 1.4, 3.0], requires_grad=True)
    straight, soft = round_straight(values), round_softly(values)
    assert torch.equal(straight, values.round())
    assert torch.autograd.grad(straight.sum(), values)[0].tolist() == [1.0] * 5
    torch.testing.assert_close(soft, torch.tensor([-0.936, 0.008, 0.125, 1.064, 3.0]))
    torch.testing.assert_close(
        torch.autograd.grad(soft.sum(), values)[0], 3 * (values - values.round()).square().detach()
    )


@pytest.mark.parametrize("size", [2, 3, 4, 5])
def test_median_is_scipys(size):
    expected = scipy.ndimage.median_filter(GREY.numpy(), size=(1, 1, size, size), mode="reflect")
    assert np.array_equal(take_median(GREY, size).numpy(), expected)


def test_blurs_are_scipys():
    mean = scipy.ndimage.uniform_filter(GREY.numpy(), size=(1, 1, 3, 3), mode="reflect")
    np.testing.assert_allclose(blur(GREY, gaussian(3, float("inf"))).numpy(), mean, atol=1e-6)
    smooth = scipy.ndimage.gaussian_filter(GREY.numpy(), sigma=(0, 0, 1.5, 1.5), radius=(0, 0, 3, 3), mode="reflect")
    np.testing.assert_allclose(blur(GREY, gaussian(7, 1.5)).numpy(), smooth, atol=1e-6)


def pillow(batch, quality, subsampling):
    """What Pillow's codec gives back of images [B,C,H,W], and the tables that it quantised with."""
    back = []
    for levels in (255 * batch).round().byte().permute(0, 2, 3, 1).squeeze(-1).numpy():
        file = io.BytesIO()
        Image.fromarray(levels).save(file, "JPEG", quality=quality, subsampling=subsampling)
        opened = Image.open(file)
        back.append(torch.from_numpy(np.array(opened)).view(*levels.shape[:2], -1).permute(2, 0, 1) / 255)
    return torch.stack(back), opened.quantization


@pytest.mark.parametrize("quality", [10, 50, 75, 90])
@pytest.mark.parametrize(
    ("batch", "subsampling"),
    [(GREY, "4:2:0"), (colour(32, 32), "4:2:0"), (colour(35, 29), "4:2:0"), (colour(35, 29), "4:4:4")],
    ids=["grey", "colour", "odd", "full"],
)
def test_jpeg_is_pillows(batch, quality, subsampling):
    theirs, tables = pillow(batch, quality, subsampling)
    ours = compress(batch, quality, subsampling, round_straight)
    levels = 255 * (ours - theirs).abs()
    # a coefficient on the edge between two steps falls to either side: few do, and the block then differs by a little
    assert levels.mean() < 0.15 * (255 * (theirs - batch).abs()).mean() + 0.3
    assert levels.median() <= 1
    assert tables[0] == quantisation(LUMINANCE, quality).flatten().tolist()
    assert 1 not in tables or tables[1] == quantisation(CHROMINANCE, quality).flatten().tolist()


def test_jpeg_of_best_quality_is_pillows_to_the_level():
    for batch, subsampling in ((GREY, "4:2:0"), (colour(35, 29), "4:2:0"), (colour(35, 29), "4:4:4")):
        assert (
            255 * (compress(batch, 100, subsampling, round_straight) - pillow(batch, 100, subsampling)[0]).abs().max()
            <= 4
        )


def test_the_soft_codec_has_the_slope_of_differences():
    batch = GREY[:1].double().clamp(0.2, 0.8).requires_grad_()
    direction = torch.randn(batch.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = (torch.autograd.grad(compress(batch, 75, "4:2:0", round_softly).square().sum(), batch)[0] * direction).sum()
    ahead, behind = (
        compress(batch.detach() + way * direction, 75, "4:2:0", round_softly).square().sum() for way in (1e-7, -1e-7)
    )
    torch.testing.assert_close(found, (ahead - behind) / 2e-7, rtol=1e-3, atol=1e-3)
