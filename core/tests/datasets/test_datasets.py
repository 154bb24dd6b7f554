"""Data sets: the embedded digits, torchvision's by their files, and the user's own folders."""

import hashlib
import struct
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
import torchvision.datasets
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn.datasets import load_digits
from timm.data import ImageNetInfo

from defend.assembly.load import open_dataset
from defend.datasets.base import SPLITS, hold_out, stratified_order
from defend.datasets.bounded import ensure_bounded
from defend.datasets.digits import enlarge
from defend.datasets.given import gather
from defend.errors import ConfigError, DataError, UnknownNameError
from defend.testing.contracts import DatasetContract

CPU = torch.device("cpu")
DIGITS_SHA256 = {
    "train": "3bb9ccead7ab16009e12a0f01c369a43ef915ac6543735f1ced0fe0756cdeef2",
    "val": "cd3dadb2c287f389e529772dd499eb2f7fecafc33dda93a297646b85060fba43",
    "test": "82650acfe07985d7bee02f37efbaea72ca06eab041a562c687450851dfe8df44",
}
CIFAR_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def noise(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def write_idx(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    header = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
    path.write_bytes(header + array.tobytes())


def write_mnist(root, folder="MNIST", train=60, test=40):
    for prefix, count in (("train", train), ("t10k", test)):
        labels = (np.arange(count) % 10).astype(np.uint8)
        images = noise(count, 28, 28, seed=count)
        images[:, 0, 0] = labels
        write_idx(root / folder / "raw" / f"{prefix}-images-idx3-ubyte", images)
        write_idx(root / folder / "raw" / f"{prefix}-labels-idx1-ubyte", labels)


def write_folder(root, count, classes=("cat", "dog", "eel"), size=(10, 14), first=0):
    """Write `count` images a class, each of one grey that no other has, from `first` on."""
    for label, name in enumerate(classes):
        (root / name).mkdir(parents=True, exist_ok=True)
        for index in range(count):
            grey = first + label * count + index
            Image.new("RGB", size, (grey, grey, grey)).save(root / name / f"{index:03d}.png")


def write_cifar10(root, train=6, test=4, classes=CIFAR_CLASSES):
    for split, count in (("train", train), ("test", test)):
        for label, name in enumerate(classes):
            folder = root / "cifar10" / split / name
            folder.mkdir(parents=True)
            for index in range(count):
                Image.fromarray(noise(32, 32, 3, seed=label * 100 + index)).save(folder / f"{index:05d}.png")


def open_folder(root, workers=0, image_size=8):
    return open_dataset("imagefolder", str(root), {"image_size": image_size, "workers": workers})


def greys(dataset, split):
    """Return which of the images of `write_folder` are in a split, in its order."""
    images, _ = dataset.tensors(split)
    return (images[:, 0, 0, 0] * 255).round().int().tolist()


def greys_of(root):
    """Return the same of all files below a folder."""
    return [Image.open(path).getpixel((0, 0))[0] for path in root.rglob("*.png")]


def refusal(*arguments, **options):
    with pytest.raises(DataError) as caught:
        open_dataset(*arguments, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


class TestDigits(DatasetContract):
    name = "digits"


class TestMnist(DatasetContract):
    name = "mnist"

    @pytest.fixture(autouse=True)
    def files(self, tmp_path):
        write_mnist(tmp_path)
        self.options = {"data_dir": str(tmp_path)}


class TestFashionMnist(DatasetContract):
    name = "fashion_mnist"

    @pytest.fixture(autouse=True)
    def files(self, tmp_path):
        write_mnist(tmp_path, "FashionMNIST")
        self.options = {"data_dir": str(tmp_path)}


class TestCifar10(DatasetContract):
    name = "cifar10"

    @pytest.fixture(autouse=True)
    def files(self, tmp_path):
        write_cifar10(tmp_path)
        self.options = {"data_dir": str(tmp_path)}


class TestImageFolder(DatasetContract):
    name = "imagefolder"

    @pytest.fixture(autouse=True)
    def files(self, tmp_path):
        write_folder(tmp_path, 20)
        self.options = {"data_dir": str(tmp_path), "image_size": 8, "workers": 0}


class TestImageNet(DatasetContract):
    name = "imagenet"

    @pytest.fixture(autouse=True)
    def files(self, tmp_path):
        write_folder(tmp_path / "train", 20)
        write_folder(tmp_path / "val", 4, first=100)
        self.options = {"data_dir": str(tmp_path), "resize": 10, "image_size": 8, "workers": 0}


@pytest.fixture(scope="module")
def digits():
    return open_dataset("digits")


def test_digits_have_fixed_sizes_and_shape(digits):
    assert [len(digits.labels(split)) for split in SPLITS] == [1097, 200, 500]
    assert digits.shape == (1, 28, 28)
    assert digits.classes == tuple("0123456789")


def test_digits_splits_never_change(digits):
    assert {split: digits.sha256(split) for split in SPLITS} == DIGITS_SHA256


def test_digits_splits_share_no_image_and_hold_all(digits):
    seen = [image.tobytes() for split in SPLITS for image in digits.tensors(split)[0].numpy()]
    assert len(seen) == len(set(seen)) == len(load_digits().target)


@pytest.mark.parametrize("split", SPLITS)
def test_digits_splits_have_the_classes_in_proportion(digits, split):
    share = np.bincount(load_digits().target) / len(load_digits().target)
    labels = digits.labels(split)
    counts = torch.bincount(labels).numpy()
    assert np.abs(counts - share * len(labels)).max() < 4
    assert split == "train" or np.abs(counts - share * len(labels)).max() < 2


def test_digits_are_the_images_of_scikit_learn(digits):
    images, labels = digits.tensors("test")
    small = torch.nn.functional.interpolate(images, size=(8, 8), mode="area").flatten(1)
    raw = load_digits()
    known = torch.from_numpy(raw.images).float().flatten(1) / 16
    nearest = torch.cdist(small, known).argmin(1)
    assert (torch.from_numpy(raw.target)[nearest] == labels).double().mean() > 0.99


def test_a_task_says_what_a_network_is_built_for(digits):
    task = digits.task()
    images, _ = digits.tensors("train")
    assert (task.dataset, task.channels, task.height, task.width, task.classes) == ("digits", 1, 28, 28, 10)
    assert task.mean[0] == pytest.approx(float(images.mean()), abs=1e-4)
    assert task.std[0] == pytest.approx(float(images.std(correction=0)), abs=1e-4)
    assert not task.flips


def test_a_limit_takes_a_prefix_of_the_sample(digits):
    images, labels = digits.tensors("test", limit=50, seed=1)
    fewer, _ = digits.tensors("test", limit=20, seed=1)
    assert images.shape == (50, 1, 28, 28)
    assert torch.equal(images[:20], fewer)
    assert torch.bincount(labels).tolist() == [5] * 10
    assert not torch.equal(digits.keys("test", 50, seed=1), digits.keys("test", 50, seed=2))


def test_a_limit_beyond_the_end_takes_all(digits):
    assert sorted(digits.keys("test", limit=10_000).tolist()) == list(range(500))


@pytest.mark.parametrize("limit", [0, -5])
def test_a_limit_that_leaves_no_image_is_refused(digits, limit):
    for ask in (digits.tensors, digits.keys):
        with pytest.raises(ConfigError, match=f"limit is {limit}: expected at least 1"):
            ask("test", limit=limit)


def test_an_unknown_split_lists_the_known(digits):
    with pytest.raises(ConfigError, match="unknown split 'tset': expected one of train, val, test"):
        digits.tensors("tset")


def test_an_unknown_data_set_offers_the_nearest():
    with pytest.raises(UnknownNameError, match="unknown dataset 'digit': did you mean 'digits'"):
        open_dataset("digit")


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=60), st.integers(0, 2**32))
def test_every_prefix_of_a_stratified_order_has_the_classes_in_proportion(labels, seed):
    targets = torch.tensor(labels)
    order = stratified_order(targets, seed)
    assert sorted(order.tolist()) == list(range(len(labels)))
    share = torch.bincount(targets).double() / len(labels)
    present = int((share > 0).sum())
    for count in range(1, len(labels) + 1):
        found = torch.bincount(targets[order[:count]], minlength=len(share))
        assert ((found - share * count).abs() <= 1 + share * present + 1e-9).all()


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 4), min_size=2, max_size=60), st.data())
def test_what_is_held_out_is_not_kept(labels, data):
    size = data.draw(st.integers(0, len(labels)))
    kept, held = hold_out(torch.tensor(labels), size)
    assert len(held) == size
    assert sorted(kept.tolist() + held.tolist()) == list(range(len(labels)))
    assert kept.tolist() == sorted(kept.tolist())


