"""Files of arrays: whatever names they have, and none that is unpickled."""

import io
import pickle

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from defend.assembly.load import DataSource, open_dataset
from defend.errors import DataError, DefendError
from defend.evaluation.provenance import describe

RANDOM = np.random.default_rng(0)


def pixels(count=20, *shape):
    return RANDOM.integers(0, 256, (count, *(shape or (6, 5, 3))), dtype=np.uint8)


def labels(count=20):
    return np.arange(count) % 4


def opened(path, **options):
    return open_dataset(str(path), options=options)


def sizes(dataset):
    return {split: len(dataset.labels(split)) for split in ("train", "val", "test") if dataset.has(split)}


def refusal(path, **options):
    with pytest.raises(DataError) as caught:
        opened(path, **options)
    assert len(str(caught.value).splitlines()) == 1 and str(path) in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("names", "found"),
    [
        (("images", "labels"), {"train": 15, "val": 1, "test": 4}),
        (("x", "y"), {"train": 15, "val": 1, "test": 4}),
        (("X", "Y"), {"train": 15, "val": 1, "test": 4}),
        (("arr_0", "arr_1"), {"train": 15, "val": 1, "test": 4}),
        (("x_test", "y_test"), {"val": 8, "test": 12}),
        (("x_train", "y_train", "x_val", "y_val"), {"train": 18, "val": 2, "test": 20}),
        (("x_test", "y_test", "x_train", "y_train"), {"train": 18, "val": 2, "test": 20}),
        (
            ("train_images", "train_labels", "val_images", "val_labels", "test_images", "test_labels"),
            {"train": 20, "val": 20, "test": 20},
        ),
    ],
)
def test_the_usual_names_are_found(tmp_path, names, found):
    made = {name: pixels() if at % 2 == 0 else labels() for at, name in enumerate(names)}
    np.savez(tmp_path / "mine.npz", **made, note=np.arange(3))
    dataset = opened(tmp_path / "mine.npz")
    assert sizes(dataset) == found and dataset.shape == (3, 6, 5) and dataset.classes == tuple("0123")
    images, known = dataset.tensors("test")
    bytes_of = {
        image.tobytes(): label for name in names[::2] for image, label in zip(made[name], labels(), strict=True)
    }
    for image, label in zip((images * 255).round().byte().permute(0, 2, 3, 1).numpy(), known.tolist(), strict=True):
        assert bytes_of[image.tobytes()] == label


@pytest.mark.parametrize("shape", [(3, 6, 5), (6, 5, 3), (6, 5), (1, 6, 5)])
def test_images_may_be_laid_out_either_way(tmp_path, shape):
    for kind in (np.uint8, np.float32, np.float64, np.dtype(">f4")):
        made = pixels(20, *shape)
        np.savez_compressed(
            tmp_path / "mine.npz", x=made if kind == np.uint8 else (made / 255).astype(kind), y=labels()
        )
        dataset = opened(tmp_path / "mine.npz", split="all", hold_out=False)
        assert dataset.shape == (3 if 3 in shape else 1, 6, 5) and sizes(dataset) == {"test": 20}


def test_a_pair_of_files_stays_on_disk(tmp_path):
    np.save(tmp_path / "x_test.npy", pixels())
    assert "no labels beside it" in refusal(tmp_path / "x_test.npy")
    np.save(tmp_path / "y_test.npy", labels())
    dataset = DataSource(str(tmp_path / "x_test.npy")).open()
    np.save(tmp_path / "labels_test.npy", (labels() + 1) % 4)  # whatever else lies there
    assert torch.equal(DataSource(str(tmp_path / "x_test.npy")).open().labels("test"), dataset.labels("test"))
    assert sizes(dataset) == {"val": 8, "test": 12}
    assert isinstance(dataset._sources["test"]._images, np.memmap)
    np.save(tmp_path / "set_data.npy", pixels())
    np.save(tmp_path / "set_labels.npy", labels())
    assert sizes(opened(tmp_path / "set_data.npy")) == {"train": 15, "val": 1, "test": 4}


def test_a_split_is_judged_by_name(tmp_path):
    np.savez(tmp_path / "m.npz", x_train=pixels(), y_train=labels(), x_test=pixels(8), y_test=labels(8))
    assert sizes(opened(tmp_path / "m.npz", split="train")) == {"val": 8, "test": 12}
    assert sizes(opened(tmp_path / "m.npz", split="test")) == {"train": 18, "val": 2, "test": 8}
    assert "did you mean 'test'" in refusal(tmp_path / "m.npz", split="tset")
    with pytest.raises(DataError, match=r"has no train images: expected x_train and y_train in the file"):
        opened(tmp_path / "m.npz", split="train").labels("train")


