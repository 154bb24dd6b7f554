"""The paper's Tables 2 and 3, as this plugin declares them."""

import subprocess
import sys
from importlib import resources
from pathlib import Path

import pytest

from defend.plugins import registry
from defend.reproduce.jobs import MeasureSettings, jobs
from defend.reproduce.results import find_kept
from defend.values.threats import BEFORE_TUNING, DEFENDED, NO_SOURCES, TUNED
from defend.values.toml import to_toml
from defend.weights.files import read_card
from defend_dae_finetune.tables import TABLES

BY_NAME = {table.short: table for table in TABLES}


def test_every_cell_of_the_paper_is_there():
    figures = {name: [each for each in table.cells.values() if each is not None] for name, table in BY_NAME.items()}
    assert {name: len(each) for name, each in figures.items()} == {"table-2": 12, "table-2-long": 12, "table-3": 12}
    assert sum(figures["table-2"]) == pytest.approx(784.30) and sum(figures["table-3"]) == pytest.approx(881.98)
    assert BY_NAME["table-2-long"].cells == BY_NAME["table-2"].cells
    assert [table.short for table in TABLES if table.stand_in] == ["table-2-long"]
    assert BY_NAME["table-2"].cells["PGD", "Initial, no AE"] == 0.13
    assert BY_NAME["table-2"].cells["FGSM", "Tuned, AE"] == 75.38
    assert BY_NAME["table-3"].cells["FGSM", "Initial, no AE"] == 46.52
    assert BY_NAME["table-3"].cells["Regular", "Tuned, no AE"] == 92.13


@pytest.mark.parametrize("table", TABLES, ids=BY_NAME)
def test_tuned_columns_are_transfer_and_are_attacked_anew_beside(table):
    arms = {arm.name: (arm.threat, arm.variant, arm.judged) for arm in table.arms if arm.finetune}
    assert arms == {
        "Tuned, no AE": ("transfer", BEFORE_TUNING, TUNED),
        "Tuned, AE": ("transfer", BEFORE_TUNING, DEFENDED),
        "Tuned, no AE, attacked anew": ("", "", TUNED),
        "Tuned, AE, attacked anew": ("", "", DEFENDED),
    }
    assert {figure for (_, arm), figure in table.cells.items() if arm.endswith("attacked anew")} == {None}


@pytest.mark.parametrize("table", TABLES, ids=BY_NAME)
def test_the_papers_figures_are_of_its_own_attacks_and_white_box_ones_stand_beside(table):
    made_by = {attack.name: (attack.attack, dict(attack.options)) for attack in table.attacks}
    pgd = {"steps": 10, "step_size": 0.01, "early_stop": False}
    assert made_by == {
        "Regular": (None, {}),
        "FGSM": ("fgsm_unnormalised", {}),
        "PGD": ("pgd_unnormalised", pgd),
        "FGSM, white-box": ("fgsm", {}),
        "PGD, white-box": ("pgd", pgd),
    }
    assert [attack.n for attack in table.attacks] == [10_000, 10_000, 1_000, 10_000, 1_000]
    assert {attack.threat for attack in table.attacks} == {"oblivious"}
    assert {table.eps_of(attack) for attack in table.attacks} == {8 / 255} and table.dataset == "cifar10"
    assert table.victim == ("se_preresnet56" if table.short == "table-3" else "resnet20")
    assert {arm.victim for arm in table.arms} == {""} and not any(arm.options for arm in table.arms)
    assert {attack for (attack, _), figure in table.cells.items() if figure is not None} == {"Regular", "FGSM", "PGD"}
    arms = {arm.name for arm in table.arms}
    assert {arm for attack, arm in table.cells if attack.endswith("white-box")} == arms


def test_each_table_s_autoencoder_learned_the_attacks_on_its_victim():
    folder = Path(str(resources.files("defend_dae_finetune.weights")))
    for table, mark in ((BY_NAME["table-2"], ""), (BY_NAME["table-3"], "+se_preresnet56")):
        card = read_card(folder / f"purifier-dae-cifar10{mark}.safetensors")
        assert card.recipe["victim"] == table.victim
        assert find_kept(table).weights["Initial, AE"]["purifier"] == card.content_sha256
        asked = {arm.weights.get("purifier", "") for arm in table.arms if arm.purifier}
        assert asked == {mark}
    editions = registry().find("purifier", "dae").spec.editions
    assert editions["se_preresnet56"] == {"victim": "se_preresnet56"}


def test_resnet20_is_tuned_on_the_mix():
    finetuner = registry().find("finetuner", "dae").spec
    assert finetuner.recipe(**finetuner.editions["mix"]).schedule == "mix"
    assert finetuner.recipe(**finetuner.editions["long"]).schedule == "mix"
    asked = {
        name: {dict(arm.weights).get("finetuner") for arm in table.arms if arm.finetune}
        for name, table in BY_NAME.items()
    }
    assert asked == {"table-2": {"+mix"}, "table-2-long": {"+long"}, "table-3": {"+se_preresnet56"}}


def test_all_parts_of_the_long_table_were_trained_for_longer():
    asked = {arm.name: dict(arm.weights) for arm in BY_NAME["table-2-long"].arms}
    assert asked.pop("Initial, no AE") == {"victim": "+long"}
    assert asked.pop("Initial, AE") == {"victim": "+long", "purifier": "+long"}
    tuned = dict.fromkeys(("victim", "purifier", "finetuner"), "+long")
    assert len(asked) == 4 and all(each == tuned for each in asked.values())
    assert not any(arm.weights.get("victim") or arm.weights.get("purifier") for arm in BY_NAME["table-2"].arms)


@pytest.mark.parametrize("table", TABLES, ids=BY_NAME)
def test_every_run_can_be_configured(table, tmp_path):
    found = registry()
    found.find("victim", table.victim)
    planned = list(jobs(table, MeasureSettings(out=tmp_path), table.arms, found))
    assert {(name, job.arm.name) for job in planned for name in job.attacks} == set(table.cells)
    for job in planned:
        assert to_toml(job.config) and job.config.sources == NO_SOURCES
        for name, options in job.config.options.items():
            found.find("attack", name).config(options)
        if job.attacks:
            before = job.arm.name in ("Tuned, no AE", "Tuned, AE")
            assert job.config.threats == (("transfer",) if before else ("oblivious",))


def test_declaring_the_tables_imports_no_torch():
    code = (
        "import sys, defend_dae_finetune.plugin as p; p.defend_tables(); "
        "assert not {'torch', 'timm'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
