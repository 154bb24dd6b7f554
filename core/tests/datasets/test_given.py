"""What users hand over as objects: any form of it is the same data set, and what is none is told in a line."""

import warnings

import numpy as np
import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.utils.data import (
    BatchSampler,
    ConcatDataset,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
    random_split,
)

from defend.assembly.load import ALONE, as_dataset, open_dataset, open_whole
from defend.assembly.stage import build_stage
from defend.datasets.base import MemoryDataset
from defend.datasets.given import gather_held_out, gather_training
from defend.datasets.given_sources import said_labels
from defend.errors import ConfigError, DataError, DefendError
from defend.evaluation.provenance import describe
from defend.testing.contracts import DatasetContract

CPU = torch.device("cpu")
BYTES = torch.randint(0, 256, (60, 3, 6, 5), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
FLOATS = BYTES.float() / 255
LABELS = torch.arange(60) % 5


class Pairs(Dataset):
    """Yields whatever `make` makes of a place; counts how often it was asked."""

    def __init__(self, make, count=60, **said):
        self.make, self.count, self.asked = make, count, 0
        vars(self).update(said)

    def __len__(self):
        return self.count

    def __getitem__(self, place):
        self.asked += 1
        return self.make(place)


def picture(place):
    return Image.fromarray(BYTES[place].permute(1, 2, 0).numpy())


def named(items):
    return {"image": torch.stack([image for image, _ in items]), "label": [label for _, label in items]}


def paired(items):
    return torch.stack([each["image"] for each in items]), torch.tensor([each["label"] for each in items])


def read(data, **options):
    dataset = as_dataset(data, **options)
    return list(dataset.batches("test", dataset.keys("test"), 7, CPU))


def refusal(data, **options):
    with pytest.raises(DefendError) as caught:
        read(data, **options)
    assert len(str(caught.value).splitlines()) == 1 and "Traceback" not in str(caught.value)
    return str(caught.value)


# One and the same

FORMS = {
    "tensors": lambda: (FLOATS, LABELS),
    "doubles": lambda: (FLOATS.double(), LABELS.int()),
    "list of two": lambda: [FLOATS, LABELS],
    "labels [N,1]": lambda: (FLOATS, LABELS[:, None]),
    "labels as a list": lambda: (FLOATS, LABELS.tolist()),
    "labels of one element": lambda: (FLOATS, [label[None] for label in LABELS]),
    "arrays": lambda: (FLOATS.numpy(), LABELS.numpy().astype(np.int16)),
    "channels last": lambda: (FLOATS.permute(0, 2, 3, 1).numpy(), LABELS.numpy()),
    "lists": lambda: (list(FLOATS), list(LABELS)),
    "list of pairs": lambda: list(zip(FLOATS, LABELS.tolist(), strict=True)),
    "TensorDataset": lambda: TensorDataset(FLOATS, LABELS),
    "Dataset": lambda: Pairs(lambda at: (FLOATS[at], LABELS[at])),
    "Dataset that says its labels": lambda: Pairs(lambda at: (FLOATS[at], int(LABELS[at])), targets=LABELS.tolist()),
    "Dataset that says others": lambda: Pairs(lambda at: (FLOATS[at], int(LABELS[at])), targets=[9] * 60),
    "Dataset of arrays": lambda: Pairs(lambda at: (FLOATS[at].permute(1, 2, 0).numpy(), np.int32(LABELS[at]))),
    "DataLoader": lambda: DataLoader(TensorDataset(FLOATS, LABELS), batch_size=7, shuffle=True),
    "DataLoader with workers": lambda: DataLoader(TensorDataset(FLOATS, LABELS), num_workers=1, drop_last=True),
    "DataLoader that takes dictionaries apart": lambda: DataLoader(
        Pairs(lambda at: {"image": FLOATS[at], "label": int(LABELS[at])}), batch_size=8, collate_fn=paired
    ),
    "ConcatDataset": lambda: ConcatDataset(
        [TensorDataset(FLOATS[:20], LABELS[:20]), TensorDataset(FLOATS[20:], LABELS[20:])]
    ),
}
BYTE_FORMS = {
    "tensors": lambda: (BYTES, LABELS),
    "arrays": lambda: (BYTES.permute(0, 2, 3, 1).numpy(), LABELS.numpy()),
    "backwards": lambda: (BYTES.permute(0, 2, 3, 1).flip(0).numpy()[::-1], LABELS),
    "pictures": lambda: Pairs(lambda at: (picture(at), int(LABELS[at]))),
    "list of pictures": lambda: ([picture(at) for at in range(60)], LABELS),
}


@pytest.mark.parametrize(
    "form", [*FORMS.values(), *BYTE_FORMS.values()], ids=[*FORMS, *map("{} of bytes".format, BYTE_FORMS)]
)
def test_every_form_is_the_same_data_set(form):
    dataset, told = as_dataset(form()), as_dataset((FLOATS, LABELS))
    assert (dataset.shape, dataset.classes, dataset.flips) == ((3, 6, 5), tuple("01234"), False)
    assert torch.equal(dataset.labels("test"), told.labels("test")) and len(dataset.labels("val")) == 10
    for split in ("test", "val"):
        images, labels = dataset.tensors(split)
        wanted, known = told.tensors(split)
        assert torch.equal(images, wanted) and torch.equal(labels, known) and images.dtype == torch.float32
    same = as_dataset((BYTES, LABELS)) if form in BYTE_FORMS.values() else told
    assert dataset.sha256("test") == same.sha256("test") and dataset.filed_as == same.filed_as
    assert dataset.statistics() == told.statistics() and dataset.duplicates().n == 0
    assert not dataset.has("train")


class TestContract(DatasetContract):
    """Given images keep to what every data set does, where all splits are given."""

    name = "digits"

    def dataset(self):
        digits = open_dataset("digits")
        test, train, val = (DataLoader(TensorDataset(*digits.tensors(split)), 16) for split in ("test", "train", "val"))
        return as_dataset(test, train=train, val=val, name="mine")


@settings(max_examples=25)
@given(st.lists(st.integers(0, 3), min_size=4, max_size=40), st.integers(0, 99))
def test_what_is_held_out_is_never_judged(labels, seed):
    pixels = torch.arange(len(labels)).float().div(255)[:, None, None, None].expand(-1, 1, 4, 4)
    dataset = as_dataset((pixels, labels), classes=4, seed=seed)
    seen = {
        split: (dataset.tensors(split)[0][:, 0, 0, 0] * 255).round().int().tolist()
        for split in ("test", "val")
        if dataset.has(split)
    }
    assert sorted(value for values in seen.values() for value in values) == list(range(len(labels)))
    for split, values in seen.items():
        order = dataset.keys(split)
        assert [labels[value] for value in values] == dataset.labels(split)[order].tolist()


# Splits


def test_a_report_says_what_was_held_out():
    dataset = as_dataset((FLOATS, LABELS), seed=3)
    said = describe("given", dataset, 50, {}).images["said"]
    assert said == "50 of the 60 images that were given; 10 others, cut off by seed 3, are held out"
    whole = as_dataset((FLOATS[:30], LABELS[:30]), val=(FLOATS[30:], LABELS[30:]))
    assert describe("given", whole, 30, {}).images["said"] == "the 30 images that were given"
    assert len(whole.labels("val")) == len(whole.labels("test")) == 30


def test_without_train_what_to_pass_is_said():
    dataset = as_dataset((FLOATS, LABELS))
    for asked in (dataset.labels, dataset.sha256):
        with pytest.raises(DataError, match=r"has no train images: pass train=: \(images, labels\)"):
            asked("train")
    one = as_dataset((FLOATS[:1], LABELS[:1]), classes=5)
    with pytest.raises(
        DataError, match=r"has no val images, and those to judge \(1\) are too few to hold any out: pass val="
    ):
        one.tensors("val")


def test_statistics_are_of_train_where_there_is_one():
    dark = torch.zeros(10, 3, 6, 5)
    dataset = as_dataset((FLOATS, LABELS), train=(dark, LABELS[:10]))
    assert dataset.statistics() == ((0.0,) * 3, (0.0,) * 3) and dataset.has("train")
    assert torch.equal(dataset.tensors("train")[0], dark)
    mean, _ = as_dataset((FLOATS, LABELS), val=(dark + 0.5, LABELS[:10])).statistics()
    assert mean == (0.5, 0.5, 0.5)


def test_names_and_paths_are_what_the_command_line_takes(tmp_path):
    for label, name in enumerate(("cat", "dog")):
        (tmp_path / name).mkdir()
        for index in range(10):
            Image.new("RGB", (8, 8), (label * 100 + index,) * 3).save(tmp_path / name / f"{index}.png")
    folder = as_dataset(tmp_path)
    assert folder.name == "imagefolder" and len(folder.labels("test")) == 4
    assert as_dataset("digits").sha256("test") == open_dataset("digits").sha256("test")
    held = as_dataset((torch.rand(6, 3, 8, 8), [0, 1] * 3), val=str(tmp_path), classes=["dog", "cat"])
    assert len(held.labels("val")) == 20 and len(held.labels("test")) == 6
    images, labels = held.tensors("val")
    assert torch.equal(labels, (images[:, 0, 0, 0] * 255 < 50).long())  # found by its name: cat is 1
    grey = torch.rand(20, 1, 28, 28)
    assert len(as_dataset((grey, torch.arange(20) % 10), val="digits").labels("val")) == 200


def test_one_of_ours_is_left_as_it_is():
    digits = open_dataset("digits")
    assert as_dataset(digits) is digits
    other = as_dataset(digits, train=digits, name="mine")
    assert other.sha256("test") == digits.sha256("test") and other.origin("test") == digits.origin("test")
    assert len(other.labels("val")) == 200 and other.duplicates().n == 0
    only = MemoryDataset("only", ("a", "b"), {"test": BYTES}, {"test": LABELS % 2})
    assert as_dataset(only) is only and only.task().mean == only.statistics()[0] and not only.has("train")
    with pytest.raises(DataError, match="data set only has no train images: it has test"):
        only.labels("train")


@pytest.mark.parametrize("form", ["npz", "folders"])
def test_a_path_for_val_is_its_own_val_where_it_has_splits(form, tmp_path):
    for split, start, count in (("train", 0, 20), ("val", 20, 10), ("test", 30, 30)):
        some = {f"x_{split}": BYTES[start : start + count].numpy(), f"y_{split}": LABELS[start : start + count].numpy()}
        np.savez(tmp_path / f"{split}.npz", **some)
        for place in range(start, start + count):
            (tmp_path / "folders" / split / f"{LABELS[place]}").mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (8, 8), (place,) * 3).save(
                tmp_path / "folders" / split / f"{LABELS[place]}" / f"{place}.png"
            )
    np.savez(
        tmp_path / "npz.npz",
        **{k: v for split in ("train", "val", "test") for k, v in np.load(tmp_path / f"{split}.npz").items()},
    )
    path = tmp_path / ("npz.npz" if form == "npz" else "folders")
    held = gather_held_out(open_whole(path))
    assert len(held.labels("val")) == 10 and held.classes == tuple("01234")
    assert len(gather_held_out(open_whole(tmp_path / "test.npz")).labels("val")) == 30


