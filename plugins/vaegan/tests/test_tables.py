"""The paper's one result, as this plugin declares it."""

import subprocess
import sys

from defend.plugins import registry
from defend.reproduce.jobs import MeasureSettings, jobs
from defend.values.toml import to_toml
from defend_vaegan.tables import FINE_EPS, MATCHED_EPS, NEAREST_EPS, SWEPT_EPS, TABLES

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
    assert NEAREST_EPS in FINE_EPS and FINE.eps == NEAREST_EPS and FINE.stand_in
    assert {place: figure for place, figure in FINE.cells.items() if figure is not None} == {
        (f"FGSM {NEAREST_EPS:g}", arm): figure for arm, figure in (("None", 19.64), ("Purified", 76.24))
    }
    assert {attack.n for attack in FINE.attacks} == {1_000}
