"""The gate: each check on a defence rigged to fail it, and all of them on honest ones."""

import functools
import json
import re
from types import SimpleNamespace

import attrs
import pytest
import torch
from scipy.stats import betabinom, binom
from torch import nn

from defend.attacks.detector_aware import joint
from defend.attacks.given import Replay
from defend.attacks.iterated import Pgd
from defend.attacks.noise import Noise
from defend.attacks.options import FgsmOptions, JointOptions, PgdOptions, RfgsmOptions, SquareOptions
from defend.attacks.single_step import Fgsm, Rfgsm
from defend.attacks.square import linf
from defend.checks import CHECKS, Promise, Subject, check_run, clean, label_leak
from defend.checks.climbs import convergence, known_draws
from defend.checks.common import Case, Findings, Known
from defend.checks.outcomes import TAIL, chance_of_at_least, compare, rejections
from defend.checks.probes import randomness
from defend.defence import Defence
from defend.errors import ContractError
from defend.evaluation.evaluate import EvaluationSettings, Evaluator
from defend.randomness import keyed, normal_like
from defend.records.rows import ArmRecord, PlannedRow
from defend.testing import rigged
from defend.testing.toys import Negative
from defend.values.report import Calibration
from defend.values.threats import Threat

EPS = rigged.EPS
ROWS = ("noise", "oblivious fgsm", "oblivious pgd", "adaptive fgsm", "adaptive pgd", "square")
NUMBER = {name: number for number, (name, _) in enumerate(CHECKS, start=1)}
BLIND = ("noise", "oblivious fgsm", "oblivious pgd")


@functools.cache
def toy():
    dataset = rigged.toy_dataset()
    victim = rigged.train_victim(dataset)
    return dataset, victim, rigged.adversarially_tuned(victim, dataset)


def planned(what, keys, judges, bare):
    kind, _, name = what.partition(" ")
    make = {"fgsm": lambda: Fgsm(FgsmOptions()), "pgd": lambda: Pgd(PgdOptions())}
    if kind in ("oblivious", "adaptive"):
        attacked, steps = (bare if kind == "oblivious" else "defended"), (20 if name == "pgd" else None)
        return PlannedRow(name, Threat(kind, "linf", EPS), make[name](), keys, steps, attacked, judges)
    if kind == "autoattack":
        return PlannedRow(kind, Threat("adaptive", "linf", EPS), make["pgd"](), keys, None, "defended", judges)
    if kind == "detector-aware":
        threat, attack = Threat(kind, "linf", EPS), joint(JointOptions(steps=20))
        return PlannedRow(kind, threat, attack, keys, 20, "defended", judges, aim=float(rough().threshold))
    if kind == "square":
        attack = linf(SquareOptions(queries=100))
        return PlannedRow(kind, Threat("query", "linf", EPS), attack, keys, None, "defended", judges)
    return PlannedRow("noise", Threat("noise", "linf", EPS), Noise(), keys, None, "undefended", judges)


def evaluated(arms, plans, count=100, draws=10):
    dataset, keys = toy()[0], toy()[0].keys("test", count, 0)
    bare = "tuned" if "tuned" in arms else "undefended"
    rows = [PlannedRow("none", Threat("none", "none", 0.0), None, keys, None, "undefended", tuple(arms))]
    rows += [planned(what, keys, tuple(arms), bare) if isinstance(what, str) else what for what in plans]
    evaluator = Evaluator(arms, dataset, EvaluationSettings(device=torch.device("cpu"), draws=draws, batch_size=count))
    return [evaluator.row(row) for row in rows]


def asked(defence, undefended, level="full", **more):
    dataset = toy()[0]
    count = {"basic": 8, "full": 50}[level]
    batch = next(dataset.batches("test", dataset.keys("test", count, 0), count, torch.device("cpu")))
    values = {"eps": EPS, "classes": rigged.CLASSES, "draws": 10, "steps": 10, **more}
    return Subject(
        defence=defence, undefended=undefended, images=batch.images, labels=batch.labels, keys=batch.keys, **values
    )


def gate(defence, undefended=None, plans=ROWS, level="full", tuned=False, draws=10, itself=False, **more):
    bare = undefended or (defence if itself else Defence(toy()[1]))
    arms = {"undefended": bare, "defended": defence, **({"tuned": defence} if tuned else {})}
    records = evaluated(arms, plans, draws=draws)
    checks = check_run(records, asked(defence, bare, level, draws=draws, **more), level)
    json.dumps([dict(check.numbers) for check in checks], allow_nan=False)
    assert [check.number for check in checks] == list(range(1, len(CHECKS) + 1)) and all(
        check.detail for check in checks
    )
    return {check.number: check for check in checks}


def behind(purifier, tuned=False):
    return lambda: Defence(toy()[2 if tuned else 1], purifier())


