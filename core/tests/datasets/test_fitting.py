"""Images of any size are shown to a network as those that it is measured by."""

import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from defend.assembly.load import DataSource, open_dataset
from defend.datasets.fitting import cover, fit

SIZES = [(40, 60), (60, 40), (33, 47), (100, 101), (9, 300), (300, 9), (20, 20)]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("side", "resize"), [(28, None), (28, 32), (8, 9)])
def test_squares_are_as_torchvision_makes_them(size, side, resize):
    torch.manual_seed(0)
    image = torch.randint(0, 256, (3, *size), dtype=torch.uint8)
    expected = v2.Compose([v2.Resize(resize or side, antialias=True), v2.CenterCrop(side)])(image)
    assert torch.equal(fit(image, side, side, resize), expected)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("wanted", [(32, 64), (64, 32), (7, 5)])
def test_nothing_is_padded_where_a_task_is_no_square(size, wanted):
    made = fit(torch.full((3, *size), 255, dtype=torch.uint8), *wanted)
    assert made.shape == (3, *wanted) and bool((made == 255).all())
    high, wide = cover(size, wanted)
    assert min(high - wanted[0], wide - wanted[1]) == 0  # and no more is cropped than must be
    assert abs(high / wide - size[0] / size[1]) < 0.1 * size[0] / size[1] + 1 / min(high, wide)


def test_a_data_set_and_the_users_own_file_are_prepared_alike(tmp_path):
    torch.manual_seed(0)
    picture = torch.randint(0, 256, (24, 40, 3), dtype=torch.uint8)
    for split in ("train", "val"):
        for name in ("n01", "n02"):
            (tmp_path / split / name).mkdir(parents=True)
            for number in range(4):
                Image.fromarray(picture.numpy()).save(tmp_path / split / name / f"{number}.png")
    options = {"resize": 20, "image_size": 16, "workers": 0}
    images, _ = open_dataset("imagenet", str(tmp_path), options).tensors("test", limit=1)
    resize = DataSource("imagenet", None, options).find_resize()
    assert torch.equal(fit(picture.movedim(2, 0), 16, 16, resize).float() / 255, images[0])
    assert DataSource("imagenet").find_resize() == 256
    assert DataSource("digits").find_resize() is None
