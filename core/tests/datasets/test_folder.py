"""Whose images and which labels: folders that are not as tidy as they should be, and data sets held in memory."""

import io
import json
import os
import re
import shutil
import struct
import sys
import types
from importlib.metadata import EntryPoint

import attrs
import numpy as np
import pytest
import torch
from PIL import Image, PngImagePlugin
from rich.console import Console
from torch import nn

import defend
from defend.assembly.composition import Composition
from defend.assembly.load import DataSource, find_task, open_dataset, transfer_sources
from defend.assembly.stage import build_stage, check_outputs
from defend.datasets.base import SPLITS, MemoryDataset
from defend.datasets.digests import digests_of
from defend.datasets.listing import EXTENSIONS
from defend.errors import ContractError, DataError, WeightsError
from defend.hookspecs import hookimpl
from defend.plugins import Registry, registry
from defend.records.document import to_json
from defend.report.page import write_page
from defend.report.terminal import render
from defend.stages import StageSpec, Task
from defend.testing.toys import TinyVictim
from defend.train import FitSettings
from defend.training.stage import train_stage
from defend.util.files import cache_dir
from defend.util.images import read_image

CPU = torch.device("cpu")
VICTIM = "mobilenetv3_small_050"
NONE_TWICE = {"n": 0, "pairs": [], "val": {"n": 0, "pairs": []}}


def draw(path, grey, side=12):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (side, side), (grey, grey, grey)).save(path)


def fill(root, count=10, classes=("cat", "dog"), first=0):
    """Write `count` images a class, each of one grey that no other has, from `first` on."""
    for label, name in enumerate(classes):
        for index in range(count):
            draw(root / name / f"{index:03d}.png", first + label * count + index)


def opened(root, workers=0, image_size=8):
    return open_dataset("imagefolder", str(root), {"image_size": image_size, "workers": workers})


def greys(dataset, *splits):
    """Return which of the images of `fill` are in the splits, sorted."""
    return sorted(
        value for split in splits for value in (dataset.tensors(split)[0][:, 0, 0, 0] * 255).round().int().tolist()
    )


def refusal(root):
    with pytest.raises(DataError) as caught:
        opened(root)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# Splits


@pytest.mark.parametrize("names", [("Train", "Test"), ("TRAIN", "testing"), ("training", "TEST")])
def test_folders_of_splits_may_be_written_in_other_ways(tmp_path, names):
    fill(tmp_path / names[0])
    fill(tmp_path / names[1], 3, first=100)
    images = opened(tmp_path)
    assert images.classes == ("cat", "dog")
    assert greys(images, "test") == [100, 101, 102, 103, 104, 105]
    assert greys(images, "train", "val") == list(range(20))


@pytest.mark.parametrize("names", [("test", "val"), ("Test",), ("validation", "cat")])
def test_folders_of_splits_without_train_are_no_classes(tmp_path, names):
    for name in names:
        fill(tmp_path / name)
    message = refusal(tmp_path)
    assert all(repr(name) in message for name in names)
    assert "and no 'train'" in message and ": expected ROOT/train/CLASS/" in message
    assert ("where all are classes" in message) == ("cat" in names)


def test_two_folders_for_one_split_are_refused(tmp_path):
    for name in ("train", "val", "valid"):
        fill(tmp_path / name)
    assert "has 'val' and 'valid', which both mean val" in refusal(tmp_path)


def test_a_folder_of_images_among_others_may_be_a_class_called_train(tmp_path):
    for label, name in enumerate(("bus", "car", "train")):
        for index in range(8):
            draw(tmp_path / name / f"{index}.png", 10 * label + index)
    assert opened(tmp_path).classes == ("bus", "car", "train")


def test_a_class_called_train_with_folders_in_it_does_not_swallow_the_others(tmp_path):
    for place in ("bus", "car", "train/steam", "train/diesel"):
        for index in range(8):
            draw(tmp_path / place / f"{index}.png", index)
    with pytest.warns(UserWarning, match=r"beside 'train' that are left out: bus, car") as told:
        opened(tmp_path)
    (way,) = re.findall(r"where all are classes: --set dataset\.split=(\w+)", str(told[0].message))
    assert open_dataset(str(tmp_path), options={"split": way}).classes == ("bus", "car", "train")