RIGGED = {
    "quantiser": (behind(rigged.Quantiser), {}, {1: "fail", 2: "fail", 3: "fail", 5: "fail", 10: "warn", 14: "fail"}),
    "detacher": (behind(rigged.Detacher), {"plans": BLIND}, {1: "fail", 5: "fail", 10: "fail"}),
    "blinder": (behind(rigged.Blinder), {}, {1: "fail", 2: "fail", 3: "fail", 5: "fail", 14: "fail"}),
    "shutter": (behind(rigged.Shutter), {}, {4: "fail"}),
    "rippler": (behind(rigged.Rippler), {}, {4: "fail"}),
    "secret randomiser": (behind(rigged.SecretRandomiser), {"level": "basic"}, {6: "fail"}),
    "randomiser, one draw": (behind(rigged.Randomiser), {"draws": 1, "level": "basic"}, {6: "fail"}),
    "randomiser, few draws": (behind(rigged.Randomiser), {"draws": 5, "level": "basic"}, {6: "warn"}),
    "optimiser": (behind(rigged.Descender, True), {"plans": ("autoattack",), "level": "basic"}, {7: "fail"}),
    "optimiser, blind": (behind(rigged.Descender, True), {"plans": BLIND, "level": "basic"}, {7: "warn"}),
    "probabilities": (lambda: Defence(rigged.Probabilities(toy()[2])), {"level": "basic"}, {7: "fail"}),
    "batch mean": (behind(rigged.BatchCentred, True), {"plans": BLIND, "level": "basic"}, {NUMBER["batch"]: "fail"}),
    "adapting": (behind(rigged.Adapting, True), {"plans": BLIND, "level": "basic"}, {NUMBER["batch"]: "fail"}),
    "label reader": (lambda: Defence(toy()[1], rigged.LabelReader(toy()[1], toy()[0])), {}, {8: "fail"}),
    "saturated": (lambda: Defence(rigged.Saturated(toy()[2])), {}, {1: "fail", 5: "fail"}),
    "unnormalised": (lambda: Defence(rigged.Unnormalised(toy()[1])), {"level": "basic", "itself": True}, {12: "fail"}),
    "reordered": (lambda: Defence(rigged.Reordered(toy()[1])), {"level": "basic", "itself": True}, {12: "fail"}),
    "roughness detector": (lambda: Defence(toy()[2], None, rough()), {"level": "basic", "plans": BLIND}, {15: "fail"}),
    "constant detector": (lambda: Defence(toy()[2], None, rigged.ConstantDetector()), {"level": "basic"}, {11: "fail"}),
}


@pytest.mark.parametrize("name", RIGGED)
def test_a_rigged_defence_is_caught(name):
    build, how, expected = RIGGED[name]
    found = gate(build(), **how)
    assert {number: found[number].status for number in expected} == expected


def test_normalisation_outside_of_the_victim_is_caught():
    victim = rigged.NeedsNegative(toy()[1])
    found = gate(Defence(victim, Negative()), Defence(victim), plans=("adaptive pgd",), level="basic")
    assert found[9].status == "fail" and "stands outside" in found[9].detail
    assert "0.0 % without the defence, 100.0 % behind it" in found[9].detail


def rough(fpr=0.05):
    images, _ = toy()[0].tensors("val")
    scores = rigged.RoughnessDetector()(images, images)
    return rigged.RoughnessDetector(float(scores.quantile(1 - fpr)))


CALIBRATION = Calibration(threshold=0.0, fpr=0.05, measured=0.05, n=100, split="val")

HONEST = {
    "no defence": (lambda: Defence(toy()[1]), {"plans": (*BLIND, "square")}),
    "adversarially tuned": (lambda: Defence(toy()[2]), {}),
    "adversarially tuned, as such": (lambda: Defence(toy()[2]), {"tuned": True}),
    "random, and attacked as such": (behind(rigged.Randomiser), {}),
    "optimises, and attacked as such": (behind(rigged.Descender, True), {}),
    "detector": (
        lambda: Defence(toy()[2], None, rough()),
        {"plans": (*ROWS, "detector-aware"), "calibration": CALIBRATION},
    ),
}


@functools.cache
def honest(name):
    build, how = HONEST[name]
    return gate(build(), **how)


@pytest.mark.parametrize("name", HONEST)
def test_an_honest_defence_passes_all_that_applies(name):
    found = honest(name)
    loud = {number: check.detail for number, check in found.items() if check.status in ("fail", "warn")}
    short = "the second half of the steps"  # the rows' attacks are short, so that this is quick; see test_sight
    detector = name == "detector"
    if detector:  # it sees any noise, and is told so
        assert "it rejects harmless noise too" in loud.pop(15)
    assert {number: said for number, said in loud.items() if short not in said} == {}
    assert [number for number, check in found.items() if check.status == "skip"] == ([16] if detector else [11, 15, 16])


def test_every_check_is_caught_by_something():
    caught = {number for _, _, expected in RIGGED.values() for number in expected}
    # 9 and 16 are caught elsewhere, the certificates by what is certified (evaluation/test_certify.py)
    assert caught | {9, 16} == set(range(1, len(CHECKS) + 1))


def test_figures_are_kept():
    found = honest("adversarially tuned")
    surface = found[10].numbers["surface"]
    assert len(surface["axis"]) == 15 and surface["axis"][7] == 0.0
    assert [len(row) for row in surface["loss"]] == [15] * 15
    assert surface["loss"][14][7] > surface["loss"][7][7] > surface["loss"][0][7]  # uphill along the gradient
    curve = found[1].numbers["probe"]
    assert curve["accuracy"][0] > 0.8 and curve["accuracy"][-1] == 0 and curve["n"] == [50] * 6
    assert found[4].numbers["accuracy"] >= found[4].numbers["restarts"]
    assert found[5].numbers["zero"] == 0 and found[5].numbers["difference_error"] < 0.05
    assert honest("random, and attacked as such")[6].numbers["known_draws"] == 0


