"""The fixed sets: kinds, keys, budgets."""

import attrs
import pytest
import torch
from torch import nn

from defend.attacks.host import craft
from defend.attacks.iterated import Pgd
from defend.attacks.options import FgsmOptions, PgdOptions
from defend.attacks.single_step import Fgsm
from defend.attacks.target import Target
from defend.datasets.base import MemoryDataset
from defend.options import make
from defend.randomness import uniform_like
from defend.testing.toys import Multiplied
from defend_dae_finetune.config import CraftRecipe
from defend_dae_finetune.sets import CRAFTED, PURIFIED, make_sets, to_bytes, within

CPU = torch.device("cpu")
RECIPE = CraftRecipe(eps=0.1, pgd_steps=4, pgd_step_size=0.05)


class Fade(nn.Module):
    random = False

    def forward(self, batch):
        return batch * 0.5


class Jitter(nn.Module):
    random = True

    def forward(self, batch):
        return (batch + 0.1 * uniform_like(batch)).clamp(0, 1)


def pixels(sets, split, kind):
    return sets.pixels(split, CPU)[sets.keys_of((kind,), len(sets.labels(split)))]


@pytest.fixture
def sets(tiny, victim):
    return make_sets(tiny, ("train", "val"), RECIPE, victim, CPU, Fade())


def test_kinds_and_their_keys(tiny, sets):
    assert sets.kinds == (*CRAFTED, *PURIFIED)
    for split in ("train", "val"):
        count = len(tiny.labels(split))
        assert torch.equal(sets.labels(split), tiny.labels(split).repeat(6))
        assert torch.equal(sets.keys_of(("fgsm",), 6 * count), torch.arange(count, 2 * count))
        assert torch.equal(pixels(sets, split, "clean"), tiny.pixels(split, CPU))
    both = sets.keys_of(("clean", "purified_pgd"), 60)
    assert both.tolist() == [*range(10), *range(50, 60)]


def test_without_a_purifier_there_are_three_kinds(tiny, victim):
    assert make_sets(tiny, ("train",), RECIPE, victim, CPU).kinds == CRAFTED


def test_a_subset_has_every_class_and_a_tenth_of_the_other_splits(tiny, victim, sets):
    recipe = attrs.evolve(RECIPE, train_subset=10)
    few = make_sets(tiny, ("train", "val"), recipe, victim, CPU, Fade())
    for split, count in (("train", 10), ("val", 1)):
        places = tiny.keys(split, count, seed=0).sort().values
        assert torch.equal(few.labels(split), tiny.labels(split)[places].repeat(6))
        for kind in few.kinds:
            assert torch.equal(pixels(few, split, kind), pixels(sets, split, kind)[places])
    keys, chosen = few.keys_of(("purified_pgd",), 60), tiny.keys("train", 10, seed=0).sort().values
    assert torch.equal(few.clean("train", keys, CPU) * 255, tiny.pixels("train", CPU)[chosen].float())


def test_the_making_is_told(tiny, victim):
    told = []
    make_sets(tiny, ("train", "val"), RECIPE, victim, CPU, told=lambda *counts: told.append(counts))
    train, total = len(tiny.labels("train")), sum(len(tiny.labels(split)) for split in ("train", "val"))
    assert told == [(0, total), (train, total), (total, total)]


def test_a_subset_of_a_folder_sorted_by_class_has_every_class(tiny, victim):
    order = tiny.labels("train").argsort()
    images = {split: tiny.pixels(split, CPU) for split in ("train", "val")}
    labels = {split: tiny.labels(split) for split in images}
    folders = MemoryDataset(
        "folders",
        tiny.classes,
        {**images, "train": images["train"][order]},
        {**labels, "train": labels["train"][order]},
    )
    few = make_sets(folders, ("train",), attrs.evolve(RECIPE, train_subset=12), victim, CPU)
    shares = labels["train"].bincount() * 12 / len(order)
    assert (few.labels("train")[:12].bincount(minlength=len(shares)) - shares).abs().max() <= 1


@pytest.mark.parametrize("eps", [8 / 255, 0.1, 25.5 / 255])
def test_attacks_keep_to_the_budget_and_use_it(tiny, victim, eps):
    recipe = CraftRecipe(eps=eps, pgd_steps=4, pgd_step_size=eps / 2)
    sets = make_sets(tiny, ("train",), recipe, victim, CPU)
    clean = pixels(sets, "train", "clean").short()
    for kind in ("fgsm", "pgd"):
        change = (pixels(sets, "train", kind).short() - clean).abs()
        assert change.max() <= eps * 255 + 1e-3
        assert change.max() == int(eps * 255 + 1e-3)


def test_attacks_in_bfloat16_hurt_as_much_and_leave_the_victim_as_it_was(tiny, victim, sets):
    layouts = {name: value.stride() for name, value in victim.state_dict().items()}
    reduced = make_sets(tiny, ("train", "val"), attrs.evolve(RECIPE, craft_precision="bf16"), victim, CPU, Fade())
    assert {name: value.stride() for name, value in victim.state_dict().items()} == layouts
    assert torch.equal(pixels(reduced, "train", "clean"), pixels(sets, "train", "clean"))
    for kind in ("fgsm", "pgd"):
        change = (pixels(reduced, "train", kind).short() - pixels(sets, "train", kind).short()).abs()
        # rounded gradients are those of another attack, whose signs are nearly all the same
        assert 0 < (change > 0).float().mean() < 0.2, kind
        exact = sets.accuracy(victim, "train", kind, CPU)
        assert reduced.accuracy(victim, "train", kind, CPU) <= exact + 0.1