def test_folders_of_images_beside_the_splits_are_told(tmp_path):
    for name in ("train", "test", "holdout"):
        fill(tmp_path / name)
    (tmp_path / "notes").mkdir()
    with pytest.warns(UserWarning, match=r"beside 'train', 'test' that are left out: holdout "):
        opened(tmp_path)


def test_images_with_endings_that_are_not_read_are_told(tmp_path):
    fill(tmp_path, 10)
    for name in ("a.GIF", "b.gif", "c.jfif", "notes.txt"):
        (tmp_path / "cat" / name).write_bytes(b"a picture of another kind")
    with pytest.warns(UserWarning, match=r"left out \(2 \.gif, 1 \.jfif\), beside 20 that are read"):
        opened(tmp_path)


def test_splits_without_classes_in_them_are_refused(tmp_path):
    for name in ("train", "test"):
        draw(tmp_path / name / "0.png", 5)
    assert "is not an image folder" in refusal(tmp_path)


def test_without_a_test_folder_val_is_what_is_tested_on(tmp_path):
    fill(tmp_path / "train", 20)
    fill(tmp_path / "Val", 3, first=100)
    images = opened(tmp_path)
    assert greys(images, "test") == [100, 101, 102, 103, 104, 105]
    assert greys(images, "train", "val") == list(range(40))
    assert attrs.astuple(images.origin("test")) == ("Val", 6, 6, None, True, False)
    assert attrs.astuple(images.origin("val")) == ("train", 4, 40, 0, False, False)


def test_what_a_seed_cut_off_says_so(tmp_path):
    fill(tmp_path, 10)
    assert attrs.astuple(opened(tmp_path).origin("test")) == ("", 4, 20, 0, False, False)
    fill(tmp_path / "all" / "train", 10)
    assert attrs.astuple(opened(tmp_path / "all").origin("test")) == ("train", 4, 20, 0, False, False)
    assert open_dataset("digits").origin("test").of == 1797


def test_the_classes_that_only_one_split_has_are_named(tmp_path):
    fill(tmp_path / "train", 3)
    fill(tmp_path / "test", 3, classes=("cat", "Dog"))
    assert "only one of them has 'Dog', 'dog'" in refusal(tmp_path)


# Hidden names


def test_what_programs_leave_behind_is_neither_class_nor_image(tmp_path):
    fill(tmp_path)
    draw(tmp_path / ".ipynb_checkpoints" / "0.png", 200)
    draw(tmp_path / "__MACOSX" / "cat" / "1.png", 201)
    draw(tmp_path / "cat" / ".ipynb_checkpoints" / "2.png", 202)
    draw(tmp_path / "cat" / "deep" / "@eaDir" / "3.png", 203)
    draw(tmp_path / "dog" / ".hidden.png", 204)
    for name in ("._000.png", "Thumbs.db", ".DS_Store"):
        (tmp_path / "dog" / name).write_bytes(b"no image")
    images = opened(tmp_path)
    assert images.classes == ("cat", "dog")
    assert greys(images, *SPLITS) == list(range(20))


def test_hidden_folders_are_no_splits(tmp_path):
    fill(tmp_path / "train")
    fill(tmp_path / "test", 2, first=100)
    fill(tmp_path / "test" / ".ipynb_checkpoints", 2, first=200)
    fill(tmp_path / ".val", 2, first=200)
    assert max(greys(opened(tmp_path), *SPLITS)) == 103


def test_cifar10s_folders_have_no_hidden_classes_either(tmp_path):
    for split in ("train", "test"):
        fill(tmp_path / "cifar10" / split, 3)
        draw(tmp_path / "cifar10" / split / ".cache" / "0.png", 99)
        (tmp_path / "cifar10" / split / "dog" / "._000.png").write_bytes(b"no image")
    images = open_dataset("cifar10", str(tmp_path))
    assert images.classes == ("cat", "dog") and len(images.labels("test")) == 6