@pytest.mark.parametrize(
    ("name", "folder", "flips"), [("mnist", "MNIST", False), ("fashion_mnist", "FashionMNIST", True)]
)
def test_idx_files_are_read_and_a_tenth_of_train_is_held_out(tmp_path, name, folder, flips):
    write_mnist(tmp_path, folder)
    dataset = open_dataset(name, str(tmp_path))
    assert [len(dataset.labels(split)) for split in SPLITS] == [54, 6, 40]
    assert (dataset.shape, len(dataset.classes), dataset.task().flips) == ((1, 28, 28), 10, flips)
    for split in SPLITS:
        images, labels = dataset.tensors(split)
        assert torch.equal((images[:, 0, 0, 0] * 255).round().long(), labels)


def test_the_official_order_of_the_test_images_is_kept(tmp_path):
    write_mnist(tmp_path)
    (batch,) = open_dataset("mnist", str(tmp_path)).batches("test", torch.arange(40), 64, CPU)
    expected = noise(40, 28, 28, seed=40)
    expected[:, 0, 0] = np.arange(40) % 10
    assert torch.equal((batch.images[:, 0] * 255).round().byte(), torch.from_numpy(expected))


def test_cifar10_is_read_from_class_folders(tmp_path):
    write_cifar10(tmp_path)
    dataset = open_dataset("cifar10", str(tmp_path))
    assert [len(dataset.labels(split)) for split in SPLITS] == [54, 6, 40]
    assert (dataset.shape, dataset.classes, dataset.flips) == ((3, 32, 32), CIFAR_CLASSES, True)
    (batch,) = dataset.batches("test", torch.tensor([4 * 3 + 2]), 1, CPU)
    assert batch.labels.tolist() == [CIFAR_CLASSES.index("cat")]
    expected = torch.from_numpy(noise(32, 32, 3, seed=302)).permute(2, 0, 1)
    assert torch.equal((batch.images[0] * 255).round().byte(), expected)


