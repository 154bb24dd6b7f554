"""Editions: other weights of the same stage and data set, trained with other options, asked for as "+NAME"."""

import sys
import types
from importlib.metadata import EntryPoint

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from defend.assembly.part import say_training
from defend.assembly.stage import build_stage
from defend.datasets.base import MemoryDataset
from defend.errors import ConfigError, WeightsError
from defend.evaluation.runner import run
from defend.hookspecs import hookimpl
from defend.options import option, options
from defend.plugins import Registry
from defend.stages import StageSpec
from defend.testing.toys import TinyVictim
from defend.train import FitSettings, Loss, Optimiser, Training
from defend.training.stage import train_stage
from defend.values.editions import edition_of, is_file, tuned_behind
from defend.values.run_config import RunConfig
from defend.weights.card import read_card
from defend.weights.find import cached_path, file_name, locate


@options
class SmoothOptions:
    width: int = option(2, help="channels", at_least=1, architecture=True)


@options
class Recipe:
    epochs: int = option(3, help="passes", at_least=1)
    lr: float = option(0.1, help="learning rate", at_least=0)


class Smooth(nn.Sequential):
    random = False

    def __init__(self, width):
        super().__init__(nn.Conv2d(1, width, 1), nn.Conv2d(width, 1, 1), nn.Sigmoid())


class Fit(Training):
    def __init__(self, stage, recipe):
        super().__init__(stage, {"stage": stage}, epochs=recipe.epochs, batch_size=16)
        self.lr = recipe.lr

    def optimisers(self, steps):
        return {"stage": Optimiser(torch.optim.SGD(self.stage.parameters(), lr=self.lr))}

    def losses(self, batch):
        yield Loss("stage", F.mse_loss(self.modules["stage"](batch.images), batch.images))


def tiny():
    generator = torch.Generator().manual_seed(0)
    sizes = {"train": 16, "val": 4, "test": 6}
    images = {s: torch.randint(0, 256, (n, 1, 8, 8), generator=generator, dtype=torch.uint8) for s, n in sizes.items()}
    return MemoryDataset("tiny", ("a", "b"), images, {split: torch.arange(n) % 2 for split, n in sizes.items()})


SPECS = {
    "victim": StageSpec(name="fixed", summary="toy", build="editions_plugin:fixed"),
    "dataset": StageSpec(name="tiny", summary="toy", build="editions_plugin:opened"),
    "purifier": StageSpec(
        name="smooth",
        summary="toy",
        build="editions_plugin:build",
        config=SmoothOptions,
        train="editions_plugin:train",
        recipe=Recipe,
        recipes={"tiny": {"width": 3, "epochs": 1}},
        editions={"wide": {"width": 5}, "slow": {"lr": 0.01}},
        weights="editions_weights",
    ),
    "detector": StageSpec(
        name="plain", summary="toy", build="editions_plugin:build", config=SmoothOptions, train="editions_plugin:train"
    ),
}