# Links


def test_a_link_to_what_is_above_lists_each_picture_once(tmp_path):
    fill(tmp_path)
    (tmp_path / "cat" / "up").symlink_to(tmp_path, target_is_directory=True)
    (tmp_path / "cat" / "here").symlink_to(tmp_path / "cat", target_is_directory=True)
    (tmp_path / "dog" / "friend").symlink_to(tmp_path / "cat", target_is_directory=True)
    images = opened(tmp_path)
    assert greys(images, *SPLITS) == list(range(20))
    assert sum(len(images.labels(split)) for split in SPLITS) == 20


def test_what_links_lead_to_outside_is_taken_once(tmp_path):
    fill(tmp_path / "root")
    draw(tmp_path / "more" / "a.png", 100)
    for name in ("one", "two"):
        (tmp_path / "root" / "cat" / name).symlink_to(tmp_path / "more", target_is_directory=True)
    draw(tmp_path / "b.png", 101)
    for name in ("one.png", "two.png"):
        (tmp_path / "root" / "dog" / name).symlink_to(tmp_path / "b.png")
    (tmp_path / "root" / "dog" / "same.png").symlink_to("000.png")
    assert greys(opened(tmp_path / "root"), *SPLITS) == [*range(20), 100, 101]


def test_a_class_of_links_is_a_class(tmp_path):
    fill(tmp_path / "store")
    (tmp_path / "root").mkdir()
    for name in ("cat", "dog"):
        (tmp_path / "root" / name).symlink_to(tmp_path / "store" / name, target_is_directory=True)
    assert greys(opened(tmp_path / "root"), *SPLITS) == list(range(20))


def test_two_classes_that_are_one_folder_are_refused(tmp_path):
    fill(tmp_path)
    (tmp_path / "kitten").symlink_to("cat", target_is_directory=True)
    assert "kitten' is a link to another class" in refusal(tmp_path)


@pytest.mark.parametrize("place", ["cat/gone.png", "cat/gone", "gone"])
def test_a_link_that_leads_nowhere_is_named(tmp_path, place):
    fill(tmp_path)
    link, target = str(tmp_path / place), str(tmp_path / "nothing")
    (tmp_path / place).symlink_to(tmp_path / "nothing")
    assert refusal(tmp_path) == f"{link!r} is a link to {target!r}, which does not exist"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_is_no_image(tmp_path):
    fill(tmp_path)
    os.mkfifo(tmp_path / "cat" / "pipe.png")
    assert greys(opened(tmp_path), *SPLITS) == list(range(20))


# Images that are refused


def odd_exif(path):
    """Write a JPEG whose resolution is a fraction with the denominator 0."""
    entries = struct.pack("<HHI", 0x0112, 3, 1) + struct.pack("<HH", 6, 0)
    entries += struct.pack("<HHI", 0x011A, 10, 1) + struct.pack("<I", 38)
    body = struct.pack("<H", 2) + entries + struct.pack("<I", 0) + struct.pack("<ii", -1, 0)
    pixels = np.zeros((8, 16), np.uint8)
    pixels[:, 8:] = 250
    Image.fromarray(pixels).save(path, exif=b"Exif\0\0II*\0" + struct.pack("<I", 8) + body, quality=95)


def test_a_picture_with_an_odd_description_is_read_and_turned(tmp_path):
    odd_exif(tmp_path / "turned.jpg")
    found = read_image(tmp_path / "turned.jpg", 1)
    assert found.shape == (1, 16, 8)
    assert found[0, :6].float().mean() < 10 and found[0, 10:].float().mean() > 240


