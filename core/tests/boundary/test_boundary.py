"""What crosses the line between the host and others: checked on the way in, unwrapped on the way out, always a copy."""

import types
import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torchvision.transforms import Normalize

from defend.attacks.host import craft
from defend.attacks.iterated import Pgd
from defend.attacks.noise import Noise
from defend.attacks.options import FgsmOptions, PgdOptions
from defend.attacks.single_step import Fgsm
from defend.attacks.target import Target
from defend.defence import Defence, PurifierSequence
from defend.errors import ConfigError, ContractError, DataError, DefendError, StageError
from defend.evaluation.bpda import BackwardThrough, surrogates_of
from defend.evaluation.evaluate import EvaluationSettings, Evaluator
from defend.evaluation.plan import ArmNames, find_undone, plan
from defend.plugins import Registry
from defend.records.rows import PlannedRow
from defend.testing import rigged
from defend.testing.toys import TASK, TinyVictim, images
from defend.util.launch import place
from defend.values.run_config import RunConfig
from defend.values.threats import Threat

BATCH, LABELS = images(TASK, 4), torch.tensor([0, 3, 9, 1])


class Answering(nn.Module):
    """A victim that makes something else of its logits."""

    random = False

    def __init__(self, make):
        super().__init__()
        self.net, self.make = TinyVictim(), make

    def forward(self, batch):
        return self.make(self.net(batch))


class Making(nn.Module):
    """A purifier or detector that returns what a function makes of the images."""

    random = False
    threshold = torch.tensor(0.5)

    def __init__(self, make):
        super().__init__()
        self.make = make

    def forward(self, batch, purified=None):
        return self.make(batch)


class Acting:
    """An attack that does something, and returns the images as they then are."""

    norm = "linf"

    def __init__(self, act):
        self.act = act

    def __call__(self, target, images, labels, *, eps, keys):
        found = self.act(target, images, labels, eps, keys)
        return images if found is None else found


def pgd(module, batch=BATCH, labels=LABELS, eps=0.1):
    return craft(Pgd(PgdOptions(steps=2)), Target(module), batch, labels, eps=eps)


# What goes in


@pytest.mark.parametrize(
    ("batch", "words"),
    [
        (BATCH * 2 - 1, "reach from -1 to 1, expected \\[0,1\\]: undo the normalisation"),
        (BATCH * 255, "reach from 0 to 255, expected \\[0,1\\]: divide by 255"),
        ((BATCH * 255).byte(), "are torch.uint8.*pass images.float\\(\\) / 255"),
        ((BATCH * 255).int(), "are torch.int32"),
        (BATCH > 0.5, "are torch.bool"),
        (BATCH[0], "have shape \\[1, 28, 28\\], expected \\[B,C,H,W\\]: pass images\\[None\\]"),
        (BATCH.flatten(1), "have shape \\[4, 784\\]"),
        (torch.where(BATCH > 0.9, torch.nan, BATCH), "4 of 4 images are not finite"),
        (BATCH.index_fill(0, torch.tensor([1]), torch.inf), "1 of 4 images are not finite"),
        (BATCH.numpy(), "are ndarray, expected a tensor"),
    ],
)
def test_images_that_are_none_are_refused_before_anything_is_done_with_them(batch, words):
    defence = Defence(TinyVictim())
    for ask in (
        defence.judge,
        defence.screen,
        lambda given: pgd(defence, given),
        lambda given: pgd(TinyVictim(), given),
    ):
        with pytest.raises(DataError, match=words):
            ask(batch)


@pytest.mark.parametrize("kind", [torch.float64, torch.float16, torch.bfloat16])
def test_rounding_outside_of_the_box_is_clipped_in_every_type(kind):
    batch = (BATCH.to(kind) * (1 + torch.finfo(torch.float32).eps)).to(kind)
    purified = Defence(nn.Identity(), None).screen(batch).purified
    assert purified.dtype == kind and purified.max() <= 1
    assert Defence(nn.Identity()).screen(BATCH + 5e-6).purified.max() == 1


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (LABELS[:, None], "have shape \\[4, 1\\], expected whole numbers \\[4\\].*pass labels.flatten"),
        (F.one_hot(LABELS, 10), "have shape \\[4, 10\\].*labels.argmax\\(1\\)"),
        (F.one_hot(LABELS, 10).float(), "have shape \\[4, 10\\].*labels.argmax\\(1\\)"),
        (LABELS.float(), "are torch.float32.*labels.long"),
        (LABELS > 1, "are torch.bool"),
        (LABELS[:-1], "have shape \\[3\\], expected whole numbers \\[4\\]"),
        (LABELS[0], "have shape \\[\\]"),
        (torch.full_like(LABELS, -100), "a label is -100"),
        (LABELS + 1, "a label is 10, expected 0 to 9: victim TinyVictim tells 10 classes apart"),
        (LABELS.tolist(), "are list"),
    ],
)
@pytest.mark.parametrize("attack", [Noise(), Pgd(PgdOptions(steps=1))])
def test_labels_that_are_none_are_refused_whatever_attacks(attack, labels, words):
    for module in (Defence(TinyVictim()), TinyVictim()):
        with pytest.raises(DataError, match=words):
            craft(attack, Target(module), BATCH, labels, eps=0.1)


