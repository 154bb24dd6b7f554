"""The paper's Tables 1 to 3, as this plugin declares them."""

import subprocess
import sys
from importlib import resources
from pathlib import Path

import pytest

from defend.options import describe, make
from defend.plugins import registry
from defend.reproduce.jobs import MeasureSettings, jobs
from defend.reproduce.results import find_kept
from defend.tables import Reason
from defend.values.toml import to_toml
from defend.weights.files import read_card
from defend_unet_gan.plugin import EDITIONS
from defend_unet_gan.stand_ins import NARROW_NOTE, STAND_INS
from defend_unet_gan.tables import LEAK, LOSSES_NOTE, TABLES

BY_NAME = {table.short: table for table in TABLES}


def figures(table):
    return [figure for figure in BY_NAME[table].cells.values() if figure is not None]


def test_every_cell_of_the_paper_is_there():
    assert {name: len(figures(name)) for name in BY_NAME} == {"table-1": 30, "table-2": 28, "table-3": 28}
    assert sum(figures("table-1")) == pytest.approx(2482.36)
    assert sum(figures("table-2")) == pytest.approx(1478.88) and sum(figures("table-3")) == pytest.approx(1384.40)
    assert BY_NAME["table-1"].cells["FGSM 32/255", "Noise Inc"] == 8.02
    assert BY_NAME["table-1"].cells["Clean", "Image-2 VGG"] == 92.92
    assert BY_NAME["table-2"].cells["FGSM 25/255", "Inc, recovered"] == 98.5
    assert BY_NAME["table-2"].cells["FGSM 65/255", "VGG, exposed"] == 10.40
    assert BY_NAME["table-3"].cells["FGSM 5/255", "DenseNet-121, exposed"] == 70.22
    assert BY_NAME["table-3"].cells["FGSM 65/255", "VGG-11, recovered"] == 54.32


WIDE = (5, 10, 20, 25, 35, 50, 65)
PGD = ("PGD 8/255", "pgd", 8 / 255, {"steps": 20, "early_stop": False}, 1_000)


def _fgsm(eps, n=10_000, labels=None):
    told = {"labels": labels} if labels else {}
    return (f"FGSM {eps}/255" + (f", {labels} labels" if labels else ""), "fgsm", eps / 255, told, n)


def _attacks(table):
    return [(one.name, one.attack, table.eps_of(one), dict(one.options), one.n) for one in table.attacks]


def _clean(n):
    return ("Clean", None, 8 / 255, {}, n)


def test_attacks_are_made_as_the_paper_says():
    first, second, third = TABLES
    fgsm = [_fgsm(eps) for eps in (4, 8, 16, 32)]
    assert _attacks(first) == [_clean(10_000), *fgsm, _fgsm(8, 1_000, "predicted"), PGD]
    wide = [_fgsm(eps) for eps in WIDE]
    assert _attacks(second) == [*wide, _fgsm(20, 1_000, "predicted"), PGD] and _attacks(third) == wide
    for table in (first, second):
        assert {one.threat for one in table.attacks} == {"oblivious"}
    for table in TABLES:
        assert (table.dataset, table.victim) == ("cifar10", "inception_v3")
    assert {arm.name: arm.victim for arm in first.arms} == {
        f"{mode} {short}": victim
        for mode in ("Noise", "Image", "Image-2")
        for short, victim in (("Inc", "inception_v3"), ("VGG", "vgg13_bn"))
    }
    assert [arm.victim for arm in second.arms] == ["vgg13_bn"] * 2 + ["inception_v3"] * 2


def test_stand_ins_are_attacked_alike_on_fewer_images():
    first, second, third = STAND_INS
    labels = [_fgsm(8, 1_000, "predicted"), _fgsm(8, 1_000, "random")]
    assert _attacks(first) == [_clean(2_000), *(_fgsm(eps, 2_000) for eps in (4, 8, 16, 32)), *labels, PGD]
    wide = [_fgsm(eps, 2_000) for eps in WIDE]
    labels = [_fgsm(20, 1_000, "predicted"), _fgsm(20, 1_000, "random")]
    assert _attacks(second) == [*wide, *labels, PGD] and _attacks(third) == wide
    assert {one.threat for one in third.attacks} == {"transfer"}


def test_every_table_with_pgd_says_which_cross_entropy_it_climbs():
    for table in (*TABLES, *STAND_INS):
        assert (LOSSES_NOTE in table.notes) is any(one.attack == "pgd" for one in table.attacks)