@pytest.mark.parametrize("what", ["text", "profile"])
def test_a_png_with_a_long_chunk_is_read(tmp_path, what):
    pixels, info = np.arange(256, dtype=np.uint8).reshape(16, 16), PngImagePlugin.PngInfo()
    info.add_text("history", "x" * 1_100_000, zip=True)
    chosen = {"pnginfo": info} if what == "text" else {"icc_profile": b"\0" * 1_200_000}
    Image.fromarray(pixels).save(tmp_path / "long.png", **chosen)
    assert torch.equal(read_image(tmp_path / "long.png", 1)[0], torch.from_numpy(pixels))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_not_finite_are_refused(tmp_path, value):
    pixels = np.full((8, 8), 0.5, np.float32)
    pixels[0, 0] = value
    Image.fromarray(pixels).save(tmp_path / "odd.tif")
    with pytest.raises(DataError, match=r"odd\.tif' holds values that are not finite"):
        read_image(tmp_path / "odd.tif", 3)


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize("workers", [0, 2])
def test_whatever_a_decoder_raises_names_the_file(tmp_path, workers):
    fill(tmp_path / "train", 4)
    fill(tmp_path / "test", 4)
    (tmp_path / "test" / "dog" / "x.ppm").write_bytes(b"P6\n32 abc\n255\n" + b"\0" * 100)
    with pytest.raises(DataError) as caught:
        list(opened(tmp_path, workers).batches("test", torch.arange(9), 2, CPU))
    assert "x.ppm' cannot be read: ValueError" in str(caught.value) and "\n" not in str(caught.value)


def test_a_link_that_breaks_later_is_named_as_one(tmp_path):
    (tmp_path / "gone.png").symlink_to("nothing.png")
    with pytest.raises(DataError, match=r"gone\.png' is a link to 'nothing\.png', which does not exist"):
        read_image(tmp_path / "gone.png", 1)


# Hashes, duplicates


def test_the_hash_of_a_folder_is_of_its_contents(tmp_path):
    for split in SPLITS:
        fill(tmp_path / split, 3)
    before = {split: opened(tmp_path).sha256(split) for split in SPLITS}
    path = tmp_path / "test" / "cat" / "000.png"
    about, content = path.stat(), bytearray(path.read_bytes())
    content[-5] ^= 1  # of the same size, and set back in time
    path.write_bytes(bytes(content))
    os.utime(path, ns=(about.st_atime_ns, about.st_mtime_ns))
    after = {split: opened(tmp_path).sha256(split) for split in SPLITS}
    assert [split for split in SPLITS if before[split] != after[split]] == ["test"]


def test_hashes_of_many_bytes_are_remembered_until_a_file_changes(tmp_path, monkeypatch):
    monkeypatch.setattr("defend.datasets.digests.REMEMBERED", 1)
    files = [tmp_path / name for name in ("a", "b")]
    for file in files:
        file.write_bytes(b"one")
    first = digests_of(files)
    monkeypatch.setattr("defend.datasets.digests.hash_file", lambda path: pytest.fail("read again"))
    assert digests_of(files) == first and len(first) == 64
    monkeypatch.undo()
    monkeypatch.setattr("defend.datasets.digests.REMEMBERED", 1)
    about = files[1].stat()
    files[1].write_bytes(b"two")
    os.utime(files[1], ns=(about.st_atime_ns, about.st_mtime_ns))
    assert digests_of(files)[:32] == first[:32] and digests_of(files)[32:] != first[32:]
    right = digests_of(files)
    for kept in (cache_dir() / "hashes").iterdir():
        kept.write_bytes(kept.read_bytes()[:-1] + b"?")
    assert digests_of(files) == right


def test_a_file_that_went_away_is_named(tmp_path):
    fill(tmp_path)
    images = opened(tmp_path)
    for path in tmp_path.rglob("*.png"):
        path.unlink()
    with pytest.raises(DataError, match=r"\d\d\d\.png' cannot be read: No such file"):
        images.sha256("train")


def test_a_picture_in_train_and_test_is_named_twice(tmp_path):
    fill(tmp_path / "train")
    fill(tmp_path / "test", 3, first=100)
    assert opened(tmp_path).duplicates().n == 0
    twin = tmp_path / "test" / "cat" / "copy of it.png"
    twin.write_bytes((tmp_path / "train" / "dog" / "004.png").read_bytes())
    found = opened(tmp_path).duplicates()
    assert (found.n, found.pairs) == (1, (("test/cat/copy of it.png", "train/dog/004.png"),))
    assert found.n_val == 0
    shutil.copytree(tmp_path / "train", tmp_path / "val")
    found = opened(tmp_path).duplicates()
    assert (found.n, found.n_val, found.pairs_val[0]) == (1, 20, ("val/cat/000.png", "train/cat/000.png"))