def test_basic_says_what_it_leaves_out_and_what_it_costs():
    passes = {"forward": 0, "backward": 0}

    class Counter(nn.Module):
        random = False

        def forward(self, images):
            passes["forward"] += len(images)
            if images.requires_grad:
                images.register_hook(lambda slope: passes.update(backward=passes["backward"] + len(slope)))
            return images

    defence, bare = Defence(toy()[1], Counter()), Defence(toy()[1])
    records = evaluated({"undefended": bare, "defended": defence}, BLIND, count=8)
    passes.update(forward=0, backward=0)
    found = check_run(records, asked(defence, bare, "basic"), "basic")
    assert {check.number: check.detail for check in found if check.status == "skip"} == {
        1: "the white-box rows have one budget: give --eps several, or --checks full",
        3: "no query row: add --threat query",
        10: "needs --checks full",
        11: "no detector",
        14: "needs --checks full, or --thorough",
        15: "no detector",
        16: "nothing is certified",
    }
    assert passes["forward"] + 3 * passes["backward"] <= 60 * 8


def test_records_alone_are_judged_alone():
    bare = Defence(toy()[1])
    found = check_run(evaluated({"undefended": bare, "defended": bare}, BLIND), None, "full")
    assert [check.number for check in found if check.status != "skip"] == [2, 4, 5, 8, 9, 12]
    assert check_run([], None, "basic")[8].status == "skip"


# Records


def sweep_rows(eps, carry=None, **options):
    keys = toy()[0].keys("test", 100, 0)
    judges = ("undefended", "defended")
    return [
        PlannedRow(
            "pgd",
            Threat("adaptive", "linf", each),
            Pgd(PgdOptions(**options)),
            keys,
            20,
            "defended",
            judges,
            headline=each == EPS,
            carry=carry,
        )
        for each in eps
    ]


def test_a_sweep_in_the_rows_is_judged():
    whole = gate(Defence(toy()[2]), plans=sweep_rows((0.05, EPS, 0.3, 0.6)), level="basic")[1]
    assert whole.status == "pass" and whole.numbers["rows"]["eps"] == [0.0, 0.05, EPS, 0.3, 0.6]
    short = gate(Defence(toy()[2]), plans=sweep_rows((0.05, EPS)), level="basic")[1]
    assert short.status == "pass" and "chance" not in short.detail
    weak = gate(Defence(toy()[2]), plans=sweep_rows((0.05, EPS, 0.6), step_size=1e-4), level="basic")[1]
    assert weak.status == "fail" and "chance is 25.0 %" in weak.detail


def test_rows_that_carry_images_over_say_nothing_of_rising():
    carry = ("pgd", "defended")
    ends = gate(Defence(toy()[2]), plans=sweep_rows((0.05, EPS, 0.6), carry), level="basic")[1]
    assert ends.status == "pass" and ends.detail == "0.0 % at eps 0.6, chance is 25.0 %"
    short = gate(Defence(toy()[2]), plans=sweep_rows((0.05, EPS), carry), level="basic")[1]
    assert short.status == "skip" and "carried over" in short.detail and "before 128/255" in short.detail


class Moves:
    """Moves the first image of a batch or all of them, each pixel by a share of the budget; 0 moves none."""

    norm = "linf"

    def __init__(self, share=0.0, everyone=False):
        self.share, self.everyone = share, everyone

    def __call__(self, target, images, labels, *, eps, keys):
        size = 1 if self.norm == "linf" else images[0].numel() ** 0.5
        moved = images + self.share / size * eps.clamp_max(0.9)[:, None, None, None] * (1 - 2 * images.round())
        return moved if self.everyone else torch.cat((moved[:1], images[1:]))


def convergence_of(attack, threat="adaptive", **said):
    keys, judges = toy()[0].keys("test", 100, 0), ("undefended", "defended")
    for name, value in said.items():
        setattr(attack, name, value)
    row = PlannedRow("idle", Threat(threat, attack.norm, EPS), attack, keys, 20, "defended", judges)
    return gate(Defence(toy()[2]), plans=[row, "adaptive pgd"], level="basic")[4]


def test_who_found_no_change_at_all_is_told():
    none = convergence_of(Moves(), "query", minimal=True, nearest=True)
    assert none.status == "fail" and "idle/query of " in none.detail and "hardly attacked" in none.detail
    few = convergence_of(Moves(1.0), "query", minimal=True, nearest=True)
    assert few.status == "warn" and "idle/query of " in few.detail and "hardly attacked" in few.detail


def test_an_attack_that_moved_nothing_fails_and_one_that_moved_little_is_told():
    idle = convergence_of(Moves())
    assert idle.status == "fail" and "that were right before came back as they were" in idle.detail
    assert idle.detail.startswith("idle/adaptive: all of the ") and "pgd/adaptive" not in idle.detail
    most = convergence_of(Moves(1.0))
    assert most.status == "warn" and "that it leaves right came back as they were" in most.detail
    only_successes = convergence_of(Moves(), all_or_nothing=True)
    assert only_successes.status == "warn" and "that it leaves right came back as they were" in only_successes.detail