@pytest.mark.parametrize("splits", ["train", "train test", "train val", "train val test"])
def test_only_what_a_data_set_lacks_is_cut_off_its_training_images(splits):
    images = {split: BYTES[20 * at : 20 * at + 20] for at, split in enumerate(splits.split())}
    ours = MemoryDataset("mine", list("abcde"), images, {split: LABELS[: len(each)] for split, each in images.items()})
    made = gather_training(ours, val=(FLOATS[:5], LABELS[:5]), seed=3)
    assert made.sha256("test") == (ours if "test" in images else gather_training(ours, classes=5)).sha256("test")
    assert len(made.labels("val")) == 5 and len(made.labels("train")) == (20 if "test" in images else 16)
    ours.flips = True
    kept = gather_training(ours, classes=list("vwxyz"))
    assert kept.flips and not made.flips
    assert {split: kept.sha256(split) for split in images if split != "train"} == {
        split: ours.sha256(split) for split in images if split != "train"
    }
    tests = MemoryDataset("mine", list("abcde"), {"test": BYTES}, {"test": LABELS})
    with pytest.raises(DataError, match="has no train images"):
        gather_training(tests, val=(FLOATS[:5], LABELS[:5]))
    assert len(gather_held_out(tests).labels("val")) == 60


def test_the_same_images_twice_are_told():
    same = (FLOATS, LABELS)
    with pytest.raises(ConfigError, match="val= is what is judged"):
        as_dataset(same, val=same)
    twins = as_dataset((FLOATS, LABELS), val=TensorDataset(FLOATS[:3], LABELS[:3])).duplicates()
    assert twins.n == 3 and twins.pairs[0] == ("test image 0", "val image 0")