def test_a_note_says_how_the_stand_ins_weights_were_trained():
    folder = Path(str(resources.files("defend_unet_gan.weights")))
    for table in STAND_INS:
        assert NARROW_NOTE in table.notes
        for arm in table.arms:
            if arm.purifier:
                card = read_card(folder / f"purifier-unet_gan-cifar10{arm.weights['purifier']}.safetensors")
                assert find_kept(table).weights[arm.name]["purifier"] == card.content_sha256
                made = {**card.config, **card.recipe}
                assert (made["sources"], made["classifier"], made["key_stride"]) == (["resnet20"], "resnet20", 2)
                assert made["eps_max"] == (16 if table is STAND_INS[0] else 128)
                assert f"width {made['width']} and pooled keys" in NARROW_NOTE
                assert f"{made['epochs']} + {made['post_epochs']} epochs" in NARROW_NOTE


def test_rows_without_a_figure_leak_no_label():
    for name, row in (("table-1", "FGSM 8/255, predicted labels"), ("table-2", "FGSM 20/255, predicted labels")):
        table = BY_NAME[name]
        for arm in table.arms:
            assert {table.cells[row, arm.name], table.cells["PGD 8/255", arm.name]} == {None}
        assert table.attack(row).options == {"labels": "predicted"}


def test_leaking_explains_only_what_is_better_than_clean():
    assert set(BY_NAME["table-1"].misses) == {
        "FGSM 8/255 / Noise Inc",
        "FGSM 16/255 / Noise Inc",
        "FGSM 16/255 / Image Inc",
        "FGSM 16/255 / Image-2 Inc",
    }
    assert len(BY_NAME["table-2"].misses) == 5 and set(BY_NAME["table-2"].misses.values()) == {Reason(LEAK)}
    assert not BY_NAME["table-3"].misses


def test_transfer_comes_from_the_source_and_hits_inception():
    table = BY_NAME["table-3"]
    assert {attack.threat for attack in table.attacks} == {"transfer"}
    assert [arm.source for arm in table.arms] == ["densenet121", "densenet121", "vgg11_bn", "vgg11_bn"]
    assert {arm.victim for arm in table.arms} == {"inception_v3"}


def test_exposed_arms_have_no_defence():
    for name in ("table-2", "table-3"):
        for arm in BY_NAME[name].arms:
            assert arm.reference is not arm.protected is arm.name.endswith("recovered")


def test_editions_are_options_of_this_plugin():
    spec = registry().find("purifier", "unet_gan").spec
    own = {option.name for option in describe(spec.config)}
    for values in EDITIONS.values():
        make(spec.config, {key: value for key, value in values.items() if key in own}, "config")
        make(spec.recipe, {key: value for key, value in values.items() if key not in own}, "recipe")


def test_stand_ins_have_the_papers_figures_beside_their_own():
    first, second, third = STAND_INS
    assert first.cells["FGSM 32/255", "Noise"] == 26.98 and first.cells["Clean", "Image-2"] == 92.92
    assert second.cells["FGSM 65/255", "recovered"] == 67.19 and second.cells["FGSM 5/255", "exposed"] == 43.18
    assert third.cells["FGSM 25/255", "recovered"] == 77.4
    assert {arm.source for arm in third.arms} == {"se_preresnet56"}
    for table in STAND_INS:
        assert table.stand_in and table.victim == "resnet20"
        assert not any(reason.measured for reason in table.misses.values())
        assert table.needs == ("defend-dae-finetune",)
    for table in (first, second):
        told = {attack.options["labels"] for attack in table.attacks if "labels" in attack.options}
        assert told == {"predicted", "random"}


@pytest.mark.parametrize("table", TABLES, ids=BY_NAME)
def test_every_run_can_be_configured(table, tmp_path):
    spec = registry().find("purifier", "unet_gan").spec
    for arm in table.arms:
        assert {edition.removeprefix("+") for edition in arm.weights.values()} <= set(spec.editions)
    for attack in table.attacks:
        if attack.attack:
            registry().find("attack", attack.attack).config(attack.options)
    planned = list(jobs(table, MeasureSettings(out=tmp_path), table.arms, registry()))
    asked = {(name, job.arm.name) for job in planned for name in job.attacks}
    assert asked == set(table.cells)
    assert len({to_toml(job.config) for job in planned}) == len(planned)


def test_declaring_the_tables_imports_no_torch():
    code = "import sys, defend_unet_gan.plugin as p; p.defend_tables(); assert not {'torch', 'timm'} & set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
