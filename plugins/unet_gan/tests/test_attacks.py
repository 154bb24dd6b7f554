"""The batch made on the fly: who is attacked by what, how far, and at what cost."""

import pytest
import torch
from torch import nn

from defend.attacks.host import craft
from defend.attacks.options import FgsmOptions
from defend.attacks.single_step import Fgsm
from defend.attacks.target import Target
from defend.options import make
from defend.testing.toys import TASK, TinyVictim, images
from defend_unet_gan.attacks import Assignment, assign, attack
from defend_unet_gan.config import UnetGanRecipe

CPU = torch.device("cpu")


def recipe(**values):
    return make(UnetGanRecipe, values, "test")


def assignment(count, eps, first=0.0, source=0):
    return Assignment(torch.full((count,), source), torch.full((count,), eps), torch.full((count,), first))


class Linear(nn.Module):
    """Logits (s, -s) with s the sum of w * x: for label 0 the loss falls, for label 1 it rises along w."""

    def __init__(self, weights):
        super().__init__()
        self.weights, self.calls = weights, []

    def forward(self, batch):
        self.calls.append(len(batch))
        score = (batch * self.weights).flatten(1).sum(1)
        return torch.stack([score, -score], 1)


def test_paper_s_batch_is_three_victims_by_two_attacks_by_sixteen():
    torch.manual_seed(0)
    assigned = assign(96, 3, recipe(eps_max=128), CPU)
    pairs = assigned.source * 2 + (assigned.first > 0)
    assert torch.bincount(pairs).tolist() == [16] * 6
    steps = assigned.eps * 255
    torch.testing.assert_close(steps, steps.round())
    by_both = assigned.first > 0
    torch.testing.assert_close(assigned.first[by_both], assigned.eps[by_both] / 2)


def test_eps_reaches_from_one_to_e_max():
    torch.manual_seed(0)
    steps = (assign(4000, 2, recipe(eps_max=7), CPU).eps * 255).round().int()
    assert torch.bincount(steps).tolist()[0] == 0
    assert steps.unique().tolist() == [1, 2, 3, 4, 5, 6, 7]
    assert torch.bincount(steps)[1:].min() > 4000 / 7 * 0.8


def test_uneven_batches_are_shared_out_as_evenly_as_they_can():
    assigned = assign(10, 2, recipe(), CPU)
    assert sorted(torch.bincount(assigned.source * 2 + (assigned.first > 0)).tolist()) == [2, 2, 3, 3]


@pytest.mark.parametrize(("share", "clean"), [(0.0, 0), (1.0, 50)])
def test_clean_share(share, clean):
    assert int((assign(50, 1, recipe(clean_share=share), CPU).eps == 0).sum()) == clean


def test_every_image_keeps_within_its_own_eps():
    torch.manual_seed(0)
    batch, sources = images(TASK, 24), [TinyVictim(seed=number) for number in range(3)]
    assigned = assign(24, 3, recipe(eps_max=60, clean_share=0.4), CPU)
    found = attack(batch, torch.arange(24) % 10, sources, assigned)
    most = (found - batch).abs().amax((1, 2, 3))
    assert (most <= assigned.eps + 1e-6).all()
    assert most.numpy() == pytest.approx(assigned.eps.numpy(), abs=1e-6)  # and uses it up
    untouched = assigned.eps == 0
    assert 0 < int(untouched.sum()) < 24
    assert torch.equal(found[untouched], batch[untouched])
    assert found.min() >= 0 and found.max() <= 1


def test_one_gradient_pass_a_victim_and_only_its_share_of_images():
    sources = [Linear(torch.ones(1, 4, 4)) for _ in range(3)]
    backward = []
    assigned = assign(96, 3, recipe(), CPU)
    for number, source in enumerate(sources):
        source.register_full_backward_hook(lambda *_, number=number: backward.append(number))
    attack(torch.rand(96, 1, 4, 4), torch.randint(2, (96,)), sources, assigned)
    assert [source.calls for source in sources] == [[32], [32], [32]]
    assert backward == [0, 1, 2]


def test_clean_images_cost_nothing():
    source = Linear(torch.ones(1, 4, 4))
    batch = torch.rand(5, 1, 4, 4)
    assert torch.equal(attack(batch, torch.zeros(5, dtype=torch.int64), [source], assignment(5, 0.0)), batch)
    assert source.calls == []


def test_fgsm_is_core_s():
    batch, labels, victim = images(TASK, 6), torch.arange(6), TinyVictim()
    expected = craft(Fgsm(FgsmOptions()), Target(victim), batch, labels, eps=0.05)
    torch.testing.assert_close(attack(batch, labels, [victim], assignment(6, 0.05)), expected)


@pytest.mark.parametrize("first", [0.0, 0.1])
def test_a_saturated_source_is_attacked_as_another(first):
    # label 0 leads by 2e4 or so, and the cross-entropy's gradient is zero in float32
    weights, found = torch.tensor([1.0, -2.0, 3.0, 4.0]).view(1, 2, 2), []
    for factor in (1.0, 1e4):
        torch.manual_seed(0)
        batch = torch.full((8, 1, 2, 2), 0.5)
        source = Linear(factor * weights)
        found.append(attack(batch, torch.zeros(8, dtype=torch.int64), [source], assignment(8, 0.2, first=first)))
    assert torch.equal(*found) and (found[0] != batch).flatten(1).any(1).all()


def test_rfgsm_by_hand():
    # label 1: the loss rises along +w, so every pixel ends a +- a + (eps - a) away, 0 or eps with a = eps/2
    torch.manual_seed(0)
    weights = torch.tensor([1.0, -2.0, 3.0, -4.0]).view(1, 2, 2)
    batch = torch.full((50, 1, 2, 2), 0.5)
    found = attack(batch, torch.ones(50, dtype=torch.int64), [Linear(weights)], assignment(50, 0.2, first=0.1))
    moved = (found - batch) * weights.sign()
    assert torch.allclose(moved, torch.where(moved > 0.1, 0.2, 0.0), atol=1e-6)
    assert 0.3 < float((moved > 0.1).float().mean()) < 0.7


def test_rfgsm_takes_its_gradient_after_the_random_step():
    seen = []

    class Watching(Linear):
        def forward(self, batch):
            seen.append(batch.detach().clone())
            return super().forward(batch)

    batch = torch.full((4, 1, 2, 2), 0.05)
    attack(batch, torch.zeros(4, dtype=torch.int64), [Watching(torch.ones(1, 2, 2))], assignment(4, 0.2, first=0.1))
    assert {round(value, 4) for value in seen[0].flatten().tolist()} == {0.0, 0.15}  # clipped below


def test_labels_to_leave():
    # at 0.5 the source says 0 everywhere; the true label is 1
    batch, labels = torch.full((64, 1, 1, 1), 0.5), torch.ones(64, dtype=torch.int64)
    source = Linear(torch.ones(1, 1, 1))
    true, predicted, any_label = (
        attack(batch, labels, [source], assignment(64, 0.1), leave) for leave in ("true", "predicted", "random")
    )
    torch.testing.assert_close(true, batch + 0.1)
    torch.testing.assert_close(predicted, batch - 0.1)
    assert {round(value, 4) for value in any_label.flatten().tolist()} == {0.4, 0.6}


def test_nothing_is_left_behind():
    batch, victim = images(TASK, 4), TinyVictim()
    before = batch.clone()
    with torch.no_grad():
        found = attack(batch, torch.arange(4), [victim], assignment(4, 0.1, first=0.05))
    assert torch.equal(batch, before)
    assert not found.requires_grad
    assert all(parameter.grad is None for parameter in victim.parameters())
