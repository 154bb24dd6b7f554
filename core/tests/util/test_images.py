"""Image files become uint8 tensors whatever they hold, or an error that names the file."""

import pickle

import numpy as np
import pytest
import torch
from PIL import Image

from defend.errors import DataError
from defend.util.images import read_image, write_image

HEIGHT, WIDTH = 5, 7


@pytest.fixture
def grey():
    return np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH), dtype=np.uint8)


@pytest.fixture
def colour():
    return np.random.default_rng(1).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)


@pytest.fixture
def store(tmp_path):
    def save(array, name="image.png", **options):
        path = tmp_path / name
        Image.fromarray(array).save(path, **options)
        return path

    return save


def planes(array):
    """Height, width (and channels) to uint8 [C,H,W]."""
    return torch.from_numpy(np.ascontiguousarray(array.transpose(2, 0, 1) if array.ndim == 3 else array[None]))


def refusal(path):
    with pytest.raises(DataError) as caught:
        read_image(path, channels=3)
    assert str(path) in str(caught.value)
    return str(caught.value)


def test_grey_is_read_exactly_and_repeated_for_colour(store, grey):
    path = store(grey)
    assert torch.equal(read_image(path, channels=1), planes(grey))
    assert torch.equal(read_image(path, channels=3), planes(grey).expand(3, -1, -1))


def test_colour_is_read_exactly_and_weighted_for_grey(store, colour):
    path = store(colour)
    assert torch.equal(read_image(path, channels=3), planes(colour))
    luma = (colour @ np.array([0.299, 0.587, 0.114])).round()
    found = read_image(path, channels=1)
    assert found.shape == (1, HEIGHT, WIDTH)
    assert np.abs(found[0].numpy() - luma).max() <= 1


def test_transparency_is_laid_over_white(store, colour):
    alpha = np.full((HEIGHT, WIDTH, 1), 255, np.uint8)
    alpha[0], alpha[1] = 0, 128
    found = read_image(store(np.concatenate([colour, alpha], axis=2)), channels=3)
    expected = planes(colour)
    assert (found[:, 0] == 255).all()
    half = expected[:, 1] * (128 / 255) + 255 * (127 / 255)
    torch.testing.assert_close(found[:, 1].float(), half, atol=1.0, rtol=0)
    assert torch.equal(found[:, 2:], expected[:, 2:])


def test_grey_with_transparency_is_laid_over_white(store, grey):
    path = store(np.dstack([grey, np.zeros_like(grey)]))
    assert (read_image(path, channels=1) == 255).all()


def test_16_bit_grey_is_scaled_to_the_whole_range(store, grey):
    path = store(grey.astype(np.uint16) * 257)
    assert torch.equal(read_image(path, channels=1), planes(grey))
    assert torch.equal(read_image(path, channels=3), planes(grey).expand(3, -1, -1))


def test_float_images_keep_their_values(store, grey):
    path = store(grey.astype(np.float32) / 255, "image.tif")
    assert torch.equal(read_image(path, channels=1), planes(grey))


@pytest.mark.parametrize("kind", [np.int32, np.uint32, np.int16])
def test_whole_numbers_of_no_known_depth_are_refused(store, kind):
    path = store(np.arange(256).reshape(16, 16).clip(0, 252).astype(kind), "image.tif")
    with pytest.raises(DataError, match=r"image\.tif' holds whole numbers of 32 bits \(0 to 252\).* 8 or 16 bits"):
        read_image(path, channels=1)


@pytest.mark.parametrize(("low", "high"), [(0, 126), (0, 252), (-1, 1)])
def test_floats_that_are_not_within_0_and_1_are_refused(store, low, high):
    path = store(np.linspace(low, high, 256, dtype=np.float32).reshape(16, 16), "image.tif")
    with pytest.raises(DataError, match=rf"image\.tif' holds floats from {low} to {high}, expected 0 to 1"):
        read_image(path, channels=1)


