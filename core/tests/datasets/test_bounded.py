"""A data set that a plugin offers is held to what `ImageDataset` promises."""

import pytest
import torch

from defend.datasets.base import Batch, ImageDataset, MemoryDataset
from defend.datasets.bounded import BoundedDataset, ensure_bounded
from defend.errors import ContractError, DataError, StageError

CPU = torch.device("cpu")


class Foreign(ImageDataset):
    """Ten grey images of two classes; each attribute can be replaced by a fault."""

    name, classes, shape = "foreign", ("a", "b"), (1, 4, 4)
    extra = "kept"

    def labels(self, split):
        return torch.arange(10) % 2

    def batches(self, split, keys, batch_size, device):
        for part in keys.split(batch_size):
            yield self.batch(part)

    def batch(self, part):
        return Batch(torch.full((len(part), 1, 4, 4), 0.5), part % 2, part)

    def sha256(self, split):
        return "0" * 64

    def statistics(self):
        return (0.5,), (0.1,)


def read(dataset, count=10):
    return list(BoundedDataset(dataset).batches("test", torch.arange(count), 4, CPU))


def test_one_that_keeps_to_it_is_as_before():
    held = BoundedDataset(Foreign())
    assert [len(batch.keys) for batch in read(Foreign())] == [4, 4, 2]
    assert held.task() == Foreign().task()
    assert held.extra == "kept"
    assert torch.equal(held.keys("test", 6), Foreign().keys("test", 6))
    with pytest.raises(AttributeError):
        held.nothing  # noqa: B018


def test_what_it_says_of_copies_is_handed_on():
    images = torch.arange(40, dtype=torch.uint8).view(10, 1, 2, 2)
    made = (dict.fromkeys(("train", "val"), each) for each in (images, torch.arange(10) % 2))

    class Copies(MemoryDataset):
        """A plugin's own kind."""

    foreign = Copies("m", ("a", "b"), *made)
    held = ensure_bounded(foreign)
    assert isinstance(held, BoundedDataset) and held.contents("val") == foreign.contents("val") is not None
    assert held.files("val") is None and held.duplicates().n_val == 10


def test_cores_own_are_left_as_they_are():
    images = torch.zeros(2, 1, 4, 4, dtype=torch.uint8)
    own = MemoryDataset("m", ("a",), {"train": images}, {"train": torch.zeros(2, dtype=torch.int64)})
    assert ensure_bounded(own) is own
    assert isinstance(ensure_bounded(Foreign()), BoundedDataset)
    with pytest.raises(DataError, match="data set m has no val images: it has train"):
        own.labels("val")


@pytest.mark.parametrize(
    ("batch", "error", "said"),
    [
        (lambda part: None, StageError, "batches of test"),
        (lambda part: Batch(torch.full((len(part), 1, 4, 4), float("nan")), part % 2, part), DataError, "not finite"),
        (lambda part: Batch(torch.full((len(part), 1, 4, 4), 255.0), part % 2, part), DataError, "divide by 255"),
        (lambda part: Batch(torch.ones(len(part), 1, 4, 4).byte(), part % 2, part), DataError, "uint8"),
        (lambda part: Batch(torch.zeros(len(part), 3, 4, 4), part % 2, part), ContractError, r"\[4, 3, 4, 4\]"),
        (lambda part: Batch(torch.zeros(len(part), 1, 4, 4), part % 2, part.flip(0)), ContractError, "another order"),
        (lambda part: Batch(torch.zeros(len(part), 1, 4, 4), 1 - part % 2, part), ContractError, "other labels"),
        (lambda part: (torch.zeros(len(part), 1, 4, 4), part % 2), ContractError, "yields tuple"),
    ],
)
def test_batches_are_what_was_asked_for(batch, error, said):
    foreign = Foreign()
    foreign.batch = batch
    if batch(torch.arange(4)) is None:
        foreign.batch = lambda part: 1 / 0
    with pytest.raises(error, match=said) as raised:
        read(foreign)
    assert "foreign" in str(raised.value)


def test_too_few_and_too_many_images_are_told():
    few, many = Foreign(), Foreign()
    few.batches = lambda split, keys, size, device: iter(list(Foreign().batches(split, keys, size, device))[:-1])
    many.batches = lambda split, keys, size, device: Foreign().batches(split, torch.cat([keys, keys]), size, device)
    with pytest.raises(ContractError, match="delivered 8 of the 10 images of test"):
        read(few)
    with pytest.raises(ContractError, match=r"expected \[2, 1, 4, 4\]"):
        read(many)


@pytest.mark.parametrize(
    ("attribute", "value", "said"),
    [
        ("name", 3, "the name 3"),
        ("classes", (), "has classes"),
        ("shape", (4, 4), r"shape \(4, 4\)"),
    ],
)
def test_attributes_are_looked_at_first(attribute, value, said):
    foreign = Foreign()
    setattr(foreign, attribute, value)
    with pytest.raises(ContractError, match=said):
        BoundedDataset(foreign)


@pytest.mark.parametrize(
    ("method", "answer", "said"),
    [
        ("labels", torch.arange(10), "reach from 0 to 9, expected 0 to 1"),
        ("labels", torch.zeros(10), r"float32 \[10\]"),
        ("labels", [0, 1], "labels of test are list"),
        ("statistics", ((float("nan"),), (0.1,)), "finite numbers, one a channel"),
        ("keys", torch.tensor([0, 0]), "a place twice"),
        ("keys", torch.tensor([11]), "no places in it"),
        ("contents", b"x" * 64, "contents of test is 64 bytes, expected None or 320 bytes, 32 an image"),
        ("files", "abc", "files of test is str"),
    ],
)
def test_what_is_said_of_the_images_is_held_to(method, answer, said):
    foreign = Foreign()
    setattr(foreign, method, lambda *_: answer)
    held = BoundedDataset(foreign)
    with pytest.raises(ContractError, match=said):
        held.statistics() if method == "statistics" else getattr(held, method)("test")
