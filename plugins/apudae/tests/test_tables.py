"""The paper's Tables 2 to 5, as this plugin declares them."""

import subprocess
import sys
from importlib import resources
from pathlib import Path

import pytest

from defend.attacks.options import bim_steps
from defend.options import describe
from defend.plugins import registry
from defend.reproduce.jobs import MeasureSettings, jobs
from defend.reproduce.results import find_kept
from defend.values.toml import to_toml
from defend.weights.files import read_card
from defend_apudae.config import ApudaeOptions, ApudaeRecipe
from defend_apudae.tables import CW_NOTE, MEASUREMENTS, TABLES

BY_NAME = {table.short: table for table in TABLES}
COUNTS = {
    "table-2": 34,
    "table-3": 96,
    "table-3-resnet20": 96,
    "table-4": 32,
    "table-5-mnist": 5,
    "table-5-cifar10": 5,
    "table-5-imagenet": 5,
}


def printed(name):
    """The paper's own figures; None stands for a cell of ours."""
    return [figure for figure in BY_NAME[name].cells.values() if figure is not None]


def test_every_cell_of_the_paper_is_there():
    assert {name: len(table.cells) for name, table in BY_NAME.items()} == COUNTS
    assert (len(printed("table-2")), len(printed("table-3"))) == (30, 72)
    assert sum(printed("table-2")) == pytest.approx(2181.74)
    assert sum(printed("table-3")) == pytest.approx(5279.2)
    assert sum(BY_NAME["table-4"].cells.values()) == pytest.approx(2745.9)
    assert BY_NAME["table-2"].cells["PGD", "None"] == 12.94
    assert BY_NAME["table-2"].cells["FGSM", "APuDAE"] == 96.4
    assert BY_NAME["table-3"].cells["BIM", "F"] == 72.9
    assert BY_NAME["table-3"].cells["Clean", "A n=18"] == 84.3
    assert BY_NAME["table-4"].cells["BIM 25/255", "C (transform)"] == 92.9
    assert BY_NAME["table-5-mnist"].cells["A", "Best"] == 89.1
    assert BY_NAME["table-5-cifar10"].cells["B", "Best"] == 50.7


def test_the_small_edition_of_table_3_has_its_arms_and_cells():
    whole, small = BY_NAME["table-3"], BY_NAME["table-3-resnet20"]
    assert (small.arms, small.cells, small.eps) == (whole.arms, whole.cells, whole.eps)
    assert [(attack.attack, attack.options) for attack in small.attacks] == [
        (attack.attack, attack.options) for attack in whole.attacks
    ]
    assert {attack.n for attack in small.attacks} == {100}


# What the paper, its authors' script or our decision says of every attack: name, attack, threat, eps, options, images.
ALL_STEPS = {"early_stop": False}
CW = {"steps": 100, "binary_search_steps": 4, "lr": 0.1}
MINIMAL = ("CW, minimal", "cw", "oblivious")
PGD_22, BIM_10 = (
    {"steps": steps, "step_size": size, **ALL_STEPS}
    for steps, size in ((22, 0.01), (10, pytest.approx(0.00784, rel=1e-3)))
)
MNIST_MADE = [
    ("Clean", None, "oblivious", 0.1, {}, 10_000),
    ("FGSM", "fgsm", "oblivious", 0.1, {}, 10_000),
    ("R-FGSM", "rfgsm", "oblivious", 0.1, {"variant": "apudae"}, 10_000),
    ("PGD", "pgd", "oblivious", 0.1, PGD_22, 1_000),
    ("CW", "cw", "oblivious", 0.1, {**CW, "clip": "linf"}, 1_000),
    (*MINIMAL, 0.1, {**CW, "clip": "none"}, 1_000),
]
CIFAR_EPS = pytest.approx(0.0314, rel=1e-2)
CIFAR_MADE = [
    ("Clean", None, "oblivious", CIFAR_EPS, {}, 10_000),
    ("Random", "noise", "noise", CIFAR_EPS, {}, 10_000),
    ("FGSM", "fgsm", "oblivious", CIFAR_EPS, {}, 10_000),
    ("R-FGSM", "rfgsm", "oblivious", CIFAR_EPS, {"variant": "apudae"}, 10_000),
    ("BIM", "bim", "oblivious", CIFAR_EPS, BIM_10, 1_000),
    ("CW", "cw", "oblivious", CIFAR_EPS, {**CW, "clip": "linf"}, 1_000),
    (*MINIMAL, CIFAR_EPS, {**CW, "clip": "none"}, 1_000),
]
BIM_12, BIM_52 = ({"steps": steps, "step_size": 1 / 255, **ALL_STEPS} for steps in (12, 52))
IMAGENET_MADE = [
    ("Clean", None, "oblivious", 5 / 255, {}, 1_000),
    ("Random", "noise", "noise", 5 / 255, {}, 1_000),
    ("BIM 5/255", "bim", "oblivious", 5 / 255, BIM_12, 1_000),
    ("BIM 25/255", "bim", "oblivious", 25 / 255, BIM_52, 1_000),
]


