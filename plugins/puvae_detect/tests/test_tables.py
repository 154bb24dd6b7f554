"""The paper's Tables 3 to 5, as this plugin declares them."""

import re
import subprocess
import sys
from importlib import resources
from pathlib import Path

import pytest

from defend.options import describe, make
from defend.plugins import registry
from defend.reproduce.jobs import MeasureSettings, jobs
from defend.reproduce.results import find_kept
from defend.values.toml import to_toml
from defend.weights.files import read_card
from defend_puvae_detect.config import ClassifierRecipe, PuvaeOptions, PuvaeRecipe
from defend_puvae_detect.tables import (
    LOSSES,
    MEASUREMENTS,
    PAPER_BUDGETS,
    REJECTING_LOSS,
    STAND_INS,
    TABLES,
    VAE_WEIGHTS,
    budgets,
)

WIDTHS = ("width", "hidden")
BY_NAME = {table.short: table for table in TABLES}
OF_OURS = {table.short: table for table in MEASUREMENTS}


def test_every_cell_of_the_paper_is_there():
    printed = {name: [value for value in table.cells.values() if value is not None] for name, table in BY_NAME.items()}
    assert {name: len(values) for name, values in printed.items()} == {"table-3": 15, "table-4": 15, "table-5": 15}
    sums = [sum(values) for values in printed.values()]
    assert sums == pytest.approx([1153.9, 972.8, 477.4])
    assert BY_NAME["table-3"].cells["FGSM", "Worst"] == 96.2
    assert BY_NAME["table-4"].cells["BIM", "None"] == 20.9
    assert BY_NAME["table-4"].cells["PGD", "Ours"] == 77.1
    assert BY_NAME["table-5"].cells["Clean", "PuVAE"] == 42.3
    assert BY_NAME["table-5"].cells["PGD", "Worst"] == 37.1
    assert not any(("Clean", "Worst") in table.cells for table in TABLES)


def test_budgets_are_those_of_the_paper_or_every_fifth():
    assert budgets(0.3, PAPER_BUDGETS)[:3] == (0.01, 0.02, 0.03) and len(budgets(0.3, PAPER_BUDGETS)) == 30
    assert BY_NAME["table-3"].arm("Worst").budgets == (0.05, 0.1, 0.15, 0.2, 0.25, 0.3) == budgets(0.3, 30)[4::5]
    assert BY_NAME["table-5"].arm("Worst").budgets == (0.01, 0.02, 0.03, 0.04, 0.05, 0.06)


def test_only_the_detector_s_arms_have_credit():
    for table in TABLES:
        assert [(arm.credit, arm.detector) for arm in table.arms] == [(False, None)] * 2 + [(True, "puvae")] * 2


@pytest.mark.parametrize("table", TABLES, ids=BY_NAME)
def test_every_run_can_be_configured(table, tmp_path):
    found = registry()
    found.find("victim", table.victim)
    for name, options in table.adaptive.options.items():
        found.find("attack", name).config(options)
    planned = list(jobs(table, MeasureSettings(out=tmp_path), table.arms, found))
    assert {(name, job.arm.name) for job in planned for name in job.attacks} == set(table.cells)
    for job in planned:
        assert to_toml(job.config)
        for name, options in job.config.options.items():
            found.find("attack", name).config(options)


@pytest.mark.parametrize("table", TABLES, ids=BY_NAME)
def test_steps_are_a_thirtieth_of_every_eps(table, tmp_path):
    worst = [
        job
        for job in jobs(table, MeasureSettings(out=tmp_path), [table.arm("Worst")], registry())
        if "PGD" in job.attacks
    ]
    assert [job.eps for job in worst] == list(table.arm("Worst").budgets)
    for job in worst:
        for attack in ("bim", "pgd"):
            options = job.config.options[attack]
            assert options["step_size"] == pytest.approx(job.eps / 30)
            assert (options["steps"], options["early_stop"]) == (40, False)


def _made(attacks, heading="{}", threat="adaptive", n=(10_000, 1_000), kind="{}", **options):
    """FGSM, BIM and PGD as the notebook makes them: 40 steps of a thirtieth of eps, none left out."""
    forty = {"steps": 40, "early_stop": False, **options}
    return [
        (heading.format(name.upper()), kind.format(name), threat, made, share, images)
        for name, made, share, images in (
            ("fgsm", options, None, n[0]),
            ("bim", forty, pytest.approx(1 / 30), n[1]),
            ("pgd", forty, pytest.approx(1 / 30), n[1]),
        )
    ] == [(one.name, one.attack, one.threat, dict(one.options), one.step_share, one.n) for one in attacks]


