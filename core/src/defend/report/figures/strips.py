"""Single images of a row: clean, attacked, purified, and their differences enlarged."""

from __future__ import annotations

import attrs
import numpy as np
from numpy.typing import NDArray

from defend.records.run import Examples
from defend.report.figures.curves import slug
from defend.report.figures.scene import TIMES, Mark, Picture, Scene, Text
from defend.values.report import Row

LARGEST = 64  # pixels of a side; larger images are reduced
FEW = 4  # columns where images had to be reduced
CELL, GAP, LABELS = 64.0, 6.0, 84.0  # of the figure, in pixels
FACTORS = (1, 2, 5, 10, 20, 50, 100)
RIGHT, WRONG, REJECTED = "✓", "✗", "⊘"
Pixels = NDArray[np.uint8]


@attrs.frozen
class Answer:
    """What was said of one image: its text with a mark, and a role for its colour."""

    text: str
    role: str


@attrs.frozen(kw_only=True)
class Band:
    """One line of the strip: an image a column, uint8 [H,W] or [H,W,3], and what was said of each."""

    name: str
    images: tuple[Pixels, ...]
    answers: tuple[Answer, ...] = ()


@attrs.frozen(kw_only=True)
class Strip:
    """Examples of one row, a column each; `held` and `image` (place in the test split) by column."""

    row: Row
    bands: tuple[Band, ...]
    held: tuple[bool, ...]
    image: tuple[int, ...]
    label: tuple[int, ...]
    factor: int
    reduced: bool


def strip(row: Row, examples: Examples, purified: bool, defended: bool = True) -> Strip:
    """Return a row's images.

    Args:
        row: what the report says of it.
        examples: its images.
        purified: whether a purifier changed them; else what the victim saw is what came.
        defended: whether there is a defence, whose answers are to be shown.
    """
    reduced = max(examples.clean.shape[1:3]) > LARGEST
    some = _some(examples.held, FEW if reduced else len(examples.label))
    clean, attacked, after = (
        [_reduce(images[place]) for place in some] for images in (examples.clean, examples.attacked, examples.purified)
    )
    changes = [attacked[place] - clean[place] for place in range(len(some))]
    left = [after[place] - clean[place] for place in range(len(some))]
    largest = max((float(np.abs(examples.attacked[place] - examples.clean[place]).max()) for place in some), default=0)
    # differences are drawn around grey, 0.5, and are not to be clipped; a little more is rounding
    factor = max((each for each in FACTORS if each * largest <= 0.51), default=1)
    label, said, answer = (values[some].tolist() for values in (examples.label, examples.undefended, examples.defended))
    accepted = examples.accepted[some].tolist()
    bare = tuple(_answer(one, truth) for one, truth in zip(said, label, strict=True))
    whole = tuple(_answer(*each) for each in zip(answer, label, accepted, strict=True)) if defended else ()
    bands = [
        Band(name="clean", images=_pixels(clean), answers=tuple(Answer(f"label {one}", "muted") for one in label)),
        Band(name="attacked", images=_pixels(attacked), answers=bare),
        Band(name="purified" if purified else "to the victim", images=_pixels(after), answers=whole),
        Band(name=f"attack {TIMES} {factor}", images=_pixels([0.5 + factor * change for change in changes])),
    ]
    if purified:
        bands.append(
            Band(name=f"left over {TIMES} {factor}", images=_pixels([0.5 + factor * change for change in left]))
        )
    elif not defended:
        del bands[2]
    return Strip(
        row=row,
        bands=tuple(bands),
        held=tuple(examples.held[some].tolist()),
        image=tuple(examples.image[some].tolist()),
        label=tuple(label),
        factor=factor,
        reduced=reduced,
    )


def _some(held: NDArray[np.bool_], count: int) -> list[int]:
    """Choose columns, failures first; where there is not room for all, half of either."""
    failed, good = np.flatnonzero(~held).tolist(), np.flatnonzero(held).tolist()
    kept = failed[: max(count - len(good), (count + 1) // 2)]
    return [*kept, *good[: count - len(kept)]]


def _answer(said: int, label: int, accepted: bool = True) -> Answer:
    if not accepted:
        return Answer(f"{REJECTED} {said}", "aside")
    return Answer(f"{RIGHT} {said}", "right") if said == label else Answer(f"{WRONG} {said}", "wrong")


def _reduce(image: NDArray[np.float32]) -> NDArray[np.float32]:
    """Average over squares, so that neither side is above `LARGEST`."""
    factor = -(-max(image.shape[:2]) // LARGEST)
    if factor == 1:
        return image
    height, width = (side // factor * factor for side in image.shape[:2])
    squares = image[:height, :width].reshape(height // factor, factor, width // factor, factor, -1)
    mean: NDArray[np.float32] = squares.mean(axis=(1, 3))
    return mean


def _pixels(images: list[NDArray[np.float32]]) -> tuple[Pixels, ...]:
    """Return [H,W,C] in [0,1] as bytes, grey images without their channel."""
    whole = [(image.clip(0, 1) * 255).round().astype(np.uint8) for image in images]
    return tuple(image[..., 0] if image.shape[2] == 1 else image[..., :3] for image in whole)


def scene(strip: Strip) -> Scene:
    """Return the strip as a figure of its own."""
    columns = len(strip.held)
    marks: list[Mark] = []
    y = 4.0
    split = sum(not held for held in strip.held)
    for place, text, there in ((0, "failed", split > 0), (split, "held", split < columns)):
        if there:
            marks.append(Text(x=LABELS + place * (CELL + GAP), y=y + 6, text=text, bold=True))
    y += 18
    for band in strip.bands:
        marks.append(Text(x=0, y=y + CELL / 2, text=band.name))
        for column, pixels in enumerate(band.images):
            x = LABELS + column * (CELL + GAP)
            marks.append(Picture(x=x, y=y, width=CELL, height=CELL, pixels=pixels))
            if band.answers:
                answer = band.answers[column]
                marks.append(Text(x=x + CELL / 2, y=y + CELL + 8, text=answer.text, role=answer.role, anchor="middle"))
        y += CELL + (18 if band.answers else GAP)
    says = f"Examples of {strip.row.key}: {split} where the defence failed and {columns - split} where it held."
    name = slug(f"examples-{strip.row.key}")
    return Scene(name=name, says=says, width=LABELS + columns * (CELL + GAP), height=y, marks=tuple(marks))