@pytest.mark.parametrize("form", ["divided", "multiplied", "double", "half a loader", "of ours"])
def test_the_same_images_in_another_form_are_told(form):
    floats = BYTES.float() / 255
    kept = {
        "divided": (floats[:3], LABELS[:3]),
        "multiplied": (BYTES[:3].float() * (1 / 255), LABELS[:3]),
        "double": (floats[:3].double().numpy(), LABELS[:3].numpy()),
        "half a loader": DataLoader(TensorDataset(floats[:3], LABELS[:3]), batch_size=2),
        "of ours": MemoryDataset("mine", list("abcde"), {"val": floats[:3]}, {"val": LABELS[:3]}),
    }[form]
    twins = as_dataset((BYTES, LABELS), val=kept, classes=list("abcde")).duplicates()
    assert (twins.n, twins.pairs[0]) == (3, ("test image 0", "val image 0"))


def test_images_that_differ_by_less_than_a_pixel_are_no_twins():
    near = (FLOATS[:3] + 0.1 / 255).clamp(0, 1)
    assert as_dataset((FLOATS, LABELS), val=(near, LABELS[:3])).duplicates().n == 0


def test_what_is_trained_on_is_not_held_out_too(tmp_path):
    same = (FLOATS, LABELS)
    for refused in (
        lambda: gather_training(same, val=same),
        lambda: as_dataset((FLOATS, LABELS), train=same, val=same),
    ):
        with pytest.raises(ConfigError, match=r"val= is what is trained on: pass other images, or leave it out$"):
            refused()
    twins = gather_training(same, val=(FLOATS, LABELS)).duplicates()
    assert (twins.n, twins.n_val) == (12, 48) and len(twins.sentences()) == 2
    assert "48 val images stand in train too, " in twins.sentences()[1] and "; and 43 more" in twins.sentences()[1]
    for place, label in enumerate(LABELS.tolist()):
        (tmp_path / str(label)).mkdir(exist_ok=True)
        picture(place).resize((32, 32)).save(tmp_path / str(label) / f"{place}.png")
    folder = gather_training(open_dataset(tmp_path, options=ALONE), val=open_whole(tmp_path)).duplicates()
    assert (folder.n, folder.n_val) == (12, 48)


