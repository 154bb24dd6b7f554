"""Shards of a run: together they are what one process would have made, and what does not fit together is said."""

import json
import shutil

import attrs
import numpy as np
import pytest

from defend import RunConfig
from defend.errors import ConfigError
from defend.evaluation.runner import run, run_arms
from defend.records.shards import read_shards
from defend.records.unfinished import find_unfinished, is_unfinished
from defend.records.watcher import Watcher

CONFIG = RunConfig(
    victim="resnet20",
    purifier="jpeg",
    limit=8,
    adaptive_limit=4,
    batch_size=2,
    store=False,
    attacks=("pgd",),
    threats=("oblivious", "adaptive"),
    sweep=(0.05,),
    options={"pgd": {"steps": 2}},
    precision="exact",
)


class Dies(Watcher):
    """Ends a process after some images, as a kill would: nothing tidies up after it."""

    def __init__(self, after):
        self.left = after

    def images(self, count):
        self.left -= count
        if self.left < 0:
            raise RuntimeError("killed")


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """A run by one process and by two shards, of which the second was cut off and resumed; both folders."""
    root = tmp_path_factory.mktemp("shards")
    run(attrs.evolve(CONFIG, out=str(root / "one")))
    run_arms([attrs.evolve(CONFIG, shard="1/2", out=str(root / "a"))])
    with pytest.raises(RuntimeError, match="killed"):
        run_arms([attrs.evolve(CONFIG, shard="2/2", out=str(root / "b"))], Dies(8))
    kept = {path.name: path.stat().st_mtime_ns for path in (root / "b" / "unfinished").glob("*.safetensors")}
    assert kept
    with pytest.raises(ConfigError, match=rf"shard 2/2 is not finished.*defend run --resume {root / 'b'}"):
        merge(root, root / "early")
    assert not (root / "early").exists()
    run_arms(find_unfinished(root / "b"), resume=True)
    after = {path.name: path.stat().st_mtime_ns for path in (root / "b" / "unfinished").glob("*.safetensors")}
    assert after.items() > kept.items(), "what was finished was computed again"
    return root


def merge(root, out, *names):
    shards = read_shards([root / name for name in names or ("b", "a")])
    return run_arms([attrs.evolve(shards.configs[0], out=str(out))], shards=shards)[0].report


def told(folder):
    """A run's report without what time decides, or where it was written."""
    report = json.loads((folder / "report.json").read_text())
    for key in ("seconds", "cost", "digests"):
        del report[key]
    del report["config"]["out"]
    for row in report["rows"]:
        del row["seconds"]
    return report


def test_two_shards_are_the_run_of_one_process(two, tmp_path):
    assert not (two / "a" / "report.json").exists(), "a shard's figures would be taken for the run's"
    merge(two, tmp_path / "merged")
    whole, merged = told(two / "one"), told(tmp_path / "merged")
    assert merged.pop("notes")[-1].startswith("Merged from 2 shards")
    whole.pop("notes")
    assert merged == whole
    assert not merged["partial"]
    names = {path.name for path in (two / "one").iterdir()}
    assert {path.name for path in (tmp_path / "merged").iterdir()} == names
    for name in names - {"report.json", "config.toml"}:
        assert (tmp_path / "merged" / name).read_bytes() == (two / "one" / name).read_bytes(), name


def test_what_is_missing_or_doubled_or_other_is_a_line(two, tmp_path, refused):
    a, b = two / "a", two / "b"
    assert "of 2 shards 2/2 is missing" in refused("merge", a)
    shutil.copytree(a, tmp_path / "again")
    assert "shard 1/2 is there twice" in refused("merge", a, tmp_path / "again", b)
    assert "no shard" in refused("merge", two / "one")
    assert refused("merge", a, tmp_path / "none").startswith("error: there is no run folder")
    others = {"in eps": {"eps": 0.3, "shard": "2/2"}, "one of 2": {"shard": "2/3"}}
    for said, changes in others.items():
        config = attrs.evolve(CONFIG, **changes)
        other = tmp_path / said
        shutil.copytree(b, other)
        rewrite(other, config)
        assert said in refused("merge", a, other)
    other = tmp_path / "code"
    shutil.copytree(b, other)
    rewrite(other, attrs.evolve(CONFIG, shard="2/2"), {"source code of defend": "another"})
    assert "in source code of defend" in refused("merge", a, other)
    mine = read_shards([a, b]).fingerprint["set of library versions"]
    other = tmp_path / "library"
    shutil.copytree(b, other)
    rewrite(other, attrs.evolve(CONFIG, shard="2/2"), {"set of library versions": {**mine, "torchvision": "9.9"}})
    said = f"in set of library versions (torchvision 9.9 against {mine['torchvision']})"
    assert said in refused("merge", a, other)
    assert not list(tmp_path.glob("runs/*"))


def test_shards_with_other_held_out_images_are_not_merged(tmp_path, refused):
    """Their thresholds would differ, and the report could state one of them alone."""
    images = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 1), np.uint8)
    labels = np.arange(40) % 10
    (tmp_path / "net.py").write_text(
        "from torch import nn\n\n\ndef load():\n    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))\n"
    )
    config = attrs.evolve(
        CONFIG, victim=f"{tmp_path / 'net.py'}:load", dataset="arrays", purifier=None, threats=("oblivious",)
    )
    for number, name in enumerate("ab", 1):
        file = tmp_path / f"{name}.npz"
        held = {"x_val": images[20:] // number, "y_val": labels[20:]}
        np.savez(file, x_test=images[:20], y_test=labels[:20], x_train=images[20:], y_train=labels[20:], **held)
        run_arms([attrs.evolve(config, data_dir=str(file), shard=f"{number}/2", out=str(tmp_path / name))])
    assert "in held-out data" in refused("merge", tmp_path / "a", tmp_path / "b")


def rewrite(folder, config, fingerprint=None):
    """Make a shard's journal that of another config, or of other code."""
    from defend.records.unfinished import read_sealed, seal
    from defend.values.toml import to_toml

    path = folder / "unfinished" / "run.json"
    kept = read_sealed(path)
    kept["configs"] = [to_toml(config)]
    kept["fingerprint"] |= fingerprint or {}
    path.write_text(seal(kept))


def test_a_shard_has_no_report_and_none_is_asked_of_it(two, defend, refused):
    assert is_unfinished(two / "a")
    again = refused("run", "--victim", "resnet20", "--shard", "1/2", "--out", two / "a")
    assert "holds shard 1/2" in again and "defend merge" in again
    assert "give it to `defend merge`" in refused("run", "--victim", "resnet20", "--shard", "1/2", "--gate")
    assert "`defend merge` reports" in refused("report", two / "a")
    assert "expected NUMBER/COUNT" in refused("run", "--victim", "resnet20", "--shard", "3/2")
    few = ("run", "--victim", "resnet20", "--attack", "pgd", "--threat", "oblivious", "--limit", "4", "--quiet")
    assert "would have nothing to compute" in refused(*few, "--shard", "1/3")
    with pytest.raises(ConfigError, match="no report of its own"):
        run(attrs.evolve(CONFIG, shard="1/2"))
