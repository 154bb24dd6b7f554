"""The rungs of the ladder: what each attacker sees, which attacks it brings, with which budgets and options."""

import contextlib
from types import SimpleNamespace

import attrs
import pytest
import torch
from torch import nn

from defend.assembly.load import open_dataset
from defend.attacks.host import craft
from defend.attacks.target import Target
from defend.datasets.base import MemoryDataset
from defend.defence import Defence
from defend.errors import ConfigError, ContractError
from defend.evaluation.assemble import _queries
from defend.evaluation.bpda import BackwardThrough, surrogates_of
from defend.evaluation.crafting import DEFENDER, Crafter
from defend.evaluation.evaluate import EvaluationSettings, Evaluator
from defend.evaluation.plan import ArmNames, find_undone, plan
from defend.plugins import registry
from defend.randomness import keyed, normal_like, uniform_like, uniform_per_image
from defend.records.chance import OVER_PASSES, compare_chance, sum_passes
from defend.records.rows import REJECTED, PlannedRow, _join_queries, right, worst_case
from defend.testing.rigged import Randomiser
from defend.testing.toys import TASK, TinyVictim, tiny_dataset
from defend.values.run_config import RunConfig
from defend.values.threats import (
    DEFENDED,
    KNOWN_DRAWS,
    ONE_DRAW,
    THREATS,
    TUNED,
    UNDEFENDED,
    Threat,
    choose_threats,
    find_insisted,
)

FACED = {
    "noise": {"": UNDEFENDED},
    "transfer": {"other": "source other", "other behind the defence": "source behind"},
    "oblivious": {"": UNDEFENDED},
    "query": {"": DEFENDED},
    "bpda": {"identity": "bpda identity"},
    "adaptive": {"": DEFENDED},
    "detector-aware": {"": DEFENDED},
}


def planned(faced=FACED, aim=0.5, random=False, **values):
    config = RunConfig(victim="resnet18", **values)
    armed = ArmNames(
        config, {UNDEFENDED: UNDEFENDED, DEFENDED: DEFENDED}, faced, aim, frozenset({"source behind"}), random
    )
    return plan([armed], open_dataset("digits"), registry())


def named(rows):
    return [(row.name, row.threat.kind, row.variant) for row in rows[1:]]


def test_the_ladder_is_every_threat_that_fits_weakest_first():
    rows = planned(threats=("ladder",))
    assert named(rows) == [
        ("noise", "noise", ""),
        ("pgd", "transfer", "other"),
        ("pgd", "transfer", "other behind the defence"),
        ("fgsm", "oblivious", ""),
        ("pgd", "oblivious", ""),
        ("square", "query", ""),
        ("square_l2", "query", ""),
        ("pgd", "bpda", "identity"),
        ("pgd", "adaptive", ""),
        ("apgd_ce", "adaptive", ""),
        ("apgd_dlr", "adaptive", ""),
        ("apgd_ce_l2", "adaptive", ""),
        ("apgd_dlr_l2", "adaptive", ""),
        ("pgd_joint", "detector-aware", ""),
        ("pgd_selective", "detector-aware", ""),
        ("pgd_orthogonal", "detector-aware", ""),
    ]
    attacked = {(row.threat.kind, row.variant): row.attacked for row in rows[1:]}
    assert attacked["bpda", "identity"] == "bpda identity"
    assert attacked["query", ""] == attacked["adaptive", ""] == attacked["detector-aware", ""] == DEFENDED
    assert all(row.judges == (UNDEFENDED, DEFENDED) for row in rows)


def planned_bare(**values):
    """A victim without a defence: one arm, which attacks and verdicts share."""
    faced = {kind: {"": UNDEFENDED} for kind in ("noise", "oblivious", "query")}
    arm = ArmNames(RunConfig(victim="resnet18", **values), {UNDEFENDED: UNDEFENDED, DEFENDED: UNDEFENDED}, faced)
    return plan([arm], open_dataset("digits"), registry())


WHITE_BOX = ("fgsm", "pgd", "apgd_ce", "apgd_dlr", "apgd_ce_l2", "apgd_dlr_l2")