@pytest.fixture(autouse=True)
def plugins(tmp_path, monkeypatch):
    """Return a registry with the plugin, and with a package for its shipped weights."""
    plugin = types.ModuleType("editions_plugin")
    plugin.build = lambda config, task: Smooth(config.width)
    plugin.train = lambda config, recipe, task: Fit(Smooth(config.width), recipe)
    plugin.fixed = lambda config, task: TinyVictim(task)
    plugin.opened = lambda config: tiny()

    def offer(stage):
        setattr(plugin, f"defend_{stage}s", hookimpl(lambda: [SPECS[stage]], specname=f"defend_{stage}s"))

    for stage in SPECS:
        offer(stage)
    monkeypatch.setitem(sys.modules, "editions_plugin", plugin)
    (tmp_path / "site" / "editions_weights").mkdir(parents=True)
    (tmp_path / "site" / "editions_weights" / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    yield Registry(entry_points=[EntryPoint("editions", "editions_plugin", "defend")])
    sys.modules.pop("editions_weights", None)


def train(plugins, **values):
    return train_stage("purifier", "smooth", tiny(), settings=FitSettings(device="cpu"), plugins=plugins, **values)


def widths(card):
    return card.config["width"], card.recipe["epochs"], card.recipe["lr"]


def test_an_edition_has_a_file_of_its_own(plugins):
    usual, card = train(plugins)
    assert usual == cached_path("purifier", "smooth", "tiny")
    assert usual.name == "purifier-smooth-tiny.safetensors"
    assert widths(card) == (3, 1, 0.1), "the data set's recipe sets what is trained, and how it is built"
    wide, card = train(plugins, edition="wide")
    assert wide.name == file_name("purifier", "smooth", "tiny", "wide") == "purifier-smooth-tiny+wide.safetensors"
    assert widths(card) == (5, 1, 0.1), "an edition wins over the recipe, and keeps the rest of it"
    _, card = train(plugins, edition="slow")
    assert widths(card) == (3, 1, 0.01)
    _, card = train(plugins, edition="wide", options={"width": "4", "epochs": "2"})
    assert widths(card) == (4, 2, 0.1), "what the user sets wins"
    assert read_card(usual).config == {"width": 3}, "other editions leave the usual weights alone"


def test_what_is_asked_for_is_found_and_nothing_else(plugins):
    found = plugins.find("purifier", "smooth")
    path, _ = train(plugins, edition="wide")
    assert locate(found, "tiny", "+wide") == path
    assert locate(found, "tiny") is None, "an edition does not stand in for the usual weights"
    assert locate(found, "tiny", "+slow") is None
    assert locate(found, "digits", "+wide") is None
    assert locate(found, "tiny", str(path)) == path


def test_a_shipped_edition_is_found(plugins, tmp_path):
    path, _ = train(plugins, edition="wide")
    shipped = tmp_path / "site" / "editions_weights" / path.name
    path.rename(shipped)
    assert locate(plugins.find("purifier", "smooth"), "tiny", "+wide") == shipped
    train(plugins, edition="wide")
    assert locate(plugins.find("purifier", "smooth"), "tiny", "+wide") == path, "the user's own comes first"


@pytest.mark.parametrize(
    ("asked", "edition", "file", "behind"),
    [
        (None, "", False, "soften"),
        ("+wide", "wide", False, "soften"),
        ("bare", "", False, None),
        ("bare+wide", "wide", False, None),
        ("my.safetensors", "", True, "soften"),
        ("runs/a+b.safetensors", "", True, "soften"),
    ],
)
def test_what_may_stand_in_the_place_of_a_file(asked, edition, file, behind):
    assert (edition_of(asked), is_file(asked), tuned_behind("soften", asked)) == (edition, file, behind)


def test_bare_weights_are_of_tuned_victims_alone(plugins):
    for asked in ("bare", "bare+wide"):
        with pytest.raises(WeightsError, match=r"^purifier smooth has no weights 'bare.* expected a file"):
            locate(plugins.find("purifier", "smooth"), "tiny", asked)


def test_an_unknown_edition_is_refused(plugins):
    with pytest.raises(ConfigError, match=r"^unknown edition 'wode' of purifier smooth: did you mean 'wide'\?"):
        train(plugins, edition="wode")
    with pytest.raises(WeightsError, match=r"^purifier smooth has no edition 'wode': did you mean 'wide'\?"):
        locate(plugins.find("purifier", "smooth"), "tiny", "+wode")
    with pytest.raises(ConfigError, match=r"^unknown edition 'wide' of detector plain: it has none$"):
        train_stage("detector", "plain", tiny(), edition="wide", settings=FitSettings(device="cpu"), plugins=plugins)
    with pytest.raises(WeightsError, match=r"^detector plain has no edition 'wide': it has none$"):
        locate(plugins.find("detector", "plain"), "tiny", "+wide")


def test_an_edition_is_built_with_its_architecture(plugins):
    task = tiny().task()
    with pytest.raises(WeightsError, match="run `defend train purifier smooth --dataset tiny --edition wide`"):
        build_stage("purifier", "smooth", task, weights="+wide", plugins=plugins)
    train(plugins, edition="wide")
    train(plugins)
    wide = build_stage("purifier", "smooth", task, weights="+wide", plugins=plugins)
    assert wide.module[0].out_channels == wide.config.width == 5
    assert build_stage("purifier", "smooth", task, plugins=plugins).module[0].out_channels == 3
    with pytest.raises(WeightsError, match="have width=5, and 3 was asked for"):
        build_stage("purifier", "smooth", task, {"width": 3}, "+wide", plugins)


@pytest.mark.parametrize("weights", [{"purifier": "+wide"}, {"smooth": "+wide"}])
def test_a_run_trains_the_edition_that_is_missing(plugins, weights):
    config = RunConfig(
        victim="fixed",
        dataset="tiny",
        purifier="smooth",
        weights=weights,
        train_missing=True,
        attacks=("fgsm",),
        threats=("oblivious",),
        limit=4,
        device="cpu",
        checks="none",
    )
    report = run(config, plugins=plugins)
    path = cached_path("purifier", "smooth", "tiny", "wide")
    assert report.weights["purifier"]["file"] == path.name
    assert [each.name for each in path.parent.iterdir()] == [path.name]
    before = path.stat().st_mtime_ns
    assert run(config, plugins=plugins).weights == report.weights
    assert path.stat().st_mtime_ns == before, "trained once"


def test_what_is_a_file_and_what_an_edition():
    assert edition_of("+wide") == "wide"
    assert edition_of("weights/+wide") == edition_of("") == edition_of(None) == ""
    assert say_training("purifier", "smooth", ("--dataset", "tiny"), {"width": 4}, "wide") == (
        "defend train purifier smooth --dataset tiny --edition wide --set width=4"
    )
