"""The paper's one result, as this plugin declares it."""

import re
import subprocess
import sys
from importlib import resources
from pathlib import Path

import pytest

from defend.options import describe
from defend.plugins import registry
from defend.reproduce.jobs import MeasureSettings, jobs
from defend.reproduce.results import find_kept
from defend.values.toml import to_toml
from defend.weights.files import read_card
from defend_vaegan.config import VaeganOptions, VaeganRecipe
from defend_vaegan.tables import ADAPTIVE_EPS, FINE_EPS, MATCHED_EPS, NEAREST_EPS, SWEPT_EPS, TABLES, WEIGHTS

FINE, TABLE = TABLES


def test_the_paper_has_two_figures_and_we_measure_more():
    row = f"FGSM {MATCHED_EPS:g}"
    assert {place: figure for place, figure in TABLE.cells.items() if figure is not None} == {
        (row, "None"): 19.64,
        (row, "Purified"): 76.24,
    }
    assert len(TABLE.cells) == len(TABLE.attacks) * len(TABLE.arms) == 8 * 4


def test_they_stand_at_one_eps_of_the_sweep():
    assert MATCHED_EPS in SWEPT_EPS and TABLE.eps == MATCHED_EPS
    swept = [attack for attack in TABLE.attacks if attack.attack == "fgsm"]
    assert tuple(attack.eps for attack in swept) == SWEPT_EPS
    assert {attack.n for attack in swept} == {2_000}


@pytest.mark.parametrize(("table", "eps", "swept"), [(TABLE, MATCHED_EPS, SWEPT_EPS), (FINE, NEAREST_EPS, FINE_EPS)])
def test_the_papers_figures_stand_where_the_kept_undefended_accuracy_is_nearest(table, eps, swept):
    kept = find_kept(table)
    undefended = {each: kept.cell(f"FGSM {each:g}", "None").ours for each in swept}
    assert min(swept, key=lambda each: abs(undefended[each] - 0.1964)) == eps
    assert {one.eps for one in kept.adaptive} == {table.eps}


def test_the_notes_say_what_was_kept():
    kept = find_kept(FINE)
    nearest, other = (kept.cell(f"FGSM {eps:g}", "None") for eps in (NEAREST_EPS, ADAPTIVE_EPS))
    assert nearest.ci95[0] < other.ours < nearest.ci95[1]  # as the note says, they cannot be told apart
    purified = kept.cell(f"FGSM {NEAREST_EPS:g}", "Purified")
    assert nearest.standing == purified.standing == "same"
    (reason,) = TABLE.misses.values()
    figures = f"at {NEAREST_EPS:g} ours are {100 * nearest.ours:.1f} and {100 * purified.ours:.1f} %"
    assert figures in reason.text and f"(n={nearest.n:,};" in reason.text
    for table in TABLES:
        assert [note for note in table.notes if "of every class its share, seed 0" in note]
        assert WEIGHTS in table.notes


def test_victim_and_attacks_are_those_that_were_chosen():
    pgd = ("PGD 0.1", "pgd", 0.1, {"steps": 20, "early_stop": False}, 1_000)
    for table, swept, n, more in ((TABLE, SWEPT_EPS, 2_000, [pgd]), (FINE, FINE_EPS, 1_000, [])):
        assert (table.dataset, table.victim) == ("fashion_mnist", "vgg16_bn")
        made = [(one.name, one.attack, table.eps_of(one), dict(one.options), one.n) for one in table.attacks]
        fgsm = [(f"FGSM {eps:g}", "fgsm", eps, {}, n) for eps in swept]
        assert made == [("Clean", None, table.eps, {}, n), *fgsm, *more]
        assert {one.threat for one in table.attacks} == {"oblivious"}
        assert {name: dict(options) for name, options in table.adaptive.options.items()} == {
            "pgd": {"steps": 20},
            "vaegan_straight": {"steps": 20, "logit_scale": 1.0},
        }


def test_the_recipe_of_the_papers_is_the_default():
    config, recipe = VaeganOptions(), VaeganRecipe()
    assert (recipe.epochs, recipe.batch_size, recipe.gamma, recipe.optimiser) == (50, 64, 1e-5, "adam")
    assert (recipe.lr, recipe.lr_last, recipe.pixel_weight, recipe.discriminate) == (2e-4, 1, 0, "samples")
    assert (recipe.equilibrium, recipe.margin, recipe.train_subset, recipe.source) == (0.68, 0.35, None, "")
    assert (config.width, config.latent, config.mode) == (1, 128, "disc_grad")
    assert (config.steps, config.step_size, config.radius, config.stop) == (20, 2 / 255, 0.3, "no_gain")
    assert (config.latent_steps, config.restarts, config.latent_lr, config.momentum) == (20, 1, 10, 0.7)
    assert config.dis_weight == 0.01


def test_a_note_says_how_the_weights_were_trained_that_were_measured():
    folder = Path(str(resources.files("defend_vaegan.weights")))
    card = read_card(folder / "purifier-vaegan-fashion_mnist.safetensors")
    for table in TABLES:
        assert find_kept(table).weights["Purified"]["purifier"] == card.content_sha256
    made = {**card.config, **card.recipe}
    usual = {**vars_of(VaeganOptions()), **vars_of(VaeganRecipe())}
    said = re.findall(r"(\w+) ([\d.]+) \(([\de.-]+)\)", WEIGHTS)
    assert {name for name, _, _ in said} == {
        name for name in made.keys() & usual.keys() if made[name] != usual[name]
    } - {"train_subset"}
    assert {name: (float(ours), float(theirs)) for name, ours, theirs in said} == {
        name: (made[name], usual[name]) for name, _, _ in said
    }
    assert f"epochs {made['epochs']} and train_subset {made['train_subset']} are the paper's" in WEIGHTS


def vars_of(options):
    return {option.name: getattr(options, option.name) for option in describe(type(options))}


def test_every_mode_is_an_arm():
    modes = [dict(arm.options.get("vaegan", {})).get("mode") for arm in TABLE.arms if arm.protected]
    default = registry().find("purifier", "vaegan").config({}).mode
    assert [mode or default for mode in modes] == ["disc_grad", "recon", "latent"]
    assert [arm.name for arm in TABLE.arms if arm.reference] == ["None"]


def test_every_run_can_be_configured(tmp_path):
    found = registry()
    for arm in TABLE.arms:
        found.find("purifier", "vaegan").config(arm.options.get("vaegan", {}))
    for attack in TABLE.attacks:
        if attack.attack:
            found.find("attack", attack.attack).config(attack.options)
    for name, options in TABLE.adaptive.options.items():
        found.find("attack", name).config(options)
    planned = list(jobs(TABLE, MeasureSettings(out=tmp_path), TABLE.arms, found))
    assert {(name, job.arm.name) for job in planned for name in job.attacks} == set(TABLE.cells)
    assert len({to_toml(job.config) for job in planned}) == len(planned)


def test_declaring_the_table_imports_no_torch():
    code = "import sys, defend_vaegan.plugin as p; p.defend_tables(); assert not {'torch', 'timm'} & set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_finer_sweep_has_the_papers_figures_at_the_eps_nearest_to_them():
    assert NEAREST_EPS in FINE_EPS and FINE.eps == ADAPTIVE_EPS and FINE.stand_in
    assert {place: figure for place, figure in FINE.cells.items() if figure is not None} == {
        (f"FGSM {NEAREST_EPS:g}", arm): figure for arm, figure in (("None", 19.64), ("Purified", 76.24))
    }
    assert {attack.n for attack in FINE.attacks} == {1_000}