@pytest.mark.parametrize("kind", [torch.int32, torch.int16, torch.uint8])
def test_labels_of_other_whole_types_are_taken(kind):
    assert torch.equal(pgd(TinyVictim(), labels=LABELS.to(kind)), pgd(TinyVictim()))


def test_the_number_of_classes_costs_no_pass_of_its_own():
    module, seen = TinyVictim(), []
    module.register_forward_hook(lambda *_: seen.append(1))
    target = Target(module)
    craft(Fgsm(FgsmOptions()), target, BATCH, LABELS, eps=0.1)
    assert (len(seen), target.classes) == (1, 10)
    with pytest.raises(DataError, match=r"a label is 10"):
        craft(Noise(), target, BATCH, LABELS + 1, eps=0.1)
    assert len(seen) == 1


@pytest.mark.parametrize(
    "eps",
    [
        -0.1,
        torch.nan,
        torch.inf,
        torch.full((4, 1, 1, 1), 0.1),
        torch.full((3,), 0.1),
        "8/255",
        True,
        torch.tensor([0.1, -0.1, 0.1, 0.1]),
        torch.tensor([0.1, torch.nan, 0.1, 0.1]),
    ],
)
def test_budgets_that_are_none_are_refused(eps):
    with pytest.raises(ConfigError, match=r"eps of attack Noise .*expected one number of at least 0"):
        craft(Noise(), Target(TinyVictim()), BATCH, LABELS, eps=eps)


def test_budgets_and_keys_may_be_of_other_number_types():
    wanted = craft(Noise(), Target(TinyVictim()), BATCH, LABELS, eps=1.0, keys=torch.arange(4))
    for eps in (1, torch.tensor(1), torch.ones(4, dtype=torch.float64), torch.tensor([1.0])):
        assert torch.equal(
            craft(Noise(), Target(TinyVictim()), BATCH, LABELS, eps=eps, keys=torch.arange(4).int()), wanted
        )
    with pytest.raises(DataError, match=r"keys are torch.float32"):
        craft(Noise(), Target(TinyVictim()), BATCH, LABELS, eps=1, keys=torch.ones(4))


def test_float64_images_are_attacked_and_judged():
    defence = Defence(TinyVictim(), Making(lambda batch: batch.sqrt()))
    found = pgd(defence, BATCH.double())
    assert found.dtype == torch.float64 and (found - BATCH.double()).abs().max() <= 0.1 + 1e-12
    assert (found != BATCH).any()
    assert torch.equal(defence.judge(BATCH.double()).labels, defence.judge(BATCH).labels)
    double = TinyVictim().double()  # is not cast
    assert pgd(double, BATCH.double()).dtype == torch.float64


# What a victim answers

WRAPPED = {
    "object": lambda z: types.SimpleNamespace(logits=z),
    "dict": lambda z: {"loss": None, "logits": z},
    "one": lambda z: (z,),
    "list": lambda z: [z],
    "with more": lambda z: (z, z.mean()),
    "object in a tuple": lambda z: (types.SimpleNamespace(logits=z),),
    "map": lambda z: z[:, :, None, None],
    "half": lambda z: z.half(),
    "bfloat16": lambda z: z.bfloat16(),
    "double": lambda z: z.double(),
}


