"""What is held out where a split has no images of its own."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from defend.datasets.splitting import MOST_VAL, hold_out_of_given, share_out


@given(st.lists(st.integers(0, 6), max_size=120), st.integers(0, 2**32))
def test_of_what_is_given_every_class_keeps_at_least_half(labels, seed):
    labels = torch.tensor(labels, dtype=torch.int64)
    kept, held = hold_out_of_given(labels, seed)
    assert sorted(kept.tolist() + held.tolist()) == list(range(len(labels)))
    before, after = torch.bincount(labels, minlength=7), torch.bincount(labels[held], minlength=7)
    assert (after <= before // 2).all()
    assert (after >= torch.minimum(torch.full_like(before, 2), before // 2)).all()
    assert (after <= (before / 5).round().clamp_min(2)).all()
    again = hold_out_of_given(labels, seed)[1]
    assert torch.equal(held, again)


def test_no_more_than_a_thousand_are_held_out():
    assert len(hold_out_of_given(torch.arange(100_000) % 10)[1]) == MOST_VAL
    assert len(hold_out_of_given(torch.arange(20_000) % 4000)[1]) == MOST_VAL
    held = hold_out_of_given(torch.arange(50_000) % 1000)[1]
    assert len(held) == MOST_VAL


def test_train_is_what_others_are_cut_from_where_there_is_one():
    labels = torch.arange(20) % 2
    parts = share_out({"train": labels}, {"test": 5, "val": 10})
    assert {split: (part.source, len(part.places)) for split, part in parts.items()} == {
        "train": ("train", 15),
        "test": ("train", 4),
        "val": ("train", 1),
    }
    parts = share_out({"test": labels}, {"test": 5, "val": 10})
    assert {split: (part.source, part.seed, len(part.places)) for split, part in parts.items()} == {
        "test": ("test", None, 16),
        "val": ("test", 0, 4),
    }
    assert list(share_out({"test": labels}, {})) == ["test"]
    assert list(share_out({"test": torch.zeros(1).long()}, {"val": 10})) == ["test"]
