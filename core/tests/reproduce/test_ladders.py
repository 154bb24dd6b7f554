"""Recipes: declared by a plugin, shown with what was measured of them, run, and kept from run folders."""

import contextlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import attrs
import pytest
import torch
from torch import nn

import defend
from defend.assembly.load import open_dataset
from defend.cli import main
from defend.defence import Defence
from defend.errors import ConfigError, DataError, PluginError, UnknownNameError
from defend.plugins import Registry, forget_installed, registry
from defend.recipes import Recipe, composition
from defend.report.recipe import markdown
from defend.reproduce.from_runs import keep
from defend.reproduce.ladders import Ladder, find, find_kept
from defend.testing.contracts import RecipeContract
from defend.testing.toys import TASK, TinyVictim
from defend.util.statistics import wilson
from defend.values.run_config import RunConfig
from defend.values.toml import read_toml, run_config, to_toml
from defend.weights.card import new_card, read_card
from defend.weights.files import save
from defend.weights.find import cached_path

HOOKS = """
from defend import StageSpec, hookimpl, option, options
from defend.recipes import Recipe


@options
class Strength:
    strength: float = option(0.5, help="how far towards the blurred image", at_least=0, at_most=1)


@hookimpl
def defend_datasets():
    return [StageSpec(name="crumbs", summary="toy", build="kitchen.parts:crumbs")]


@hookimpl
def defend_victims():
    return [StageSpec(name="tiny", summary="toy", build="kitchen.parts:tiny")]


@hookimpl
def defend_purifiers():
    return [
        StageSpec(name="soften", summary="toy", build="kitchen.parts:soften", config=Strength),
        StageSpec(name="fade", summary="toy", build="kitchen.parts:fade"),
        StageSpec(name="learnt", summary="toy", build="kitchen.parts:fade", train="kitchen.parts:nothing",
                  editions={"strong": {}}),
    ]


SOUP = {"victim": "tiny", "dataset": "crumbs", "purifier": "soften,fade", "eps": 0.02, "limit": 12, "adaptive_limit": 8,
        "threats": ("oblivious", "adaptive"), "attacks": ("pgd",), "precision": "fp32",
        "options": {"soften": {"strength": 0.25}, "pgd": {"steps": 2}}}


@hookimpl
def defend_recipes():
    return [
        Recipe(name="soup", summary="two toys in sequence", config=SOUP, why="Nothing else was at hand.",
               notes=("Serve warm.",), results="kitchen.kept"),
        Recipe(name="roast", summary="of weights that nobody trained",
               config={"victim": "tiny", "dataset": "crumbs", "purifier": "learnt", "weights": {"learnt": "+strong"},
                       "threats": ("oblivious",)}),
        Recipe(name="exotic", summary="a part is not there", config={"victim": "tiny", "purifier": "dragon"},
               needs=("defend-dragon", "attrs")),
    ]
"""
PARTS = """
import torch
from torch import nn
from torch.nn import functional as F

from defend.datasets.base import MemoryDataset
from defend.testing import TASK, TinyVictim, images


class Soften(nn.Module):
    random = False

    def __init__(self, strength):
        super().__init__()
        self.strength = strength

    def forward(self, images):
        return images + self.strength * (F.avg_pool2d(images, 3, 1, 1) - images)


class Fade(nn.Module):
    random = False

    def forward(self, images):
        return 0.9 * images


def crumbs(config):
    pixels = images(TASK, 64).mul(255).byte()  # their labels are what the victim says of them
    labels = TinyVictim(TASK)(pixels / 255).argmax(1)
    splits = ("train", "val", "test")
    return MemoryDataset("crumbs", list("0123456789"), dict.fromkeys(splits, pixels), dict.fromkeys(splits, labels))


def tiny(config, task):
    return TinyVictim(task)


def soften(config, task):
    return Soften(config.strength)


def fade(config, task):
    return Fade()
"""