class Contrary(nn.Module):
    """A victim that is right of nothing."""

    def __init__(self, victim):
        super().__init__()
        self.victim = victim

    def forward(self, batch):
        return -self.victim(batch)


def test_an_attack_that_had_nothing_to_move_does_not_fail():
    """What it attacks is wrong of every image, and the defence right of most: nothing says that it does not work."""
    arms = {"undefended": Defence(Contrary(toy()[2])), "defended": Defence(toy()[2])}
    keys, judges = toy()[0].keys("test", 100, 0), ("undefended", "defended")
    idle = PlannedRow("idle", Threat("oblivious", "linf", EPS), Moves(), keys, 20, "undefended", judges)
    found = next(each for each in check_run(evaluated(arms, [idle]), None, "basic") if each.number == 4)
    assert found.status == "warn" and "that it leaves right came back as they were" in found.detail


def test_an_attack_that_used_a_part_of_its_budget_is_told():
    timid = convergence_of(Moves(0.2, everyone=True))
    assert timid.status == "warn" and "none was changed by more than 0.02 of its budget of 0.1" in timid.detail
    assert "its budget of" not in convergence_of(Moves(1.0, everyone=True)).detail


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("threat", ["adaptive", "transfer"])
def test_a_part_of_a_budget_is_told_in_both_norms_and_of_images_made_elsewhere(threat, norm):
    timid = convergence_of(Moves(0.2, everyone=True), threat, norm=norm)
    assert timid.status == "warn" and "none was changed by more than 0.02 of its budget of 0.1" in timid.detail
    assert "its budget of" not in convergence_of(Moves(1.0, everyone=True), threat, norm=norm).detail
    nearest = convergence_of(Moves(0.2, everyone=True), threat, norm=norm, strays=True)
    assert ("its budget of" in nearest.detail) == (threat == "adaptive"), "elsewhere nobody knows what is left right"


def test_a_file_made_for_a_smaller_budget_is_told():
    batch = next(toy()[0].batches("test", toy()[0].keys("test", 100, 0), 100, torch.device("cpu")))
    found = convergence_of(Replay("linf", batch.keys, (batch.images + 1 / 255).clamp_max(1)), "given")
    said = "idle/given: of the 100 images that it moved half were changed by no more than 0.00392"
    assert found.status == "warn" and said in found.detail
    images = (batch.images + 1 / 255).clamp_max(1)
    images[:3] = (batch.images[:3] + 0.1).clamp_max(1)  # which do not speak for the others
    assert said in convergence_of(Replay("linf", batch.keys, images), "given").detail
    assert "give the one they were made with" in found.detail


def test_a_budget_that_leaves_more_than_a_smaller_one_is_caught():
    broken = sweep_rows((0.3,), step_size=1e-4, random_start=False)
    found = gate(Defence(toy()[1], rigged.Descender()), plans=[*sweep_rows((EPS,)), *broken], level="basic")
    assert found[1].status == "fail" and "0.0 % at eps 0.1, 100.0 % at 0.3" in found[1].detail


def test_an_attack_that_does_not_work_on_the_victim_is_caught():
    keys, judges = toy()[0].keys("test", 100, 0), ("undefended", "defended")
    threat = Threat("oblivious", "linf", EPS)
    idle = Pgd(PgdOptions(step_size=1e-4, random_start=False))
    row = PlannedRow("idle", threat, idle, keys, 20, "undefended", judges)
    found = gate(Defence(toy()[2]), plans=[row], level="basic")[9]
    assert found.status == "fail" and "the attack does not work" in found.detail
    found = gate(Defence(toy()[2]), plans=[row, "oblivious pgd"], level="basic")[9]
    assert found.status == "warn" and "idle/oblivious leaves 100.0 %" in found.detail


def test_an_attack_that_leaves_its_budget_is_told():
    class Overshooting:
        norm = "linf"

        def __call__(self, target, images, labels, *, eps, keys):
            return images + 2 * eps.view(-1, 1, 1, 1)

    keys, judges = toy()[0].keys("test", 100, 0), ("undefended", "defended")
    row = PlannedRow("wild", Threat("adaptive", "linf", EPS), Overshooting(), keys, 1, "defended", judges)
    found = gate(Defence(toy()[2]), plans=[row], level="basic")[9]
    assert found.status == "warn" and "wild/adaptive left its budget or box on 100 of 100 images (by up to 0.1)" in (
        found.detail
    )