@pytest.mark.parametrize("name", WRAPPED)
def test_what_other_libraries_wrap_is_unwrapped_everywhere(name):
    module, plain = Answering(WRAPPED[name]), Defence(TinyVictim())
    wanted = plain.judge(BATCH).logits
    for logits in (
        Defence(module).judge(BATCH).logits,
        Defence(module)(BATCH),
        Defence(module).answer(BATCH)[0],
        Target(module).logits(BATCH, torch.arange(4), 0),
    ):
        assert logits.dtype in (torch.float32, torch.float64)
        torch.testing.assert_close(logits.float(), wanted, atol=0.05, rtol=0.01)
    for target in (module, Defence(module)):
        assert (pgd(target) != BATCH).any()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda z: z[:, :1], "returned \\[4, 1\\], one number an image.*return two logits"),
        (lambda z: z[:, 0], "returned \\[4\\], one number an image"),
        (lambda z: z.argmax(1), "returned torch.int64"),
        (lambda z: z > 0, "returned torch.bool"),
        (lambda z: z.to(torch.complex64), "returned torch.complex64"),
        (lambda z: z[:-1], "returned \\[3, 10\\] for 4 images"),
        (lambda z: z[:, :, None, None].expand(-1, -1, 2, 2), "returned \\[4, 10, 2, 2\\]"),
        (lambda z: {"scores": z}, "returned dict with scores"),
        (lambda z: None, "returned NoneType"),
        (lambda z: (), "returned tuple"),
        (lambda z: z.detach().numpy(), "returned ndarray"),
    ],
)
def test_an_answer_that_is_no_logits_is_refused_in_a_line_that_names_the_victim(make, words):
    module = Answering(make)
    for ask in (Defence(module).judge, Defence(module), Defence(module).answer, lambda batch: pgd(module, batch)):
        with pytest.raises(ContractError, match=f"victim Answering {words}") as caught:
            ask(BATCH)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("number", [torch.nan, torch.inf])
def test_logits_that_are_not_finite_are_refused_where_they_count(number):
    module = Answering(lambda z: z.index_fill(0, torch.tensor([2]), number))
    with pytest.raises(ContractError, match=r"not finite for 1 of 4 images"):
        Defence(module).judge(BATCH)


class FourOf:
    """A victim of the toy task with another number of logits."""

    def __new__(cls, count):
        return Answering(lambda z: torch.cat([z, z], 1)[:, :count])


@pytest.mark.parametrize("count", [3, 12])
@pytest.mark.parametrize("attacked", ["undefended", "source"])
def test_a_run_refuses_a_victim_for_another_number_of_classes(count, attacked):
    dataset = toy_digits()
    arms = {"undefended": Defence(TinyVictim()), "source": Defence(TinyVictim())}
    arms[attacked] = Defence(FourOf(count))
    keys = dataset.keys("test", 4, 0)
    evaluator = Evaluator(arms, dataset, EvaluationSettings(device=torch.device("cpu")))
    row = PlannedRow("noise", Threat("transfer", "linf", 0.1), Noise(), keys, None, attacked, ("undefended",))
    with pytest.raises(DefendError, match=f"Answering (returned {count} logits|tells {count} classes)"):
        evaluator.row(row)


def toy_digits():
    from defend.datasets.base import MemoryDataset

    pixels = (images(TASK, 20) * 255).byte()
    labels = torch.arange(20) % 10
    splits = ("train", "val", "test")
    names = [str(number) for number in range(10)]
    return MemoryDataset("digits", names, dict.fromkeys(splits, pixels), dict.fromkeys(splits, labels))


# Purifiers and detectors


@pytest.mark.parametrize("kind", [torch.float64, torch.float16])
def test_a_purifiers_output_has_the_type_of_the_images(kind):
    defence = Defence(TinyVictim(), Making(lambda batch: batch.to(kind)))
    assert defence.screen(BATCH).purified.dtype == torch.float32
    assert defence(BATCH.requires_grad_(False)).shape == (4, 10)


@pytest.mark.parametrize("make", [lambda batch: (batch * 255).byte(), lambda batch: batch.to(torch.complex64)])
def test_a_purifier_that_returns_no_floats_is_named(make):
    for defence in (
        Defence(TinyVictim(), Making(make)),
        Defence(TinyVictim(), PurifierSequence([Making(make), Making(make)])),
        Defence(TinyVictim(), BackwardThrough(Making(make), None)),
    ):
        with pytest.raises(ContractError, match=r"purifier Making returned torch"):
            defence(BATCH)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda batch: batch.flatten(1).mean(1, keepdim=True), "it returned \\[4, 1\\]"),
        (lambda batch: torch.zeros(4, dtype=torch.int64), "as floats; it returned torch.int64"),
        (lambda batch: 0.5, "it returned float"),
        (lambda batch: (batch.flatten(1).mean(1),), "it returned tuple"),
        (lambda batch: torch.tensor([0.0, torch.nan, 0.0, 0.0]), "1 of 4 are not finite"),
    ],
)
def test_scores_that_are_none_are_refused(make, words):
    defence = Defence(TinyVictim(), None, Making(make))
    with pytest.raises(ContractError, match=f"detector Making must return one finite score an image.*{words}"):
        defence.judge(BATCH)


