"""Batch norms that follow their layer in a sequence are folded into it, and stages may bring a faster self."""

import copy
import random

import numpy as np
import pytest
import torch
from torch import nn

from defend.assembly.prepare import fold_sequences, prepare
from defend.boundary.answers import Answering
from defend.boundary.copies import copy_module
from defend.custom.drawing import Drawing
from defend.defence import Defence, PurifierSequence
from defend.errors import ContractError
from defend.testing.toys import TASK, TinyVictim

IMAGES = torch.rand(4, TASK.channels, TASK.height, TASK.width)


def lived_in(module):
    torch.manual_seed(0)
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d) and norm.running_mean is not None:
            norm.running_mean.normal_()
            norm.running_var.uniform_(0.5, 2)
            if norm.affine:
                norm.weight.data.normal_()
                norm.bias.data.normal_()
    return module.eval()


def norms(module):
    return sum(isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d) for part in module.modules())


SEQUENCES = {
    "convolution": nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()),
    "no bias": nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4)),
    "transposed": nn.Sequential(nn.ConvTranspose2d(3, 5, 3, stride=2, bias=False), nn.BatchNorm2d(5)),
    "shuffled": nn.Sequential(nn.Conv2d(3, 8, 1), nn.PixelShuffle(2), nn.BatchNorm2d(2), nn.PReLU()),
    "not affine": nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, affine=False)),
    "dense": nn.Sequential(nn.Flatten(), nn.Linear(108, 7), nn.BatchNorm1d(7)),
    "nested": nn.Sequential(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)), nn.Conv2d(4, 3, 1)),
}


@pytest.mark.parametrize("kind", SEQUENCES)
def test_a_norm_after_its_layer_is_folded(kind):
    plain = lived_in(SEQUENCES[kind])
    before = copy.deepcopy(plain.state_dict())
    images = torch.rand(2, 3, 6, 6)
    folded = fold_sequences(plain)
    assert norms(plain) == 1 and norms(folded) == 0
    torch.testing.assert_close(folded(images), plain(images), rtol=1e-4, atol=1e-5)
    assert all(torch.equal(value, before[name]) for name, value in plain.state_dict().items())


class Rescaled(nn.Conv2d):
    def forward(self, images):
        return super().forward(images).square()


class Shared(nn.Module):
    def __init__(self):
        super().__init__()
        conv = nn.Conv2d(3, 3, 1)
        self.one, self.other = nn.Sequential(conv, nn.BatchNorm2d(3)), nn.Sequential(conv, nn.ReLU())


class Backwards(nn.Sequential):
    def forward(self, images):
        return self[0](self[1](images))


KEPT = {
    "another way round": nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.BatchNorm2d(4)),
    "its own forward": nn.Sequential(Rescaled(3, 4, 3), nn.BatchNorm2d(4)),
    "no sequence": Backwards(nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3)),
    "used twice": Shared(),
    "batch statistics": nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False)),
    "groups": nn.Sequential(nn.Conv2d(4, 4, 3, groups=2), nn.BatchNorm2d(4)),
    "the norm alone": nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 3, 1)),
}


@pytest.mark.parametrize("kind", KEPT)
def test_what_may_not_be_folded_comes_back_itself(kind):
    module = lived_in(KEPT[kind])
    assert fold_sequences(module) is module


def test_in_training_nothing_is_folded():
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).train()
    assert fold_sequences(module) is module


class Painter(nn.Module):
    random = False

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(TASK.channels, TASK.channels, 1), nn.BatchNorm2d(TASK.channels))

    def forward(self, images):
        return self.body(images).sigmoid()


class Dimmer(nn.Module):
    """Brings a self that should be the same; `honest` says whether it is."""

    random = False

    def __init__(self, honest, factor=0.5):
        super().__init__()
        self.honest, self.factor, self.stage_name = honest, factor, "dimmer"

    def forward(self, images):
        return images * self.factor

    def prepared(self):
        return Dimmer(self.honest, self.factor if self.honest else 0.4)