def test_a_ladder_spares_a_victim_without_a_defence_no_attack_that_knows_everything():
    rows = {row.name: row for row in planned_bare(threats=("ladder",)) if row.threat.kind == "oblivious"}
    assert tuple(rows) == WHITE_BOX
    assert rows["pgd"].steps == 20 and rows["apgd_ce"].steps == 10
    assert {len(row.keys) for row in rows.values()} == {100}
    thorough = {row.name: row for row in planned_bare(thorough=True) if row.threat.kind == "oblivious"}
    assert tuple(thorough) == (*WHITE_BOX, "apgd_t", "apgd_t_l2", "fmn", "fmn_l2")
    assert thorough["pgd"].steps == 100 and thorough["pgd"].attack._config.restarts == 5
    assert thorough["pgd"].attack._config.schedule == "constant", "falling steps are for purifiers"
    assert thorough["apgd_t"].attack._config.targets == 3
    fewer = planned_bare(thorough=True, adaptive_limit=30, adaptive_steps=7)
    assert {len(row.keys) for row in fewer if row.threat.kind == "oblivious"} == {30}
    assert {row.steps for row in fewer if row.name in ("pgd", "apgd_ce", "apgd_t", "fmn")} == {7}


def test_less_than_a_ladder_takes_what_it_took():
    assert named(planned_bare()) == [("noise", "noise", ""), ("fgsm", "oblivious", ""), ("pgd", "oblivious", "")]
    assert named(planned_bare(threats=("oblivious",))) == named(planned_bare())[1:]
    given = planned_bare(threats=("ladder",), attacks=("apgd_t",), options={"apgd_t": {"steps": 4}})
    assert [(row.name, row.steps) for row in given if row.threat.kind == "oblivious"] == [("apgd_t", 4)]


def test_what_is_set_under_a_purifiers_name_is_not_the_attacks_of_that_name():
    mixed = {"purifier": "noise,other", "options": {"noise": {"sigma": 0.1}}, "threats": ("noise",)}
    assert named(planned(**mixed)) == [("noise", "noise", "")]
    with pytest.raises(ConfigError, match="unknown option 'sigma'"):
        planned(options=mixed["options"], threats=("noise",))


def test_the_smallest_changes_are_sought_by_a_thorough_run_or_by_name_at_the_runs_own_eps():
    rows = planned(thorough=True, eps=0.1, eps_l2=1.5, sweep=(0.05, 0.2))
    own = {(row.name, row.threat.eps, row.headline) for row in rows if row.name.startswith("fmn")}
    assert own == {("fmn", 0.1, True), ("fmn_l2", 1.5, True)}
    assert "fmn" not in {row.name for row in planned(threats=("adaptive",))}
    assert named(planned(threats=("adaptive",), attacks=("fmn",))) == [("fmn", "adaptive", "")]


def test_thorough_means_the_ladder_with_what_is_recommended():
    rows = {(row.name, row.threat.kind): row for row in planned(thorough=True, attacks=None)}
    assert rows["pgd", "adaptive"].attack._config.restarts == 5
    assert rows["pgd", "adaptive"].steps == rows["pgd", "bpda"].steps == 100
    assert rows["pgd", "oblivious"].steps == 20
    assert [rows[name, "adaptive"].attack._config.targets for name in ("apgd_t", "apgd_t_l2")] == [3, 3]
    assert rows["square", "query"].steps == 5000
    assert {kind for _, kind in rows} == {"none", *THREATS} - {"given"}, "nobody gave a file"
    assert len(rows["square", "query"].keys) == 500


def test_set_wins_over_what_is_recommended():
    rows = {(row.name, row.threat.kind): row for row in planned(thorough=True, options={"pgd": {"steps": 7}})}
    assert {rows["pgd", kind].steps for kind in ("transfer", "oblivious", "bpda", "adaptive")} == {7}
    assert rows["pgd", "adaptive"].attack._config.restarts == 5


def test_a_quick_run_takes_the_cheap_rungs():
    rows = planned(faced={**FACED, "transfer": {}})
    assert named(rows) == [
        ("noise", "noise", ""),
        ("fgsm", "oblivious", ""),
        ("pgd", "oblivious", ""),
        ("pgd", "adaptive", ""),
    ]
    assert [row.steps for row in rows[3:]] == [10, 10]
    assert [len(row.keys) for row in rows] == [100, 100, 100, 100, 25]


