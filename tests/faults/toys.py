"""A small plugin that is there for one command, and what several commands at once need to meet."""

from __future__ import annotations

import ctypes
import functools
import os
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

PURIFIER = """
import torch
from torch import nn
from defend import StageSpec, hookimpl
from defend.train import Loss, Optimiser, Training

@hookimpl
def defend_purifiers():
    return [StageSpec(name="toy", summary="one convolution", build="toy_plugin:build", train="toy_plugin:train")]

class Toy(nn.Module):
    random = False

    def __init__(self):
        super().__init__()
        self.mix = nn.Conv2d(1, 1, 3, padding=1)

    def forward(self, images):
        return self.mix(images).sigmoid()

def build(config, task):
    return Toy()

class Train(Training):
    def optimisers(self, steps):
        return {"o": Optimiser(torch.optim.Adam(self.modules["m"].parameters(), 1e-3))}

    def losses(self, batch):
        yield Loss("o", (self.modules["m"](batch.images) - batch.images).square().mean())

def train(config, recipe, task):
    toy = build(config, task)
    return Train(toy, {"m": toy}, epochs=3, batch_size=300)
"""
"""A plugin with a purifier `toy`, whose training takes a second. Cases replace lines of it."""


def with_plugin(source: str, then: Callable[[], object] | None = None) -> Callable[[], object]:
    """Return what installs a plugin `toy_plugin` for the command, before `then` is called."""
    return functools.partial(_install, source, then)


def _install(source: str, then: Callable[[], object] | None) -> None:
    from defend.plugins import forget_installed

    folder = Path("installed").absolute()
    about = folder / "defend_toy-1.0.dist-info"
    about.mkdir(parents=True, exist_ok=True)
    (folder / "toy_plugin.py").write_text(source, encoding="utf-8")
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: defend-toy\nVersion: 1.0\n", encoding="utf-8")
    (about / "entry_points.txt").write_text("[defend]\ntoy = toy_plugin\n", encoding="utf-8")
    sys.path.insert(0, str(folder))
    forget_installed()
    if then is not None:
        then()


def at_once(commands: list[Callable[[], object]]) -> list[object]:
    """Run functions in threads, all at once; return what each returned."""
    with ThreadPoolExecutor(len(commands)) as pool:
        return [each.result() for each in [pool.submit(command) for command in commands]]


def meet(folder: Path, count: int) -> None:
    """Wait until `count` callers of any process are here; `folder` is theirs alone."""
    (folder / f"here-{os.getpid()}").touch()
    end = time.monotonic() + 60
    while sum(each.name.startswith("here-") for each in folder.iterdir()) < count:
        if time.monotonic() > end:
            raise TimeoutError(f"fewer than {count} came")
        time.sleep(0.0005)


def obey_permissions() -> None:
    """Let the kernel refuse root what it refuses others: a folder of mode 0o555 is not written to."""
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # version 3 of the interface, this process
    data = (ctypes.c_uint32 * 6)()
    if libc.capset(header, data) != 0:
        raise OSError(ctypes.get_errno(), "capabilities cannot be dropped")
