"""Files that were written well and are read back damaged: cut, flipped, emptied, of other types, nested, encoded.

Expected: one line that names the file, or what was written, or the damaged part made again and a warning; never another
figure, and never another error. Readers are called in this process, a few commands whole.
"""

from __future__ import annotations

import functools
import json
import random
import shutil
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import attrs
from tests.faults import disk
from tests.faults.commands import COMMANDS, whole
from tests.faults.harness import LOST, Injection, run_command

SEEDS = 6  # damages of each kind
DEEP = 100_000
OTHERS = (None, True, -1, 0.5, 10**40, "", "words", [], {}, [[0]], {"a": 1})
Damage = Callable[[bytes, random.Random], bytes]


def truncate(data: bytes, draw: random.Random) -> bytes:
    return data[: draw.randrange(len(data))]


def empty(data: bytes, draw: random.Random) -> bytes:
    return b""


def flip(data: bytes, draw: random.Random) -> bytes:
    place, bit = draw.randrange(len(data)), 1 << draw.randrange(8)
    return data[:place] + bytes([data[place] ^ bit]) + data[place + 1 :]


def scatter(data: bytes, draw: random.Random) -> bytes:
    for _ in range(20):
        data = flip(data, draw)
    return data


def lose_the_middle(data: bytes, draw: random.Random) -> bytes:
    start = draw.randrange(len(data))
    return data[:start] + data[start + draw.randrange(1, 200) :]


def other_encoding(data: bytes, draw: random.Random) -> bytes:
    return data.decode(errors="replace").encode(draw.choice(["utf-16", "utf-32", "utf-8-sig"]))


def nest(data: bytes, draw: random.Random) -> bytes:
    return draw.choice([b"[" * DEEP, b'{"a":' * DEEP, b"a = " + b"[" * DEEP])


def another_value(data: bytes, draw: random.Random) -> bytes:
    """Put something of another type in the place of one value of a JSON document."""
    return _edited(data, draw, lambda holder, key: holder.__setitem__(key, draw.choice(OTHERS)))


def another_number(data: bytes, draw: random.Random) -> bytes:
    return _edited(data, draw, lambda holder, key: holder.__setitem__(key, draw.choice([float("nan"), 1e999, 3, 0.25])))


def missing(data: bytes, draw: random.Random) -> bytes:
    return _edited(data, draw, lambda holder, key: holder.__delitem__(key))


def _edited(data: bytes, draw: random.Random, change: Callable[[Any, Any], None]) -> bytes:
    document = json.loads(data)
    places = list(_places(document))
    change(*draw.choice(places))
    return json.dumps(document).encode()


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    keys = value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in keys:
        yield value, key
        yield from _places(value[key])


BYTES = (truncate, empty, flip, scatter, lose_the_middle)
TEXT = (*BYTES, other_encoding, nest)
JSON = (*TEXT, another_value, another_number, missing)


@attrs.frozen
class Target:
    """A file, and what reads it: given the folder, `read` returns what it says, as plain data."""

    name: str
    make: Callable[[], Path]
    file: str
    damages: tuple[Damage, ...]
    read: Callable[[Path], Any]


def _results(folder: Path) -> Any:
    from defend.records.reading import read_results
    from defend.values.toml import read_toml

    found = read_results(folder / "r")
    return _plain(attrs.evolve(found, toml="")), _plain(attrs.evolve(read_toml(found.toml, "it"), out=None))


def _report(folder: Path) -> Any:
    from defend.errors import DataError
    from defend.records.reading import is_partial, read_report

    try:
        return _plain(read_report(folder / "r")), is_partial(folder / "r")
    except (OSError, ValueError) as error:  # as its callers expect
        raise DataError(str(error)) from None


def _unfinished(folder: Path) -> Any:
    from defend.records.journal import Journal
    from defend.records.unfinished import find_unfinished

    configs, journal = find_unfinished(folder / "r"), Journal(folder / "r")
    parts = [_plain(attrs.evolve(part, attack_seconds=0)) for row in (0, 1) for part in journal.parts(row)]
    if journal.damaged:
        warnings.warn("computed again", stacklevel=1)
    return _plain(configs), journal.choice("crafting"), parts