def test_a_quick_ladder_asks_little_and_takes_fewer_images_of_what_is_costly():
    rows = {(row.name, row.threat.kind, row.variant): row for row in planned(threats=("ladder",))}
    assert rows["square", "query", ""].steps == 200
    assert rows["pgd_joint", "detector-aware", ""].steps == 10
    assert len(rows["pgd", "transfer", "other"].keys) == 100
    assert len(rows["pgd", "transfer", "other behind the defence"].keys) == 25


def stops_early(rows, name="pgd"):
    return {(row.threat.kind, row.variant): row.attack._config.early_stop for row in rows if row.name == name}


def test_what_is_judged_by_more_than_it_attacks_takes_all_its_steps():
    """An image that just fools the bare victim leaves a purifier the least there is to remove."""
    assert stops_early(planned(threats=("ladder",))) == {
        ("transfer", "other"): False,
        ("transfer", "other behind the defence"): False,
        ("oblivious", ""): False,
        ("bpda", "identity"): True,
        ("adaptive", ""): True,
    }


@pytest.mark.parametrize("name", ["apgd_ce", "apgd_dlr", "apgd_t", "bim"])
def test_so_does_every_attack_that_can_stop(name):
    rows = planned(threats=("oblivious", "adaptive"), attacks=(name,))
    assert stops_early(rows, name) == {("oblivious", ""): False, ("adaptive", ""): True}


def test_what_is_judged_by_what_it_attacks_stops_at_its_first_success():
    config = RunConfig(victim="resnet18", threats=("oblivious", "transfer"))
    bare = ArmNames(
        config,
        {UNDEFENDED: UNDEFENDED, DEFENDED: UNDEFENDED},
        {"oblivious": {"": UNDEFENDED}, "transfer": {"other": "source other"}},
    )
    rows = plan([bare], open_dataset("digits"), registry())
    assert stops_early(rows) == {("oblivious", ""): True, ("transfer", "other"): False}


def test_one_defence_among_several_arms_makes_a_shared_attack_take_all_its_steps():
    config = RunConfig(victim="resnet18", threats=("oblivious",))
    faced = {"oblivious": {"": UNDEFENDED}}
    bare = ArmNames(config, {UNDEFENDED: UNDEFENDED, DEFENDED: UNDEFENDED}, faced)
    whole = ArmNames(config, {UNDEFENDED: UNDEFENDED, DEFENDED: DEFENDED}, faced)
    assert stops_early(plan([bare, whole], open_dataset("digits"), registry())) == {("oblivious", ""): False}


@pytest.mark.parametrize("asked", [True, False])
def test_whether_to_stop_early_can_be_said(asked):
    rows = planned(threats=("ladder",), options={"pgd": {"early_stop": asked}})
    assert set(stops_early(rows).values()) == {asked}


def test_only_the_attacker_who_knows_the_detector_aims_at_a_score():
    rows = planned(threats=("ladder",), aim=0.25)
    assert {row.threat.kind for row in rows if row.aim is not None} == {"detector-aware"}
    assert {row.aim for row in rows if row.aim is not None} == {0.25}


def test_a_sweep_attacks_with_every_budget_small_ones_first():
    rows = planned(threats=("oblivious", "adaptive", "query"), attacks=("pgd",), eps=0.1, sweep=(0.02, 0.2))
    budgets = [(row.threat.kind, row.name, row.threat.eps, row.headline) for row in rows[1:]]
    assert [budget for budget in budgets if budget[0] == "oblivious"] == [
        ("oblivious", "pgd", 0.02, False),
        ("oblivious", "pgd", 0.1, True),
        ("oblivious", "pgd", 0.2, False),
    ]
    assert [budget[2:] for budget in budgets if budget[1] == "square_l2"] == [(0.1 * 28 / 4, True)]
    carried = {row.threat.kind: row.carry for row in rows if row.name in ("pgd", "square")}
    assert carried["oblivious"] is None, "a bare victim's smallest fooling image is the easiest to purify"
    assert carried["adaptive"] != carried["query"]
    assert carried["adaptive"][1] == DEFENDED


def test_the_l2_budget_can_be_given():
    rows = planned(threats=("query",), eps_l2=1.5)
    assert {row.name: row.threat.eps for row in rows[1:]} == {"square": 0.1, "square_l2": 1.5}