@pytest.mark.parametrize("threshold", [None, torch.tensor([0.5, 0.5]), torch.tensor(torch.nan), "high"])
def test_a_detector_needs_a_threshold_that_is_a_number(threshold):
    detector = Making(lambda batch: batch.flatten(1).mean(1))
    detector.threshold = threshold
    with pytest.raises(ContractError, match=r"detector Making must have one number as its `threshold`"):
        Defence(TinyVictim(), None, detector).judge(BATCH)


@pytest.mark.parametrize("chosen", [None, "lighter", 3])
def test_a_detector_whose_beside_returns_no_module_is_named(chosen):
    detector = Making(lambda batch: batch.flatten(1).mean(1))
    detector.beside = lambda purifier: chosen
    with pytest.raises(ContractError, match=r"detector Making: beside\(\) returned .*expected the module"):
        Defence(TinyVictim(), None, detector)


@pytest.mark.parametrize(
    ("offered", "words"),
    [
        ({"identity": TinyVictim()}, "a surrogate called 'identity'"),
        ({"": TinyVictim()}, "a surrogate called ''"),
        ({"small": 3}, "surrogate 'small' is int"),
        (None, r"surrogates\(\) returned NoneType"),
    ],
)
def test_surrogates_that_cannot_stand_in_are_refused(offered, words):
    purifier = Making(lambda batch: batch)
    purifier.surrogates = lambda: offered
    with pytest.raises(ContractError, match=f"purifier Making.*{words}"):
        surrogates_of(purifier)


# Parts that write into what they are handed


class Normalising(nn.Module):
    """A victim whose normalisation writes into its input."""

    random = False

    def __init__(self, inplace):
        super().__init__()
        self.normalise, self.net = Normalize((0.3,), (0.9,), inplace=inplace), TinyVictim()

    def forward(self, batch):
        return self.net(self.normalise(batch))


def test_a_victim_that_writes_into_its_input_is_judged_and_attacked_as_one_that_does_not():
    tidy, writing = Normalising(False), Normalising(True)
    mine = BATCH.clone()
    same = Making(lambda batch: batch)
    for purifier in (None, same, Making(torch.sigmoid)):
        one, other = (Defence(victim, purifier).judge(mine) for victim in (tidy, writing))
        assert torch.equal(one.logits, other.logits) and torch.equal(one.purified, other.purified)
        for attack in (Fgsm(FgsmOptions()), Pgd(PgdOptions(steps=3))):
            for wrap in (lambda victim, before=purifier: Defence(victim, before), lambda victim: victim):
                found = [craft(attack, Target(wrap(victim)), mine, LABELS, eps=0.1) for victim in (tidy, writing)]
                assert torch.equal(*found)
    assert torch.equal(mine, BATCH)


def test_purifiers_and_detectors_that_write_change_nobody_elses_images():
    mine, seen = BATCH.clone(), []

    def score(batch):
        seen.append(batch.clone())
        batch.data.zero_()
        return torch.zeros(4)

    defence = Defence(TinyVictim(), PurifierSequence([rigged.Overwriting(), rigged.Overwriting()]), Making(score))
    verdict = defence.judge(mine)
    assert torch.equal(mine, BATCH) and torch.equal(seen[0], BATCH)
    assert torch.equal(verdict.purified, (BATCH * 2).round() / 2)
    defence.answer(mine)
    defence(mine)
    Defence(TinyVictim(), BackwardThrough(rigged.Overwriting(), rigged.Overwriting()))(mine)
    assert torch.equal(mine, BATCH)
    with torch.inference_mode():
        defence.judge(mine)
    assert torch.equal(mine, BATCH)