def _checkpoint(folder: Path) -> Any:
    import torch

    from defend.records.watcher import TrainingWatcher  # noqa: F401 - as a training has it
    from defend.train import Optimiser
    from defend.training.checkpoint import Checkpoint, Keeper
    from defend.util.processes import Processes

    module = torch.nn.Linear(2, 2)
    state = Checkpoint({"a": module}, {"a": Optimiser(torch.optim.Adam(module.parameters()))})
    step, sums, _ = Keeper(state, folder, 0, {}, Processes()).load(torch.device("cpu"))
    return step, _plain(sums), _plain(dict(module.state_dict()) if step else {})


def _metrics(folder: Path) -> Any:
    from defend.training.checkpoint import MetricsFile

    MetricsFile(folder, 10)
    return ""  # a log for people, of which no figure is made: it must not end a training


def _card(folder: Path) -> Any:
    from defend.weights.card import read_card

    card = read_card(folder / "cache/weights/detector-puvae-digits.safetensors")
    return _plain(card), _plain(card.task()), card.filing


def _kept(folder: Path) -> Any:
    from defend.reproduce.ladders import Ladder

    try:
        text = (folder / "kept.json").read_text(encoding="utf-8")
    except UnicodeDecodeError:
        text = (folder / "kept.json").read_text(encoding="latin-1")
    return _plain(Ladder.from_json(text, str(folder / "kept.json")))


def _stored(folder: Path) -> Any:
    from defend.store.store import Store

    store = Store(folder / "cache/adversarial", 10**9)
    found = [store.get(path.stem) for path in sorted((folder / "cache/adversarial").glob("*/*.safetensors"))]
    store.entries()
    if store.damaged:
        warnings.warn("made again", stacklevel=1)
    return _plain(found)


def _plain(value: Any) -> Any:
    """Return values as texts, lists and dictionaries, which can be compared."""
    if hasattr(value, "tolist"):
        return repr(value.tolist())
    if attrs.has(type(value)):
        return {field.name: _plain(getattr(value, field.name)) for field in attrs.fields(type(value))}
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else repr(value)


@functools.cache
def _begun() -> Path:
    """A run that was killed before its last batch."""
    import tempfile

    folder = Path(tempfile.mkdtemp(prefix="defend-begun-"))
    COMMANDS["run"].start(folder, disk.arranged(disk.cut, 1, kind="rename", name="001-000001"))
    (folder / disk.MARK).unlink()
    return folder


@functools.cache
def _trained() -> Path:
    import tempfile

    import torch

    from defend.train import Optimiser
    from defend.training.checkpoint import Best, Checkpoint, Keeper, MetricsFile
    from defend.util.processes import Processes

    folder = Path(tempfile.mkdtemp(prefix="defend-trained-"))
    module = torch.nn.Linear(2, 2)
    state = Checkpoint({"a": module}, {"a": Optimiser(torch.optim.Adam(module.parameters()))})
    Keeper(state, folder, 0, {}, Processes()).keep(7, {"loss": torch.tensor([2.0, 1.0])}, Best(), always=True)
    log = MetricsFile(folder, 0)
    for step in range(1, 5):
        log.write({"epoch": step, "step": step, "loss": 0.5})
    return folder


@functools.cache
def _measured() -> Path:
    """A ladder that came with a plugin, as it is kept now."""
    import tempfile

    from defend.plugins import registry
    from defend.reproduce import ladders

    folder = Path(tempfile.mkdtemp(prefix="defend-kept-"))
    found = ladders.find_kept(next(each for _, each in sorted(registry().recipes.items())))
    assert found is not None
    found.save(folder / "kept.json")
    return folder


RUN, CALIBRATED = functools.partial(whole, "run"), functools.partial(whole, "calibrate")
TARGETS = (
    Target("report.json", RUN, "r/report.json", JSON, _results),
    Target("report.json alone", RUN, "r/report.json", JSON, _report),
    Target("records.csv", RUN, "r/records.csv", TEXT, _results),
    Target("config.toml", RUN, "r/config.toml", TEXT, _results),
    Target("examples", RUN, "r/examples.safetensors", BYTES, _results),
    Target("stored images", RUN, "cache/adversarial/*/*.safetensors", BYTES, _stored),
    Target("journal: configs", _begun, "r/unfinished/configs.json", JSON, _unfinished),
    Target("journal: contents", _begun, "r/unfinished/run.json", JSON, _unfinished),
    Target("journal: choice", _begun, "r/unfinished/crafting.json", JSON, _unfinished),
    Target("journal: batch", _begun, "r/unfinished/000-000001.safetensors", BYTES, _unfinished),
    Target("checkpoint", _trained, "checkpoint.safetensors", BYTES, _checkpoint),
    Target("metrics.jsonl", _trained, "metrics.jsonl", TEXT, _metrics),
    Target("card", CALIBRATED, "cache/weights/*.safetensors", BYTES, _card),
    Target("kept ladder", _measured, "kept.json", JSON, _kept),
)