# Weights and whose images they are for


def trained(images, name=VICTIM, **options):
    quick = {"epochs": 1, "batch_size": 4, "stem": "standard", **options}
    return train_stage("victim", name, images, options=quick, settings=FitSettings(device="cpu"))


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """Two folders of the same classes and other images, and weights of each, in a cache of their own."""
    root = tmp_path_factory.mktemp("two")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DEFEND_CACHE_DIR", str(root / "cache"))
        for place, first in (("one", 0), ("other", 100)):
            fill(root / place, 8, first=first)
        cards = {place: trained(opened(root / place, image_size=32)) for place in ("one", "other")}
    return root, cards


@pytest.fixture
def folders(two, monkeypatch):
    monkeypatch.setenv("DEFEND_CACHE_DIR", str(two[0] / "cache"))
    return two


def test_weights_of_two_folders_are_kept_apart_and_found(folders):
    root, cards = folders
    paths = {place: path for place, (path, _) in cards.items()}
    assert paths["one"] != paths["other"] and all(path.is_file() for path in paths.values())
    for place in ("one", "other"):
        images = opened(root / place, image_size=32)
        built = build_stage("victim", VICTIM, images.task())
        assert built.path == paths[place]
        assert built.card.dataset["sha256"] == images.sha256("train")
        assert built.card.dataset["classes"] == ["cat", "dog"] and built.card.dataset["shape"] == [3, 32, 32]
        assert built.card.filing == images.filed_as == images.task().filing
        source = DataSource("imagefolder", str(root / place), {"image_size": 32, "workers": 0})
        task, names = find_task(Composition.of(VICTIM), source)
        assert (task.filing, names) == (images.filed_as, ("cat", "dog"))
    assert transfer_sources("resnet18", opened(root / "one", image_size=32).filed_as, registry()) == (VICTIM,)


def test_a_copy_of_a_folder_finds_the_same_weights(folders, tmp_path):
    _, cards = folders
    fill(tmp_path / "elsewhere", 8)
    assert build_stage("victim", VICTIM, opened(tmp_path / "elsewhere", image_size=32).task()).path == cards["one"][0]


def test_weights_of_another_folder_are_named_and_not_taken(folders, tmp_path):
    root, _ = folders
    fill(tmp_path, 8, first=50)
    with pytest.raises(WeightsError) as caught:
        build_stage("victim", VICTIM, opened(tmp_path, image_size=32).task())
    assert "no weights for victim" in str(caught.value) and "other images than this folder's" in str(caught.value)
    with pytest.raises(WeightsError, match=r"shape \[3, 32, 32\], and imagefolder has \[3, 16, 16\]"):
        build_stage("victim", VICTIM, opened(root / "one", image_size=16).task())


def test_which_of_several_folders_is_meant_must_be_said(folders):
    with pytest.raises(WeightsError, match=r"2 weights of victim .* are for a data set imagefolder .* with --data-dir"):
        find_task(Composition.of(VICTIM), DataSource("imagefolder"))
    path = folders[1]["one"][0]
    task, _ = find_task(Composition.of(VICTIM, weights={"victim": str(path)}), DataSource("imagefolder"))
    assert task.filing == folders[1]["one"][1].filing


@pytest.mark.parametrize(
    ("classes", "said"),
    [
        (("dog", "cat"), "their class 0 is 'cat', which stands elsewhere, and that of imagefolder is 'dog'"),
        (("cat", "dog", "eel"), "they are for 2 classes, and imagefolder has 3"),
        (("apple", "pear"), "their class 0 is 'cat', and that of imagefolder is 'apple'"),
    ],
)
def test_weights_for_other_classes_are_refused(folders, classes, said):
    path, card = folders[1]["one"]
    task = attrs.evolve(card.task(), classes=len(classes), class_names=classes, filed_as="imagefolder-other")
    with pytest.raises(WeightsError) as caught:
        build_stage("victim", VICTIM, task, weights=str(path))
    assert str(caught.value).startswith(f"weights {str(path)!r} do not fit: {said}; `defend train victim ")