def layout(site, name, files):
    """Lay a plugin out as pip would."""
    info = site / f"defend_{name}-1.0.dist-info"
    info.mkdir(parents=True)
    for file, text in files.items():
        (site / name / file).parent.mkdir(parents=True, exist_ok=True)
        (site / name / file).write_text(text)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: defend-{name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[defend]\n{name} = {name}\n")


@pytest.fixture(scope="module")
def kitchen(tmp_path_factory):
    """Install a plugin with three recipes; return the folder of its kept ladders."""
    site = tmp_path_factory.mktemp("site")
    layout(site, "kitchen", {"__init__.py": HOOKS, "parts.py": PARTS, "kept/__init__.py": ""})
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(site))
        forget_installed()
        yield site / "kitchen" / "kept"
    forget_installed()
    for module in [module for module in sys.modules if module.split(".")[0] == "kitchen"]:
        del sys.modules[module]


@pytest.fixture(scope="module")
def measured(kitchen, tmp_path_factory):
    """The recipe's own run, and one of its first purifier alone."""
    folder = tmp_path_factory.mktemp("runs")
    soup = find("soup").run_config(store=False, device="cpu")
    defend.run(attrs.evolve(soup, out=str(folder / "soup")))
    defend.run(attrs.evolve(soup, out=str(folder / "plain"), purifier="soften", options={"pgd": {"steps": "2"}}))
    return folder


@pytest.fixture
def runs(measured, tmp_path):
    """Copies of both run folders, to be spoilt."""
    return [Path(shutil.copytree(measured / name, tmp_path / name)) for name in ("soup", "plain")]


@pytest.fixture
def served(kitchen, measured):
    """The ladder as it is kept with the plugin."""
    path = keep(find("soup"), [measured / "soup", measured / "plain"], kitchen)
    yield path
    path.unlink()


@pytest.fixture
def cli(capsys, monkeypatch, kitchen, tmp_path):
    """Run `defend recipe ...`: the exit code, output and error."""
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setattr("defend.report.progress.PIPED_WIDTH", 300)  # nothing is folded, whatever else is installed
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        with pytest.raises(SystemExit) as stopped:
            main(["recipe", *map(str, arguments)])
        out, error = capsys.readouterr()
        return stopped.value.code, out, error

    return run


def edited(folder, change):
    """Change a run folder's report, to one that an older version might have written: without digests of its parts."""
    path = folder / "report.json"
    report = json.loads(path.read_text())
    report.pop("digests", None)
    for row in report["rows"]:
        row.pop("made_of", None)
    change(report)
    path.write_text(json.dumps(report))
    return folder


# What a recipe is


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"name": "Best Soup"}, "not lower-case letters, digits and hyphens"),
        ({"config": {"victim": "tiny", "purifer": "fade"}}, "'purifer' is no field of it: did you mean 'purifier'"),
        ({"config": {"purifier": "fade"}}, "names no victim"),
        ({"config": {"victim": "tiny", "out": "runs/1"}}, "'out' is no field of it"),
        ({"config": {"victim": "tiny", "weights": {"victim": "me/tiny.safetensors"}}}, "weights of victim .* edition"),
        ({"config": {"victim": "tiny", "eps": 8}}, "did you mean 8/255"),
        ({"config": {"victim": "tiny", "threats": ("oblivous",)}}, "did you mean 'oblivious'"),
    ],
)
def test_a_recipe_that_cannot_be_run_is_refused(values, said):
    with pytest.raises((ValueError, ConfigError), match=said):
        Recipe(**{"name": "soup", "summary": "a test", "config": {"victim": "tiny"}, **values})


def test_a_recipe_is_measured_by_the_ladder_and_changes_win():
    recipe = Recipe(name="soup", summary="a test", config={"victim": "tiny", "eps": "8/255", "limit": 50})
    config = recipe.run_config()
    assert (config.threats, config.eps, config.limit) == (("ladder",), 8 / 255, 50)
    changed = recipe.run_config(limit=7, thorough=True, seed=None)
    assert (changed.limit, changed.thorough, changed.seed) == (7, True, 0)
    assert read_toml(to_toml(config), "here") == config


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({}, "tiny"),
        ({"purifier": "soften,fade"}, "soften, fade + tiny"),
        ({"purifier": "fade", "weights": {"purifier": "+strong"}, "detector": "smell"}, "fade+strong + smell + tiny"),
        ({"finetune": "simmer", "weights": {"finetuner": "+low", "victim": "+old"}}, "tiny+old tuned by simmer+low"),
        (
            {"purifier": "fade", "finetune": "simmer", "weights": {"finetuner": "bare+low"}},
            "fade + tiny tuned by simmer+low alone",
        ),
        ({"purifier": "fade", "weights": {"fade": "/home/me/f.safetensors"}}, "fade from f.safetensors + tiny"),
        ({"purifier": "a,b", "options": {"b": {"steps": 3}, "pgd": {"steps": 9}}}, "a, b (steps=3) + tiny"),
        ({"purifier": "a", "options": {"purifier": {"x": 1, "y": 2}, "a": {"x": 3}}}, "a (x=3, y=2) + tiny"),
    ],
)
def test_a_composition_is_said_in_one_line(values, said):
    assert composition(RunConfig(victim="tiny", **values)) == said