def _counter(eps, options):
    literal = {**options, "logit_scale": 1.0}  # as the kept figures were measured
    return [
        ("PGD", "pgd", "oblivious", eps, options, 1_000),
        ("A", "apudae_a", "adaptive", eps, literal, 1_000),
        ("B", "apudae_b", "adaptive", eps, literal, 1_000),
    ]


MADE = {
    "table-2": ("mnist", "mlp", MNIST_MADE),
    "table-3": ("cifar10", "resnet18", CIFAR_MADE),
    "table-3-resnet20": ("cifar10", "resnet20", [(*made[:-1], 100) for made in CIFAR_MADE]),
    "table-4": ("imagenet", "resnet18", IMAGENET_MADE),
    "table-5-mnist": ("mnist", "mlp", _counter(0.1, PGD_22)),
    "table-5-cifar10": ("cifar10", "resnet18", _counter(CIFAR_EPS, BIM_10)),
    "table-5-imagenet": ("imagenet", "resnet18", _counter(5 / 255, BIM_12)),
}


@pytest.mark.parametrize("table", TABLES, ids=BY_NAME)
def test_attacks_are_made_as_they_are_said_to_be(table):
    dataset, victim, expected = MADE[table.short]
    assert (table.dataset, table.victim) == (dataset, victim)
    assert {arm.victim for arm in table.arms} == {""}
    assert [
        (one.name, one.attack, one.threat, table.eps_of(one), dict(one.options), one.n) for one in table.attacks
    ] == expected
    assert {one.draws for one in table.attacks} == {1} and {one.step_share for one in table.attacks} == {None}
    for one in table.attacks:
        if "step_size" in one.options:
            assert one.options["steps"] == bim_steps(table.eps_of(one), one.options["step_size"])


def test_arms_take_the_steps_of_the_paper_or_of_its_code():
    def options(name):
        arms = [arm for arm in BY_NAME[name].arms if arm.purifier]
        return {arm.name: dict(arm.options["apudae"]) for arm in arms}

    def row(variant, steps, **more):
        return {"variant": variant, "steps": steps, "step_size": 1 / 255, **more}

    of_a = {f"A n={steps}": row("A", steps) for steps in (12, 15, 18)}
    direct, others = {"variant": "direct"}, {letter: row(letter, 15) for letter in "BCDEFG"}
    assert (ApudaeOptions().steps, ApudaeOptions().step_size, ApudaeOptions().rule) == (15, 0.01, "auto")
    assert options("table-2") == {"Direct": direct, "APuDAE": {"variant": "A"}}
    code = {
        "A, code": row("A", 12, sigma=0.5, rule="adam"),
        "D, code": {**row("D", 16, sigma=0.5), "step_size": 2 / 255},
        "F, code": {**row("F", 13, sigma=0.5), "step_size": 2 / 255},
    }
    assert options("table-3") == {"Direct": direct, **of_a, **others, **code}
    assert options("table-4") == {"Direct": direct, **of_a, "B (noise)": row("F", 15), "C (transform)": row("G", 15)}
    assert options("table-5-mnist") == {"Direct": direct, **{letter: {"variant": letter} for letter in "ABCDEFG"}}
    for name in ("table-5-cifar10", "table-5-imagenet"):
        assert options(name) == {"Direct": direct, **{letter: row(letter, 15) for letter in "ABCDEFG"}}