@pytest.mark.parametrize(
    ("name", "dataset", "victim", "eps", "scale"),
    [
        ("table-3", "mnist", "classifier_a", 0.3, 8),
        ("table-4", "fashion_mnist", "classifier_a", 0.3, 4),
        ("table-5", "cifar10", "classifier_b", 0.06, 4),
    ],
)
def test_attacks_are_made_as_the_paper_says(name, dataset, victim, eps, scale):
    table = BY_NAME[name]
    assert (table.dataset, table.victim, table.eps) == (dataset, victim, eps)
    assert {arm.victim for arm in table.arms} == {""} and {one.eps for one in table.attacks} == {None}
    assert {one.draws for one in table.attacks} == {1}  # no averaging over the noise on z
    clean, *others = table.attacks
    assert (clean.name, clean.attack, clean.n) == ("Clean", None, 10_000)
    assert _made(others[:3])
    assert _made(others[3:6], "{} on the classifier", "oblivious")
    assert _made(others[6:], f"{{}} of logits x{scale}", n=(500, 500), logit_scale=scale)


def test_attacks_of_our_measurements_are_the_same():
    rejection, saturation = OF_OURS["rejection-3"], OF_OURS["saturation-mnist"]
    assert {(table.dataset, table.victim, table.eps) for table in MEASUREMENTS} == {("mnist", "classifier_a", 0.3)}
    assert _made(rejection.attacks, "{} of the notebook", n=(100, 100), kind="{}_rejecting")
    for number, scale in enumerate((1, 8, 12, 16, 24, 32)):
        hidden = {} if scale == 1 else {"logit_scale": scale}
        assert _made(
            saturation.attacks[3 * number : 3 * number + 3], f"{{}} of logits x{scale}", n=(500, 100), **hidden
        )


def test_the_attacks_on_weights_trained_for_longer_are_literal_and_the_notebook_s():
    table = OF_OURS["training-mnist"]
    clean, *others = table.attacks
    assert (clean.attack, clean.n) == (None, 10_000)
    assert _made(others[:3], n=(500, 100), logit_scale=1.0)
    assert _made(others[3:], "{} of the notebook", n=(100, 100), kind="{}_rejecting")
    assert [dict(arm.weights) for arm in table.arms] == [
        {"victim": "+paper"},
        {"victim": "+paper", "purifier": "+rc-0.01"},
        *[{"victim": "+paper", "purifier": "+rc-0.01", "detector": "+rc-0.01"}] * 2,
    ]
    theirs = BY_NAME["table-3"].cells
    assert table.cells == {
        **{key: theirs[key] for key in theirs if key[0] == "Clean"},
        **{(name, arm): theirs[name, arm] for name in ("FGSM", "BIM", "PGD") for arm in ("None", "PuVAE")},
        **{
            (f"{name} of the notebook", arm): theirs[name, arm]
            for name in ("FGSM", "BIM", "PGD")
            for arm in ("Ours", "Worst")
        },
    }


def test_table_5_before_a_resnet20_has_the_papers_figures_beside_its_own():
    (table,), theirs = STAND_INS, BY_NAME["table-5"]
    assert (table.name, table.victim, table.dataset, table.eps) == (
        "puvae_detect/table-5-resnet20",
        "resnet20",
        "cifar10",
        0.06,
    )
    assert table.stand_in and table.needs == ("defend-dae-finetune",) and table.adaptive == theirs.adaptive
    assert [dict(arm.weights) for arm in table.arms] == [
        {},
        {"purifier": "+compact"},
        *[{"purifier": "+compact", "detector": "+compact"}] * 2,
    ]
    clean, *others = table.attacks
    assert (clean.attack, clean.n) == (None, 2_000)
    assert _made(others[:3], n=(500, 100))
    assert _made(others[3:], "{} on the classifier", "oblivious", n=(500, 100))
    saturated = {key for key in theirs.cells if "of logits" in key[0]}
    assert table.cells == {key: value for key, value in theirs.cells.items() if key not in saturated}
    assert set(table.misses) == {"None", "PuVAE", "Ours", "Worst"}


def test_the_compact_weights_of_cifar10_are_what_the_stand_in_says():
    spec = registry().find("purifier", "puvae").spec
    recipe = make(PuvaeRecipe, {key: value for key, value in spec.editions["compact"].items() if key not in WIDTHS}, "")
    assert (recipe.classifier, recipe.epochs, recipe.batch_size, recipe.lr) == ("resnet20", 8, 64, 2e-3)
    assert (recipe.schedule, recipe.rc_weight, recipe.fpr) == ("one_cycle", 1.0, 0.03)
    card = _card("purifier-puvae-cifar10+compact")
    assert {key: card.recipe[key] for key in ("classifier", "epochs", "batch_size", "lr", "schedule", "rc_weight")} == {
        key: getattr(recipe, key) for key in ("classifier", "epochs", "batch_size", "lr", "schedule", "rc_weight")
    }
    assert (card.config["width"], card.config["hidden"]) == (8, 256)