def test_recipes_come_from_plugins(kitchen):
    assert {"exotic", "roast", "soup"} <= set(registry().recipes)
    with pytest.raises(UnknownNameError, match="unknown recipe 'sop': did you mean 'soup'"):
        find("sop")


@pytest.mark.parametrize("returned", ["['soup']", "[Recipe(name='x', summary='', config={})]"])
def test_a_wrong_recipe_fails_its_plugin_alone(tmp_path, monkeypatch, returned):
    head = "from defend import hookimpl\nfrom defend.recipes import Recipe\n\n@hookimpl\ndef defend_recipes():\n"
    layout(tmp_path, "spoilt", {"__init__.py": f"{head}    return {returned}\n"})
    monkeypatch.syspath_prepend(str(tmp_path))
    found = Registry()
    monkeypatch.delitem(sys.modules, "spoilt")
    assert [failure.plugin for failure in found.failures] == ["defend-spoilt"]
    assert "recipe x names no victim" in found.failures[0].cause or "returned str" in found.failures[0].cause


def test_a_name_may_be_given_once(kitchen, tmp_path, monkeypatch):
    text = (
        "from defend import hookimpl\nfrom defend.recipes import Recipe\n\n@hookimpl\ndef defend_recipes():\n"
        "    return [Recipe(name='soup', summary='mine', config={'victim': 'tiny'})]\n"
    )
    layout(tmp_path, "rival", {"__init__.py": text})
    monkeypatch.syspath_prepend(str(tmp_path))
    plugins = Registry()  # the others go on working; only who asks for this one is told
    with pytest.raises(PluginError, match=r"recipe 'soup' is offered by both .* and defend-rival: .*pip uninstall"):
        plugins.refuse_claimed("recipe", "soup")
    monkeypatch.delitem(sys.modules, "rival")


# In Python


def test_a_recipe_loads_as_a_defence(kitchen):
    loaded = defend.load_recipe("soup")
    assert isinstance(loaded, Defence) and not loaded.training
    images = torch.linspace(0, 1, 784).reshape(1, 1, 28, 28)
    softened = 0.75 * images + 0.25 * nn.functional.avg_pool2d(images, 3, 1, 1)
    torch.testing.assert_close(loaded.judge(images).purified, 0.9 * softened)
    assert defend.recipe("soup", limit=3) == find("soup").run_config(limit=3)


def test_what_is_missing_is_named_with_what_to_do(kitchen):
    with pytest.raises(ConfigError, match=r"recipe 'exotic' needs defend-dragon, .* `pip install defend-dragon`"):
        defend.load_recipe("exotic")
    with pytest.raises(defend.DefendError, match="`defend train purifier learnt --dataset crumbs --edition strong`"):
        defend.load_recipe("roast")


# Keeping a ladder