def test_cifar10_with_other_classes_in_test_is_refused(tmp_path):
    write_cifar10(tmp_path)
    (tmp_path / "cifar10" / "test" / "cat").rename(tmp_path / "cifar10" / "test" / "lion")
    assert "other classes in test than in train" in refusal("cifar10", str(tmp_path))


def test_cifar10_with_an_image_of_another_size_is_refused(tmp_path):
    write_cifar10(tmp_path)
    Image.new("RGB", (16, 16)).save(tmp_path / "cifar10" / "train" / "cat" / "00000.png")
    assert "cifar10 in" in refusal("cifar10", str(tmp_path))


def test_the_environment_names_the_data_folder(tmp_path, monkeypatch):
    write_mnist(tmp_path)
    monkeypatch.setenv("DEFEND_DATA_DIR", str(tmp_path))
    assert len(open_dataset("mnist").labels("test")) == 40


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist", "cifar10"])
def test_a_data_folder_that_does_not_exist_is_named(tmp_path, name):
    message = refusal(name, str(tmp_path / "none"))
    assert f"'{tmp_path / 'none'}' does not exist: name an existing one with --data-dir" in message


@pytest.mark.parametrize(
    ("name", "attribute"), [("mnist", "MNIST"), ("fashion_mnist", "FashionMNIST"), ("cifar10", "CIFAR10")]
)
def test_without_a_network_the_error_asks_for_a_data_folder(tmp_path, monkeypatch, name, attribute):
    asked = []

    def offline(root, train, download):
        asked.append(download)
        if download:
            raise URLError("Name or service not known")
        raise RuntimeError("Dataset not found.")

    monkeypatch.setattr(torchvision.datasets, attribute, offline)
    message = refusal(name, str(tmp_path))
    assert f"{name} is not in {str(tmp_path)!r}" in message
    assert "Name or service not known" in message
    assert "--data-dir or DEFEND_DATA_DIR" in message
    assert asked == [False, True]