def test_an_attack_without_a_budget_is_no_part_of_the_headline():
    rows = planned(threats=("oblivious",), attacks=("cw", "pgd"), options={"cw": {"clip": "none"}})
    assert [(row.name, row.threat.eps, row.headline) for row in rows[1:]] == [("cw", None, False), ("pgd", 0.1, True)]


@pytest.mark.parametrize(
    ("values", "faced", "words"),
    [
        ({"threats": ("detector-aware",)}, {**FACED, "detector-aware": {}}, "needs a detector"),
        ({"threats": ("bpda",)}, {**FACED, "bpda": {}}, "needs a purifier"),
        ({"threats": ("transfer",)}, {**FACED, "transfer": {}}, "--source"),
        ({"threats": ("adaptive",), "attacks": ("noise",)}, FACED, "none of noise makes sense under it"),
        ({"threats": ("adaptve",)}, FACED, "adaptive"),
    ],
)
def test_a_threat_that_cannot_be_carried_out_is_refused(values, faced, words):
    with pytest.raises(ConfigError, match=words):
        planned(faced=faced, **values)


def test_named_attacks_leave_rungs_with_attacks_of_their_own_alone():
    rows = planned(threats=("ladder",), attacks=("bim",))
    assert {name for name, kind, _ in named(rows) if kind in ("oblivious", "transfer", "bpda", "adaptive")} == {"bim"}
    assert [name for name, kind, _ in named(rows) if kind == "query"] == ["square", "square_l2"]


def test_what_is_chosen_and_what_is_insisted_on():
    assert choose_threats(RunConfig(victim="v")) == ("noise", "transfer", "oblivious", "adaptive", "given")
    assert choose_threats(RunConfig(victim="v", thorough=True)) == tuple(THREATS)
    assert choose_threats(RunConfig(victim="v", threats=("query", "noise"))) == ("noise", "query")
    assert find_insisted(RunConfig(victim="v", threats=("ladder", "query"))) == ("query",)
    assert TUNED not in FACED["oblivious"].values()


# BPDA


class Steps(nn.Module):
    """Rounds to tenths: its gradient is zero."""

    random = False

    def forward(self, images):
        return (images * 10).round() / 10


class Doubled(nn.Module):
    def forward(self, images):
        return 2 * images


@pytest.mark.parametrize(("surrogate", "slope"), [(None, 1.0), (Doubled(), 2.0)])
def test_bpda_is_exact_forwards_and_the_surrogate_backwards(surrogate, slope):
    images = torch.rand(3, 1, 4, 4, requires_grad=True)
    made = BackwardThrough(Steps(), surrogate)(images)
    assert torch.equal(made, Steps()(images))
    weights = torch.rand_like(made)
    (gradient,) = torch.autograd.grad((weights * made).sum(), images)
    torch.testing.assert_close(gradient, slope * weights)


def test_bpda_sees_through_a_quantiser_that_masks_its_gradient():
    victim, batch = TinyVictim(), tiny_dataset(TASK).tensors("test")[0]
    keys = torch.arange(len(batch))
    labels = victim(Steps()(batch)).argmax(1)
    found = registry().find("attack", "pgd")
    attack = found.spec.resolve(found.spec.build)(found.config({"steps": 20, "random_start": False}))
    held = {}
    for name, purifier in (("exact", Steps()), ("bpda", BackwardThrough(Steps(), None))):
        target = Target(Defence(victim, purifier))
        attacked = craft(attack, target, batch, labels, eps=0.2, keys=keys)
        held[name] = int((victim(Steps()(attacked)).argmax(1) == labels).sum())
    assert held["exact"] == len(batch), "the exact gradient is zero"
    assert held["bpda"] < len(batch) / 2


def test_surrogates_are_the_identity_and_what_a_purifier_offers():
    assert surrogates_of(Steps()) == {"identity": None}
    offers, double = Steps(), Doubled()
    offers.surrogates = lambda: {"double": double}
    assert surrogates_of(offers) == {"identity": None, "double": double}
    offers.surrogates = lambda: {"double": 2}
    with pytest.raises(ContractError, match="'double' is int"):
        surrogates_of(offers)


# The evaluator


class Jitter(nn.Module):
    """Adds much noise: an image's class changes from pass to pass."""

    random = True

    def forward(self, images):
        return (images + uniform_like(images, -1, 1)).clamp(0, 1)


