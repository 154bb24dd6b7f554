"""The user's own image files: folders without splits, other sizes, the model's own classes, tables."""

import warnings

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from defend.assembly.load import DataSource, open_dataset
from defend.datasets.sizes import choose_side
from defend.datasets.table import list_table
from defend.errors import DataError
from defend.evaluation.provenance import describe


def draw(path, grey, size=(12, 12)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (grey, grey, grey)).save(path)


def fill(root, count=10, classes=("cat", "dog"), first=0, size=(12, 12)):
    for label, name in enumerate(classes):
        for index in range(count):
            draw(root / name / f"{index:03d}.png", first + label * count + index, size)


def greys(dataset, split):
    images, labels = dataset.tensors(split)
    return sorted((images[:, 0, 0, 0] * 255).round().int().tolist()), labels


def refusal(*arguments, **options):
    with pytest.raises(DataError) as caught:
        open_dataset(*arguments, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def options(**values):
    return {"workers": 0, **values}


# Sizes


def test_the_files_own_size_is_taken_where_they_agree(tmp_path):
    fill(tmp_path, size=(48, 48))
    assert open_dataset(str(tmp_path), options=options()).shape == (3, 48, 48)
    assert open_dataset(str(tmp_path), options=options(image_size=16)).shape == (3, 16, 16)


def test_of_other_sizes_a_warning_names_both(tmp_path):
    fill(tmp_path, size=(70, 90))
    draw(tmp_path / "cat" / "wide.png", 3, (300, 120))
    with pytest.warns(UserWarning, match=r"are 70x90 to 300x120 pixels, .* to 64x64: .*--set dataset\.image_size=N"):
        images = open_dataset(str(tmp_path), options=options())
    assert images.shape == (3, 64, 64) and images.tensors("test")[0].shape[1:] == (3, 64, 64)


@given(st.lists(st.tuples(st.integers(1, 3000), st.integers(1, 3000)), max_size=9))
def test_a_side_is_never_larger_than_it_must_be(sizes):
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        side = choose_side(sizes, "these")
    smallest = min((min(size) for size in sizes), default=224)
    assert 8 <= side <= max(min(smallest, 512), 32)
    assert bool(said) == (bool(sizes) and not (len(set(sizes)) == 1 and set(sizes) == {(side, side)}))


def test_files_that_are_no_images_do_not_decide_the_size(tmp_path):
    fill(tmp_path)
    (tmp_path / "cat" / "bad.png").write_bytes(b"no image")
    assert open_dataset(str(tmp_path), options=options()).shape == (3, 12, 12)


# Splits


def test_everything_may_be_judged_but_what_is_held_out(tmp_path):
    fill(tmp_path)
    images = open_dataset(str(tmp_path), options=options(split="all"))
    judged, held = greys(images, "test")[0], greys(images, "val")[0]
    assert sorted(judged + held) == list(range(20)) and len(held) == 4
    assert not images.has("train") and images.fitted_on() == "val"
    for asked in (images.labels, images.sha256):
        with pytest.raises(DataError, match="has no train images as it is asked for, but test, val"):
            asked("train")
    assert images.filed_as.startswith("imagefolder-") and images.task().classes == 2
    assert images.duplicates().n == 0
    said = describe("imagefolder", images, 16, {}).images
    assert said["said"] == "16 of the 20 images that were given; 4 others, cut off by seed 0, are held out"
    whole = open_dataset(str(tmp_path), options=options(split="all", hold_out=False))
    assert greys(whole, "test")[0] == list(range(20)) and not whole.has("val")


def test_everything_is_one_split_and_no_folder_of_one_is_a_class(tmp_path):
    fill(tmp_path / "train", 5)
    images = open_dataset(str(tmp_path), options=options(split="all", hold_out=False))
    assert images.classes == ("cat", "dog") and greys(images, "test")[0] == list(range(10))
    fill(tmp_path / "test", 5)
    said = "has 'train' and 'test': expected one of them to judge, --set dataset.split=NAME"
    assert said in refusal(str(tmp_path), options=options(split="all"))


def test_a_sub_folder_is_judged_by_name(tmp_path):
    for first, name in ((0, "train"), (50, "test"), (100, "hard")):
        fill(tmp_path / name, 5, first=first)
    images = open_dataset(str(tmp_path), options=options(split="hard"))
    assert greys(images, "test")[0] == list(range(100, 110))
    assert sorted(greys(images, "train")[0] + greys(images, "val")[0]) == list(range(10))
    assert images.origin("test").folder == "hard" and not images.origin("test").stands_in
    judged = open_dataset(str(tmp_path), options=options(split="train"))
    assert not judged.has("train") and judged.origin("test").of == 10
    assert "no folder 'hrad' to judge (dataset.split): did you mean 'hard'?" in refusal(
        str(tmp_path), options=options(split="hrad")
    )


def test_without_train_the_way_out_is_named(tmp_path):
    fill(tmp_path / "test", 5)
    fill(tmp_path / "other", 5)
    assert "to judge one without training images: --set dataset.split=test" in refusal(str(tmp_path), options=options())
    assert open_dataset(str(tmp_path), options=options(split="test")).origin("test").folder == "test"


# Mirroring


def test_folders_are_mirrored_in_training_only_where_that_is_asked(tmp_path):
    fill(tmp_path)
    lines = [f"cat/{at:03d}.png,{'ab'[at % 2]}" for at in range(10)]
    (tmp_path / "list.csv").write_text("\n".join(["path,label", *lines]))
    for path in (tmp_path, tmp_path / "list.csv"):
        assert not open_dataset(str(path), options=options()).task().flips
        assert open_dataset(str(path), options=options(flips=True)).task().flips
    fill(tmp_path / "net" / "train")
    fill(tmp_path / "net" / "val")
    assert open_dataset("imagenet", str(tmp_path / "net"), options(resize=8, image_size=8)).task().flips


# Classes


def test_labels_are_in_the_models_own_order(tmp_path):
    fill(tmp_path / "pets")
    names = tmp_path / "names.txt"
    names.write_text("eel\ndog\ncat\n\n", encoding="utf-8-sig")
    images = open_dataset(str(tmp_path / "pets"), options=options(class_names=str(names)))
    assert images.classes == ("eel", "dog", "cat")
    pixels, labels = images.tensors("train")
    assert torch.equal(labels, torch.where((pixels[:, 0, 0, 0] * 255).round() < 10, 2, 1))
    names.write_text("dig\neel\n")
    message = refusal(str(tmp_path / "pets"), options=options(class_names=str(names)))
    assert "has a class 'cat' and 1 more that class_names does not" in message
    message = refusal(str(tmp_path / "pets"), options=options(class_names="7"))
    assert refusal(str(tmp_path / "pest")).endswith(f"does not exist: did you mean {str(tmp_path / 'pets')!r}?")
    assert "a number calls them '0' to '6'; give a file of the model's class names" in message


@pytest.mark.parametrize("number", ["0", "1", "-1", "-20"])
def test_a_number_of_classes_that_no_classifier_has(tmp_path, number):
    fill(tmp_path)
    for path in (tmp_path, table(tmp_path, ["cat/000.png,0", "dog/001.png,1"])):
        message = refusal(str(path), options=options(class_names=number))
        assert f"classes are {number}: expected 2 or more, or a file of the model's class names" in message


@pytest.mark.parametrize(
    ("classes", "given"), [(range(12), "12"), ((1, 2, 10), "FILE"), ((0, 1, 2), None), (("a", "10", "2"), None)]
)
def test_folders_whose_names_are_numbers_count_by_their_text_and_say_so(tmp_path, classes, given):
    names = sorted(map(str, classes))
    fill(tmp_path, 5, names)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        assert open_dataset(str(tmp_path), options=options()).classes == tuple(names)
    assert [str(each.message) for each in said] == [
        f"folder {str(tmp_path)!r}: the classes are counted by their text, as torchvision does: "
        f"{', '.join(names[:4])}, ...; if the model counts them by value, give --classes {given}"
    ] * (given is not None)
    if given == "12":  # the cure is one, and says nothing more
        images = open_dataset(str(tmp_path), options=options(class_names=given, hold_out=False))
        pixels, labels = images.tensors("train")
        assert images.classes == tuple(map(str, range(12)))
        assert [names.index(str(label)) for label in labels.tolist()] == (pixels[:, 0, 0, 0] * 255).round().div(
            5, rounding_mode="floor"
        ).int().tolist()


@pytest.mark.parametrize(
    ("content", "said"),
    [(b"", "the file is empty"), (b"a\n\nb", "line 2 is empty"), (b"a\nb\na", "line 3 is line 1 again ('a')")],
)
def test_a_list_of_classes_that_is_none(tmp_path, content, said):
    fill(tmp_path)
    (tmp_path / "names.txt").write_bytes(content)
    assert said in refusal(str(tmp_path), options=options(class_names=str(tmp_path / "names.txt")))
    (tmp_path / "names.txt").write_bytes(b"\xff\xfe")
    assert "no text in UTF-8" in refusal(str(tmp_path), options=options(class_names=str(tmp_path / "names.txt")))
    for name in ("gone.txt", "two"):
        message = refusal(str(tmp_path), options=options(class_names=name))
        assert "cannot be read: No such file" in message and "or how many classes there are" in message


# Tables


def table(root, lines, header=("path,label",)):
    root.mkdir(parents=True, exist_ok=True)
    (root / "mine.csv").write_text("\n".join([*header, *lines]) + "\n", encoding="utf-8")
    return root / "mine.csv"


@pytest.mark.parametrize("header", [("path,label",), ("file, Class",), ()])
def test_a_table_names_images_anywhere(tmp_path, header):
    fill(tmp_path / "pets")
    lines = [f"../pets/{name}/{index:03d}.png,{name}" for name in ("cat", "dog") for index in range(9)]
    lines += [f'"{tmp_path / "pets" / name / "009.png"}",{name}' for name in ("cat", "dog")]
    images = open_dataset(str(table(tmp_path / "here", lines, header)), options=options())
    assert images.classes == ("cat", "dog") and images.shape == (3, 12, 12)
    found = sorted(value for split in ("train", "val", "test") for value in greys(images, split)[0])
    assert found == list(range(20))
    whole = DataSource(str(tmp_path / "here" / "mine.csv"), options=options(split="all", hold_out=False)).open()
    assert torch.bincount(whole.labels("test")).tolist() == [10, 10]


def test_labels_that_are_numbers_are_the_models_own(tmp_path):
    fill(tmp_path, 3)
    listed = list_table(table(tmp_path, ["cat/000.png,3", "dog/001.png,0", "dog/002.png,11"]))
    assert listed.classes == tuple(map(str, range(12))) and listed.labels.tolist() == [3, 0, 11]
    named = list_table(table(tmp_path, ["cat/000.png,0.5", "dog/001.png,none", "dog/002.png,10"]))
    assert named.classes == ("0.5", "10", "none")


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (["cat/000.png,cat", "cat/gone.png,dog"], "line 3: image 'cat/gone.png' does not exist"),
        (["cat/000.png,cat", "dog/000.png"], "line 3: 'dog/000.png' is not path,label"),
        (["cat/000.png,cat,1"], "line 2: 'cat/000.png,cat,1' is not path,label"),
        (["cat/000.png,"], "line 2: 'cat/000.png,' is not path,label"),
        (["cat,cat"], "line 2: image 'cat' does not exist"),
        ([f"{'x' * 5000},cat"], "does not exist"),
        (['"cat/000.png,cat'], "no CSV of path,label"),
        (["cat/000.png,cat"], "has one class ('cat')"),
        (["cat/000.png,999999999", "cat/001.png,0"], "has a label 999999999"),
        ([], "has no images"),
        (["cat/000.png,0.0", "cat/001.png,10.0"], "has a label '0.0': expected whole numbers from 0, or names"),
        (["cat/000.png,0", "cat/001.png,1.0"], "has a label '1.0': expected whole numbers"),
        (["cat/000.png,-1", "cat/001.png,0"], "has a label '-1': expected whole numbers"),
        (["cat/000.png,0", "cat/001.png,nan"], "has a label 'nan': expected whole numbers"),
    ],
)
def test_a_line_that_is_wrong_is_named(tmp_path, lines, said):
    fill(tmp_path, 3)
    path = table(tmp_path, lines)
    assert said in refusal(str(path), options=options())
    assert "has no split 'x'" in refusal(str(path), options=options(split="x"))


def test_a_table_that_cannot_be_read(tmp_path):
    path = table(tmp_path, [])
    path.write_bytes(b"\xff\xfe\0a")
    assert "no text in UTF-8" in refusal(str(path))
    assert "does not exist" in refusal(str(tmp_path / "gone.csv"))


@given(st.text(max_size=200))
def test_whatever_is_in_a_table_is_refused_in_a_line(tmp_path_factory, text):
    path = tmp_path_factory.mktemp("t") / "any.csv"
    path.write_text(text, encoding="utf-8", errors="surrogatepass")
    with pytest.raises(DataError) as caught:
        list_table(path)
    assert len(str(caught.value).splitlines()) == 1