def test_val_images_that_stand_in_train_are_told_without_test_ones():
    images = {"train": BYTES, "val": torch.cat([255 - BYTES[:1], BYTES[2:4]])}
    dataset = MemoryDataset("mine", list("abcde"), images, {"train": LABELS, "val": LABELS[:3]})
    twins = dataset.duplicates()
    assert (twins.n, twins.n_val, twins.pairs_val[0]) == (0, 2, ("val image 1", "train image 2"))
    (said,) = twins.sentences()
    assert said.startswith("2 val images stand in train too, so that thresholds and selection are by images that were")


def test_a_data_set_in_memory_knows_its_twins():
    images = {"train": BYTES, "test": torch.cat([BYTES[2:4], 255 - BYTES[:1]])}
    dataset = MemoryDataset("mine", list("abcde"), images, {"train": LABELS, "test": LABELS[:3]})
    assert (dataset.duplicates().n, dataset.duplicates().pairs[0]) == (2, ("test image 0", "train image 2"))
    assert open_dataset("digits").duplicates().n == 0


@pytest.mark.parametrize("same", [True, False])
def test_weights_of_a_data_sets_name_may_have_seen_other_images_of_it(same):
    digits = open_dataset("digits")
    victim = build_stage("victim", "resnet18", digits.task())
    images = {split: digits.pixels(split, CPU) for split in ("train", "val", "test")}
    if not same:  # a new version of the data set, whose test images stood in train before
        images |= {"train": images["train"].flip(-1), "test": images["train"][:500]}
    labels = {"train": digits.labels("train"), "val": digits.labels("val"), "test": digits.labels("test")}
    found = describe("digits", MemoryDataset("digits", digits.classes, images, labels), 500, {"victim": victim})
    assert found.seen == {"victim": "no" if same else "unknown"}
    assert ("were not trained on them" in found.images["said"]) == same == (not found.warnings)


# Classes