def evaluated(rows, purifier=None, passes=1, batch_size=64, detector=None, victim=TinyVictim, dataset=None):
    dataset = dataset or tiny_dataset(TASK)
    arms = {UNDEFENDED: Defence(victim()), DEFENDED: Defence(victim(), purifier, detector)}
    settings = EvaluationSettings(device=torch.device("cpu"), passes=passes, batch_size=batch_size, draws=2)
    evaluator = Evaluator({name: arm.requires_grad_(False) for name, arm in arms.items()}, dataset, settings)
    return [evaluator.row(row) for row in rows]


def row(name="pgd", kind="adaptive", eps=0.05, carry=None, judges=(UNDEFENDED, DEFENDED), **options):
    keys = tiny_dataset(TASK).keys("test")
    if name == "none":
        return PlannedRow("none", Threat("none", "none", 0.0), None, keys, None, UNDEFENDED, judges)
    found = registry().find("attack", name)
    attack = found.spec.resolve(found.spec.build)(found.config(options))
    return PlannedRow(name, Threat(kind, "linf", eps), attack, keys, None, DEFENDED, judges, carry=carry)


def test_an_image_fooled_with_a_small_budget_is_taken_over_to_a_larger_one():
    carry = ("pgd", DEFENDED)
    small, large = evaluated([row(eps=0.03, carry=carry, steps=5), row(eps=0.3, carry=carry, steps=5)])
    fooled = ~right(small, DEFENDED)
    assert 0 < fooled.sum() < len(fooled)
    assert torch.equal(large.linf[fooled], small.linf[fooled]), "those images are the same"
    assert (large.linf[~fooled] > 0.03).all(), "the others were attacked anew"
    assert not right(large, DEFENDED)[fooled].any()


def test_nothing_is_taken_over_against_a_random_defence():
    carry = ("pgd", DEFENDED)
    _, large = evaluated([row(eps=0.03, carry=carry, steps=2), row(eps=0.3, carry=carry, steps=2)], Jitter())
    assert (large.linf > 0.03).all()


def test_a_random_defence_is_asked_several_times():
    clean = row("none")
    (record,) = evaluated([clean], Jitter(), passes=6)
    said = record.arms[DEFENDED].passes
    assert said.shape == (len(record.keys), 6)
    assert torch.equal(said[:, 0], record.arms[DEFENDED].predicted)
    assert (said != said[:, :1]).any(), "the passes draw anew"
    assert record.arms[UNDEFENDED].passes is None
    (again,) = evaluated([clean], Jitter(), passes=6, batch_size=5)
    assert torch.equal(again.arms[DEFENDED].passes, said), "draws belong to the image"
    worst, majority = (judged()(record, DEFENDED).float().mean() for judged in OVER_PASSES.values())
    assert worst < majority
    assert worst <= right(record, DEFENDED).float().mean()


def of_chance(rows):
    return [(each.name, each.variant, each.steps, each.headline) for each in rows if each.chance]


def test_two_rows_tell_what_chance_is_worth_where_that_is_asked_for():
    asked = {"threats": ("adaptive",), "draws": 4}
    rows = planned(random=True, chance=True, **asked)
    assert of_chance(rows) == [("pgd", KNOWN_DRAWS, 10, False), ("pgd", ONE_DRAW, 40, True)]
    assert of_chance(planned(random=True, thorough=True, **asked))[1] == ("pgd", ONE_DRAW, 400, True)
    assert of_chance(planned(random=True, **asked)) == []
    assert of_chance(planned(chance=True, **asked)) == []
    told = find_undone(RunConfig(victim="resnet18", chance=True, **asked), planned(chance=True, **asked), registry())
    assert "draws no random numbers" in told["chance"]
    both = planned(random=True, chance=True, attacks=("cw", "fmn", "apgd_ce"), **asked)
    assert {name for name, *_ in of_chance(both)} == {"apgd_ce"}, "one that looks for the nearest point keeps luck"
    assert of_chance(planned(random=True, chance=True, attacks=("cw",), **asked)) == []


