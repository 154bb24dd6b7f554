"""The composed defence: what it holds its stages to, what it answers, and its faster copy."""

import math

import pytest
import torch
from torch import nn

from defend.assembly.prepare import fold_batch_norm, prepare
from defend.defence import Defence
from defend.errors import ContractError, DataError, StageError
from defend.testing.toys import TASK, TinyVictim, images


class Gamma(nn.Module):
    """A differentiable purifier with one weight."""

    random = False

    def __init__(self, power=2.0):
        super().__init__()
        self.power = nn.Parameter(torch.tensor(power))

    def forward(self, batch):
        return batch.clamp_min(1e-6) ** self.power


class Descends(nn.Module):
    """A purifier that differentiates inside its own forward."""

    random = False

    def forward(self, batch):
        with torch.enable_grad():
            start = batch if batch.requires_grad else batch.detach().requires_grad_()
            error = (start - 0.5).square().sum()
            (slope,) = torch.autograd.grad(error, start, create_graph=True)
            return (start - 0.1 * slope).clamp(0, 1)


class Returning(nn.Module):
    """A purifier that returns what a function makes of the images."""

    def __init__(self, make):
        super().__init__()
        self.make = make

    def forward(self, batch):
        return self.make(batch)


class Brightness(nn.Module):
    """A detector: the score is the mean pixel of the images, or of what was purified."""

    def __init__(self, threshold=0.5, of_purified=False):
        super().__init__()
        self.of_purified = of_purified
        self.register_buffer("threshold", torch.tensor(threshold))

    def forward(self, batch, purified):
        return (purified if self.of_purified else batch).flatten(1).mean(1)


class Scoring(nn.Module):
    """A detector that returns what a function makes of the images."""

    threshold = torch.tensor(0.5)

    def __init__(self, make):
        super().__init__()
        self.make = make

    def forward(self, batch, purified):
        return self.make(batch)


def spoiled(batch, number):
    batch = batch.clone()
    batch[1, 0, 3, 3] = number
    return batch


BATCH = images(TASK, 4)


# forward


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ((None,), "victim is None: expected a module"),
        (("resnet18",), "victim is 'resnet18', a name: expected a module; defend.load takes names"),
        ((nn.Identity(), "dae"), "purifier is 'dae', a name: expected a module"),
        ((nn.Identity(), None, "puvae"), "detector is 'puvae', a name: expected a module"),
        ((nn.Identity(), Gamma), r"purifier is the class Gamma: expected a module, for example Gamma\(\)"),
        (({"weight": torch.ones(1)},), "victim is dict: expected a module"),
    ],
)
def test_a_part_that_cannot_be_asked_is_refused_where_it_is_given(parts, words):
    with pytest.raises(ContractError, match=words):
        Defence(*parts)


@pytest.mark.parametrize("ask", [lambda defence: defence, lambda defence: defence.answer])
def test_a_pass_refuses_what_is_no_tensor_of_floats(ask):
    defence = Defence(Returning(lambda batch: batch.float().flatten(1)))
    with pytest.raises(DataError, match=r"images are torch.uint8, .* pass images.float\(\) / 255"):
        ask(defence)((255 * images(TASK, 2)).byte())
    with pytest.raises(DataError, match="images are ndarray, expected a tensor of floats"):
        ask(defence)(images(TASK, 2).numpy())


def test_the_victim_sees_what_was_purified():
    victim = TinyVictim()
    assert torch.equal(Defence(victim, Gamma())(BATCH), victim(Gamma()(BATCH)))
    assert torch.equal(Defence(victim)(BATCH), victim(BATCH))
    assert Defence(victim).purify(BATCH) is BATCH


def test_the_input_gradient_goes_through_purifier_and_victim():
    victim, purifier = TinyVictim(), Gamma()
    through, behind = BATCH.clone().requires_grad_(), Gamma()(BATCH).detach().requires_grad_()
    (whole,) = torch.autograd.grad(Defence(victim, purifier)(through).square().sum(), through)
    (outer,) = torch.autograd.grad(victim(behind).square().sum(), behind)
    torch.testing.assert_close(whole, outer * 2 * BATCH.clamp_min(1e-6) * (BATCH > 1e-6), atol=1e-5, rtol=1e-4)