def test_names_written_in_another_way_are_the_same_classes(folders):
    path, card = folders[1]["one"]
    task = attrs.evolve(card.task(), dataset="mine", class_names=("Cat", "dog - Canis"))
    assert build_stage("victim", VICTIM, task, weights=str(path)).path == path


@pytest.mark.parametrize(("outputs", "classes"), [(5, 4), (10, 5), (3, 4)])
def test_a_victim_with_other_outputs_than_classes_is_refused(outputs, classes):
    task = Task("mine", 1, 8, 8, classes)
    victim = TinyVictim(attrs.evolve(task, classes=outputs)).eval()
    with pytest.raises(ContractError, match=f"victim v answers for {outputs} classes, and mine has {classes}"):
        check_outputs(victim, task, "victim v")
    check_outputs(victim, attrs.evolve(task, classes=outputs), "victim v")


@pytest.mark.parametrize(
    ("names", "typed", "advice"),
    [
        ("abcd", None, "the names of all 5, in the model's order: classes=[names]"),
        ("0124", None, "the names of all 5, in the model's order: classes=[names]"),
        ("0123", None, "say so with classes=5"),
        ("", None, "say so with classes=5"),
        ("abcd", (), "say so with a file of the model's class names, one a line, in its order: --classes FILE"),
        ("0124", (), "say so with --classes 5, or a file with their names"),
    ],
)
def test_a_number_is_advised_only_where_it_says_which_classes_there_are(names, typed, advice):
    task = Task("mine", 1, 8, 8, 4, class_names=tuple(names), typed=typed)
    with pytest.raises(ContractError) as caught:
        check_outputs(TinyVictim(attrs.evolve(task, classes=5)).eval(), task, "victim v")
    assert str(caught.value).endswith(advice)


# Memory


def held(count=6, **changes):
    values = {
        "images": {split: torch.zeros(count, 1, 8, 8, dtype=torch.uint8) for split in SPLITS},
        "labels": {split: torch.arange(count) % 3 for split in SPLITS},
        "classes": ("a", "b", "c"),
    } | changes
    return MemoryDataset("mine", values["classes"], values["images"], values["labels"])


def with_test(what):
    images = {split: torch.zeros(6, 1, 8, 8, dtype=torch.uint8) for split in SPLITS}
    return images | {"test": what}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"classes": ("a", "b")}, "labels from 0 to 2, and there are 2 class names"),
        ({"labels": {split: torch.arange(6) - 1 for split in SPLITS}}, "labels from -1 to 4"),
        ({"labels": {split: torch.full((6,), -100) for split in SPLITS}}, "labels from -100 to -100"),
        ({"labels": {split: torch.zeros(5).long() for split in SPLITS}}, "6 images and labels of shape [5]"),
        ({"labels": {split: torch.zeros(6, 1).long() for split in SPLITS}}, "6 images and labels of shape [6, 1]"),
        ({"labels": {split: torch.zeros(6) for split in SPLITS}}, "labels of type torch.float32"),
        ({"labels": {"train": torch.zeros(6).long()}}, "images or labels alone of test, val"),
        ({"images": {split: torch.zeros(0, 1, 8, 8).byte() for split in SPLITS}}, "has no images"),
        ({"images": with_test(torch.zeros(6, 3, 8, 8).byte())}, "test: images of shape [6, 3, 8, 8]"),
        ({"images": with_test(torch.zeros(6, 1, 8, 8).long())}, "test: images of type torch.int64"),
        ({"images": with_test(torch.full((6, 1, 8, 8), 2.0))}, "test: images from 2 to 2, expected [0,1]"),
        ({"images": with_test(torch.full((6, 1, 8, 8), -0.1))}, "test: images from -0.1 to -0.1, expected [0,1]"),
        ({"images": with_test(torch.full((6, 1, 8, 8), torch.nan))}, "test: images hold values that are not finite"),
    ],
)
def test_what_does_not_belong_together_is_refused(changes, said):
    with pytest.raises(DataError) as caught:
        held(**changes)
    assert said in str(caught.value) and str(caught.value).startswith("data set mine") and "\n" not in str(caught.value)