def test_class_names_come_along():
    assert as_dataset(Pairs(lambda at: (FLOATS[at], int(LABELS[at])), classes=list("abcde"))).classes == tuple("abcde")
    few = Subset(Pairs(lambda at: (FLOATS[at], int(LABELS[at])), classes=list("abcdefg")), range(20))
    assert as_dataset(few).classes == tuple("abcdefg")
    assert as_dataset(few, classes=list("gfedcba")).labels("test").max() == 6
    assert as_dataset((FLOATS, LABELS), classes=10).classes == tuple("0123456789")
    renamed = as_dataset(few, classes=list("tuvwxyz"))
    assert renamed.classes == tuple("tuvwxyz") and torch.equal(renamed.labels("test"), as_dataset(few).labels("test"))
    assert (
        renamed.sha256("test")
        == as_dataset(few).sha256("test")
        != as_dataset(few, classes=list("gfedcba")).sha256("test")
    )


def test_a_number_of_classes_leaves_labels_as_they_are():
    names = sorted(map(str, range(12)))  # as torchvision's ImageFolder sorts folders: 0, 1, 10, 11, 2, ...
    twelve = torch.arange(60) % 12
    data = Pairs(lambda at: (FLOATS[at], int(twelve[at])), classes=names)
    for classes in (12, None):
        made = as_dataset(data, classes=classes)
        assert torch.equal(made.labels("test"), as_dataset((FLOATS, twelve)).labels("test"))
    by_name = as_dataset(data, classes=list(map(str, range(12))))
    assert [by_name.classes[label] for label in by_name.labels("test")] == [
        names[label] for label in made.labels("test")
    ]


@pytest.mark.parametrize("names", [list("abdef"), list("01245"), ["0", "1", "10", "11", "2"]])
def test_a_number_does_not_say_which_classes_are_missing(names):
    data = Pairs(lambda at: (FLOATS[at], int(LABELS[at])), classes=names)
    said = refusal(data, classes=12)
    assert f"names 5 classes ({', '.join(names)}), and there are 12" in said and "classes=[names]" in said
    every = [*names[3:], "z", *names[:3], "y"]
    right = [every.index(names[label]) for label in LABELS]
    assert as_dataset(data, val=(FLOATS, LABELS), classes=every).labels("test").tolist() == right
    # nor do names that are none of theirs, or another source's labels
    assert f"has a class {names[0]!r} that classes= does not" in refusal(data, classes=list("uvwxyz"))
    assert "val names 5 classes" in refusal((FLOATS, torch.arange(60) % 6), val=data)


def test_names_that_are_the_numbers_from_0_count_on():
    data = Pairs(lambda at: (FLOATS[at], int(LABELS[at])), classes=list("01234"))
    for classes in (5, 12, list("uvwxyz")):
        made = as_dataset(data, val=(FLOATS, LABELS), classes=classes)
        assert torch.equal(made.labels("test"), LABELS) and len(made.classes) in (5, 12, 6)


@pytest.mark.parametrize(
    ("data", "options", "said"),
    [
        ((FLOATS, LABELS), {"classes": 3}, "a label is 4, and there are 3 classes"),
        ((FLOATS, LABELS), {"classes": "abcde"}, "expected the class names"),
        ((FLOATS, LABELS), {"classes": ["a", "a"]}, "expected the class names"),
        ((FLOATS, LABELS * 0), {}, "has one class"),
        (
            Pairs(lambda at: (FLOATS[at], 0), classes=["a", "b"]),
            {"classes": ["a", "c"]},
            "has a class 'b' that classes=",
        ),
        ((FLOATS, LABELS), {"name": "../x"}, "cannot be part of a file's name"),
    ],
)
def test_classes_that_do_not_fit(data, options, said):
    assert said in refusal(data, **options)


# What is none


class Stream(IterableDataset):
    def __iter__(self):
        return iter([(FLOATS[0], 0)])