def test_starts_in_eval_mode():
    victim = nn.Sequential(nn.Dropout(0.9), TinyVictim())
    assert victim.training
    defence = Defence(victim, Gamma().train())
    assert not any(module.training for module in defence.modules())
    assert torch.equal(defence(BATCH), defence(BATCH))


@pytest.mark.parametrize("stage", ["victim", "purifier", "detector"])
def test_is_random_if_any_stage_is(stage):
    stages = {"victim": TinyVictim(), "purifier": Gamma(), "detector": Brightness()}
    assert Defence(**stages).random is False
    stages[stage].random = True
    assert Defence(**stages).random is True


def test_state_dict_round_trip():
    first = Defence(TinyVictim(seed=1), Gamma(3.0), Brightness(0.3))
    second = Defence(TinyVictim(seed=2), Gamma(2.0), Brightness(0.9))
    assert not torch.equal(first(BATCH), second(BATCH))
    second.load_state_dict(first.state_dict())
    assert torch.equal(first(BATCH), second(BATCH))
    assert torch.equal(first.judge(BATCH).accepted, second.judge(BATCH).accepted)


# judge


def test_verdict_is_the_softmax_of_the_logits():
    defence = Defence(TinyVictim(), Gamma())
    verdict, logits = defence.judge(BATCH), defence(BATCH).detach()
    assert torch.equal(verdict.logits, logits)
    assert torch.equal(verdict.labels, logits.argmax(1))
    torch.testing.assert_close(verdict.confidence, logits.softmax(1).gather(1, verdict.labels[:, None])[:, 0])
    assert torch.equal(verdict.purified, Gamma()(BATCH).detach())


def test_a_function_that_fails_is_told_in_its_own_words():
    def fail(batch):
        raise ValueError("my own message")

    for parts in ({"victim": fail}, {"victim": TinyVictim(), "purifier": fail}):
        with pytest.raises(StageError, match="my own message"):
            Defence(**parts).judge(BATCH)
    assert len(Defence(lambda batch: batch.flatten(1)[:, :3]).judge(BATCH.half()).labels) == len(BATCH)


def test_logits_that_a_softmax_cannot_tell_apart_are_judged_as_attacks_judge_them():
    """The second class leads by less than float32 has room for beside a probability of a half."""
    close = torch.tensor([[0.0, 1e-9], [1e-9, 0.0], [0.0, 0.0]])
    verdict = Defence(lambda batch: close).judge(BATCH[:3])
    assert verdict.labels.tolist() == [1, 0, 0]
    assert verdict.confidence.tolist() == [0.5] * 3


def test_without_a_detector_everything_is_accepted():
    verdict = Defence(TinyVictim()).judge(BATCH)
    assert verdict.accepted.dtype == torch.bool and verdict.accepted.all()
    assert torch.equal(verdict.score, torch.zeros(4))


def test_detector_rejects_at_its_threshold_and_above():
    shades = torch.tensor([0.25, 0.5, 0.75]).view(3, 1, 1, 1).expand(3, 1, 28, 28)
    verdict = Defence(TinyVictim(), detector=Brightness(0.5)).judge(shades)
    assert verdict.accepted.tolist() == [True, False, False]
    torch.testing.assert_close(verdict.score, torch.tensor([0.25, 0.5, 0.75]))


def test_detector_sees_the_images_and_what_was_purified():
    for of_purified, expected in ((False, BATCH), (True, Gamma()(BATCH).detach())):
        verdict = Defence(TinyVictim(), Gamma(), Brightness(of_purified=of_purified)).judge(BATCH)
        torch.testing.assert_close(verdict.score, expected.flatten(1).mean(1))