def test_without_test_val_is_judged_as_of_folders(tmp_path):
    kept, apart = pixels(), pixels(8)
    np.savez(tmp_path / "m.npz", x_train=kept, y_train=labels(), x_valid=apart, y_valid=labels(8))
    dataset = opened(tmp_path / "m.npz")
    judged = (dataset.tensors("test")[0] * 255).round().byte().permute(0, 2, 3, 1)
    assert {image.tobytes() for image in judged.numpy()} == {image.tobytes() for image in apart}
    said = describe("arrays", dataset, 8, {}).images["said"]
    assert said.startswith(
        "the 8 images that were given, as there is no 'test'; what is held out for validation is cut"
    )
    assert sizes(opened(tmp_path / "m.npz", split="valid")) == {"train": 18, "val": 2, "test": 8}
    assert not opened(tmp_path / "m.npz", split="valid").origin("test").stands_in


def test_classes_have_the_users_names(tmp_path):
    np.savez(tmp_path / "m.npz", x=pixels(), y=labels())
    (tmp_path / "names.txt").write_text("a\nb\nc\nd\ne\n")
    assert opened(tmp_path / "m.npz", class_names=str(tmp_path / "names.txt")).classes == tuple("abcde")


class Evil:
    def __reduce__(self):
        return (pytest.fail, ("unpickled",))


@pytest.mark.parametrize(
    ("made", "said"),
    [
        ({"x": np.array([Evil()] * 20), "y": labels()}, ", x holds Python objects, which are never loaded"),
        ({"x": pixels(), "y": np.array([Evil()] * 20)}, ", y holds Python objects"),
        ({"a": pixels(), "b": labels()}, "holds a, b: expected images and labels, x and y"),
        ({"x": pixels()}, "holds x: expected"),
        ({"x": pixels(), "y_test": labels()}, "holds x, y_test: expected"),
        ({}, "holds nothing: expected"),
        ({"x": pixels(), "y": labels(), "x_train": pixels(), "y_train": labels()}, "for train twice"),
        ({"x": pixels(), "y": labels(19)}, "20 images and 19 labels"),
        ({"x": pixels() * 1.0, "y": labels()}, "divide by 255"),
        ({"x": pixels().astype(int), "y": labels()}, "images are int64"),
        ({"x": pixels(), "y": labels().astype(str)}, "labels are text"),
        ({"x": pixels()[0], "y": labels()}, "6 images and 20 labels"),
        ({"x": np.float32(3), "y": labels()}, "has no images"),
        ({"x_train": pixels(), "y_train": labels(), "x_test": pixels(20, 4, 4), "y_test": labels()}, "images of"),
    ],
)
def test_arrays_that_cannot_be_used(tmp_path, made, said):
    np.savez(tmp_path / "m.npz", **made)
    with pytest.raises(DataError) as caught:
        opened(tmp_path / "m.npz")
    assert said in str(caught.value) and len(str(caught.value).splitlines()) == 1


def test_objects_in_npy_files_are_refused(tmp_path):
    np.save(tmp_path / "x.npy", np.array([Evil()] * 3))
    np.save(tmp_path / "y.npy", labels(3))
    assert "holds Python objects, which are never loaded" in refusal(tmp_path / "x.npy")
    (tmp_path / "x.npy").write_bytes(pickle.dumps([1, 2]))
    assert "never loaded" in refusal(tmp_path / "x.npy")
    assert "No such file" in refusal(tmp_path / "gone.npz")


def whole():
    file = io.BytesIO()
    np.savez(file, x=pixels(), y=labels())
    return file.getvalue()


WHOLE = whole()


@given(st.integers(0, len(WHOLE) - 1), st.binary(max_size=4), st.booleans())
@example(WHOLE.rindex(b"y.npy"), b"\n", False)  # an array's name with a line break
def test_a_damaged_file_is_told_in_a_line(tmp_path_factory, place, junk, cut):
    path = tmp_path_factory.mktemp("a") / "m.npz"
    path.write_bytes(WHOLE[:place] + junk + (b"" if cut else WHOLE[place + len(junk) :]))
    said = "read"
    try:
        assert torch.isfinite(opened(path).tensors("test")[0]).all()
    except DefendError as error:
        said = str(error)
    assert len(said.splitlines()) == 1 and "failed in" not in said


@pytest.mark.parametrize(("extra", "kind"), [("targets", "labels"), ("data", "images"), ("Y_TEST", "")])
def test_of_two_arrays_that_may_be_the_same_none_is_guessed(tmp_path, extra, kind):
    more = {extra: pixels() if kind == "images" else labels()}
    np.savez(tmp_path / "m.npz", images=pixels(), labels=labels(), **more)
    if not kind:  # of another split, which has no images
        assert sizes(opened(tmp_path / "m.npz"))
        return
    said = refusal(tmp_path / "m.npz")
    assert f"two arrays that may be the {kind}, '{kind}' and '{extra}': leave out one" in said


def test_of_two_files_that_may_be_the_labels_none_is_guessed(tmp_path):
    for name in ("labels", "targets"):
        np.save(tmp_path / f"set_{name}.npy", labels())
    np.save(tmp_path / "set_img.npy", pixels())
    assert "'set_labels.npy' and 'set_targets.npy' beside it may both be its labels" in refusal(
        tmp_path / "set_img.npy"
    )