def test_a_kept_ladder_holds_what_the_runs_measured(measured, served):
    report, other = (json.loads((measured / name / "report.json").read_text()) for name in ("soup", "plain"))
    ladder = find_kept(find("soup"))
    assert 0 < ladder.worst_case.accuracy < ladder.clean.accuracy, "these figures tell nothing apart"
    assert served.name == "soup.json" and ladder.recipe == "soup"
    assert len(ladder.rows) == len(report["rows"]) == 3
    for row, theirs in zip(ladder.rows, report["rows"], strict=True):
        assert (row.attack, row.threat, row.eps, row.n) == tuple(
            theirs[key] for key in ("attack", "threat", "eps", "n")
        )
        assert row.defended.accuracy == pytest.approx(theirs["defended"]["accuracy"], abs=1e-6)
        assert row.undefended.ci95 == pytest.approx(theirs["undefended"]["ci95"], abs=1e-6)
    worst = report["worst_case"]
    assert (ladder.worst_case.n, list(ladder.worst_case.over)) == (worst["n"], worst["over"])
    assert ladder.worst_case.ci95 == pytest.approx(wilson(round(worst["accuracy"] * worst["n"]), worst["n"]), abs=1e-6)
    assert [(check.name, check.status) for check in ladder.checks] == [
        (check["name"], check["status"]) for check in report["checks"]
    ]
    (compared,) = ladder.compared
    assert compared.name == "soften + tiny"
    assert compared.worst_case.accuracy == pytest.approx(other["worst_case"]["accuracy"], abs=1e-6)
    assert compared.clean.accuracy == pytest.approx(other["rows"][0]["defended"]["accuracy"], abs=1e-6)
    again = read_toml(compared.config, "here")
    assert again.purifier == "soften" and again.out is None
    assert str(measured) not in served.read_text(), "a kept ladder names no folder of the machine"
    assert read_toml(ladder.config, "here") == find("soup").run_config()
    assert ladder.command == "defend recipe soup --run"
    assert Ladder.from_json(ladder.to_json(), "here") == ladder


def test_the_command_says_what_was_changed(runs, tmp_path):
    def more(report):
        report["config"] |= {"thorough": True, "limit": 500, "seed": 3}

    path = keep(find("soup"), [edited(runs[0], more)], tmp_path / "deep" / "er")
    command = json.loads(path.read_text())["command"]
    assert command == "defend recipe soup --run --thorough --limit 500 --seed 3"


def changed(key, value):
    return lambda report: report["config"].__setitem__(key, value)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (changed("purifier", "fade"), "is not recipe soup's: its purifier is 'fade', the recipe's is 'soften,fade'"),
        (changed("eps", 0.2), "its eps is '0.2', the recipe's is '0.02'"),
        (changed("adaptive_steps", 1), "its adaptive_steps is '1', the recipe's is"),
        (changed("precision", "bf16"), "its precision is 'bf16', the recipe's is"),
        (changed("options", {"soften": {"strength": 0.25}}), "its options.pgd.steps is not set, the recipe's is '2'"),
        (changed("weights", {"fade": "a.safetensors"}), "its weights.fade is 'a.safetensors', the recipe's is not set"),
        (changed("threats", ["oblivious"]), "its threats is 'oblivious', the recipe's is 'oblivious,adaptive'"),
        (changed("chance", True), "its chance is 'true', the recipe's is 'false'; measure it with `defend recipe soup"),
        (changed("sweep", [0.01]), "its sweep is '0.01', the recipe's is not set"),
        (changed("checks", "full"), "its checks is 'full', the recipe's is 'basic'"),
        (changed("limit", 11), "its limit is 11, the recipe's is 12; measure it with `defend recipe soup --run`"),
        (changed("adaptive_limit", 2), "its adaptive_limit is 2, the recipe's is 8; measure it with"),
        (changed("detector", "smell"), "its detector is 'smell', the recipe's is 'none'"),
        (lambda report: report.update(partial=True), "is not finished: go on with `defend run --resume"),
        (lambda report: report.update(worst_case=None), "has no worst case"),
        (lambda report: report.update(checks=[]), "has no checks"),
        (lambda report: report.pop("versions"), "is damaged"),
        (lambda report: report["rows"][0].pop("defended"), "is damaged"),
    ],
)
def test_the_first_run_must_be_the_recipes(runs, tmp_path, change, said):
    with pytest.raises((ConfigError, DataError), match=said):
        keep(find("soup"), [edited(runs[0], change)], tmp_path)
    assert not (tmp_path / "soup.json").exists()