@pytest.mark.parametrize("purifier", [Gamma(), Descends()], ids=["plain", "with gradients inside"])
def test_judge_leaves_no_gradients_behind(purifier):
    defence = Defence(TinyVictim(), purifier, Brightness())
    batch = BATCH.clone().requires_grad_()
    verdict = defence.judge(batch)
    answers = (verdict.confidence, verdict.score, verdict.purified, verdict.logits)
    assert not any(answer.requires_grad for answer in answers)
    assert batch.grad is None and all(parameter.grad is None for parameter in defence.parameters())


@pytest.mark.parametrize("purifier", [Gamma(), Descends()], ids=["plain", "with gradients inside"])
def test_judge_answers_the_same_whatever_the_callers_gradients(purifier):
    defence = Defence(TinyVictim(), purifier)
    with_gradients = defence.judge(BATCH.clone().requires_grad_())
    with torch.no_grad():
        without = defence.judge(BATCH)
    torch.testing.assert_close(with_gradients.logits, without.logits, atol=1e-6, rtol=0)
    assert torch.is_grad_enabled(), "judge gives the caller's setting back"


# Contracts


@pytest.mark.parametrize(
    ("make", "got"),
    [
        (lambda batch: batch[:, :, :-1], r"\[4, 1, 27, 28\]"),
        (lambda batch: batch[:-1], r"\[3, 1, 28, 28\]"),
        (lambda batch: batch.flatten(1), r"\[4, 784\]"),
        (lambda batch: (batch, batch), "tuple"),
    ],
    ids=["cropped", "fewer", "flat", "tuple"],
)
@pytest.mark.parametrize("call", ["forward", "judge"])
def test_a_purifier_that_changes_the_shape_is_named(make, got, call):
    defence = Defence(TinyVictim(), Returning(make))
    with pytest.raises(ContractError, match=rf"purifier Returning returned {got}, expected shape \[4, 1, 28, 28\]"):
        getattr(defence, call)(BATCH)


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_a_purifier_that_is_not_finite_is_named(number):
    defence = Defence(TinyVictim(), Returning(lambda batch: spoiled(batch, number)))
    with pytest.raises(ContractError, match=r"purifier Returning .*not finite"):
        defence.judge(BATCH)


@pytest.mark.parametrize(("number", "reach"), [(1.5, "from 0 to 1.5"), (-0.25, "from -0.25 to 1")])
def test_a_purifier_outside_the_range_is_named(number, reach):
    defence = Defence(TinyVictim(), Returning(lambda batch: spoiled(batch, number)))
    with pytest.raises(ContractError, match=rf"purifier Returning returned values {reach}, expected \[0,1\]"):
        defence.judge(BATCH)


def test_a_stage_goes_by_its_own_name():
    purifier = Returning(lambda batch: batch + 2)
    purifier.stage_name = "sharpener"
    with pytest.raises(ContractError, match="purifier sharpener"):
        Defence(TinyVictim(), purifier).judge(BATCH)


def test_rounding_outside_the_range_is_clipped():
    verdict = Defence(TinyVictim(), Returning(lambda batch: batch * (1 + 4e-6) - 2e-6)).judge(BATCH)
    assert verdict.purified.min() == 0 and verdict.purified.max() == 1


@pytest.mark.parametrize(
    "make",
    [
        lambda batch: batch.flatten(1).mean(),
        lambda batch: batch.flatten(1).mean(1, keepdim=True),
        lambda batch: spoiled(batch, math.nan).flatten(1).mean(1),
    ],
    ids=["one for all", "a column", "NaN"],
)
def test_a_detector_without_one_finite_score_an_image_is_named(make):
    with pytest.raises(ContractError, match="detector Scoring must return one finite score an image"):
        Defence(TinyVictim(), detector=Scoring(make)).judge(BATCH)


def test_a_victim_whose_logits_are_not_finite_is_named():
    victim = Returning(lambda batch: torch.full((len(batch), 10), math.nan))
    with pytest.raises(ContractError, match="victim Returning returned logits that are not finite"):
        Defence(victim).judge(BATCH)


# The faster copy