def test_what_is_asked_of_random_numbers_alone_is_told_where_there_are_none():
    asked = RunConfig(victim="resnet18", threats=("adaptive",), draws=5, passes=3)
    told = dict.fromkeys(("draws", "passes"), "the defence draws no random numbers")
    assert find_undone(asked, planned(threats=("adaptive",)), registry(), random=False) == told
    assert find_undone(asked, planned(threats=("adaptive",)), registry(), random=True) == {}
    plain = RunConfig(victim="resnet18", threats=("adaptive",), thorough=True)
    assert find_undone(plain, planned(threats=("adaptive",)), registry(), random=False) == {}


class Fickle(TinyVictim):
    """A victim that draws too."""

    random = True

    def forward(self, batch):
        return super().forward(batch) + 3 * normal_like(batch.flatten(1)[:, : self.head.out_features])


@pytest.mark.parametrize("victim", [TinyVictim, Fickle])
def test_who_knows_the_draws_attacks_what_will_judge(victim):
    """What she sees fooled is judged wrong, and what she does not is judged right, image by image."""
    pixels = tiny_dataset(TASK).tensors("test")[0]
    labelled = MemoryDataset("tiny", list("0123456789"), {"test": pixels}, {"test": TinyVictim()(pixels).argmax(1)})
    mild = Randomiser()
    (known,) = evaluated(
        [attrs.evolve(row(eps=0.02, steps=6), chance=KNOWN_DRAWS)], mild, victim=victim, dataset=labelled
    )
    seen = known.seen.fooled_at > 0
    assert 0 < seen.sum() < len(seen)
    assert not right(known, DEFENDED)[seen].any()
    (unknown,) = evaluated([row(eps=0.02, steps=6)], mild, victim=victim, dataset=labelled)
    assert right(known, DEFENDED).sum() <= right(unknown, DEFENDED).sum()


class Asking(nn.Module):
    """A detector whose score is what a victim says of the images, as feature squeezing's is."""

    def __init__(self, victim=None):
        super().__init__()
        self.victim, self.threshold = victim, torch.tensor(0.0)

    def with_victim(self, victim):
        return Asking(victim)

    def forward(self, batch, purified):
        return self.victim(batch)[:, 0]


def test_who_knows_the_draws_sees_the_scores_that_a_detector_gives_which_asks_a_random_victim():
    arm = Defence(Fickle(), detector=Asking())
    crafter = Crafter({DEFENDED: arm}, dataset="tiny", seed=3, draws=1, precision=None, store=None)
    target = crafter.target(attrs.evolve(row(), attacked=DEFENDED, chance=KNOWN_DRAWS))
    batch = next(tiny_dataset(TASK).batches("test", torch.arange(5), 5, torch.device("cpu")))
    with keyed(batch.keys, seed=3, stream=DEFENDER):
        judged = arm.screen(batch.images).score
    assert torch.equal(target.scores(batch.images, batch.labels, batch.keys, "any").scores, judged)


class NoStore:
    """A store that must not be asked."""

    def get(self, key):
        raise AssertionError(key)

    put = get


class Elsewhere(torch.Tensor):
    """Images that say they are on a device that this machine lacks."""

    kind = "cpu"

    @property
    def device(self):
        return torch.device(self.kind)


def test_no_two_kinds_of_device_share_images():
    crafter = Crafter({UNDEFENDED: Defence(TinyVictim())}, dataset="tiny", seed=0, draws=1, precision=None, store=None)
    plan = attrs.evolve(row(eps=0.02, steps=1), identity="pgd", attacked=UNDEFENDED)
    batch = next(tiny_dataset(TASK).batches("test", plan.keys[:2], 2, torch.device("cpu")))
    arm, target = crafter._arms[UNDEFENDED], crafter.target(plan)

    def key(kind):
        images = batch.images.as_subclass(type("There", (Elsewhere,), {"kind": kind}))
        return crafter._key(plan, plan.attack, target, attrs.evolve(batch, images=images), arm)

    assert key("cpu") == key("cpu")
    assert len({key(kind) for kind in ("cpu", "mps", "xpu")}) == 3