def test_every_table_says_which_cross_entropy_its_attacks_climb():
    assert all(LOSSES in table.notes for table in TABLES)
    assert REJECTING_LOSS in OF_OURS["rejection-3"].notes
    assert any(note.startswith("'PGD of logits x1' climbs") for note in OF_OURS["saturation-mnist"].notes)
    pgd = registry().find("attack", "pgd").spec.config
    assert {option.name: option.default for option in describe(pgd)}["logit_scale"] is None  # the steady form


def test_the_recipe_of_the_paper_is_the_default():
    config, recipe, classifier = PuvaeOptions(), PuvaeRecipe(), ClassifierRecipe()
    assert (config.network, config.width, config.hidden, config.latent) == ("auto", 32, 1024, None)
    assert (config.score, config.z_noise) == ("mean_pixel_rms", 0.1)
    assert (recipe.classifier, recipe.epochs, recipe.batch_size, recipe.lr) == ("classifier_a", 350, 512, 1e-3)
    assert (recipe.ce_weight, recipe.rc_weight, recipe.kl_weight, recipe.kl) == (10, 0.01, 0.1, "standard")
    assert (recipe.schedule, recipe.input_noise, recipe.threshold_rule) == ("constant", 0, "quantile")
    assert (classifier.epochs, classifier.batch_size, classifier.lr) == (64, 128, 1e-3)
    assert (classifier.schedule, classifier.weight_decay, classifier.shift) == ("constant", 0, 0)
    recipes = registry().find("purifier", "puvae").spec.recipes
    assert (recipes["mnist"]["fpr"], recipe.fpr, recipes["cifar10"]["fpr"]) == (0.001, 0.01, 0.03)
    assert "fpr" not in recipes["fashion_mnist"]
    assert (recipes["cifar10"]["epochs"], recipes["cifar10"]["batch_size"]) == (1024, 256)


def _card(name):
    return read_card(Path(str(resources.files("defend_puvae_detect.weights"))) / f"{name}.safetensors")


ON_SHIPPED = [table for table in (*TABLES[:2], *MEASUREMENTS) if not any(arm.weights for arm in table.arms)]


@pytest.mark.parametrize("table", ON_SHIPPED, ids=lambda table: table.short)
def test_a_note_says_how_the_weights_were_trained_that_were_measured(table):
    card = _card(f"purifier-puvae-{table.dataset}")
    classifier = _card(f"victim-classifier_a-{table.dataset}")
    measured = find_kept(table).weights
    assert {arm["purifier"] for arm in measured.values() if "purifier" in arm} == {card.content_sha256}
    assert {arm["victim"] for arm in measured.values()} == {classifier.content_sha256}
    (note,) = (note for note in table.notes if note.startswith(VAE_WEIGHTS))
    made = {**card.config, **card.recipe}
    usual = {option.name: option.default for config in (PuvaeOptions, PuvaeRecipe) for option in describe(config)}
    said = {name: (ours, theirs) for name, ours, theirs in re.findall(r"(\w+) ([\d.]+) \(([\d.]+)\)", note)}
    other = {name for name in made.keys() & usual.keys() if made[name] != usual[name]} - {"fpr", "schedule"}
    assert said.keys() == other
    for name in other:
        assert tuple(map(float, said[name])) == (made[name], usual[name])
    assert (made["schedule"], usual["schedule"]) == ("one_cycle", "constant") and "one cycle (constant)" in note
    theirs = {"mnist": 64, "fashion_mnist": 256}[table.dataset]
    assert note.endswith(f"classifier A saw {classifier.recipe['epochs']} epochs ({theirs})")


def test_the_paper_s_size_is_an_edition_of_both_stages():
    specs = [registry().find(stage, "puvae").spec for stage in ("purifier", "detector")]
    assert specs[0].editions == specs[1].editions
    edition = specs[0].editions["paper"]
    own = {option.name for option in describe(PuvaeOptions)}
    config = make(PuvaeOptions, {key: value for key, value in edition.items() if key in own}, "config")
    recipe = make(PuvaeRecipe, {key: value for key, value in edition.items() if key not in own}, "recipe")
    assert (config, recipe) == (PuvaeOptions(), PuvaeRecipe())
    for dataset in ("mnist", "fashion_mnist"):
        assert set(specs[0].recipes.get(dataset, {})) <= {*edition, "fpr"}  # it takes all else of the recipe back


def test_declaring_the_tables_imports_no_torch():
    code = (
        "import sys, defend_puvae_detect.plugin as p; p.defend_tables(); "
        "assert not {'torch', 'timm'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