def conv_net():
    """Convolutions with batch norms that have seen data, so that folding has something to fold."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(
            nn.Conv2d(1, 6, 3, padding=1, bias=False),
            nn.BatchNorm2d(6),
            nn.ReLU(),
            nn.Conv2d(6, 8, 3, stride=2),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(3),
            nn.Flatten(),
            nn.Linear(72, 10),
        )
        for part in net:
            if isinstance(part, nn.BatchNorm2d):
                nn.init.uniform_(part.weight, 0.5, 2)
                nn.init.normal_(part.bias)
                nn.init.normal_(part.running_mean)
                nn.init.uniform_(part.running_var, 0.5, 3)
    return net.eval()


class Branching(nn.Module):
    """What torch.fx cannot trace: the way through depends on the numbers."""

    def __init__(self):
        super().__init__()
        self.body = conv_net()

    def forward(self, batch):
        return self.body(batch) if batch.sum() > 0 else self.body(-batch)


def input_gradient(module):
    batch = BATCH.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(module(batch).square().sum(), batch)
    return gradient


def test_folding_changes_neither_logits_nor_gradients():
    net = conv_net()
    folded, done = fold_batch_norm(net, BATCH)
    assert done and not any(isinstance(part, nn.BatchNorm2d) for part in folded.modules())
    with torch.no_grad():
        logits, answer = net(BATCH), folded(BATCH)
    slope = input_gradient(net)
    torch.testing.assert_close(answer, logits, atol=1e-5 * float(logits.abs().max()), rtol=0)
    torch.testing.assert_close(input_gradient(folded), slope, atol=1e-5 * float(slope.abs().max()), rtol=0)


def test_folding_leaves_the_module_as_it_was():
    net = conv_net()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    folded, _ = fold_batch_norm(net, BATCH)
    assert folded is not net
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert all(parameter.requires_grad for parameter in net.parameters())
    assert not any(parameter.requires_grad for parameter in folded.parameters())


def test_folding_keeps_what_the_host_reads_of_a_module():
    net = conv_net()
    net.random, net.stage_name = True, "resnet"
    folded, _ = fold_batch_norm(net, BATCH)
    assert folded.random is True and folded.stage_name == "resnet"


@pytest.mark.parametrize(
    "net", [Branching().eval(), TinyVictim().eval(), conv_net().train()], ids=["untraceable", "no norm", "training"]
)
def test_what_cannot_be_folded_comes_back_itself(net):
    same, done = fold_batch_norm(net, BATCH)
    assert same is net and done is False


def test_exact_preparation_only_freezes():
    defence = Defence(conv_net(), Gamma())
    ready, done = prepare(defence, "exact", BATCH)
    assert done == {"victim": "as built", "layout": "contiguous"}
    assert torch.equal(ready(BATCH), defence(BATCH))
    assert not any(parameter.requires_grad for parameter in ready.parameters())


@pytest.mark.parametrize("precision", ["exact", "fp32", "bf16"])
def test_preparation_leaves_the_defence_as_it_was(precision):
    defence = Defence(conv_net(), Gamma())
    before, layers = defence(BATCH).detach(), [type(module) for module in defence.modules()]
    ready, _ = prepare(defence, precision, BATCH)
    assert ready is not defence and ready.victim is not defence.victim
    assert [type(module) for module in defence.modules()] == layers
    assert torch.equal(defence(BATCH), before)
    assert all(parameter.requires_grad for parameter in defence.parameters())


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_fast_preparation_folds_the_victim_and_answers_the_same(precision):
    defence = Defence(conv_net(), Gamma(), Brightness())
    ready, done = prepare(defence, precision, BATCH)
    assert done == {"victim": "batch norm folded", "layout": "channels_last"}
    expected, verdict = defence.judge(BATCH), ready.judge(BATCH)
    assert torch.equal(verdict.labels, expected.labels) and torch.equal(verdict.accepted, expected.accepted)
    torch.testing.assert_close(verdict.logits, expected.logits, atol=1e-4, rtol=1e-4)


def test_preparation_says_when_nothing_was_folded():
    assert prepare(Defence(TinyVictim()), "fp32", BATCH)[1]["victim"] == "as built"