@pytest.mark.parametrize("chance", [KNOWN_DRAWS, ONE_DRAW])
def test_rows_of_chance_share_no_images(chance):
    """With one draw the attack is the same in name, options and draws, and knows another thing."""
    arms = {UNDEFENDED: Defence(Fickle()), DEFENDED: Defence(Fickle())}
    crafter = Crafter(arms, dataset="tiny", seed=0, draws=1, precision=None, store=NoStore())
    plan = attrs.evolve(row(eps=0.02, steps=1), identity="pgd", chance=chance)
    batch = next(tiny_dataset(TASK).batches("test", plan.keys[:2], 2, torch.device("cpu")))
    made = crafter.make(plan, plan.attack, crafter.target(plan), batch)
    assert made.images.shape == batch.images.shape and not made.reused


class Scaled(nn.Module):
    """A factor for each image, drawn anew in each pass."""

    random = True

    def forward(self, images):
        factors = uniform_per_image(images, 0.2, 1.0).view(-1, 1, 1, 1)
        self.factors = factors
        return images * factors


def test_a_surrogate_gets_the_purifiers_own_draws():
    """Those of another pass would take the gradient of another defence: with shifts and sizes, at other pixels."""
    purifier, surrogate = Scaled(), Scaled()
    images = torch.rand(4, 1, 4, 4).requires_grad_()
    for surroundings in (keyed(torch.arange(4), seed=0, stream="x"), contextlib.nullcontext()):
        with surroundings:
            answer = BackwardThrough(purifier, surrogate)(images)
            after = uniform_per_image(images)
        (gradient,) = torch.autograd.grad(answer.sum(), images)
        assert torch.equal(gradient, purifier.factors.expand_as(images))
        assert not torch.equal(after, (purifier.factors.flatten() - 0.2) / 0.8), "what follows has draws of its own"


def test_images_that_began_at_other_images_are_not_shared():
    """HopSkipJump looks for its starts among held-out images, which the caller may choose."""
    kept, victim = {}, TinyVictim()

    class Kept:
        get = staticmethod(kept.get)

        def put(self, key, tensors, about):
            kept[key] = tensors

    plan = attrs.evolve(row(eps=0.02, steps=1), identity="pgd")
    batch = next(tiny_dataset(TASK).batches("test", plan.keys[:2], 2, torch.device("cpu")))
    reused = []
    for others in (None, batch.images[:1], batch.images[:1].clone(), batch.images[1:]):
        crafter = Crafter(
            dict.fromkeys((UNDEFENDED, DEFENDED), Defence(victim)),
            dataset="tiny",
            seed=0,
            draws=1,
            precision=None,
            store=Kept(),
        )
        target = crafter.target(plan)
        target.others = others
        reused.append(crafter.make(plan, plan.attack, target, batch).reused)
    assert reused == [0, 0, 2, 0]


def test_what_averaging_bought_is_counted_on_the_same_images():
    steps = {"eps": 0.1, "steps": 6}
    rows = [row(**steps), attrs.evolve(row(**steps), chance=KNOWN_DRAWS, variant=KNOWN_DRAWS)]
    rows.append(attrs.evolve(row(**{**steps, "steps": 12}), chance=ONE_DRAW, variant=ONE_DRAW))
    records = evaluated(rows, Jitter())
    found = compare_chance(records, draws=2)
    averaged, known, single = (right(each, DEFENDED).double().mean() for each in records)
    assert found["averaged"]["accuracy"] == averaged and found["known_draws"]["accuracy"] == known
    assert found["bought"]["difference"] == pytest.approx(float(single - averaged))
    assert found["hidden"]["difference"] == pytest.approx(float(averaged - known))
    assert compare_chance(records[:2], draws=2) is None


def test_worst_and_majority_by_hand():
    (record,) = evaluated([row("none")])
    labels = torch.tensor([4, 4, 4, 4])
    passes = torch.tensor([[4, 4, 4, 4, 4], [4, 4, 3, 3, 2], [REJECTED, 4, REJECTED, REJECTED, 4], [4, 4, 4, 1, 1]])
    one = attrs.evolve(record.arms[DEFENDED], passes=passes, predicted=passes[:, 0].clamp_min(0))
    record = attrs.evolve(record, labels=labels, arms={DEFENDED: one})
    assert OVER_PASSES["worst"]()(record, DEFENDED).tolist() == [True, False, False, False]
    assert OVER_PASSES["majority"]()(record, DEFENDED).tolist() == [True, False, False, True]


