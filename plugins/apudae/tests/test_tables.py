"""The paper's Tables 2 to 5, as this plugin declares them."""

import subprocess
import sys

import pytest

from defend.plugins import registry
from defend.reproduce.jobs import MeasureSettings, jobs
from defend.values.toml import to_toml
from defend_apudae.tables import TABLES

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