def test_the_adaptive_attacker_has_both_attacks_and_their_steps_are_said():
    for table in TABLES:
        if table.adaptive is not None:
            steps = {attack: dict(options)["steps"] for attack, options in table.adaptive.options.items()}
            assert steps == {"pgd": 10 if table.stand_in else 20, "apudae_a": 40}
            assert table.adaptive.options["apudae_a"]["logit_scale"] == 1.0


def test_the_recipe_of_the_paper_is_the_default():
    recipe = ApudaeRecipe()
    assert (recipe.epochs, recipe.batch_size, recipe.lr, recipe.schedule) == (50, 128, 1e-4, "constant")
    assert (recipe.s_max, recipe.clip, recipe.crop) == (0.2, False, None)


@pytest.mark.parametrize(
    ("dataset", "table"), [("mnist", "table-2"), ("mnist", "table-5-mnist"), ("cifar10", "table-3-resnet20")]
)
def test_a_note_says_how_the_weights_were_trained_that_were_measured(dataset, table):
    folder = Path(str(resources.files("defend_apudae.weights")))
    card = read_card(folder / f"purifier-apudae-{dataset}.safetensors")
    recipe, kept = card.recipe, find_kept(BY_NAME[table])
    assert kept.weights["Direct"]["purifier"] == card.content_sha256
    (note,) = (note for note in BY_NAME[table].notes if note.startswith("the autoencoder was trained"))
    assert f"trained for {recipe['epochs']} epochs of one cycle up to {recipe['lr'] * 1e3:g}e-3" in note
    assert recipe["schedule"] == "one_cycle" and recipe["clip"] is ("clipped" in note)
    assert (recipe["s_max"] != ApudaeRecipe().s_max) is (f"s up to {recipe['s_max']:g}" in note)


def test_the_note_on_cw_says_what_ours_is():
    found = {option.name: option.default for option in describe(registry().find("attack", "cw").spec.config)}
    assert found["initial_const"] == 0.01 and found["confidence"] == 0
    said = f"{CW['binary_search_steps']} constants from 0.01 with {CW['steps']} steps of {CW['lr']} and confidence 0"
    assert f"ours is {said}" in CW_NOTE
    for table in (*TABLES, *MEASUREMENTS):
        assert (CW_NOTE in table.notes) is any(attack.attack == "cw" for attack in table.attacks)


def test_fewer_draws_are_of_the_arms_that_say_so(tmp_path):
    small = BY_NAME["table-3-resnet20"]
    arms = [arm for arm in small.arms if arm.purifier]
    planned = jobs(small, MeasureSettings(out=tmp_path), arms, registry())
    draws = {job.arm.name: job.config.draws for job in planned if job.config.threats == ("adaptive",)}
    assert draws == {arm.name: 4 if arm.name[0] in "FG" else 20 for arm in arms}


@pytest.mark.parametrize("dataset", ["mnist", "cifar10", "imagenet"])
def test_the_best_is_of_every_variant(dataset):
    assert BY_NAME[f"table-5-{dataset}"].arm("Best").best_of == tuple("ABCDEFG")


@pytest.mark.parametrize("table", TABLES, ids=BY_NAME)
def test_every_run_can_be_configured(table, tmp_path):
    found = registry()
    arms = [arm for arm in table.arms if not arm.absent and not arm.best_of]
    for arm in arms:
        for name, options in arm.options.items():
            stage, known = ("victim", table.victim) if name == "victim" else ("purifier", name)
            found.find(stage, known).config(options)
    planned = list(jobs(table, MeasureSettings(out=tmp_path), arms, found))
    owned = {(attack, each) for attack, name in table.cells for each in table.arm(name).best_of or (name,)}
    assert {(name, job.arm.name) for job in planned for name in job.attacks} == {
        (attack, name) for attack, name in owned if not table.arm(name).absent
    }
    for job in planned:
        assert to_toml(job.config)
        for name in job.config.attacks or ():
            found.find("attack", name).config(job.config.options.get(name, {}))


def test_declaring_the_tables_imports_no_torch():
    code = "import sys, defend_apudae.plugin as p; p.defend_tables(); assert not {'torch', 'timm'} & set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