class Odd(Dataset):
    def __getitem__(self, place):
        return FLOATS[place], 0


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (Stream(), "Stream, which cannot be asked for one image again"),
        (DataLoader(Stream()), "Stream, which cannot be asked for one image again"),
        ((each for each in [(FLOATS[0], 0)]), "generator, which cannot be asked"),
        (3, "int, which holds no images"),
        (None, "NoneType, which holds no images"),
        (FLOATS, "images without labels: pass (images, labels)"),
        ({"x": FLOATS}, "a dictionary (keys x)"),
        (Odd(), "does not say how many images it has"),
        (
            Pairs(lambda at: {"image": FLOATS[at], "label": 0}),
            "yields dictionaries (keys image, label): pass a Dataset",
        ),
        (DataLoader(Pairs(lambda at: {"image": FLOATS[at], "label": 0})), "yields dictionaries (keys image, label)"),
        (Pairs(lambda at: FLOATS[at]), "yields Tensor without a label"),
        (TensorDataset(FLOATS), "yields 1 elements"),
        (Pairs(lambda at: (FLOATS[at], 0, at)), "yields 3 elements"),
        ((FLOATS[:0], LABELS[:0]), "has no images"),
        (DataLoader(TensorDataset(FLOATS[:0], LABELS[:0])), "has no images"),
        ([], "has no images"),
        ((FLOATS, LABELS[:5]), "60 images and 5 labels"),
        ((list(FLOATS), [1]), "60 images and 1 labels"),
        ((FLOATS[0], LABELS[0]), "is one image of shape [3, 6, 5] with its label"),
        ((FLOATS[0, :1], 4), "a batch of one is images[0][None], labels[0][None]"),
        ((FLOATS[0].numpy(), LABELS.numpy()[0]), "is one image of shape [3, 6, 5] with its label"),
        ((FLOATS, ["cat"] * 60), "labels are text, for example 'cat'"),
        (Pairs(lambda at: (FLOATS[at], "cat")), "labels are text"),
        ((FLOATS, LABELS.float()), "labels are torch.float32"),
        ((FLOATS, LABELS.numpy() / 2), "labels are float64"),
        ((FLOATS, LABELS > 2), "labels are torch.bool"),
        ((FLOATS, torch.eye(60).long()), "pass labels.argmax(1), if one-hot"),
        (
            (FLOATS, torch.eye(60)),
            "have shape [60, 60], expected whole numbers [N], one class an image: pass labels.ar",
        ),
        ((FLOATS, np.eye(60)), "pass labels.argmax(1), if one-hot"),
        ((FLOATS, np.eye(60) > 0), "pass labels.argmax(1), if one-hot"),
        ((FLOATS, np.zeros((60, 1, 1))), "labels have shape [60, 1, 1]"),
        ((FLOATS, [[1, 2]] * 59 + [[1]]), "of different lengths"),
        ((FLOATS, [None] * 60), "labels are objects"),
        ((FLOATS, LABELS - 1), "a label is -1"),
        ((FLOATS * 2 - 1, LABELS), "undo the normalisation, and pass mean= and std="),
        ((FLOATS * 255, LABELS), "divide by 255"),
        ((FLOATS / 0, LABELS), "not finite"),
        ((BYTES.long(), LABELS), "images are torch.int64"),
        ((BYTES.numpy().astype(int), LABELS), "images are int64"),
        ((np.array([None] * 60), LABELS), "array of objects"),
        ((FLOATS[0, 0], [0] * 6), "images have shape [6, 5]"),
        (Pairs(lambda at: (FLOATS[at] * 4 - 2, 0)), "undo the normalisation, and pass mean= and std="),
        (DataLoader(Pairs(lambda at: (FLOATS[at] * 4 - 2, 0))), "undo the normalisation"),
        (Pairs(lambda at: (FLOATS[at] * (1.5 if at == 51 else 1), 0), targets=LABELS), "undo the normalisation"),
        (Pairs(lambda at: (FLOATS[at, :, : 4 + at % 2], 0)), "scale and crop them to one size"),
        (Pairs(lambda at: (FLOATS[at, :, :4] if at == 51 else FLOATS[at], 0)), "scale and crop them to one size"),
        (Pairs(lambda at: ("image.png", 0)), "an image is str"),
        (Pairs(lambda at: 1 / (at - 51)), "yields float without a label"),
        (Pairs(lambda at: (FLOATS[at], 0 // (at - 51))), "image 51 cannot be read: ZeroDivisionError"),
        (DataLoader(Pairs(lambda at: (picture(at), 0))), "collate_fn failed: TypeError"),
        (DataLoader(TensorDataset(FLOATS, LABELS), batch_size=None), "batch_size=None"),
        (
            DataLoader(TensorDataset(FLOATS, LABELS), sampler=WeightedRandomSampler([1.0] * 60, 60)),
            "WeightedRandomSampler",
        ),
        (
            DataLoader(TensorDataset(FLOATS, LABELS), sampler=RandomSampler(range(60), num_samples=10)),
            "says no fixed set of images",
        ),
        (DataLoader(TensorDataset(FLOATS, LABELS), collate_fn=lambda items: (FLOATS[:1], LABELS[:1])), "expected all"),
        (Pairs(lambda at: (torch.rand(3, 6, 5), 0)), "another each time it is asked for"),
        (Pairs(lambda at: (FLOATS[at], int(torch.randint(9, ())))), "another each time it is asked for"),
        ((FLOATS, LABELS, LABELS), "yields Tensor without a label"),
    ],
)
def test_what_is_no_data_set_is_told_in_a_line(data, said):
    assert said in refusal(data)


def test_splits_of_other_shapes_are_refused():
    assert "images of val have shape [1, 6, 5]" in refusal((FLOATS, LABELS), val=(FLOATS[:, :1], LABELS))


def test_an_image_that_changes_later_is_told():
    """Of random transforms that leave the first images alone, and of a file that was replaced."""
    images, late = FLOATS.clone(), Pairs(lambda at: (images[at], int(LABELS[at])), targets=LABELS)
    dataset = as_dataset(late)
    dataset.sha256("test")
    images[dataset._parts["test"].places[5]] = 0
    with pytest.raises(DataError, match=r"image \d+ is another each time"):
        list(dataset.batches("test", torch.arange(20), 8, CPU))


# Streaming


def test_images_are_read_when_they_are_asked_for():
    data = Pairs(lambda at: (FLOATS[at % 60], at % 5), count=100_000, targets=(torch.arange(100_000) % 5).tolist())
    dataset = as_dataset(data)
    assert len(dataset.labels("val")) == 1000 and data.asked <= 32
    (batch,) = dataset.batches("test", dataset.keys("test", 4), 4, CPU)
    assert len(batch.keys) == 4 and data.asked <= 36


def test_labels_that_nobody_says_are_read_once():
    data = Pairs(lambda at: (FLOATS[at], int(LABELS[at])))
    dataset = as_dataset(data)
    assert data.asked == 60 + 16
    dataset.sha256("test"), dataset.filed_as, dataset.duplicates()
    assert data.asked <= 60 + 16 + 10  # and those of val for the statistics


def test_a_loaders_sampler_says_which_images():
    chosen = list(range(0, 60, 3))
    pairs = TensorDataset(FLOATS, LABELS)
    subset = as_dataset(Subset(pairs, chosen))
    for loader in (
        DataLoader(pairs, sampler=SubsetRandomSampler(chosen)),
        DataLoader(pairs, batch_sampler=BatchSampler(SubsetRandomSampler(chosen), 4, drop_last=True)),
    ):
        assert as_dataset(loader).sha256("test") == subset.sha256("test")


def test_labels_are_found_where_they_stand(tmp_path):
    pairs = TensorDataset(FLOATS, LABELS)
    first, _ = random_split(pairs, [40, 20], generator=torch.Generator().manual_seed(0))
    assert torch.equal(said_labels(first), LABELS[first.indices])
    assert torch.equal(said_labels(ConcatDataset([pairs, first])), torch.cat([LABELS, LABELS[first.indices]]))
    assert said_labels(Pairs(None, targets=LABELS, target_transform=abs)) is None
    assert said_labels(Pairs(None, targets=["a"] * 60)) is None
    assert said_labels(Pairs(None, labels=LABELS.numpy())) is not None
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for at in range(4):
            picture(at).save(tmp_path / name / f"{at}.png")
    folder = torchvision.datasets.ImageFolder(str(tmp_path))
    assert said_labels(folder).tolist() == [0] * 4 + [1] * 4
    assert as_dataset(folder).classes == ("a", "b")


def test_grey_among_colour_pictures_becomes_colour():
    pictures = [picture(at).convert("L" if at % 2 else "RGB") for at in range(60)]
    dataset = as_dataset((pictures, LABELS))
    assert dataset.shape == (3, 6, 5)
    grey = as_dataset(([each.convert("L") for each in pictures], LABELS))
    assert grey.shape == (1, 6, 5)
    late = [each.convert("RGB" if at == 51 else "L") for at, each in enumerate(pictures)]
    assert "scale and crop" in refusal((late, LABELS))


def test_nothing_is_warned_of():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        frozen = FLOATS.numpy().copy()
        frozen.flags.writeable = False
        as_dataset((frozen, LABELS)).tensors("test")