def test_floats_in_the_unit_interval_are_taken_as_they_are():
    values = torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(0)).double()
    images = held(images=dict.fromkeys(SPLITS, values), labels=dict.fromkeys(SPLITS, (torch.arange(6) % 3).int()))
    pixels, labels = images.tensors("test")
    order = images.keys("test")
    assert torch.equal(pixels, values.float()[order]) and pixels.dtype == torch.float32
    assert labels.dtype == torch.int64 and torch.equal(labels, order % 3)
    assert images.task().mean[0] == pytest.approx(float(values.mean()), abs=1e-4)


# What a report says of its test images


class Brightness(nn.Module):
    """Tells classes by how bright an image is; `order` and `scale` are what goes wrong with other people's victims."""

    random = False

    def __init__(self, task, order=1, scale=1.0, extra=0):
        super().__init__()
        self.task, self.order, self.scale, self.extra = task, order, scale, extra

    def forward(self, images):
        bright = self.scale * images.mean((1, 2, 3))
        centres = torch.linspace(0.1, 0.9, self.task.classes)
        centres = centres if self.order > 0 else centres.flip(0)
        logits = -50 * (bright[:, None] - centres).square()
        return nn.functional.pad(logits, (0, self.extra), value=-100.0)


VICTIMS = {
    "honest": lambda task: Brightness(task),
    "backwards": lambda task: Brightness(task, order=-1),
    "unscaled": lambda task: Brightness(task, scale=1 / 255),
    "more": lambda task: Brightness(task, extra=1),
}


@pytest.fixture
def victims(monkeypatch):
    """Return a registry with the victims above."""
    plugin = types.ModuleType("folders_plugin")
    for name, build in VICTIMS.items():
        setattr(plugin, name, lambda config, task, build=build: build(task))
    specs = [StageSpec(name=name, summary="toy", build=f"folders_plugin:{name}") for name in VICTIMS]
    plugin.defend_victims = hookimpl(lambda: specs, specname="defend_victims")
    monkeypatch.setitem(sys.modules, "folders_plugin", plugin)
    return Registry(entry_points=[EntryPoint("folders", "folders_plugin", "defend")])


def shades(root, classes, count, seed=0):
    """Write images of as many shades as classes, evenly from dark to light."""
    generator = np.random.default_rng(seed)
    for label in range(classes):
        (root / f"c{label}").mkdir(parents=True)
        for index in range(count):
            shade = 255 * (0.1 + 0.8 * label / (classes - 1)) + generator.integers(-5, 6, (8, 8, 3))
            Image.fromarray(shade.clip(0, 255).astype(np.uint8)).save(root / f"c{label}" / f"{index}.png")


def run(root, victim, plugins, **changes):
    values = {
        "victim": victim,
        "dataset": "imagefolder",
        "data_dir": str(root),
        "workers": 0,
        "options": {"dataset": {"image_size": 8}},
        "attacks": ("noise",),
        "threats": ("noise",),
        "store": False,
        "device": "cpu",
    }
    return defend.run(defend.RunConfig(**values | changes), plugins=plugins)


def written(report):
    """Return a report's data set as report.json has it, and what the terminal prints."""
    console = Console(record=True, width=400, file=io.StringIO())
    render(report, console)
    return json.loads(to_json(report))["dataset"], console.export_text()


