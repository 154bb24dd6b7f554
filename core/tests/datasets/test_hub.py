"""`hf:NAME`, against a stand-in for the library: columns, splits, names, and what is not there."""

import sys
import types

import numpy as np
import pytest
import torch
from PIL import Image

from defend.assembly.load import open_dataset
from defend.errors import DefendError

GREYS = list(range(30))


class Image_:  # the library's feature is called Image
    pass


Image_.__name__ = "Image"


class ClassLabel:
    def __init__(self, names):
        self.names = names


class Rows:
    """A split as the library has it: rows by number, columns by name, and what each column is."""

    def __init__(self, greys=GREYS, labels=None, size=(12, 10), mode="RGB", **features):
        self.features = features or {"id": "Value", "picture": Image_(), "label": ClassLabel(["cat", "dog", "eel"])}
        self.greys, self.size, self.mode = greys, size, mode
        self.said = [grey % 3 for grey in greys] if labels is None else labels

    def __len__(self):
        return len(self.greys)

    def __getitem__(self, key):
        if isinstance(key, str):
            return self.said
        return {name: self.cell(name, key) for name in self.features}

    def cell(self, name, place):
        grey = self.greys[place]
        picture = Image.new("L", self.size, grey).convert(self.mode)
        return {"picture": picture, "image": picture, "id": grey}.get(name, self.said[place])


@pytest.fixture
def hub(monkeypatch):
    """Install the stand-in: it answers with what the test puts into `sets`, by name."""
    sets = {}

    def load_dataset(name, subset=None):
        if name not in sets:
            raise ConnectionError(f"Couldn't reach\n'{name}' on the Hub")
        return sets[name]

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    return sets


def opened(name="mine", **options):
    return open_dataset(f"hf:{name}", options={"workers": 0, "image_size": 8, **options})


def refusal(name="mine", **options):
    with pytest.raises(DefendError) as caught:
        opened(name, **options)
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


def sizes(dataset):
    return {split: len(dataset.labels(split)) for split in ("train", "val", "test") if dataset.has(split)}


def test_columns_names_and_splits_are_found(hub):
    hub["mine"] = {"train": Rows(), "validation": Rows([40, 41, 42]), "test": Rows([50, 51, 52, 53])}
    dataset = opened()
    assert sizes(dataset) == {"train": 30, "val": 3, "test": 4}
    assert (dataset.classes, dataset.shape, dataset.name) == (("cat", "dog", "eel"), (3, 8, 8), "hf")
    images, labels = dataset.tensors("test")
    greys = (images[:, 0, 0, 0] * 255).round().long()
    assert sorted(greys.tolist()) == [50, 51, 52, 53] and torch.equal(labels, greys % 3)
    assert dataset.filed_as.startswith("hf-")


def test_one_split_is_cut_into_three(hub):
    hub["mine"] = {"train": Rows()}
    assert sizes(opened()) == {"train": 22, "val": 2, "test": 6}
    hub["mine"] = Rows()
    assert sizes(opened()) == {"train": 22, "val": 2, "test": 6}
    assert sizes(opened(split="all", hold_out=False)) == {"test": 30}
    hub["mine"] = {"train": Rows(), "validation": Rows([40, 41, 42])}
    assert sizes(opened()) == {"train": 27, "val": 3, "test": 3} and opened().origin("test").stands_in
    hub["mine"] = {"extra": Rows(), "more": Rows()}
    assert "has the splits extra, more: say which is judged with --set dataset.split=NAME" in refusal()
    assert sizes(opened(split="extra")) == {"val": 6, "test": 24}
    assert "did you mean 'extra'" in refusal(split="extar")


def test_sizes_and_colours_are_those_of_the_pictures(hub):
    hub["mine"] = {"train": Rows(mode="L", size=(28, 28))}
    assert opened(image_size=None).shape == (1, 28, 28)
    hub["mine"] = {"train": Rows(size=(40, 70))}
    with pytest.warns(UserWarning, match="hf:mine are 40x70 pixels, .* 32x32"):
        assert opened(image_size=None).shape == (3, 32, 32)