def test_one_image_that_only_square_fools_is_a_warning():
    def holds(places):
        class Holds(nn.Module):
            """Blind, but for some of the images, which it does not protect from random search."""

            random = False

            def __init__(self):
                super().__init__()
                self.tuned, self.plain = toy()[2], rigged.Blinder()
                weak, _ = toy()[0].tensors("test", 100)
                self.register_buffer("weak", weak[places])

            def forward(self, images):
                near = (images[:, None] - self.weak).abs().flatten(2).amax(2).amin(1) <= EPS + 1e-4
                return torch.where(near[:, None], toy()[1](self.plain(images)), self.tuned(images))

        return Defence(Holds())

    right = toy()[2](toy()[0].tensors("test", 100)[0]).argmax(1) == toy()[0].tensors("test", 100)[1]
    places = right.nonzero()[:, 0].tolist()
    for count, status in ((1, "warn"), (4, "fail")):
        found = gate(holds(places[:count]), plans=("adaptive pgd", "square"), level="basic")[3]
        assert found.status == status and found.numbers["square/query"]["only_query_fools"] == count
        assert "more restarts" in found.detail and "bpda" not in found.detail, "there is no purifier to go around"


def test_scores_that_do_not_tell_and_a_rate_that_does_not_hold_are_told():
    class Brightness(rigged.RoughnessDetector):
        def forward(self, images, purified):
            return images.flatten(1).mean(1)

    found = gate(Defence(toy()[2], None, Brightness()), level="basic", plans=BLIND)[11]
    assert found.status == "warn" and "no better than chance" in found.detail
    found = gate(Defence(toy()[2], None, rough(0.5)), level="basic", plans=BLIND, calibration=CALIBRATION)[11]
    assert found.status == "warn" and "set for 5.0 % on 100" in found.detail


def test_a_kept_threshold_is_held_to_what_it_was_set_for():
    def judged(detector, **set_on):
        kept = attrs.evolve(CALIBRATION, kept=True, dataset="mine", **set_on)
        whole = Defence(toy()[2], None, detector)
        return gate(whole, level="basic", plans=BLIND, calibration=kept)[11]

    fits, loose = rough(), rough(0.5)
    found = judged(fits)
    assert "set for 5.0 % on 100 of mine" in found.detail and found.status == "pass"
    found = judged(loose)
    assert found.status == "warn" and "set for 5.0 % on 100 of mine: more or fewer" in found.detail
    found = judged(fits, behind="blur")
    assert found.status == "warn"
    assert "set behind blur, and the detector stands behind no purifier: calibrate it there" in found.detail
    assert judged(loose, behind="blur").status == "fail"
    found = judged(fits, measured=0.0)
    assert found.status == "warn" and "rejects none of these: their highest scores are alike" in found.detail
    # an old file does not say on how many: not on fewer than can show the rate
    assert judged(fits, n=0).status == "pass"
    found = judged(loose, n=0)
    assert found.status == "warn" and "set for 5.0 % of mine: more or fewer than chance explains" in found.detail
    assert judged(fits, n=0, fpr=0.0).status == "pass", "nothing follows from a rate of none"


def test_what_an_attack_with_true_labels_leaves_is_compared_with_clean_and_predicted_ones():
    reader = Defence(toy()[1], rigged.LabelReader(toy()[1], toy()[0]))
    found = gate(reader, plans=("noise",))[8]
    assert found.status == "fail" and "the noise tells the label" in found.detail
    figures = found.numbers["FGSM"]
    assert figures["true"] > figures["clean"] and figures["n"] == 50 and "predicted" in figures


def test_a_leak_beyond_two_standard_errors_fails():
    reader = Defence(toy()[1], rigged.LabelReader(toy()[1], toy()[0]))
    records = evaluated({"undefended": Defence(toy()[1]), "defended": reader}, ("oblivious fgsm",))
    found = label_leak(records)
    assert found.status == "fail" and found.number == 8 and "labels=predicted" in found.detail


def test_what_an_attack_goes_beyond_its_budget_by_itself_it_goes_once():
    """A row names the budget with it, as APuDAE's R-FGSM goes eps and a random step."""
    attack = Rfgsm(RfgsmOptions(variant="apudae", strict_code=True))
    keys, arms = toy()[0].keys("test", 20, 0), {name: Defence(toy()[1]) for name in ("undefended", "defended")}
    row = PlannedRow("rfgsm", Threat("oblivious", "linf", EPS + 2 / 255), attack, keys, None, "undefended", tuple(arms))
    moved = evaluated(arms, [row], count=20)[1].linf
    assert EPS < float(moved.max()) <= EPS + 2 / 255 + 1e-6


# Probes that are cut up, or look twice


class Rooted(nn.Module):
    """The root of every pixel, whose slope at black is infinite; and noise, if asked for."""

    def __init__(self, random):
        super().__init__()
        self.random = random

    def forward(self, images):
        drawn = 0.01 * normal_like(images) if self.random else 0.0
        return (images.sqrt() + drawn).clamp(0, 1)


@pytest.mark.parametrize("random", [False, True])
def test_a_gradient_that_is_taken_again_inside_the_box_counts_once(random):
    subject = asked(Defence(toy()[2], Rooted(random)), Defence(toy()[2]), draws=2, steps=3, eps=EPS / 8)
    subject = attrs.evolve(subject, images=subject.images.clone())
    subject.images[:, :, :2, :2] = 0
    found = Findings()
    for probe in (convergence, known_draws):
        probe(Case([], subject, "full"), found)
    assert len(found.numbers["losses"]) == 30 and ("known_draws" in found.numbers) is random