class Judge(Painter):
    def __init__(self):
        super().__init__()
        self.register_buffer("threshold", torch.tensor(0.5))

    def forward(self, images, purified):
        return self.body(images - purified).flatten(1).mean(1)


def test_stages_are_folded_in_the_prepared_defence():
    defence = Defence(TinyVictim(TASK), lived_in(Painter()), lived_in(Judge()))
    ready, done = prepare(defence, "fp32", IMAGES)
    assert (done["purifier"], done["detector"]) == ("prepared", "prepared")
    assert norms(ready) == norms(ready.victim) and norms(defence.purifier) == norms(defence.detector) == 1
    expected, found = defence.judge(IMAGES), ready.judge(IMAGES)
    torch.testing.assert_close(found.purified, expected.purified, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.score, expected.score, rtol=1e-4, atol=1e-5)
    assert not any(parameter.requires_grad for parameter in ready.parameters())


def test_exact_leaves_the_stages_as_they_are():
    ready, done = prepare(Defence(TinyVictim(TASK), lived_in(Painter())), "exact", IMAGES)
    assert norms(ready.purifier) == 1 and "purifier" not in done


def test_a_stage_brings_its_faster_self():
    plain = Dimmer(honest=True)
    ready, done = prepare(Defence(TinyVictim(TASK), plain), "fp32", IMAGES)
    assert done["purifier"] == "prepared" and ready.purifier.stage_name == "dimmer"
    assert torch.equal(ready.purify(IMAGES), plain(IMAGES))


def test_a_faster_self_that_answers_otherwise_is_left_out():
    plain = Dimmer(honest=False)
    ready, done = prepare(Defence(TinyVictim(TASK), plain), "fp32", IMAGES)
    assert "purifier" not in done
    assert torch.equal(ready.purify(IMAGES), plain(IMAGES))


def test_purifiers_in_sequence_are_prepared_one_by_one():
    parts = [Dimmer(honest=False), lived_in(Painter()), Dimmer(honest=True)]
    defence = Defence(TinyVictim(TASK), PurifierSequence(parts))
    ready, done = prepare(defence, "fp32", IMAGES)
    assert done["purifier"] == "prepared" and ready.purifier.stage_name == defence.purifier.stage_name
    assert norms(ready.purifier) == 0
    torch.testing.assert_close(ready.purify(IMAGES), defence.purify(IMAGES), rtol=1e-4, atol=1e-5)


class Scattering(Painter):
    random = True

    def forward(self, images):
        return (super().forward(images) + 0.5 * torch.rand_like(images)).clamp(0, 1)


def test_random_draws_neither_hide_agreement_nor_move_on():
    defence = Defence(TinyVictim(TASK), lived_in(Scattering()))
    torch.manual_seed(5)
    _, done = prepare(defence, "fp32", IMAGES)
    drawn = torch.rand(3)
    torch.manual_seed(5)
    assert done["purifier"] == "prepared" and torch.equal(torch.rand(3), drawn)


def normed(norm, *rest):
    torch.manual_seed(0)
    return lived_in(nn.Sequential(norm(nn.Conv2d(TASK.channels, 4, 3, padding=1)), nn.BatchNorm2d(4), *rest))


PIXELS = TASK.height * TASK.width
NORMS = {
    "weight_norm": nn.utils.weight_norm,
    "spectral_norm": nn.utils.spectral_norm,
    "parametrised weight_norm": nn.utils.parametrizations.weight_norm,
    "parametrised spectral_norm": nn.utils.parametrizations.spectral_norm,
}


@pytest.mark.filterwarnings("ignore:.*weight_norm.*deprecated")
@pytest.mark.parametrize("role", ["victim", "purifier"])
@pytest.mark.parametrize("name", NORMS)
def test_layers_whose_weights_are_computed_are_left_as_they_are(name, role):
    if role == "victim":
        whole = Defence(normed(NORMS[name], nn.Flatten(), nn.Linear(4 * PIXELS, TASK.classes)))
    else:
        whole = Defence(TinyVictim(TASK), normed(NORMS[name], nn.Conv2d(4, TASK.channels, 1), nn.Sigmoid()))
    whole.eval()
    before = whole(IMAGES)  # with gradients: the old kind of norm keeps what it computed, and cannot be copied plainly
    ready, done = prepare(whole, "fp32", IMAGES)
    assert ready is not whole
    assert ("left_out" in done) == ("parametrised" not in name)
    torch.testing.assert_close(ready(IMAGES), before.detach(), rtol=1e-3, atol=1e-4)
    assert whole.victim[0].weight.requires_grad if role == "victim" else True