def test_a_quick_run_is_not_kept_of_a_thorough_recipe(runs, tmp_path):
    thorough = attrs.evolve(find("soup"), config={**find("soup").config, "thorough": True})
    with pytest.raises(
        ConfigError, match="it was quick, and the recipe is thorough; measure it with `defend recipe soup"
    ):
        keep(thorough, runs[:1], tmp_path)
    every = {key: value for key, value in thorough.config.items() if key not in ("limit", "adaptive_limit")}
    own = edited(runs[0], changed("thorough", True))
    with pytest.raises(ConfigError, match="its limit is 12, the recipe's is all; measure it with"):
        keep(attrs.evolve(thorough, config=every), [own], tmp_path)
    keep(thorough, [own], tmp_path)
    assert (tmp_path / "soup.json").exists()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (changed("eps", 0.05), "cannot be held against recipe soup: its eps is '0.05'"),
        (changed("attacks", ["noise"]), "its attacks is 'noise', the recipe's is 'pgd'"),
        (changed("options", {"pgd": {"steps": 1}}), "its options.pgd.steps is '1', the recipe's is '2'"),
        (changed("chance", True), "its chance is 'true', the recipe's is 'false'"),
        (changed("checks", "full"), "its checks is 'full', the recipe's is 'basic'"),
        (changed("thorough", True), "its thorough is 'true', the recipe's is 'false'"),
        (changed("adaptive_steps", 1), "its adaptive_steps is '1', the recipe's is"),
        (changed("seed", 3), "its seed is '3', the recipe's is"),
        (lambda report: report["precision"].update(crafting="bf16"), "its images were made in bf16"),
        (lambda report: report.update(checks=[]), "has no checks"),
        (lambda report: report["dataset"].update(sha256="0"), "it judged other images of crumbs"),
    ],
)
def test_the_others_must_be_measured_alike(runs, tmp_path, change, said):
    with pytest.raises(ConfigError, match=said):
        keep(find("soup"), [runs[0], edited(runs[1], change)], tmp_path)


def kept_in(path):
    """What is kept in a file, as an older version might have written it: without its digest."""
    kept = json.loads(path.read_text())
    assert kept.pop("digest")
    return kept


def test_a_damaged_ladder_is_named(served):
    text = served.read_text()
    for wrong in ("{", "[]", "{}", text.replace('"threat": "none"', '"threat": "noise"'), text.replace("ci95", "ci")):
        with pytest.raises(DataError, match=r"'kitchen\.kept/soup\.json' is damaged"):
            Ladder.from_json(wrong, "kitchen.kept/soup.json")
    with pytest.raises(DataError, match="is of schema 9"):
        Ladder.from_json(text.replace('"schema": 1', '"schema": 9'), "there")


# The command


def test_the_list_says_what_is_left(cli, served):
    ladder = find_kept(find("soup"))
    low, high = (100 * bound for bound in ladder.worst_case.ci95)
    for arguments in ((), ("--list",)):
        code, out, _ = cli(*arguments)
        assert code == 0
        (line,) = [line for line in out.splitlines() if line.startswith("soup")]
        assert f"{100 * ladder.worst_case.accuracy:.1f} [{low:.1f}, {high:.1f}] n=8" in line
        assert "soften (strength=0.25), fade + tiny" in line and "crumbs" in line and "two toys" in line
        assert "not measured" in next(line for line in out.splitlines() if line.startswith("roast"))
    listed = {each["name"]: each for each in json.loads(cli("--list", "--json")[1])}
    assert listed["soup"]["worst_case"]["n"] == 8 and listed["roast"]["worst_case"] is None
    assert listed["exotic"]["missing"] == ["defend-dragon"]


