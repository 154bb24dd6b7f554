"""Names out of files and plugins that would lead out of the folder they belong in, and links that do."""

from __future__ import annotations

import functools
import json
import tomllib
from collections.abc import Callable, Iterable
from pathlib import Path

import tomli_w
from tests.faults.harness import LOST, Answer, Injection, run_command
from tests.faults.toys import PURIFIER, with_plugin
from tests.faults.two_at_once import ARMS, RUN, _kill_after

NAMES = (
    "..",
    "../..",
    "../../outside",
    "/",
    "",
    ".",
    "dae/..",
    "/tmp/defend-outside",
    "a\\b",
    "C:x",
    "..\\x",
    "x/../../y",
)
IN_PLUGINS = ("../x", "../../outside", "/tmp/defend-outside", "a/../../b", "a\\b", "a\0b", "..")


def injections() -> Iterable[Injection]:
    """Return them all."""
    for name in NAMES:
        for which in (0, 1):
            inject = functools.partial(_journal, name=name, which=which)
            yield Injection(
                "folders that a journal names", f"{name!r}, arm {which}", inject, quick=(name, which) == ("..", 1)
            )
        inject = functools.partial(_config, name=name)
        yield Injection("folders that a config names", repr(name), inject)
    yield Injection(
        "folders that a journal names", "two arms in one", functools.partial(_journal, name="r/dae", which=0)
    )
    kind = "links that lead elsewhere"
    yield Injection(kind, "of an arm", functools.partial(_link, place="r/dae", resume=True))
    yield Injection(kind, "of a journal", functools.partial(_link, place="r/unfinished"), quick=True)
    yield Injection(kind, "of figures", _figures)
    for name in IN_PLUGINS:
        yield Injection("editions", repr(name), functools.partial(_edition, name=name), quick=name == "../x")
        yield Injection("what a data set calls itself", repr(name), functools.partial(_dataset, name=name))
        yield Injection("members of a family", repr(name), functools.partial(_member, name=name))
        if "\0" not in name:
            yield Injection("names of new plugins", repr(name), functools.partial(_scaffold, name=name))


def _guarded(folder: Path) -> Path:
    """Make a file outside of everything, which nothing may touch."""
    guard = folder / "outside"
    guard.mkdir()
    (guard / "mine.safetensors").write_text("mine")
    return guard


def _escaped(folder: Path, inside: Iterable[str]) -> str:
    """Say what was written beside the folders that are written to."""
    usual = {"outside", "cache", "installed", ".out", ".error", *inside}
    new = sorted(each.name for each in folder.iterdir() if each.name not in usual)
    new += [each.name for each in (folder / "outside").iterdir() if each.name != "mine.safetensors"]
    if not (folder / "outside" / "mine.safetensors").exists():
        return f"{LOST}a file outside"
    new += [
        each.name for each in (folder / "cache").glob("*") if each.name not in ("training", "weights", "adversarial")
    ]
    return f"written outside: {new}" if new or Path("/tmp/defend-outside").exists() else ""


def _judge(answer: Answer, folder: Path, inside: Iterable[str], code: int | tuple[int, ...] = (0, 2)) -> str:
    return _escaped(folder, inside) or answer.misbehaved(code=code)


def _journal(folder: Path, name: str, which: int) -> str:
    """Cut a run of two arms off, let its journal name another folder, and go on with it."""
    _guarded(folder)
    run_command(folder, *ARMS, "--out", "r", arrange=functools.partial(_kill_after, 1))
    (path,) = (folder / "r").glob("*/unfinished/run.json")
    about = json.loads(path.read_text())
    config = tomllib.loads(about["configs"][which]) | {"out": name}
    about["configs"][which] = tomli_w.dumps(config)
    path.write_text(json.dumps(about))
    first = _judge(run_command(folder, "run", "--resume", "r", "--quiet"), folder, ["r"])
    return first or _judge(run_command(folder, "run", "--resume", path.parents[1], "--quiet"), folder, ["r"])


def _config(folder: Path, name: str) -> str:
    _guarded(folder)
    (folder / "given.toml").write_text(tomli_w.dumps({"victim": "resnet18", "out": name}))
    answer = run_command(folder, "run", "--config", "given.toml", *RUN[3:])
    return _judge(answer, folder, ["runs", "given.toml"])


def _link(folder: Path, place: str, resume: bool = False) -> str:
    guard = _guarded(folder)
    if resume:
        run_command(folder, *ARMS, "--out", "r", arrange=functools.partial(_kill_after, 1))
        (folder / "r" / "dae").rename(folder / "r" / ".was") if (folder / "r" / "dae").exists() else None
    (folder / place).parent.mkdir(exist_ok=True)
    (folder / place).symlink_to(guard)
    answer = run_command(folder, *(("run", "--resume", "r", "--quiet") if resume else (*RUN, "--out", "r")))
    return _judge(answer, folder, ["r"], code=2)


def _figures(folder: Path) -> str:
    guard = _guarded(folder)
    run_command(folder, *RUN, "--out", "r")
    (folder / "r" / "figures").symlink_to(guard)
    return _judge(run_command(folder, "report", "r"), folder, ["r"], code=2)


def _edition(folder: Path, name: str) -> str:
    source = PURIFIER.replace('train="toy_plugin:train"', f'train="toy_plugin:train", editions={{{name!r}: {{}}}}')
    return _train(folder, source, "toy", *(() if "\0" in name else ("--edition", name)))


def _member(folder: Path, name: str) -> str:
    source = PURIFIER.replace('train="toy_plugin:train"', 'train="toy_plugin:train", members="toy_plugin:members"')
    source = source.replace("\n\ndef build(", f"\n\ndef members():\n    return [{name!r}]\n\n\ndef build(")
    return _train(folder, source, "toy" if "\0" in name else name)


DATASET = """
from defend.datasets.base import MemoryDataset

@hookimpl
def defend_datasets():
    return [StageSpec(name="own", summary="noise", build="toy_plugin:images")]

def images(config):
    pixels = {each: torch.zeros(300, 1, 8, 8, dtype=torch.uint8) for each in ("train", "val", "test")}
    return MemoryDataset(NAME, ("a", "b"), pixels, {each: torch.arange(300) % 2 for each in pixels})
"""


def _dataset(folder: Path, name: str) -> str:
    return _train(folder, PURIFIER + DATASET.replace("NAME", repr(name)), "toy", "--dataset", "own")


def _train(folder: Path, source: str, name: str, *flags: str) -> str:
    _guarded(folder)
    arrange: Callable[[], object] = with_plugin(source)
    answer = run_command(folder, "train", "purifier", name, "--quiet", *flags, arrange=arrange)
    wrong = _judge(answer, folder, []) or _judge(run_command(folder, "list", arrange=arrange), folder, [], code=0)
    return wrong or _judge(run_command(folder, "cache", arrange=arrange), folder, [], code=0)


def _scaffold(folder: Path, name: str) -> str:
    _guarded(folder)
    return _judge(run_command(folder, "new-plugin", name, "--stage", "purifier"), folder, [], code=2)