def test_known_draws_are_those_of_the_images_at_hand(monkeypatch):
    """On a CPU large images are attacked a few at a time."""
    subject = asked(Defence(toy()[1], rigged.Randomiser()), Defence(toy()[1]), steps=3)
    whole, parts = Findings(), Findings()
    known_draws(Case([], subject, "full"), whole)
    monkeypatch.setattr("defend.attacks.target.CPU_BATCH", 7)
    known_draws(Case([], subject, "full"), parts)
    assert whole.numbers == parts.numbers and "known_draws" in whole.numbers


# What cannot be judged


def test_what_a_defence_raises_is_the_outcome():
    class Breaks(nn.Module):
        random = False

        def __init__(self, returned):
            super().__init__()
            self.returned = returned

        def forward(self, images):
            if self.returned is None:
                raise ValueError("no\nmore")
            return self.returned(images)

    bare = Defence(toy()[1])
    broken = {check.number: check for check in check_run([], asked(Defence(toy()[1], Breaks(None)), bare), "full")}
    assert broken[5].status == broken[6].status == "warn", "a skip is not told beside what another part found"
    assert broken[6].detail == "could not be judged, ValueError: no more"
    outside = Defence(toy()[1], Breaks(lambda images: images + 1))
    broken = check_run([], asked(outside, bare), "basic")
    assert broken[5].status == "fail" and "expected [0,1]" in broken[5].detail


def test_nothing_outside_decides_or_is_changed():
    bare, defence = Defence(toy()[1]), Defence(toy()[1], rigged.SecretRandomiser())
    found = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        found.append(check_run([], asked(defence, bare, "basic"), "basic"))
        assert torch.equal(torch.get_rng_state(), before)
    assert found[0] == found[1]


def test_the_watcher_hears_of_each_check():
    heard = []
    check_run([], None, "basic", heard.append)
    assert heard == [name for name, _ in CHECKS]


# The parts


def test_known_draws_are_the_judges_own():
    subject = asked(Defence(toy()[1], rigged.Randomiser()), Defence(toy()[1]), "basic", seed=5)
    with keyed(subject.keys, seed=5, stream="defender"):
        screening = subject.defence.screen(subject.images)
    with keyed(subject.keys, seed=5, stream="victim"):
        verdict = subject.defence.judge(subject.images, screening)
    whole = Known(subject.defence, subject.keys, 5)
    assert torch.equal(whole(subject.images), verdict.logits)
    assert torch.equal(whole(subject.images.repeat(2, 1, 1, 1)), verdict.logits.repeat(2, 1))


