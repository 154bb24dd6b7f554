"""What a picture shows: every image in its place, in its colours, and red where an arm was wrong."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from defend.records.pictures import CELL, EDGE, LINE, MARGIN, TITLE, draw_examples
from defend.values.threats import DEFENDED, UNDEFENDED

RED, GREEN = (214, 39, 40), (44, 160, 44)


def drawn(path, clean, attacked, purified):
    """Draw two images of label 3: undefended both wrong, defended the second right."""
    example = SimpleNamespace(
        clean=clean,
        attacked=attacked,
        purified={DEFENDED: purified},
        labels=torch.tensor([3, 3]),
        predicted={UNDEFENDED: torch.tensor([5, 5]), DEFENDED: torch.tensor([5, 3])},
    )
    plan = SimpleNamespace(name="pgd", variant="", threat=SimpleNamespace(kind="adaptive", eps=0.1))
    draw_examples(SimpleNamespace(example=example, plan=plan), path)
    return np.asarray(Image.open(path))


def cell(sheet, row, column, height=CELL, width=CELL):
    top = TITLE + row * (height + 2 * EDGE + LINE) + LINE + EDGE
    left = MARGIN + column * (width + 2 * EDGE) + EDGE
    return sheet[top : top + height, left : left + width]


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_every_image_is_in_its_place(tmp_path, channels):
    clean = torch.rand(2, channels, 4, 4, generator=torch.Generator().manual_seed(0))
    attacked, purified = clean.flip(0), clean * 0.5
    sheet = drawn(tmp_path / "x.png", clean, attacked, purified)
    strips = (clean, attacked, purified, 0.5 + 4 * (attacked - clean), 0.5 + 4 * (purified - clean))
    for row, images in enumerate(strips):
        for column in range(2):
            shown = images[column] if channels == 3 else images[column, :1].expand(3, 4, 4)
            expected = (shown.clamp(0, 1) * 255).round().permute(1, 2, 0).numpy()
            side = CELL // 4
            middles = cell(sheet, row, column)[side // 2 :: side, side // 2 :: side]
            np.testing.assert_array_equal(middles, expected)


def test_an_image_keeps_its_shape_and_a_large_one_its_mean(tmp_path):
    wide = torch.zeros(2, 1, CELL, 2 * CELL)
    wide[:, :, ::2] = 1
    sheet = drawn(tmp_path / "x.png", wide, wide, wide)
    shown = cell(sheet, 0, 1, height=CELL // 2)
    assert shown.shape[:2] == (CELL // 2, CELL) and shown.min() >= 126 and shown.max() <= 129


def test_who_was_wrong_is_red_and_who_was_right_green(tmp_path):
    grey = torch.full((2, 1, 8, 8), 0.5)
    sheet = drawn(tmp_path / "x.png", grey, grey, grey)
    for row, column, colour in ((1, 0, RED), (1, 1, RED), (2, 0, RED), (2, 1, GREEN)):
        top = TITLE + row * (CELL + 2 * EDGE + LINE)
        left = MARGIN + column * (CELL + 2 * EDGE)
        said = sheet[top : top + LINE + EDGE, left : left + CELL]
        found = [(said == one).all(2).any() for one in (RED, GREEN)]
        assert found == [colour == RED, colour == GREEN]