@pytest.mark.filterwarnings("ignore:.*weight_norm")
def test_attacks_in_bfloat16_take_a_victim_whose_weights_are_computed(tiny):
    images, _ = tiny.tensors("train", limit=2)
    victim = nn.Sequential(nn.Flatten(), nn.utils.weight_norm(nn.Linear(images[0].numel(), len(tiny.classes)))).eval()
    victim(images)
    made = make_sets(tiny, ("train",), attrs.evolve(RECIPE, craft_precision="bf16"), victim, CPU)
    assert not torch.equal(pixels(made, "train", "pgd"), pixels(made, "train", "clean"))


def test_attacks_hurt_the_victim(sets, victim):
    assert sets.accuracy(victim, "train", "pgd", CPU) < sets.accuracy(victim, "train", "clean", CPU)


def test_a_saturated_victims_fgsm_images_are_attacked_too(tiny, victim, sets):
    made = make_sets(tiny, ("train",), RECIPE, Multiplied(victim, 1e5), CPU)
    assert (pixels(made, "train", "fgsm") != pixels(made, "train", "clean")).flatten(1).any(1).all()
    assert made.accuracy(victim, "train", "fgsm", CPU) <= sets.accuracy(victim, "train", "fgsm", CPU) + 0.1


def test_fgsm_images_are_those_of_the_literal_cross_entropy_where_that_sees_anything(tiny, victim, sets):
    clean, labels = tiny.pixels("train", CPU) / 255, tiny.labels("train")
    literal = craft(Fgsm(FgsmOptions()), Target(victim), clean, labels, eps=RECIPE.eps)
    assert torch.equal(pixels(sets, "train", "fgsm"), within(to_bytes(literal), to_bytes(clean), RECIPE.eps))


def test_a_kind_that_is_clean_is_told_of(tiny, victim):
    told = r"fgsm on the victim \(train images\) left 20 of 20 images as they were.*take another victim"
    with pytest.warns(UserWarning, match=told):
        make_sets(tiny, ("train",), RECIPE, Multiplied(victim, 0.0), CPU)


def test_pgd_takes_all_its_steps_from_a_random_start(tiny, victim, sets):
    batch = next(tiny.batches("train", torch.arange(20), 20, CPU))
    options = make(PgdOptions, {"steps": 4, "step_size": 0.05, "early_stop": False}, "pgd")
    expected = craft(Pgd(options), Target(victim), batch.images, batch.labels, eps=0.1, keys=batch.keys)
    assert (pixels(sets, "train", "pgd").float() / 255 - expected).abs().max() <= 1 / 255
    stopped = make(PgdOptions, {"steps": 4, "step_size": 0.05}, "pgd")
    early = craft(Pgd(stopped), Target(victim), batch.images, batch.labels, eps=0.1, keys=batch.keys)
    assert (early - expected).abs().max() > 2 / 255


def test_purified_kinds_are_the_purifiers_output_for_each(sets):
    for kind in CRAFTED:
        faded = pixels(sets, "val", kind).float() / 2
        assert (pixels(sets, "val", f"purified_{kind}").float() - faded).abs().max() <= 0.5


def test_a_random_purifier_draws_by_image(tiny, victim, monkeypatch):
    torch.manual_seed(1)
    first = make_sets(tiny, ("train",), RECIPE, victim, CPU, Jitter())
    torch.manual_seed(2)
    monkeypatch.setattr("defend_dae_finetune.sets.BATCH", 7)
    second = make_sets(tiny, ("train",), RECIPE, victim, CPU, Jitter())
    assert torch.equal(first.pixels("train", CPU), second.pixels("train", CPU))


def test_clean_targets_follow_the_keys(tiny, sets):
    clean = next(tiny.batches("train", torch.tensor([3, 19, 0]), 3, CPU)).images
    for number in range(6):
        torch.testing.assert_close(sets.clean("train", torch.tensor([3, 19, 0]) + number * 20, CPU), clean)


def test_accuracy_is_a_share(sets):
    labels = sets.labels("val")[:8]

    def always_zero(batch):
        return torch.eye(4)[torch.zeros(len(batch), dtype=torch.long)]

    assert sets.accuracy(always_zero, "val", "clean", CPU) == pytest.approx(float((labels == 0).float().mean()))


def test_rounding_never_leaves_the_budget():
    clean = torch.tensor([10, 200, 0, 255], dtype=torch.uint8)
    attacked = torch.tensor([36, 174, 26, 229], dtype=torch.uint8)  # 26 levels; 0.1 is 25.5
    assert within(attacked, clean, 0.1).tolist() == [35, 175, 25, 230]
    assert within(attacked, clean, 26 / 255).tolist() == attacked.tolist()


def test_bytes_are_rounded():
    assert to_bytes(torch.tensor([0.0, 0.4 / 255, 0.6 / 255, 1.0])).tolist() == [0, 0, 1, 255]