@pytest.mark.parametrize("damage", [lambda data: b"", lambda data: b"junkjunkjunk", lambda data: data[:-100]])
def test_a_damaged_idx_file_is_refused(tmp_path, damage):
    write_mnist(tmp_path)
    path = tmp_path / "MNIST" / "raw" / "t10k-images-idx3-ubyte"
    path.write_bytes(damage(path.read_bytes()))
    assert f"mnist is not in {str(tmp_path)!r} (or damaged)" in refusal("mnist", str(tmp_path))


def test_more_images_than_labels_are_refused(tmp_path):
    write_mnist(tmp_path)
    write_idx(tmp_path / "MNIST" / "raw" / "t10k-labels-idx1-ubyte", np.zeros(39, np.uint8))
    assert "mnist has 40 test images and 39 labels" in refusal("mnist", str(tmp_path))


def test_a_folder_without_splits_is_split_by_class(tmp_path):
    write_folder(tmp_path, 20)
    dataset = open_folder(tmp_path)
    found = {split: greys(dataset, split) for split in SPLITS}
    assert {split: len(values) for split, values in found.items()} == {"train": 44, "val": 4, "test": 12}
    assert sorted(value for values in found.values() for value in values) == list(range(60))
    assert torch.bincount(dataset.labels("test")).tolist() == [4, 4, 4]
    assert dataset.classes == ("cat", "dog", "eel")
    again = open_folder(tmp_path)
    assert all(again.sha256(split) == dataset.sha256(split) for split in SPLITS)