def test_a_recipe_is_shown_with_its_ladder(cli, served):
    code, out, _ = cli("soup")
    assert code == 0
    ladder = find_kept(find("soup"))
    for said in (
        "Nothing else was at hand.",
        "Serve warm.",
        'purifier = "soften,fade"',
        "worst case",
        "Held against",
        "soften + tiny",
        "defend recipe soup --run",
    ):
        assert said in out, said
    row = next(row for row in ladder.rows if row.threat == "oblivious")
    (line,) = [line for line in out.splitlines() if "oblivious" in line and "pgd" in line and "0.02" in line]
    for arm in (row.undefended, row.defended):
        assert f"{100 * arm.accuracy:.1f} [{100 * arm.ci95[0]:.1f}, {100 * arm.ci95[1]:.1f}]" in line
    assert "earlier version" not in out
    # made before curves were kept, and after
    then = attrs.evolve(ladder, rows=tuple(attrs.evolve(row, rising=None) for row in ladder.rows))
    assert "Not recorded then: whether attacks were still fooling" in markdown(find("soup"), then)
    rising = attrs.evolve(ladder, worst_case=attrs.evolve(ladder.worst_case, rising=("pgd/adaptive",)))
    assert f"| ≤ {100 * ladder.worst_case.accuracy:.1f} [" in markdown(find("soup"), rising)
    shown = json.loads(cli("soup", "--json")[1])
    assert read_toml(shown["toml"], "here") == find("soup").run_config()
    assert shown["ladder"] == kept_in(served) and shown["outdated"] is False


def test_what_the_attacks_of_each_norm_leave_is_said(cli, served):
    ladder = kept_in(served)
    assert ladder["worst_case"]["norms"] is None, "there is one norm, and nothing to say"
    for each, share in ((ladder["worst_case"], 0.75), (ladder["compared"][0], 0.125)):
        each["norms"] = {"linf": {"accuracy": share, "ci95": [0.0, 1.0]}, "l2": {"accuracy": 0.5, "ci95": [0.25, 0.75]}}
    served.write_text(json.dumps(ladder))
    _, out, _ = cli("soup")
    assert "The attacks of one norm alone leave: L-inf 75.0 %  [0.0, 100.0]; L2 50.0 %  [25.0, 75.0]" in out
    held = out[out.index("Held against") :]
    assert "L-inf alone" in held and "L2 alone" in held
    for own in ("75.0", "12.5"):
        assert any(f" {own} " in line and " 50.0 " in line for line in held.splitlines())


def test_a_row_that_leaves_less_of_more_images_stands_beside_the_worst_case(cli, served):
    ladder = kept_in(served)
    ladder["worst_case"]["accuracy"] = 0.75
    ladder["worst_case"]["least_row"] = {"row": "fgsm/oblivious", "accuracy": 0.5, "ci95": [0.25, 0.75], "n": 80}
    served.write_text(json.dumps(ladder))
    out = cli("soup")[1]
    assert "≤ 50.0 % [25.0, 75.0], n=80: what fgsm/oblivious alone leaves of all its images" in out
    assert ", ≤ 50.0" in out[out.index("Held against") :]
    assert "], ≤ 50.0 n=8" in cli("--list")[1]
    assert json.loads(cli("--list", "--json")[1])[-1]["worst_case"]["undercut_by"]["n"] == 80
    assert "], ≤ 50.0 (a check failed) |" in markdown(find("soup"), find_kept(find("soup")))


def test_what_must_not_be_trusted_is_said(cli, served):
    ladder = kept_in(served)
    ladder["checks"] = [{"name": "eps sweep", "status": "pass"}, {"name": "attack order", "status": "fail"}]
    ladder["compared"][0]["failed"] = ["square"]
    ladder["config"] = ladder["config"].replace("0.25", "0.75")
    served.write_text(json.dumps(ladder))
    out = cli("soup")[1]
    assert "Not to be trusted, a check failed (attack order)" in out and "*: not to be trusted" in out
    assert "The ladder is of an earlier version of this recipe" in out
    assert "] n=8*" in cli("--list")[1] and "*: not to be trusted, a check failed" in cli("--list")[1]
    assert json.loads(cli("--list", "--json")[1])[-1]["worst_case"]["failed"] == ["attack order"]


def test_a_ladder_of_other_weights_than_are_found_here_says_so(cli, served, tmp_path, monkeypatch):
    monkeypatch.setenv("DEFEND_CACHE_DIR", str(tmp_path / "cache"))
    found, victim = registry().find("victim", "tiny"), TinyVictim(TASK)
    images = open_dataset("crumbs")
    path = cached_path("victim", "tiny", "crumbs")
    path.parent.mkdir(parents=True)
    save(path, victim, new_card(found, found.config({}), images, recipe={}, figures={}))
    ladder = kept_in(served)
    for then, replaced in ((read_card(path).content_sha256, []), ("0" * 64, ["victim"])):
        ladder["weights"] = {"victim": then, "finetuner": "1" * 64}  # the recipe has no fine-tuner now: it is outdated
        served.write_text(json.dumps(ladder))
        assert ("The ladder is of other weights than would be loaded here: victim" in cli("soup")[1]) is bool(replaced)
        assert ("of other weights" in cli("--list")[1]) is bool(replaced)
        assert json.loads(cli("soup", "--json")[1])["replaced"] == replaced
    path.write_bytes(b"damaged")
    assert json.loads(cli("soup", "--json")[1])["replaced"] == [], "which loading it says"