def test_an_attack_that_writes_into_what_it_is_handed_changes_only_its_own():
    mine, labels, keys, eps = BATCH.clone(), LABELS.clone(), torch.arange(4), torch.full((4,), 0.1)

    def act(target, images, labels, eps, keys):
        images.add_(0.9)
        labels.fill_(0)
        keys.fill_(7)
        eps.fill_(1.0)

    target = Target(Defence(TinyVictim()))
    found = craft(Acting(act), target, mine, labels, eps=eps, keys=keys)
    assert torch.equal(mine, BATCH) and torch.equal(labels, LABELS) and torch.equal(keys, torch.arange(4))
    assert eps.unique().tolist() == [pytest.approx(0.1)]
    assert (found - BATCH).abs().max() <= 0.1 + 1e-6
    assert target.overshoot.max() > 0.5


def test_an_attack_that_returns_no_floats_is_named():
    with pytest.raises(ContractError, match=r"attack Acting returned torch.uint8"):
        craft(Acting(lambda target, images, *_: (images * 255).byte()), Target(TinyVictim()), BATCH, LABELS, eps=0.1)


# Modes, gradients' flags, hooks and buffers


class Normed(nn.Module):
    """A victim with batch statistics and dropout."""

    random = False

    def __init__(self):
        super().__init__()
        self.norm, self.drop, self.net = nn.BatchNorm2d(1), nn.Dropout(0.5), TinyVictim()

    def forward(self, batch):
        return self.net(self.drop(self.norm(batch)))


def state(module):
    flags = [(weight.requires_grad, weight.grad is None) for weight in module.parameters()]
    buffers = {name: buffer.clone() for name, buffer in module.state_dict().items()}
    return [part.training for part in module.modules()], flags, buffers


def same(before, after):
    return before[:2] == after[:2] and all(torch.equal(value, after[2][name]) for name, value in before[2].items())


@pytest.mark.parametrize("wrap", [Defence, lambda module: module])
def test_a_module_in_training_mode_is_held_in_eval_mode_and_told(wrap):
    victim = Normed()
    module = wrap(victim).train()
    victim.drop.eval()
    wanted = pgd(wrap(victim).eval())
    module.train()
    victim.drop.eval()
    before = state(module)
    with pytest.warns(UserWarning, match=r"is in training mode.*held in eval mode"):
        found = pgd(module)
    assert torch.equal(found, wanted)
    assert same(before, state(module)) and victim.norm.training and not victim.drop.training


def test_a_module_whose_mode_changes_nothing_is_attacked_without_a_word():
    module = TinyVictim()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pgd(module)
    assert module.training


def test_judging_moves_no_buffers():
    defence = Defence(Normed()).train()
    before = state(defence)
    with pytest.warns(UserWarning, match=r"training mode"):
        one = defence.judge(BATCH)
    assert same(before, state(defence))
    assert torch.equal(one.logits, defence.eval().judge(BATCH).logits)


def backwards(target, images, labels, *_):
    for weight in target.module.parameters():
        weight.requires_grad_(True)
    F.cross_entropy(target.module(images), labels).backward()


MISCHIEF = {
    "training mode": lambda target, *_: target.module.train(),
    "moved buffers": lambda target, images, *_: (target.module.train(), target.module(images), None)[-1],
    "flipped flags": lambda target, *_: target.module.requires_grad_(False),
    "gradients": backwards,
    "replaced buffer": lambda target, *_: setattr(target.module.victim.norm, "running_mean", torch.ones(1)),
    "hidden writing": lambda target, *_: [buffer.data.fill_(3) for buffer in target.module.buffers()] and None,
    "a hook": lambda target, *_: target.module.victim.register_forward_hook(lambda *given: given[-1] * 0) and None,
    "no gradients": lambda *_: torch.set_grad_enabled(False) and None,
}


@pytest.mark.parametrize("what", MISCHIEF)
@pytest.mark.parametrize("mode", ["eval", "train"])
@pytest.mark.filterwarnings("ignore:.*training mode")
def test_nothing_that_an_attack_leaves_changed_moves_the_next_one(what, mode):
    defence = Defence(Normed())
    wanted = defence.judge(BATCH).logits
    defence.train(mode == "train")
    before = state(defence)

    def act(*given):
        MISCHIEF[what](*given)

    craft(Acting(act), Target(defence), BATCH, LABELS, eps=0.1)
    assert same(before, state(defence)) and torch.is_grad_enabled()
    assert torch.equal(defence.eval().judge(BATCH).logits, wanted)


def test_an_attack_that_changes_weights_is_refused():
    def act(target, *_):
        with torch.no_grad():
            target.module.victim.net.head.weight.mul_(2)

    with pytest.raises(ContractError, match=r"attack Acting changed weights of Defence: it may not"):
        craft(Acting(act), Target(Defence(Normed())), BATCH, LABELS, eps=0.1)