def test_the_curve_over_passes_has_the_clean_images_beside_it():
    (record,) = evaluated([row("none")])
    keys, labels = torch.tensor([7, 5, 9]), torch.tensor([4, 4, 4])

    def asked(passes, keys=keys):
        arm = attrs.evolve(record.arms[DEFENDED], passes=torch.tensor(passes), predicted=torch.tensor(passes)[:, 0])
        return attrs.evolve(record, arms={DEFENDED: attrs.evolve(arm, accepted=labels > 0)}, keys=keys, labels=labels)

    attacked = asked([[4, 1, 1], [4, 4, 1], [1, 4, 4]])
    clean = asked([[4, 4, 4], [4, 4, 4], [4, 4, 1]], keys=torch.tensor([9, 7, 11]))
    found = sum_passes([attacked], clean)
    assert found["n"] == 3 and found["one_shot"]["accuracy"] == pytest.approx(2 / 3)
    worst, majority = ([point[name]["accuracy"] for point in found["curve"]] for name in ("worst", "majority"))
    assert [point["n"] for point in found["curve"]] == [1, 2, 3]
    assert worst == pytest.approx([2 / 3, 1 / 3, 0]) and worst[-1] == found["worst"]["accuracy"]
    assert majority == pytest.approx([2 / 3, 1 / 3, 2 / 3]), "of two answers the smaller one wins"
    assert [point["worst"]["accuracy"] for point in found["clean"]] == [1, 1, 1], "of the same images alone"
    assert sum_passes([record], clean) is None


def test_examples_show_failures_first():
    (record,) = evaluated([row(eps=0.04, steps=5)], batch_size=5)
    example = record.example
    wrong = (example.predicted[DEFENDED] != example.labels).tolist()
    assert wrong == sorted(wrong, reverse=True)
    assert 0 < sum(wrong) <= 4
    assert len(wrong) <= 8
    places = [record.keys.tolist().index(key) for key in example.keys.tolist()]
    torch.testing.assert_close((example.attacked - example.clean).abs().flatten(1).amax(1), record.linf[places])


def test_overshoot_is_recorded():
    class Beyond:
        norm = "linf"

        def __call__(self, target, images, labels, *, eps, keys):
            return images + 2 * eps.view(-1, 1, 1, 1)

    planned = attrs.evolve(row(), attack=Beyond(), threat=Threat("adaptive", "linf", 0.1))
    (record,) = evaluated([planned])
    assert (record.overshoot > 0.09).all()
    assert (record.linf <= 0.1 + 1e-6).all()


def test_a_batch_of_which_nothing_was_asked_hides_no_counts():
    """Smaller budgets had fooled all of it; its images are no part of the summary."""
    asked, carried = SimpleNamespace(keys=torch.arange(2), queries=torch.tensor([5, 7])), torch.arange(2, 5)
    counted = _join_queries([asked, SimpleNamespace(keys=carried, queries=None)])
    assert counted.tolist() == [5, 7, 0, 0, 0]
    assert _queries(counted) == {"mean": 6.0, "median": 5.0, "max": 7.0}
    assert _join_queries([SimpleNamespace(keys=carried, queries=None)]) is None


def test_queries_are_recorded_and_those_of_images_taken_over_are_none():
    carry = ("square", DEFENDED)
    small, large = evaluated(
        [row("square", "query", eps=0.05, carry=carry, queries=30), row("square", "query", 0.2, carry, queries=30)]
    )
    fooled = ~right(small, DEFENDED)
    assert fooled.any()
    assert (small.queries[~fooled] == 30).all()
    assert (large.queries[fooled] == 0).all()


def test_the_worst_case_may_be_judged_over_passes():
    (record,) = evaluated([row("none")], Jitter(), passes=4)
    keys, held = worst_case([record], DEFENDED, OVER_PASSES["worst"]())
    assert keys.tolist() == sorted(record.keys.tolist())
    assert int(held.sum()) == int(OVER_PASSES["worst"]()(record, DEFENDED).sum())


def test_an_attack_of_a_family_is_named_with_it():
    rows = planned(
        threats=("oblivious",),
        attacks=("foolbox:LinfPGD", "torchattacks:PGD"),
        options={"foolbox:LinfPGD": {"arguments": "steps=3"}},
    )
    assert [row.name for row in rows[1:]] == ["foolbox:LinfPGD", "torchattacks:PGD"]
    assert rows[1].attack._attack.steps == 3
