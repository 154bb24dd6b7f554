"""Shared by core's tests: a cache of their own, so that nothing this user trained decides a test."""

import json
import os
import subprocess
import sys
import types
from importlib.machinery import ModuleSpec
from importlib.metadata import EntryPoint

import hypothesis
import pytest

hypothesis.settings.register_profile("defend", deadline=None)  # a busy machine is not a failure
hypothesis.settings.load_profile("defend")


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DEFEND_CACHE_DIR", str(tmp_path / "own-cache"))
    monkeypatch.delenv("DEFEND_DATA_DIR", raising=False)


@pytest.fixture
def launch_two(tmp_path):
    """Run a script in two processes on gloo; return what each left as RANK.json in the folder that it is told first."""

    def launch(text, *arguments):
        script = tmp_path / "two.py"
        script.write_text(text)
        torchrun = (sys.executable, "-W", "ignore", "-m", "torch.distributed.run", "--standalone")
        done = subprocess.run(
            [*torchrun, "--nproc-per-node", "2", str(script), str(tmp_path), *map(str, arguments)],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr
        return [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1)]

    return launch


TOYS = {"victim": "victim", "purifier": "negative", "dataset": "tiny"}


@pytest.fixture
def toys(monkeypatch):
    """A plugin with a victim, a purifier and a data set that cost nothing: `RunConfig(**TOYS)`, `plugins=toys`."""
    from defend.hookspecs import hookimpl
    from defend.plugins import Registry
    from defend.stages import StageSpec
    from defend.testing.toys import TASK, Negative, TinyVictim, tiny_dataset

    plugin = types.ModuleType("toy_plugin")
    plugin.__spec__ = ModuleSpec("toy_plugin", None, origin=__file__)  # so that a run of it can go on
    plugin.victim = lambda config, task: TinyVictim(task)
    plugin.negative = lambda config, task: Negative()
    plugin.tiny = lambda config: tiny_dataset(TASK)
    for stage, name in TOYS.items():
        spec = StageSpec(name=name, summary="toy", build=f"toy_plugin:{name}")
        setattr(plugin, f"defend_{stage}s", hookimpl(lambda spec=spec: [spec], specname=f"defend_{stage}s"))
    monkeypatch.setitem(sys.modules, "toy_plugin", plugin)
    return Registry(entry_points=[EntryPoint("toys", "toy_plugin", "defend")])