def test_an_image_in_colour_among_grey_ones_is_refused(hub):
    class Mixed(Rows):
        def cell(self, name, place):
            found = super().cell(name, place)
            if name == "picture" and place == 104:  # none of those that are looked at first
                return Image.merge("RGB", [Image.new("L", self.size, level) for level in (9, 99, self.greys[place])])
            return found.convert("RGB") if name == "picture" and place == 105 else found  # grey all the same

    hub["me/mixed"] = {"train": Mixed([1] * 400, mode="L")}
    dataset = open_dataset("hf:me/mixed", options={"image_size": 10})

    def read():
        return [dataset.tensors(split) for split in ("train", "val", "test")]

    with pytest.raises(DefendError, match=r"image 104 is in colour \(RGB\), and those that were looked at first are"):
        read()


def test_labels_that_are_names_are_numbered(hub, tmp_path):
    text = [["cat", "dog", "eel"][grey % 3] for grey in GREYS]
    hub["mine"] = {"train": Rows(labels=text, picture=Image_(), label="Value")}
    dataset = opened(split="all", hold_out=False)
    assert dataset.classes == ("cat", "dog", "eel")
    names = tmp_path / "names.txt"
    names.write_text("eel\ndog\nfox\ncat\n")
    for rows in (Rows(), Rows(labels=text, picture=Image_(), label="Value")):
        hub["mine"] = {"train": rows}
        own = opened(split="all", hold_out=False, class_names=str(names))
        assert own.classes == ("eel", "dog", "fox", "cat")
        assert torch.equal(own.labels("test"), torch.tensor([3, 1, 0])[dataset.labels("test")])
    hub["mine"] = {"train": Rows(labels=[str(grey % 11) for grey in GREYS], picture=Image_(), label="Value")}
    with pytest.warns(UserWarning, match=r"hf:mine: .* by their text, .*: 0, 1, 10, 2, ...; .* give --classes 11"):
        assert opened().classes[2] == "10"
    assert opened(class_names="11").classes[2] == "2"
    hub["mine"] = {"train": Rows()}
    names.write_text("eel\ndog\n")
    assert "has a class 'cat' that class_names does not" in refusal(class_names=str(names))


@pytest.mark.parametrize(
    ("rows", "options", "said"),
    [
        (Rows(text="Value", label=ClassLabel(["a"])), {}, "no column of images, but text, label"),
        (Rows(picture=Image_(), text="Value"), {}, "no column of labels, but text: name it with"),
        (Rows(), {"label_column": "labl"}, "has no column 'labl': did you mean 'label'?"),
        (Rows(), {"image_column": "id"}, "column 'id' holds int, expected images"),
        (Rows(labels=[-1] * 30), {}, "a label is -1"),
    ],
)
def test_what_cannot_be_used_is_told(hub, rows, options, said):
    hub["mine"] = {"train": rows}
    assert said in refusal(**options)


def test_no_network_and_no_library_are_one_line(hub, monkeypatch):
    assert "hf:gone cannot be loaded (ConnectionError: Couldn't reach 'gone' on the Hub)" in refusal("gone")
    monkeypatch.setitem(sys.modules, "datasets", None)
    assert "needs the library datasets" in refusal("gone") and "pip install datasets" in refusal("gone")


def test_numbers_of_numpy_are_labels(hub):
    hub["mine"] = {"train": Rows(labels=list(np.arange(30) % 4), picture=Image_(), label="Value")}
    assert opened().classes == tuple("0123")


class Counted(Rows):
    """Says what decides its images, as the library's data sets do, and counts how many it decoded."""

    decoded = 0

    def __init__(self, fingerprint, **known):
        super().__init__(**known)
        self._fingerprint = fingerprint

    def __getitem__(self, key):
        Counted.decoded += not isinstance(key, str)
        return super().__getitem__(key)


@pytest.mark.parametrize(("now", "again"), [("one", False), ("other", True), (None, True)])
def test_images_are_decoded_once_for_what_tells_them_apart(hub, now, again):
    """And not for every command, as those of ImageNet take hours."""
    many = list(range(200))
    hub["mine"] = {"train": Counted(now and "one", greys=many), "test": Counted(now and "rest")}
    first = opened()
    known = first.filed_as, first.duplicates()
    hub["mine"]["train"]._fingerprint = now
    Counted.decoded = 0
    second = opened()
    assert (second.filed_as, second.duplicates()) == known
    assert (Counted.decoded >= 200) is again
