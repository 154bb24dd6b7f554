"""The gradients written out by hand are those of the autoencoder as built, and what is kept for them is small."""

import copy
from typing import ClassVar

import pytest
import torch

from defend import Task
from defend.assembly.prepare import prepare
from defend.defence import Defence
from defend.randomness import keyed
from defend.testing.contracts import PurifierContract
from defend.testing.toys import TASK, TinyVictim
from defend_apudae.config import ApudaeOptions
from defend_apudae.frozen import FrozenAutoencoder, pack, unpack
from defend_apudae.model import reconstruction_error
from defend_apudae.networks import DenoisingAutoencoder
from defend_apudae.purifier import build


def lived_in(module, seed=0):
    """Give every batch norm a past, some of its scales below zero; frozen, in double precision."""
    generator = torch.Generator().manual_seed(seed)
    for norm in module.modules():
        if isinstance(norm, torch.nn.BatchNorm2d):
            for values in (norm.running_mean, norm.weight.data, norm.bias.data):
                values.normal_(generator=generator)
            norm.running_var.uniform_(0.5, 2, generator=generator)
    return module.double().eval().requires_grad_(False)


def close(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize(
    ("depth", "channels", "width", "size"),
    [
        (5, 1, 16, (28, 28)),
        (5, 1, 3, (6, 6)),
        (15, 3, 8, (8, 9)),
        (2, 1, 4, (5, 5)),
        (3, 3, 4, (2, 3)),
        (4, 2, 5, (7, 4)),
    ],
)
def test_error_slope_and_second_derivative(depth, channels, width, size):
    torch.manual_seed(depth)
    dae = lived_in(DenoisingAutoencoder(channels, depth, width))
    images = torch.rand(3, channels, *size, dtype=torch.float64, requires_grad=True)
    toward, weigh = torch.randn(3, channels, *size, dtype=torch.float64), torch.randn(3, dtype=torch.float64)
    r = reconstruction_error(images, dae)
    (slope,) = torch.autograd.grad(r.sum(), images, create_graph=True)
    (second,) = torch.autograd.grad((slope * toward).sum() + (r * weigh).sum(), images)
    frozen = FrozenAutoencoder(dae)
    own_r, own_slope = frozen.error_and_slope(images)
    (own_second,) = torch.autograd.grad((own_slope * toward).sum() + (own_r * weigh).sum(), images)
    for found, expected in ((own_r, r), (own_slope, slope), (own_second, second), (frozen(images), dae(images))):
        close(found, expected)


@pytest.mark.parametrize(
    "options",
    [
        *({"variant": letter} for letter in "ABCDEFG"),
        {"variant": "F", "noise": "gaussian"},
        {"variant": "C", "rule": "ema", "steps": 7},
        {"variant": "A", "sign_slope": "exact"},
        {"variant": "C", "rule": "sign", "sign_slope": "exact"},
    ],
    ids=str,
)
def test_a_prepared_purifier_is_the_same_purifier(options):
    torch.manual_seed(0)
    config = ApudaeOptions(**{"depth": 4, "width": 8, "steps": 3, "step_size": 1e-3, **options})
    plain = lived_in(build(config, Task("noise", 1, 12, 11, 10)))
    plain.mu.fill_(20.0)
    plain.sigma.fill_(10.0)
    images = torch.rand(2, 1, 12, 11, dtype=torch.float64, requires_grad=True)
    weights, answers = torch.randn(2, 1, 12, 11, dtype=torch.float64), []
    for module in (plain, plain.prepared()):
        with keyed(torch.arange(2), seed=0, stream="frozen"):
            purified = module(images)
        answers.append((purified.detach(), *torch.autograd.grad((purified * weights).sum(), images)))
    for expected, found in zip(*answers, strict=True):
        close(found, expected)


class TestPreparedKeepsTheContract(PurifierContract):
    name = "apudae"
    options = {"depth": 3, "width": 8, "steps": 3}
    not_denoising: ClassVar = {"cifar10": "as in test_contract.py"}

    def stage_module(self):
        module = super().stage_module()
        found = module.prepared()
        found.stage_name = module.stage_name
        return found


def test_the_graph_keeps_bits_and_no_step_is_computed_twice(monkeypatch):
    purifier = build(ApudaeOptions(depth=5, width=16, steps=12), Task("noise", 1, 28, 28, 10)).eval().prepared()
    passes, kept = [], []
    through = FrozenAutoencoder._through

    def counting(self, images, gate, *, affine):
        passes.append(affine)
        return through(self, images, gate, affine=affine)

    def keep(tensor):
        kept.append(tensor.nbytes)
        return tensor

    monkeypatch.setattr(FrozenAutoencoder, "_through", counting)
    images = torch.rand(2, 1, 28, 28, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        purified = purifier(images)
    activations = 4 * 2 * 16 * 14 * 14 * 11  # bytes of what eleven ReLUs return, in one step
    assert passes == [True] * 12
    assert sum(kept) / 12 < 0.5 * activations
    torch.autograd.grad(purified.sum(), images)
    assert passes == [True] * 12 + [False] * 12


@pytest.mark.parametrize("shape", [(2, 8, 3, 4), (1, 1, 1, 1), (3, 5, 7, 3)])
def test_bits_come_back(shape):
    torch.manual_seed(0)
    gates = torch.randn(shape).relu()
    bits = pack(gates)
    assert bits.dtype == torch.uint8 and bits.numel() == -(-gates.numel() // 8)
    assert torch.equal(unpack(bits, shape, gates.dtype), (gates != 0).float())


def test_the_host_takes_the_prepared_one_but_for_exact():
    purifier = build(ApudaeOptions(depth=3, width=8, steps=2), TASK).eval()
    purifier.stage_name = "apudae"
    images = torch.rand(2, TASK.channels, TASK.height, TASK.width)
    defence = Defence(TinyVictim(TASK), purifier)
    fast, done = prepare(defence, "fp32", images)
    assert done["purifier"] == "prepared" and isinstance(fast.purifier.dae, FrozenAutoencoder)
    assert fast.purifier.stage_name == "apudae"
    assert isinstance(fast.purifier.surrogates()["autoencoder"].dae, FrozenAutoencoder)
    exact, done = prepare(defence, "exact", images)
    assert "purifier" not in done and isinstance(exact.purifier.dae, DenoisingAutoencoder)
    assert torch.equal(exact.purify(images), purifier(images))


def test_nothing_is_prepared_twice_nor_where_no_step_is_taken():
    purifier = build(ApudaeOptions(depth=3, width=8), TASK).eval()
    once = purifier.prepared()
    assert once.prepared() is once
    direct = build(ApudaeOptions(depth=3, width=8, variant="direct"), TASK).eval()
    assert direct.prepared() is direct


def test_the_weights_of_a_prepared_purifier_are_its_own():
    purifier = build(ApudaeOptions(depth=3, width=8, steps=2), TASK).eval()
    fast, images = purifier.prepared(), torch.rand(2, TASK.channels, TASK.height, TASK.width)
    r, slope = fast.dae.error_and_slope(images)
    with torch.no_grad():
        for parameter in purifier.parameters():
            parameter.mul_(2)
    again = copy.deepcopy(fast).dae.error_and_slope(images)
    assert torch.equal(again[0], r) and torch.equal(again[1], slope)
    assert fast.state_dict().keys() == {name.replace("dae.", "dae.dae.") for name in purifier.state_dict()}