def test_a_recipe_without_a_ladder_is_shown(cli):
    assert "No ladder came with it" in cli("soup")[1]
    code, out, _ = cli("exotic")
    assert code == 0 and "Not installed: pip install defend-dragon" in out


def test_no_torch_is_needed_to_show(served, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(served.parents[2]))
    code = (
        "import sys\nfrom defend.cli import main\n"
        "for arguments in (['recipe', '--list'], ['recipe', 'soup']):\n"
        "    try:\n        main(arguments)\n    except SystemExit as error:\n        assert not error.code\n"
        "heavy = {'torch', 'timm', 'numpy', 'sklearn', 'accelerate'} & set(sys.modules)\nassert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Held against" in done.stdout


def test_a_recipe_is_written_as_the_config_of_a_run(cli, tmp_path):
    code, out, _ = cli("soup", "--toml", tmp_path / "mine.toml")
    assert code == 0 and "defend run --config" in out
    assert run_config({}, tmp_path / "mine.toml") == find("soup").run_config()
    code, _, error = cli("soup", "--toml", tmp_path / "nowhere" / "mine.toml")
    assert code == 2 and "cannot be written" in error


def test_a_readme_holds_the_ladder_between_its_marks(cli, served, tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text("before\n<!-- recipe soup -->\nold\n<!-- end soup -->\nafter\n")
    ladder = kept_in(served)
    ladder["worst_case"] |= {
        "accuracy": 0.625,
        "ci95": [0.305, 0.863],
        "norms": {"linf": {"accuracy": 0.75, "ci95": [0, 1]}, "l2": {"accuracy": 0.625}},
    }
    ladder["compared"][0]["worst_case"] = {"accuracy": 0.75, "ci95": [0.4, 0.9], "n": 4}
    ladder["compared"][0]["failed"], ladder["checks"] = ["square"], []
    served.write_text(json.dumps(ladder))
    clean, other = (
        round(100 * each["accuracy"], 1) for each in (ladder["rows"][0]["defended"], ladder["compared"][0]["clean"])
    )
    code, out, _ = cli("soup", "--readme", readme)
    assert code == 0 and "Written to" in out
    first, *lines, last, end = readme.read_text().splitlines()
    assert (first, lines[0], last, end) == ("before", "<!-- recipe soup -->", "<!-- end soup -->", "after")
    assert lines[2:6] == [
        "| made of | clean (n=12) | worst case | L-inf alone | L2 alone | n |",
        "| --- | --- | --- | --- | --- | --- |",
        f"| **soup**: soften (strength=0.25), fade + tiny | {clean} | 62.5 [30.5, 86.3] | 75.0 | 62.5 | 8 |",
        f"| soften + tiny | {other} | 75.0 [40.0, 90.0] (a check failed) |  |  | 4 |",
    ]
    assert lines[7].startswith(
        "crumbs, L-inf 0.02: accuracy in %, with Wilson 95 % intervals. The worst case is per image"
    )
    assert "over 3 rows of the ladder. `defend recipe soup --run`, cpu" in lines[7]
    assert lines[9] == "- soften + tiny: a check failed (square)"


def test_a_readme_without_a_place_or_a_ladder_stays_as_it_is(cli, served, tmp_path):
    readme = tmp_path / "README.md"
    for name, text in (("soup", "no marks\n"), ("roast", "<!-- recipe roast -->\n<!-- end roast -->\n")):
        readme.write_text(text)
        code, _, error = cli(name, "--readme", readme)
        assert code == 2 and f"has no place for {name}: expected <!-- recipe NAME -->" in error
        assert readme.read_text() == text


class Soup(RecipeContract):
    name, task = "soup", TASK
    __test__ = False


def test_the_contract_knows_a_recipe_from_its_ladder(cli, served, tmp_path):
    soup, ladder = Soup(), kept_in(served)
    ladder["checks"] = []  # of an attack of two steps one fails
    served.write_text(json.dumps(ladder))
    soup.readme = tmp_path / "README.md"
    soup.readme.write_text("<!-- recipe soup -->\n<!-- end soup -->\n")
    with pytest.raises(AssertionError, match="defend recipe soup --readme FILE"):
        soup.test_the_readme_holds_what_was_measured()
    cli("soup", "--readme", soup.readme)
    soup.test_the_readme_holds_what_was_measured()
    soup.test_it_is_the_defence_that_was_measured()
    soup.test_it_loads_without_its_data_set()
    with pytest.raises(AssertionError, match="hold it against the bare victim"):
        soup.test_nothing_that_it_was_held_against_leaves_more()
    ladder["compared"] *= 3
    served.write_text(json.dumps(ladder | {"weights": {"victim": "another's"}}))
    with pytest.raises(AssertionError):
        soup.test_it_is_the_defence_that_was_measured()
    worst = ladder["worst_case"]["accuracy"]
    for share, better in ((worst, False), (worst + 0.1, True)):
        ladder["compared"][1] |= {"worst_case": {"accuracy": share, "ci95": [0, 1], "n": 8}}
        served.write_text(json.dumps(ladder))
        with pytest.raises(AssertionError) if better else contextlib.nullcontext():
            soup.test_nothing_that_it_was_held_against_leaves_more()


def test_a_recipe_is_run_and_kept(cli, tmp_path):
    flags = ("--limit", "14", "--adaptive-limit", "9", "--seed", "1", "--device", "cpu", "--quiet")
    code, out, error = cli("soup", "--run", *flags, "--out", tmp_path / "run", "--json")
    assert code == 0, error
    report = json.loads(out)
    written = json.loads((tmp_path / "run" / "report.json").read_text())
    assert written.pop("digests") and written.pop("records") and report == written
    assert report["config"]["purifier"] == "soften,fade" and report["worst_case"]["n"] == 9 and report["seed"] == 1
    code, out, error = cli("soup", "--keep", tmp_path / "run", "--out", tmp_path / "results", "--json")
    assert code == 0, error
    path = tmp_path / "results" / "soup.json"
    assert json.loads(out) == {"path": str(path)}
    assert json.loads(path.read_text())["command"].endswith("--run --limit 14 --adaptive-limit 9 --seed 1")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("stew",), "unknown recipe 'stew'"),
        (("--run",), "--run needs the name of a recipe: see `defend recipe --list`"),
        (("soup", "--list"), "--list lists every recipe: leave out 'soup'"),
        (("soup", "--toml", "a.toml", "--readme", "README.md"), "--toml and --readme were both given"),
        (("soup", "--readme", "nowhere/README.md"), "README 'nowhere/README.md' cannot be read"),
        (("soup", "--run", "--toml", "a.toml"), "--run and --toml were both given"),
        (("soup", "--limit", "4"), "--limit was given without --run"),
        (("soup", "--adaptive-limit", "4", "--list"), "--adaptive-limit was given without --run"),
        (("soup", "--out", "there"), "--out was given without --run or --keep"),
        (("soup", "roast"), "'roast' was given beside 'soup'"),
        (("soup", "--keep", "--out", "there"), "--keep needs run folders"),
        (("soup", "--keep", "run"), "--keep needs --out DIR"),
        (("soup", "--keep", "run", "--out", "there"), "'run'"),
        (("soup", "--run", "--limit", "0"), "limit is 0: expected at least 1"),
        (("roast", "--run", "--quiet"), "`defend train purifier learnt --dataset crumbs --edition strong`"),
        (("exotic", "--run"), "`pip install defend-dragon`"),
    ],
)
def test_wrong_input_is_one_line(cli, arguments, said):
    code, _, error = cli(*arguments)
    (line,) = [line for line in error.splitlines() if line.startswith("error:")]
    assert code == 2 and said in line and "Traceback" not in error