# What was asked for by name


def planned(**asked):
    """Plan the rows of a defence that is not named, as no plugin is installed."""
    config = RunConfig(victim="resnet18", **asked)
    names = {"undefended": "undefended", "defended": "defended"}
    faced = {kind: {"": "undefended"} for kind in ("noise", "oblivious")}
    faced |= {kind: {"": "defended"} for kind in ("query", "adaptive")}
    plugins = Registry(entry_points=[])
    rows = plan([ArmNames(config, names, faced)], toy_digits(), plugins)
    return rows, find_undone(config, rows, plugins)


def test_attacks_sources_and_budgets_that_no_row_uses_are_said():
    rows, left = planned(attacks=("square", "fgsm"), threats=("oblivious",), sources=("resnet20",), eps_l2=1.0)
    assert [row.name for row in rows] == ["none", "fgsm"]
    assert left == {
        "attack square": "it makes sense under query, and this run has oblivious: add --threat query",
        "source resnet20": "it is for the transfer threat, and there is no such row: add --threat transfer",
        "eps_l2": "no attack of this run has an L2 budget",
    }
    assert planned(attacks=("square", "fgsm"), threats=("oblivious", "query"))[1] == {}
    assert "attack pgd_joint" in planned(attacks=("fgsm", "pgd_joint"))[1]
    rows, left = planned(attacks=("fgsm",), threats=("query",))
    assert [row.name for row in rows] == ["none", "square", "square_l2"] and list(left) == ["attack fgsm"]


def test_a_run_in_which_nothing_named_attacks_is_none():
    with pytest.raises(ConfigError, match=r"attack square: it makes sense under query.*add --threat query"):
        planned(attacks=("square",))
    with pytest.raises(ConfigError, match=r"threat 'adaptive' has no attack"):
        planned(attacks=("square",), threats=("adaptive",))


# Launchers


@pytest.mark.parametrize(
    "said",
    [
        {"RANK": "1"},
        {"RANK": "0"},
        {"LOCAL_RANK": "1"},
        {"WORLD_SIZE": "2"},
        {"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "1"},
        {"PMI_SIZE": "4"},
        {"RANK": "2", "WORLD_SIZE": "2"},
        {"RANK": "1", "WORLD_SIZE": "1"},
        {"RANK": "one", "WORLD_SIZE": "2"},
        {"RANK": "-1", "WORLD_SIZE": "2"},
        {"RANK": "0", "WORLD_SIZE": "0"},
    ],
)
def test_a_launcher_that_contradicts_itself_is_an_error(monkeypatch, said):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    for name, value in said.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=r"the environment says .*"):
        place()


@pytest.mark.parametrize(
    ("said", "where"),
    [
        ({}, (0, 1)),
        ({"WORLD_SIZE": "1"}, (0, 1)),
        ({"RANK": "1", "WORLD_SIZE": "2"}, (1, 2)),
        ({"RANK": ""}, (0, 1)),
        ({"PMI_SIZE": "1"}, (0, 1)),
    ],
)
def test_a_launcher_says_which_process_this_is(monkeypatch, said, where):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    for name, value in said.items():
        monkeypatch.setenv(name, value)
    assert place() == where


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("stage", ["victim", "purifier"])
def test_weights_of_another_precision_say_what_to_pass(stage, kind):
    odd = (nn.Conv2d(1, 1, 3, padding=1) if stage == "purifier" else TinyVictim()).to(kind)
    defence = Defence(odd) if stage == "victim" else Defence(TinyVictim(), odd)
    what = str(kind).removeprefix("torch.")
    with pytest.raises(StageError, match=rf"its weights are {what}, and images float32: pass model\.float\(\)"):
        defence.judge(BATCH)


def test_a_network_of_lower_precision_that_casts_by_itself_is_left_to_it():
    class Casts(TinyVictim):
        def forward(self, batch):
            assert batch.dtype == torch.float32
            return super().forward(batch.half())

    assert Defence(Casts().half()).judge(BATCH).labels.shape == (4,)


def test_an_error_that_is_not_of_types_says_nothing_of_them():
    class Fails(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(1).half())

        def forward(self, batch):
            raise RuntimeError("odd")

    with pytest.raises(StageError) as error:
        Defence(Fails()).judge(BATCH)
    assert "its weights are" not in str(error.value)