def test_labels_follow_the_images(tmp_path):
    write_folder(tmp_path, 20)
    dataset = open_folder(tmp_path)
    for split in SPLITS:
        images, labels = dataset.tensors(split)
        assert torch.equal((images[:, 0, 0, 0] * 255).round().long() // 20, labels)


@pytest.mark.parametrize(
    ("own", "sizes"),
    [
        (("train",), (22, 2, 6)),
        (("train", "test"), (27, 3, 6)),
        (("train", "val"), (27, 3, 6)),
        (("train", "val", "test"), (30, 6, 6)),
    ],
)
def test_a_folders_own_splits_are_used(tmp_path, own, sizes):
    firsts = {"train": 0, "val": 100, "test": 200}
    for split in own:
        write_folder(tmp_path / split, 10 if split == "train" else 2, first=firsts[split])
    dataset = open_folder(tmp_path)
    assert tuple(len(dataset.labels(split)) for split in SPLITS) == sizes
    for split in own:
        shown = "test" if split == "val" and "test" not in own else split
        assert {value // 100 for value in greys(dataset, shown)} == {firsts[split] // 100}


def test_the_hash_of_a_folder_changes_with_its_files(tmp_path):
    for split in SPLITS:
        write_folder(tmp_path / split, 3)
    before = {split: open_folder(tmp_path).sha256(split) for split in SPLITS}
    (tmp_path / "test" / "cat" / "000.png").rename(tmp_path / "test" / "cat" / "new.png")
    after = {split: open_folder(tmp_path).sha256(split) for split in SPLITS}
    assert [split for split in SPLITS if before[split] != after[split]] == ["test"]


def test_the_hash_of_a_folder_is_that_of_its_files(tmp_path):
    write_folder(tmp_path, 20)
    dataset = open_folder(tmp_path)
    (batch,) = dataset.batches("test", torch.arange(12), 12, CPU)
    digest = hashlib.sha256()
    for pixels, label in zip(batch.images, dataset.labels("test").tolist(), strict=True):
        name = f"{dataset.classes[label]}/{round(float(pixels[0, 0, 0]) * 255) % 20:03d}.png"
        content = hashlib.sha256((tmp_path / name).read_bytes()).hexdigest()
        digest.update(f"{name}\0{content}\0{label}\n".encode())
    assert dataset.sha256("test") == digest.hexdigest()


def test_a_folder_is_read_in_the_order_of_torchvision(tmp_path):
    for place in ("dog", "cat", "cat/b/deep", "cat/a", "Eel"):
        write_folder(tmp_path / "train" / place, 3, classes=("",))
    (tmp_path / "train" / "dog" / "000.png").rename(tmp_path / "train" / "dog" / "été.PNG")
    (tmp_path / "train" / "dog" / "notes.txt").write_text("no image", encoding="utf-8")
    for split in ("val", "test"):
        write_folder(tmp_path / split, 1, classes=("Eel", "cat", "dog"))
    dataset = open_folder(tmp_path)
    known = torchvision.datasets.ImageFolder(str(tmp_path / "train"))
    assert dataset.classes == tuple(known.classes) == ("Eel", "cat", "dog")
    assert dataset.labels("train").tolist() == known.targets
    digest = hashlib.sha256()
    for path, label in known.samples:
        name, content = Path(path).relative_to(tmp_path), hashlib.sha256(Path(path).read_bytes()).hexdigest()
        digest.update(f"{name}\0{content}\0{label}\n".encode())
    assert dataset.sha256("train") == digest.hexdigest()


def test_images_are_resized_by_the_shorter_side_and_cropped_to_the_centre(tmp_path):
    for name in ("cat", "dog"):
        write_folder(tmp_path, 2, classes=(name,))
    wide = np.zeros((16, 48, 3), np.uint8)
    wide[:, 16:32] = 255
    for path in tmp_path.rglob("*.png"):
        Image.fromarray(wide).save(path)
    images, _ = open_folder(tmp_path, image_size=16).tensors("train")
    assert images.shape == (2, 3, 16, 16)
    assert (images == 1).all()


def test_grey_images_in_a_folder_become_colour(tmp_path):
    write_folder(tmp_path, 3)
    for path in tmp_path.rglob("*.png"):
        Image.new("L", (12, 12), 51).save(path)
    images, _ = open_folder(tmp_path).tensors("train")
    torch.testing.assert_close(images, torch.full_like(images, 0.2))


def test_statistics_of_a_folder_are_those_of_its_training_images(tmp_path):
    write_folder(tmp_path, 20)
    dataset = open_folder(tmp_path)
    values = np.array(greys(dataset, "train")) / 255
    mean, std = dataset.statistics()
    assert mean == pytest.approx([values.mean()] * 3, abs=1e-4)
    assert std == pytest.approx([values.std()] * 3, abs=1e-4)


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_worker_processes_change_nothing(tmp_path):
    write_folder(tmp_path, 20)
    keys = torch.arange(44).flip(0)
    alone = list(open_folder(tmp_path).batches("train", keys, 5, CPU))
    shared = list(open_folder(tmp_path, workers=2).batches("train", keys, 5, CPU))
    assert len(alone) == len(shared) == 9
    for one, other in zip(alone, shared, strict=True):
        assert torch.equal(one.images, other.images)
        assert torch.equal(one.labels, other.labels)
        assert torch.equal(one.keys, other.keys)


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize("workers", [0, 2])
def test_a_damaged_image_is_named_in_one_line(tmp_path, workers):
    write_folder(tmp_path, 10)
    for path in tmp_path.rglob("*.png"):
        path.write_bytes(b"no image")
    dataset = open_folder(tmp_path, workers)
    with pytest.raises(DataError) as caught:
        list(dataset.batches("train", torch.arange(10), 2, CPU))
    assert str(caught.value).startswith(f"'{tmp_path}")
    assert str(caught.value).endswith("is not an image that can be read (PNG, JPEG, WebP, ...)")


def test_imagenets_validation_images_are_its_test_split(tmp_path):
    write_folder(tmp_path / "train", 20)
    write_folder(tmp_path / "val", 4, first=100)
    images = open_dataset("imagenet", str(tmp_path), {"resize": 10, "image_size": 8, "workers": 0})
    assert sorted(greys(images, "test")) == sorted(greys_of(tmp_path / "val"))
    assert sorted(greys(images, "train") + greys(images, "val")) == sorted(greys_of(tmp_path / "train"))
    assert len(images.labels("val")) > 0


def test_imagenet_is_cropped_from_the_middle_of_what_was_resized(tmp_path):
    for split in ("train", "val"):
        for name in ("n0", "n1"):
            (tmp_path / split / name).mkdir(parents=True)
            for index in range(2):
                Image.fromarray(noise(40, 20, 3, seed=index)).save(tmp_path / split / name / f"{index}.png")
    images = open_dataset("imagenet", str(tmp_path), {"resize": 20, "image_size": 16, "workers": 0})
    pixels, _ = images.tensors("test", limit=1)
    originals = [torch.from_numpy(noise(40, 20, 3, seed=index)).permute(2, 0, 1) / 255 for index in range(2)]
    assert any(torch.equal(pixels[0], original[:, 12:28, 2:18]) for original in originals)


def test_a_data_set_says_how_it_prepares_its_images_where_its_hash_does_not(tmp_path):
    for split in ("train", "val"):
        write_folder(tmp_path / split, 20)
    sizes = [{"resize": 10, "image_size": 8}, {"resize": 12, "image_size": 8}, {"resize": 12, "image_size": 10}]
    made = [open_dataset("imagenet", str(tmp_path), {**size, "workers": 0}) for size in sizes]
    assert len({each.sha256("train") for each in made}) == 1
    assert len({each.prepared for each in made}) == 3
    assert [ensure_bounded(each).prepared for each in made] == [each.prepared for each in made]
    mine = [gather(each, name="mine", val=list(zip(*each.tensors("val", limit=2), strict=True))) for each in made[:2]]
    assert mine[0].prepared != mine[1].prepared


def test_imagenets_classes_are_in_timms_order():
    wnids = ImageNetInfo().label_names()
    assert len(wnids) == 1000
    assert sorted(wnids) == list(wnids)


@pytest.mark.parametrize("missing", ["train", "val"])
def test_imagenet_needs_both_its_folders(tmp_path, missing):
    write_folder(tmp_path / ({"train", "val"} - {missing}).pop(), 3)
    assert f"{str(tmp_path / missing)!r} does not exist" in refusal("imagenet", str(tmp_path))
    assert "needs --data-dir" in refusal("imagenet")


def test_no_crop_is_larger_than_the_image(tmp_path):
    assert "resize=100 is below image_size=224" in refusal("imagenet", str(tmp_path), {"resize": 100})


def test_a_folder_must_be_named(tmp_path):
    assert "needs --data-dir" in refusal("imagefolder")
    assert f"'{tmp_path / 'none'}' does not exist" in refusal("imagefolder", str(tmp_path / "none"))


def test_an_empty_folder_is_refused(tmp_path):
    assert f"{str(tmp_path)!r} is not an image folder (one sub-folder of images a class)" in refusal(
        "imagefolder", str(tmp_path)
    )


def test_a_class_without_images_is_named(tmp_path):
    write_folder(tmp_path, 3)
    (tmp_path / "fox").mkdir()
    assert "no valid file for the classes fox" in refusal("imagefolder", str(tmp_path))


def test_one_class_is_too_few(tmp_path):
    write_folder(tmp_path, 3, classes=("cat",))
    assert "has one class ('cat'): a classifier needs two or more" in refusal("imagefolder", str(tmp_path))


def test_too_few_images_to_split_are_refused(tmp_path):
    write_folder(tmp_path, 1, classes=("cat", "dog"))
    assert "has 2 images: too few to hold some out for val and test" in refusal("imagefolder", str(tmp_path))


@pytest.mark.parametrize("split", ["val", "test"])
def test_splits_with_different_classes_are_refused(tmp_path, split):
    write_folder(tmp_path / "train", 3)
    write_folder(tmp_path / split, 3, classes=("cat", "dog"))
    assert f"{str(tmp_path / split)!r} has other classes than" in refusal("imagefolder", str(tmp_path))


def test_a_folder_with_only_some_splits_still_needs_images_in_them(tmp_path):
    write_folder(tmp_path / "train", 3)
    (tmp_path / "test").mkdir()
    assert f"{str(tmp_path / 'test')!r} is not an image folder" in refusal("imagefolder", str(tmp_path))


def test_digits_are_enlarged_bilinearly_in_whole_numbers():
    raw = torch.randint(0, 17, (20, 8, 8), generator=torch.Generator().manual_seed(0))
    expected = torch.nn.functional.interpolate(raw[:, None].double() / 16, size=(28, 28), mode="bilinear") * 255
    assert (enlarge(raw).double() - expected).abs().max() <= 0.5 + 1e-9


def test_enlarged_digits_by_hand():
    assert enlarge(torch.full((1, 8, 8), 16)).eq(255).all()
    step = torch.zeros(1, 8, 8, dtype=torch.int64)
    step[..., 1:] = 16  # outputs 2, 3 and 4 lie 3/14, 7/14 and 11/14 of the way from column 0 to 1
    row = enlarge(step)[0, 0, 10]
    assert row[:6].tolist() == [0, 0, 55, 128, 200, 255]