class Prepares(nn.Module):
    """A purifier whose faster form is made by `make`."""

    random = False

    def __init__(self, make):
        super().__init__()
        self.make = make

    def forward(self, images):
        return images * 0.5

    def prepared(self):
        return self.make()


class OnlyFour(nn.Module):
    def forward(self, images):
        return images.view(4, *images.shape[1:]) * 0.5


def broken():
    raise RuntimeError("no kernel for this machine")


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (broken, "no kernel for this machine"),
        (lambda: None, "AttributeError"),
        (OnlyFour, "is invalid for input"),
        (nn.Identity, "answered otherwise"),
    ],
)
def test_a_faster_form_that_does_not_work_is_left_out_and_said_so(make, said):
    purifier = Prepares(make)
    ready, done = prepare(Defence(TinyVictim(TASK), purifier), "fp32", IMAGES)
    assert said in done["left_out"] and "purifier" not in done
    torch.testing.assert_close(ready.purify(IMAGES), IMAGES * 0.5)


class Viewed(nn.Module):
    """Takes for granted that images lie in one piece, as many victims do."""

    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(TASK.channels, 4, 3, padding=1), nn.Linear(4 * PIXELS, TASK.classes)

    def forward(self, images):
        return self.head(self.conv(images).view(len(images), -1))


class Five(nn.Module):
    def __init__(self):
        super().__init__()
        self.volume, self.head = nn.Conv3d(1, 2, 3, padding=1), nn.Linear(2 * TASK.channels * PIXELS, TASK.classes)

    def forward(self, images):
        return self.head(self.volume(images[:, None]).flatten(1))


@pytest.mark.parametrize("victim", [Viewed, Five])
def test_a_victim_that_does_not_take_channels_last_stays_as_it_is(victim):
    whole = Defence(victim().eval())
    ready, done = prepare(whole, "fp32", IMAGES)
    assert done["layout"] == "contiguous" and "channels-last was left out" in done["left_out"]
    torch.testing.assert_close(ready(IMAGES), whole(IMAGES).detach(), rtol=1e-3, atol=1e-4)
    ready(IMAGES.requires_grad_(True)).sum().backward()