def injections() -> Iterator[Injection]:
    """So many of each kind of damage to each file, and whole commands."""
    for target in TARGETS:
        for damage in target.damages:
            for seed in range(SEEDS):
                yield Injection(
                    f"damage: {target.name}",
                    f"{damage.__name__} {seed}",
                    functools.partial(_inject, target, damage, seed),
                    quick=seed == 0 and target.make in (_trained, _measured),
                )
    for change in CARDS:
        yield Injection("damage: list", change.__name__, functools.partial(_list, change), quick=change is nested)
    for damage in (truncate, flip, nest):
        yield Injection("damage: resume", damage.__name__, functools.partial(_resume, damage))


def _inject(target: Target, damage: Damage, seed: int, folder: Path) -> str:
    made = target.make()
    wanted = target.read(made)
    shutil.copytree(made, folder, dirs_exist_ok=True)
    (path, *_) = sorted(folder.glob(target.file))
    data = path.read_bytes()
    path.write_bytes(damage(data, random.Random(seed)))
    return _judge(target, folder, wanted)


def _judge(target: Target, folder: Path, wanted: Any) -> str:
    from defend.errors import DefendError

    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        try:
            found = target.read(folder)
        except DefendError as error:
            said = str(error)
            return "" if "\n" not in said and len(said) < 800 else f"no line: {said[:200]!r}"
        except Exception as error:
            return f"{type(error).__name__}: {str(error)[:150]}"
    same = json.dumps(found).replace(str(folder), "") == json.dumps(wanted).replace(str(target.make()), "")
    return "" if same or told else f"{LOST}it says something else, and nobody is told"


def nested(card: dict[str, Any]) -> Any:
    return "[" * DEEP


def figures_are_texts(card: dict[str, Any]) -> Any:
    return {**card, "figures": {"accuracy": "high"}}


def figures_are_a_list(card: dict[str, Any]) -> Any:
    return {**card, "figures": [1]}


def name_is_a_number(card: dict[str, Any]) -> Any:
    return {**card, "name": 7}


def classes_are_numbers(card: dict[str, Any]) -> Any:
    return {**card, "dataset": {**card["dataset"], "classes": [1, 2]}}


def shape_is_short(card: dict[str, Any]) -> Any:
    return {**card, "dataset": {**card["dataset"], "shape": [1, 8]}}


def recipe_is_a_list(card: dict[str, Any]) -> Any:
    return {**card, "recipe": ["a"]}


def dataset_is_none(card: dict[str, Any]) -> Any:
    return {**card, "dataset": None}


CARDS = (
    nested,
    figures_are_texts,
    figures_are_a_list,
    name_is_a_number,
    classes_are_numbers,
    shape_is_short,
    recipe_is_a_list,
    dataset_is_none,
)


def _list(change: Callable[[dict[str, Any]], Any], folder: Path) -> str:
    """`list` and `show` with a card that is not what it should be."""
    from safetensors.torch import load_file, save_file

    from defend.util.header import read_metadata

    shutil.copytree(whole("calibrate"), folder, dirs_exist_ok=True)
    (path,) = (folder / "cache/weights").glob("*.safetensors")
    with path.open("rb") as file:
        card = json.loads(read_metadata(file)["defend.card"])
    tensors = load_file(path)
    changed = change(card)
    text = changed if isinstance(changed, str) else json.dumps(changed)
    save_file(tensors, path, metadata={"defend.card": text})
    for command in ("list", "list --json", "show puvae", "cache"):
        wrong = run_command(folder, *command.split()).misbehaved(code=0)
        if wrong:
            return f"`{command}`: {wrong}"
    run = "run --victim resnet18 --detector puvae --limit 4 --attack fgsm"
    wrong = run_command(folder, *run.split()).misbehaved(code=2, words=("card",))
    return wrong and f"`run`: {wrong}"


def _resume(damage: Damage, folder: Path) -> str:
    """Go on with a finished batch that is damaged."""
    shutil.copytree(_begun(), folder, dirs_exist_ok=True)
    path = folder / "r/unfinished/000-000001.safetensors"
    path.write_bytes(damage(path.read_bytes(), random.Random(1)))
    wrong = COMMANDS["run"].go_on(folder, resume=True)
    return wrong and f"{LOST}{wrong}"
