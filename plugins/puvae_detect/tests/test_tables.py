"""The paper's Tables 3 to 5, as this plugin declares them."""

import subprocess
import sys

import pytest

from defend.options import describe, make
from defend.plugins import registry
from defend.reproduce.jobs import MeasureSettings, jobs
from defend.values.toml import to_toml
from defend_puvae_detect.config import PuvaeOptions, PuvaeRecipe
from defend_puvae_detect.tables import PAPER_BUDGETS, TABLES, budgets

BY_NAME = {table.short: table for table in TABLES}


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