class Scaled(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Conv2d(1, 1, 1)

    def forward(self, images):
        return self.layer(images)


@pytest.mark.parametrize("make", ["script", "trace", "freeze"])
@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_a_copy_of_torchscript_keeps_what_was_set_on_it(make):
    plain, sample = Scaled().eval(), torch.rand(2, 1, 8, 8)
    script = torch.jit.trace(plain, sample) if make == "trace" else torch.jit.script(plain)
    script = torch.jit.freeze(script) if make == "freeze" else script
    script.random, script.smoothing_sigma, script.stage_name = True, 0.1, "mine"
    script.surrogates = lambda: {"plain": plain}
    for module in (script, nn.Sequential(script)):
        copied = copy_module(module)
        kept = copied[0] if module is not script else copied
        assert kept is not script and torch.equal(copied(sample), plain(sample))
        assert (kept.random, kept.smoothing_sigma, kept.stage_name) == (True, 0.1, "mine")
        assert set(kept.surrogates()) == {"plain"}


@pytest.mark.parametrize("wrap", [Drawing, Answering])
@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_a_copy_of_a_wrapped_module_is_wrapped(wrap):
    script = torch.jit.script(Scaled().eval())
    script.random, sample = True, torch.rand(2, 1, 8, 8)
    copied = copy_module(wrap(script))
    assert type(copied) is type(copy.deepcopy(wrap(script))) is wrap and copied.random
    assert torch.equal(copied.module(sample), script(sample))


class Uncopied(nn.Module):
    def forward(self, images):
        return images

    def __deepcopy__(self, memo):
        raise TypeError("it holds a handle to a device")


def test_a_stage_that_cannot_be_copied_is_used_itself():
    whole = Defence(TinyVictim(TASK), Uncopied())
    ready, done = prepare(whole, "exact", IMAGES)
    assert ready is whole and "handle to a device" in done["left_out"]
    assert not any(parameter.requires_grad for parameter in ready.parameters())


class Choosing(nn.Module):
    """Flips its images now and then; fx would fold one of the two for ever."""

    def __init__(self, chance, random, draw):
        super().__init__()
        self.random, self.chance, self.draw = random, chance, draw
        self.body = nn.Sequential(nn.Conv2d(TASK.channels, 4, 3), nn.BatchNorm2d(4), nn.Flatten())
        self.head = nn.LazyLinear(TASK.classes)

    def forward(self, images):
        if self.draw() < self.chance:
            images = images.flip(-1)
        return self.head(self.body(images))


DRAWS = {"torch": lambda: torch.rand(()), "Python": random.random, "numpy": lambda: np.random.rand()}


@pytest.mark.parametrize("chance", [0.5, 1e-6])
@pytest.mark.parametrize("says", [True, False])
@pytest.mark.parametrize("draw", DRAWS)
def test_a_victim_that_chooses_is_not_folded_to_one_of_its_ways(chance, says, draw):
    victim = Choosing(chance, says, DRAWS[draw]).eval()
    victim(IMAGES)
    ready, done = prepare(Defence(lived_in(victim)), "fp32", IMAGES)
    assert norms(ready.victim) == 1, done


class Activated(nn.BatchNorm2d):
    """As timm's: a norm that does more."""

    def forward(self, images):
        return super().forward(images).relu()


def test_a_norm_that_does_more_stays():
    plain = lived_in(nn.Sequential(nn.Conv2d(3, 4, 3), Activated(4)))
    assert fold_sequences(plain) is plain


class Faint(nn.Module):
    """A detector of tiny scores, whose faster self is another."""

    def __init__(self, factor=1.0):
        super().__init__()
        self.factor = factor
        self.register_buffer("threshold", torch.tensor(4e-4))

    def forward(self, images, purified):
        return 1e-3 * self.factor * images.flatten(1).mean(1)

    def prepared(self):
        return Faint(0.2)


def test_tiny_scores_are_compared_by_their_own_size():
    _, done = prepare(Defence(TinyVictim(TASK), None, Faint()), "fp32", IMAGES)
    assert "detector" not in done


class Offering(nn.Module):
    random = False

    def __init__(self, name, **surrogates):
        super().__init__()
        self.stage_name, self.offered = name, surrogates

    def forward(self, images):
        return images * 1.0

    def surrogates(self):
        return self.offered


def test_a_sequence_offers_the_surrogates_of_its_parts():
    first, second, third = nn.Identity(), nn.Identity(), nn.Identity()
    sequence = PurifierSequence([Offering("a", one=first, two=second), Dimmer(honest=True), Offering("b", three=third)])
    offered = sequence.surrogates()
    assert list(offered) == ["a: one", "a: two", "b: three"]
    assert list(offered["a: two"].purifiers) == [second, sequence.purifiers[1], third]
    assert offered["b: three"].purifiers[0] is first
    assert not PurifierSequence([Dimmer(honest=True)]).surrogates()


class Stretching(nn.Module):
    random = False
    stage_name = "stretching"

    def forward(self, images):
        return 4 * images - 2


class Clamping(nn.Module):
    random = False

    def forward(self, images):
        return images.clamp(0, 1)


def test_what_one_purifier_hands_to_the_next_is_looked_at():
    with pytest.raises(ContractError, match=r"stretching.*returned values from"):
        Defence(TinyVictim(TASK), PurifierSequence([Stretching(), Clamping()])).judge(IMAGES)