@pytest.mark.parametrize("name", ["image.png", "image.tif", "image.pgm"])
def test_dark_images_of_16_bits_stay_dark(store, name):
    dark = np.arange(256).reshape(16, 16).astype(np.uint16) * 20
    expected = torch.from_numpy((dark / 257).round().astype(np.uint8))[None]
    assert torch.equal(read_image(store(dark, name), channels=1), expected)


def test_a_palette_is_looked_up(tmp_path, colour):
    few = Image.fromarray(colour).quantize(8)
    few.save(tmp_path / "image.png")
    with Image.open(tmp_path / "image.png") as opened:
        assert opened.mode == "P"
    assert torch.equal(read_image(tmp_path / "image.png", channels=3), planes(np.asarray(few.convert("RGB"))))


def test_a_transparent_palette_entry_becomes_white(tmp_path):
    indices = Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8) % 2).convert("P")
    indices.putpalette([200, 0, 0, 0, 0, 200])
    indices.save(tmp_path / "image.png", transparency=0)
    found = read_image(tmp_path / "image.png", channels=3)
    assert (found[:, :, 0] == 255).all()
    assert found[:, 0, 1].tolist() == [0, 0, 200]


def test_black_and_white_bits_reach_the_whole_range(store):
    bits = np.tile(np.array([[False, True]]), (4, 4))
    assert torch.equal(read_image(store(bits), channels=1), planes(bits.astype(np.uint8) * 255))


@pytest.mark.parametrize(("orientation", "turns"), [(1, 0), (3, 2), (6, -1), (8, 1)])
def test_a_camera_rotation_is_undone(store, colour, orientation, turns):
    exif = Image.Exif()
    exif[0x0112] = orientation
    found = read_image(store(colour, exif=exif), channels=3)
    assert torch.equal(found, planes(np.rot90(colour, turns)))


def test_other_formats_are_read(store, colour):
    assert torch.equal(read_image(store(colour, "image.bmp"), channels=3), planes(colour))
    assert read_image(store(colour, "image.jpg"), channels=3).shape == (3, HEIGHT, WIDTH)


def test_a_missing_file(tmp_path):
    assert "does not exist" in refusal(tmp_path / "none.png")


def test_an_empty_file(tmp_path):
    (tmp_path / "empty.png").touch()
    assert "is empty" in refusal(tmp_path / "empty.png")


@pytest.mark.parametrize("content", [b"hello", b"\0" * 100, pickle.dumps({"a": 1})], ids=["text", "zeros", "pickle"])
def test_a_file_that_is_no_image(tmp_path, content):
    (tmp_path / "text.png").write_bytes(content)
    assert "is not an image that can be read" in refusal(tmp_path / "text.png")


def test_a_file_cut_short(store, colour):
    path = store(np.tile(colour, (20, 20, 1)))
    path.write_bytes(path.read_bytes()[:-500])
    assert "cannot be read" in refusal(path)


def test_a_folder(tmp_path):
    assert "Is a directory" in refusal(tmp_path)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (3, 40), (40, 3)])
def test_an_image_too_small_to_judge(store, height, width):
    message = refusal(store(np.zeros((height, width), np.uint8)))
    assert f"is {width}x{height}: expected at least 4x4" in message


@pytest.mark.parametrize("channels", [1, 3])
def test_what_is_written_is_read_back(tmp_path, channels):
    pixels = torch.randint(0, 256, (channels, HEIGHT, WIDTH), dtype=torch.uint8)
    write_image(tmp_path / "image.png", pixels.float() / 255)
    assert torch.equal(read_image(tmp_path / "image.png", channels), pixels)
    assert [path.name for path in tmp_path.iterdir()] == ["image.png"]


def test_writing_rounds_clips_and_replaces(tmp_path):
    path = tmp_path / "image.png"
    write_image(path, torch.zeros(1, 4, 4))
    write_image(path, torch.tensor([-1.0, 0.499 / 255, 0.501 / 255, 2.0]).expand(1, 4, 4).requires_grad_())
    assert read_image(path, channels=1)[0, 0].tolist() == [0, 0, 1, 255]