@pytest.mark.parametrize(("n", "p"), [(8, 0.25), (50, 0.05), (10_000, 0.1)])
def test_the_chance_is_scipys(n, p):
    for successes in (0, 1, n // 10, n // 4, n):
        expected = binom.sf(successes - 1, n, p)
        assert chance_of_at_least(successes, n, p) == pytest.approx(expected, rel=1e-6, abs=1e-300)


@pytest.mark.parametrize(
    ("count", "n", "fpr", "held_out"), [(11, 100, 0.05, 100), (0, 8, 0.01, 500), (40, 100, 0.3, 9)]
)
def test_the_chances_of_rejections_are_scipys(count, n, fpr, held_out):
    distribution = betabinom(n, fpr * held_out + 1, (1 - fpr) * held_out)
    expected = distribution.cdf(count), distribution.sf(count - 1)
    assert rejections(count, n, fpr, held_out) == pytest.approx(expected, rel=1e-6)


def test_two_standard_errors_are_the_normal_tail_and_pairs_are_of_common_images():
    assert pytest.approx(0.02275, abs=1e-5) == TAIL
    few = compare(dict.fromkeys(range(5), True), dict.fromkeys(range(9), False))
    assert (few.n, few.only_first, few.exceeds) == (5, 5, False)  # 1 in 32
    assert compare(dict.fromkeys(range(6), True), dict.fromkeys(range(6), False)).exceeds  # 1 in 64


def test_the_worst_part_decides_and_is_said_first():
    found = Findings()
    assert found.finding().status == "skip"
    for status in ("pass", "skip", "warn", "fail"):
        found.add(status, status)
    assert (found.finding().status, found.finding().detail) == ("fail", "fail; warn")


# 12: clean accuracy


def clean_answers(bare, labels, whole=None, accepted=None, promise=None, level="basic"):
    """Return check 12 of a clean row of made-up answers."""
    labels, n = torch.tensor(labels), len(labels)

    def arm(said, taken):
        said, taken = torch.tensor(said), torch.ones(n, dtype=torch.bool) if taken is None else torch.tensor(taken)
        return ArmRecord(said, torch.zeros(n), taken, torch.zeros(n))

    arms = {"undefended": arm(bare, None), "defended": arm(bare if whole is None else whole, accepted)}
    threat = SimpleNamespace(kind="none")
    row = SimpleNamespace(plan=SimpleNamespace(threat=threat), keys=torch.arange(n), labels=labels, arms=arms)
    subject = None if promise is None else SimpleNamespace(promise=promise)
    case, found = Case([row], subject, level), Findings()
    clean.above_chance(case, found)
    clean.as_promised(case, found)
    return found.finding()


def some_right(n, classes, count):
    """Return (answers, labels) of n images, evenly of each class, of which `count` are right."""
    labels = [index % classes for index in range(n)]
    return [label if index < count else (label + 1) % classes for index, label in enumerate(labels)], labels


@pytest.mark.parametrize(
    ("n", "classes", "count", "status"),
    [
        (100, 2, 50, "fail"),
        (100, 2, 2, "fail"),  # the classes in another order
        (100, 2, 95, "pass"),
        (100, 10, 10, "fail"),
        (100, 10, 0, "fail"),
        (100, 10, 40, "pass"),
        (25, 10, 3, "fail"),
        (25, 2, 12, "fail"),
        (8, 2, 8, "pass"),
        (4, 10, 4, "pass"),
        (8, 2, 5, "warn"),  # too few to say
        (3, 2, 3, "warn"),
        (1, 10, 0, "warn"),
    ],
)
def test_chance_is_told_from_what_so_many_images_can_show(n, classes, count, status):
    assert clean_answers(*some_right(n, classes, count)).status == status


def test_one_answer_for_everything_is_chance_however_often_it_is_right():
    labels = [0] * 90 + [1] * 10
    always = clean_answers([0] * 100, labels)
    assert always.status == "fail" and "where chance is 90.0 %" in always.detail
    assert "normalisation" in always.detail and "another order" in always.detail and "another size" in always.detail
    assert clean_answers([0] * 88 + [1] * 12, labels).status == "pass"
    assert clean_answers([0] * 100, [0] * 100).status == "warn"  # one class alone shows nothing


def test_a_defence_at_chance_fails_and_its_victim_is_not_blamed():
    answers, labels = some_right(100, 10, 95)
    blurred = clean_answers(answers, labels, whole=[3] * 100)
    assert blurred.status == "fail" and blurred.detail.startswith("the defence is right on 10.0 % of 100 clean images")
    assert "a purifier that destroys" in blurred.detail and "normalisation" not in blurred.detail
    assert clean_answers(answers, labels, accepted=[False] * 100).status == "fail"


@pytest.mark.parametrize(
    ("n", "count", "promised", "status"),
    [
        (100, 80, 0.996, "fail"),
        (100, 94, 0.996, "pass"),
        (10, 9, 0.996, "pass"),
        (10, 4, 0.9, "fail"),
        (100, 60, 0.59, "pass"),
        (100, 100, 0.03, "pass"),
        (100, 90, 99.6, "pass"),
    ],
)
def test_clean_accuracy_is_held_against_the_card(n, count, promised, status):
    answers, labels = some_right(n, 10, count)
    found = clean_answers(answers, labels, promise=Promise(promised))
    assert found.status == status and found.numbers["promised"] == promised
    if status == "fail":
        assert f"its weights' card says {100 * promised:.1f} %" in found.detail and "Usual causes" in found.detail
        elsewhere = clean_answers(answers, labels, promise=Promise(promised, same_data=False))
        assert elsewhere.status == "warn" and "of other images" in elsewhere.detail


def test_honest_answers_hardly_ever_fail_by_chance():
    generator = torch.Generator().manual_seed(0)
    for n, classes in ((10, 2), (25, 10), (100, 2)):
        failed = 0
        for _ in range(100):
            labels = torch.randint(0, classes, (n,), generator=generator)
            right = torch.rand(n, generator=generator) < 0.9
            answers = labels.where(right, (labels + 1) % classes)
            failed += clean_answers(answers.tolist(), labels.tolist(), promise=Promise(0.9)).status == "fail"
        assert failed <= 2


def test_every_arm_that_answers_for_other_classes_is_caught():
    with pytest.raises(ContractError, match="returned 5 logits an image, and toy has 4 classes"):
        gate(Defence(rigged.Background(toy()[1])), itself=True, plans=BLIND, level="basic")


# Logits of few classes, and of an unusual size


class Sized(torch.nn.Module):
    """A linear victim of so many classes, its logits of a size; noise on them, which it does not declare."""

    random = False

    def __init__(self, classes, scale, noise=0.0):
        super().__init__()
        torch.manual_seed(0)
        self.head, self.scale, self.noise = torch.nn.Linear(64, classes), scale, noise

    def forward(self, batch):
        logits = self.head(batch.flatten(1))
        return self.scale * (logits + self.noise * torch.randn_like(logits))


def probed(victim, number):
    torch.manual_seed(1)
    pictures = torch.rand(8, 1, 8, 8)
    defence = Defence(victim)
    subject = Subject(
        defence=defence,
        undefended=defence,
        images=pictures,
        labels=defence(pictures).argmax(1),
        keys=torch.arange(8),
        eps=0.05,
        classes=2,
    )
    return next(check for check in check_run([], subject, "basic") if check.number == number)


@pytest.mark.parametrize(("classes", "said"), [(2, "of two classes the difference itself"), (5, r"\(apgd_dlr\)$")])
def test_a_saturated_softmax_is_told_what_to_attack_by_its_number_of_classes(classes, said):
    found = probed(Sized(classes, 1e6), 5)
    assert found.status == "warn" and re.search(rf"attack the difference of logits.*{said}", found.detail), found.detail


@pytest.mark.parametrize("scale", [1e-7, 1.0, 1e5])
def test_noise_on_logits_of_any_size_is_noticed(scale):
    assert probed(Sized(3, scale), 6).status == "pass"
    assert probed(Sized(3, scale, noise=0.01), 6).status == "fail"


class Unmeant(Sized):
    """A class more, far behind, that is never meant; and where `mixed`, a share of the batch's mean in the others."""

    def __init__(self, behind, noise=0.0, mixed=0.0, wrong=False):
        super().__init__(6, 1.0, noise)
        self.behind, self.mixed, self.wrong = behind, mixed, wrong

    def forward(self, batch):
        logits = super().forward(batch)
        logits = logits + self.mixed * logits.mean(0)
        if self.wrong:
            away = super().forward(batch.roll(1, 3))
            logits = away + (logits - away).detach()
        return torch.cat([logits, logits[:, :1] * 0 - self.behind], 1)


@pytest.mark.parametrize("behind", [10.0, 1e4, 1e9])
def test_a_class_that_is_far_behind_hides_no_fault(behind):
    """Noise, other images and a wrong slope are small beside its logit, and decide all the same."""
    assert [probed(Unmeant(behind), number).status for number in (6, 13)] == ["pass", "pass"]
    assert "agree with" in probed(Unmeant(behind), 5).detail
    assert probed(Unmeant(behind, noise=0.02), 6).status == "fail"
    assert probed(Unmeant(behind, mixed=0.5), 13).status == "fail"
    assert "disagree" in probed(Unmeant(behind, wrong=True), 5).detail


def test_an_offset_of_all_logits_hides_no_noise():
    class Offset(Sized):
        def forward(self, batch):
            return super().forward(batch) + 1e5

    assert probed(Offset(6, 1.0), 6).status == "pass"
    assert probed(Offset(6, 1.0, noise=0.02), 6).status == "fail"


class Suspicious(nn.Module):
    """A victim, purifier or detector that draws only where an image is rough, and does not say so."""

    threshold = torch.tensor(torch.inf)

    def __init__(self, stage):
        super().__init__()
        self.stage = stage

    def forward(self, batch, purified=None):
        rough = (batch.diff(dim=-1).abs().flatten(1).mean(1) > 0.05).float()
        drawn = rough * torch.rand(len(batch))
        if self.stage == "purifier":
            return (batch + drawn.view(-1, 1, 1, 1)).clamp(0, 1)
        # of one class: what all have more decides nothing
        return drawn if self.stage == "detector" else batch.flatten(1)[:, :2] + drawn[:, None] * torch.eye(2)[:1]


@pytest.mark.parametrize("shown", ["attacked by a row", "attacked by nobody"])
@pytest.mark.parametrize("stage", ["victim", "purifier", "detector", "none"])
def test_a_defence_that_draws_only_where_it_suspects_an_attack_is_noticed(stage, shown):
    images = torch.linspace(0.2, 0.8, 64).view(1, 1, 8, 8).repeat(4, 1, 1, 1)
    parts = {"victim": nn.Flatten(), **({} if stage == "none" else {stage: Suspicious(stage)})}
    defence = Defence(**parts)
    rows, eps = [], 0.1
    if shown == "attacked by a row":  # whose budget is not that of this subject
        plan, eps = SimpleNamespace(threat=Threat("adaptive", "linf", 0.3)), 0.0
        examples = [images] * 11 + [torch.rand(3, 1, 8, 8)]  # the last row alone is suspected
        rows = [SimpleNamespace(plan=plan, example=SimpleNamespace(attacked=each)) for each in examples]
    values = {"images": images, "labels": torch.zeros(4, dtype=torch.int64), "keys": torch.arange(4)}
    subject = Subject(defence=defence, undefended=defence, eps=eps, classes=2, **values)
    found = Findings()
    randomness(Case(rows, subject, "basic"), found)
    said = found.finding()
    assert said.status == ("pass" if stage == "none" else "fail")
    if stage != "none":
        assert "5 passes over attacked images differ" in said.detail and "does not say so" in said.detail


def test_a_wrong_slope_of_tiny_logits_is_noticed():
    class Wrong(Sized):
        def forward(self, batch):
            logits = super().forward(batch)
            away = super().forward(batch.roll(1, 3))
            return away + (logits - away).detach()

    for scale in (1e-7, 1.0):
        assert "disagree" in probed(Wrong(3, scale), 5).detail
        assert "agree with" in probed(Sized(3, scale), 5).detail


def test_parts_of_a_check_see_what_those_before_them_found_and_a_crash_loses_nothing(monkeypatch):
    seen = []

    def first(case, found):
        found.numbers["n"] = 8
        found.add("pass", "all is well")

    def second(case, found):
        seen.append((len(case.subject.keys), dict(found.numbers)))
        if len(case.subject.keys) > 2:
            found.add("fail", "an attempt that is taken back")
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")
        found.add("warn", "a doubt")
        raise ValueError("no more")

    monkeypatch.setattr("defend.checks.CHECKS", (("rigged", (first, second)),))
    bare = Defence(toy()[1])
    (check,) = check_run([], asked(bare, bare), "basic")
    assert seen == [(count, {"n": 8}) for count in (50, 25, 12, 6, 3, 1)]
    assert (check.status, check.numbers) == ("warn", {"n": 8})
    assert check.detail == "a doubt; could not be judged, ValueError: no more; with 1 image, as memory ran out"