@pytest.mark.parametrize("classes", [2, 10])
@pytest.mark.parametrize("victim", VICTIMS)
def test_a_run_whose_victim_is_at_chance_fails_its_check(victims, tmp_path, victim, classes):
    for split in ("train", "test"):
        shades(tmp_path / split, classes, 40 // classes, seed=len(split))
    if victim == "more":
        with pytest.raises(ContractError, match=f"answers for {classes + 1} classes, and imagefolder has {classes}"):
            run(tmp_path, victim, victims)
        return
    report = run(tmp_path, victim, victims)
    (check,) = [check for check in report.checks if check.name == "clean accuracy"]
    assert check.status == ("pass" if victim == "honest" else "fail"), check.detail
    assert victim == "honest" or "Usual causes: normalisation" in check.detail


def test_a_report_says_which_images_were_tested_on(victims, tmp_path):
    shades(tmp_path / "train", 2, 20)
    shades(tmp_path / "valid", 2, 4, seed=1)
    shown, text = written(run(tmp_path, "honest", victims))
    assert shown["images"] | {"said": ""} == {
        "n": 8,
        "folder": "valid",
        "cut_off": False,
        "seed": None,
        "of": 8,
        "said": "",
    }
    assert shown["images"]["said"].startswith("the 8 images of the folder 'valid', as there is no 'test'; what is held")
    assert f"test images: {shown['images']['said']}" in text
    assert (shown["seen"], shown["duplicates"], shown["warnings"]) == ({}, NONE_TWICE, [])
    shutil.rmtree(tmp_path / "valid")
    shown, text = written(run(tmp_path, "honest", victims))
    assert shown["images"] == {
        "n": 8,
        "folder": "train",
        "cut_off": True,
        "seed": 0,
        "of": 40,
        "said": "8 of all 40 images of the folder 'train', cut off from train by seed 0 as there is no folder of test "
        "images",
    }


def test_a_report_names_pictures_that_training_had(victims, tmp_path):
    shades(tmp_path / "train", 2, 20)
    shades(tmp_path / "test", 2, 4, seed=1)
    (tmp_path / "test" / "c0" / "copy.png").write_bytes((tmp_path / "train" / "c0" / "7.png").read_bytes())
    report = run(tmp_path, "honest", victims, out=str(tmp_path / "out"))
    shown, text = written(report)
    said = "1 test image stands in train or val too: 'test/c0/copy.png' is 'train/c0/7.png'"
    assert shown["warnings"] == [said] and said in text
    twins = {"n": 1, "pairs": [["test/c0/copy.png", "train/c0/7.png"]]}
    assert shown["duplicates"] == NONE_TWICE | twins
    page = write_page([tmp_path / "out"]).page.read_text(encoding="utf-8")
    assert "1 test image stands in train or val too" in page and "the 9 images of the folder" in page


def test_a_report_says_whether_training_could_have_seen_the_images(folders):
    root, cards = folders
    plain = {"attacks": ("noise",), "options": {"dataset": {"image_size": 32}}, "checks": "none"}
    shown, text = written(run(root / "one", VICTIM, None, **plain))
    assert shown["seen"] == {"victim": "no"} and "the weights were not trained on them" in text
    other = run(root / "one", VICTIM, None, weights={"victim": str(cards["other"][0])}, **plain)
    shown, text = written(other)
    assert shown["seen"] == {"victim": "unknown"}
    assert "training could have seen the test images: the weights of victim were trained on other images" in text


def test_imagenets_folders_may_be_written_in_capitals(tmp_path):
    fill(tmp_path / "Train", 4)
    fill(tmp_path / "VAL", 2, first=100)
    fill(tmp_path / "VAL" / ".cache", 2, first=200)
    images = open_dataset("imagenet", str(tmp_path), {"resize": 8, "image_size": 8, "workers": 0})
    assert greys(images, "test") == [100, 101, 102, 103] and images.classes == ("cat", "dog")
    assert images.filed_as.startswith("imagenet-") and images.origin("test").stands_in is False


def test_a_split_that_is_a_link_to_nowhere_is_not_left_out(tmp_path):
    fill(tmp_path / "train", 4)
    (tmp_path / "test").symlink_to(tmp_path / "gone")
    assert "test' is a link to" in refusal(tmp_path)


def test_the_files_of_image_folders_are_torchvisions():
    from torchvision.datasets.folder import IMG_EXTENSIONS

    assert EXTENSIONS == IMG_EXTENSIONS
