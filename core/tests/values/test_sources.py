"""A data set is named, or is a folder or a file."""

from pathlib import Path

import attrs
import pytest

from defend.errors import ConfigError, UnknownNameError
from defend.plugins import Registry
from defend.values.run_config import RunConfig
from defend.values.sources import name_source
from defend.values.toml import read_toml, to_toml


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("digits", ("digits", None)),
        ("my.set", ("my.set", None)),
        ("./pets", ("imagefolder", "./pets")),
        ("data/pets", ("imagefolder", "data/pets")),
        ("..", ("imagefolder", "..")),
        (Path("pets"), ("imagefolder", "./pets")),
        ("~/pets", ("imagefolder", str(Path("~/pets").expanduser()))),
        ("pets.CSV", ("imagefolder", "pets.CSV")),
        ("mine.npz", ("arrays", "mine.npz")),
        ("hf:ylecun/mnist", ("hf", "ylecun/mnist")),
    ],
)
def test_what_is_typed_is_a_name_or_a_place(typed, meant):
    assert name_source(typed) == meant == name_source(*meant)


def test_two_places_are_one_too_many():
    with pytest.raises(ConfigError, match="--data-dir 'b' too: leave one out"):
        name_source("./a", "b")
    with pytest.raises(ConfigError, match="names nothing"):
        name_source("hf:")
    with pytest.raises(ConfigError, match="dataset is int, expected a name or a path"):
        name_source(3)


def test_a_run_keeps_the_place_and_reads_it_back():
    config = RunConfig(victim="v", dataset="./pets", eps=0.1)
    assert (config.dataset, config.data_dir) == ("imagefolder", "./pets")
    assert attrs.evolve(config, seed=1).data_dir == "./pets"
    assert read_toml(to_toml(config), "here") == config


def test_a_folder_that_is_no_name_is_offered(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pets").mkdir()
    with pytest.raises(UnknownNameError, match=r"; the folder of this name is \./pets"):
        Registry(entry_points=[]).find("dataset", "pets")
