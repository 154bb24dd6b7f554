"""A user's own image files are judged as the data set's images are measured."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from defend.assembly.composition import Composition
from defend.assembly.load import DataSource
from defend.deploy.predict import predict
from defend.errors import DataError
from defend.util.images import read_image

VICTIM = """
import torch


def bright(images):
    dark = images.flatten(1).mean(1)
    return torch.stack([dark, 1 - dark], 1)
"""


@pytest.fixture
def composition(tmp_path):
    (tmp_path / "parts.py").write_text(VICTIM)
    return Composition.of(f"{tmp_path}/parts.py:bright")


def shown(file, composition, source, folder):
    """Return what the victim was shown of an image file, uint8 [C,H,W]."""
    (row,) = predict([file], composition, source, save=folder / "seen")
    return read_image(Path(row["purified"]), 3)


def test_a_photograph_fills_the_images_of_a_task_that_is_no_square(composition, tmp_path):
    rng = np.random.default_rng(0)
    arrays = {f"x_{split}": rng.integers(0, 256, (20, 32, 64, 3), np.uint8) for split in ("val", "test")}
    np.savez(tmp_path / "wide.npz", **arrays, y_val=np.arange(20) % 2, y_test=np.arange(20) % 2)
    Image.new("RGB", (200, 100), "white").save(tmp_path / "photograph.png")
    made = shown(tmp_path / "photograph.png", composition, DataSource(str(tmp_path / "wide.npz")), tmp_path)
    assert made.shape == (3, 32, 64) and bool((made == 255).all())


def test_a_file_is_prepared_as_imagenets_own_are(composition, tmp_path):
    torch.manual_seed(0)
    picture = torch.randint(0, 256, (24, 40, 3), dtype=torch.uint8).numpy()
    for split in ("train", "val"):
        for name in ("n01", "n02"):
            (tmp_path / split / name).mkdir(parents=True)
            for number in range(4):
                Image.fromarray(picture).save(tmp_path / split / name / f"{number}.png")
    source = DataSource("imagenet", str(tmp_path), {"resize": 20, "image_size": 16, "workers": 0})
    measured, _ = source.open().tensors("test", limit=1)
    made = shown(tmp_path / "val" / "n01" / "0.png", composition, source, tmp_path)
    torch.testing.assert_close(made.float() / 255, measured[0], atol=1e-6, rtol=0)


NARROW = """
import torch


def narrow(images):
    if len(images) > 2:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")
    dark = images.flatten(1).mean(1)
    return torch.stack([dark, 1 - dark], 1)
"""


def test_files_that_do_not_fit_into_memory_together_are_judged_in_pieces(composition, tmp_path):
    (tmp_path / "narrow.py").write_text(NARROW)
    files, rng = [], np.random.default_rng(0)
    for number in range(7):
        files.append(tmp_path / f"{number}.png")
        Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).save(files[-1])
    arrays = {
        f"{part}_{split}": rng.integers(0, 2, (20, 8, 8, 3) if part == "x" else 20, np.uint8)
        for split in ("val", "test")
        for part in ("x", "y")
    }
    np.savez(tmp_path / "small.npz", **arrays)
    source = DataSource(str(tmp_path / "small.npz"))
    expected = list(predict(files, composition, source))
    found = list(predict(files, Composition.of(f"{tmp_path}/narrow.py:narrow"), source))
    assert [row["image"] for row in found] == [str(file) for file in files]
    assert [row["defended"]["label"] for row in found] == [row["defended"]["label"] for row in expected]


def test_a_file_that_cannot_be_read_takes_no_others_answer_with_it(composition, tmp_path):
    files, rng = [], np.random.default_rng(0)
    for number in range(70):  # more than are read at once
        files.append(tmp_path / f"{number}.png")
        Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).save(files[-1])
    arrays = {"x_val": rng.integers(0, 256, (20, 8, 8, 3), np.uint8), "y_val": np.arange(20) % 2}
    np.savez(tmp_path / "small.npz", **arrays, x_test=arrays["x_val"][::-1], y_test=arrays["y_val"])
    source, whole = DataSource(str(tmp_path / "small.npz")), []
    expected = list(predict(files, composition, source))
    for number in (1, 66):
        files[number].write_bytes(b"no image")
    with pytest.raises(DataError, match=r"1\.png.*66\.png"):
        whole.extend(predict(files, composition, source))  # which keeps what came before
    assert whole == [row for number, row in enumerate(expected) if number not in (1, 66)]
