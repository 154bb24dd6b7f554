"""What a run leaves in its folder until it is complete: where it stands, and which configs it has. Imports no torch."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

import attrs

from defend.errors import ConfigError, DefendError
from defend.records.reading import arms_of, is_partial, is_run
from defend.util import lock
from defend.util.documents import digest, parse_json
from defend.util.files import list_folder, place_under, sweep
from defend.values.commands import say_command
from defend.values.run_config import RunConfig
from defend.values.toml import read_toml, run_config

FOLDER = "unfinished"
ABOUT = "run.json"
ANNOUNCED = "configs.json"  # what is asked for, written before anything is computed
BATCH = ".safetensors"  # how the names of finished batches end


def is_unfinished(folder: Path) -> bool:
    """Whether a run was begun in this folder and not finished."""
    return (folder / FOLDER / ABOUT).is_file()


def find_unfinished(folder: Path) -> list[RunConfig]:
    """Return the configs of the unfinished run in a folder, one an arm; none where the run is complete.

    An arm's folder stands for the run of all its arms: what is known of that lies with the first.

    Raises:
        ConfigError: there is no run, or its table of contents is damaged.
    """
    if not folder.is_dir():
        raise ConfigError(f"there is no run folder {str(folder)!r}: begin it with `defend run`")
    folders = [folder, *(one for one in list_folder(folder) if one.is_dir())]
    begun = [one for one in folders if is_unfinished(one)]
    if begun:
        return _place(read_sealed(begun[0] / FOLDER / ABOUT)["configs"], begun[0], folder)
    if found := _find_beside(folder):
        return found
    for one in folders:
        if any((one / FOLDER).glob(f"*{BATCH}")) or is_partial(one):
            raise ConfigError(
                f"run {str(one)!r} is not complete, and {str(one / FOLDER / ABOUT)!r} is gone, without which its "
                f"finished batches cannot be told from others: begin anew with {anew(one)}"
            )
    announced = [one for one in folders if (one / FOLDER / ANNOUNCED).is_file()]
    if announced:  # stopped before its first batch
        return _place(read_sealed(announced[0] / FOLDER / ANNOUNCED)["configs"], announced[0], folder)
    if is_run(folder) or arms_of(folder):
        return []
    if (folder / "config.toml").is_file():  # by a version that did not announce its configs
        return [attrs.evolve(run_config({}, folder / "config.toml"), out=str(folder))]
    if all(one.is_dir() or one.name.startswith(".") for one in folder.rglob("*")):
        raise ConfigError(
            f"{str(folder)!r} holds nothing yet: a run that was to be there stopped before it had computed "
            "anything; begin it with the same command"
        )
    raise ConfigError(f"{str(folder)!r} holds no run: expected a folder that `defend run` wrote")


def _find_beside(folder: Path) -> list[RunConfig]:
    """Return the configs of the unfinished run of several arms that a folder is one arm of; none where it is none."""
    around = folder.resolve().parent
    kept = (one / FOLDER / name for one in list_folder(around) for name in (ABOUT, ANNOUNCED))
    for path in filter(Path.is_file, kept):
        with contextlib.suppress(ConfigError):  # of another run, whose own --resume says what is wrong with it
            configs = _place(read_sealed(path)["configs"], path.parent.parent, around)
            if folder.resolve() in [Path(str(config.out)) for config in configs[1:]]:
                return configs
    return []


def way_on(config: RunConfig) -> str:
    """Say how a run goes on that could not write: from what is in its folder, or from the beginning."""
    unfinished = Path(str(config.out)) / FOLDER
    if config.out and ((unfinished / ABOUT).is_file() or (unfinished / ANNOUNCED).is_file()):
        return f"what was finished is kept: {say_command('run', '--resume', config.out)}"
    return "nothing was computed yet: mend that, or name another folder with --out, and begin again"


def tidy(folder: Path) -> None:
    """Delete what a process left that was killed in the end, in a complete run's folder or in those of its arms."""
    for one in (folder, *arms_of(folder)):
        sweep(one, age=0)
        if (one / lock.NAME).exists():  # of a process that is gone: who holds it next takes it away
            with contextlib.suppress(DefendError), lock.hold(one, f"run folder {str(one)!r}", "wait"):
                pass


def anew(folder: Path) -> str:
    """Return the command that begins a run again, with the settings kept in its folder."""
    return say_command("run", "--config", folder / "config.toml")


def _place(texts: Sequence[str], begun: Path, folder: Path) -> list[RunConfig]:
    """Read the configs of a run that was begun in a folder, the one asked for or one of its arms'."""
    configs = [read_toml(text, str(begun)) for text in texts]
    if len(configs) == 1:
        return [attrs.evolve(configs[0], out=str(begun))]
    # what the journal calls an arm's folder is a name beside the others, wherever the run lies by now
    around, said_by = (folder.parent if begun == folder else folder), f"the journal in {str(begun / FOLDER)!r}"
    outs = [place_under(around, PurePath(str(config.out)).name, said_by) for config in configs]
    outs[:1] = [begun]
    if len(set(outs)) < len(configs) or not configs:
        raise ConfigError(f"{said_by} is damaged: its arms have no folders of their own; begin anew with {anew(begun)}")
    return [attrs.evolve(config, out=str(out)) for config, out in zip(configs, outs, strict=True)]


def say_difference(what: str, then: Any, now: Any, here: str = " here") -> str:
    """Return what differs of a run's fingerprint; of versions by name the first that does, with both."""
    if not isinstance(then, Mapping) or not isinstance(now, Mapping):
        return what
    name = next(name for name in {**then, **now} if then.get(name) != now.get(name))
    return f"{what} ({name} {then.get(name, 'none')} against {now.get(name, 'none')}{here})"


def read_sealed(path: Path) -> dict[str, Any]:
    """Read a JSON file of the journal's, as `seal` wrote it.

    Raises:
        ConfigError: it is damaged; the message says how to begin anew.
    """
    try:
        found = parse_json(path.read_bytes())
        if not isinstance(found, dict) or found.pop("digest") != digest(found):
            raise ValueError("it is not as it was written")
    except OSError as error:
        raise ConfigError(f"{str(path)!r} cannot be read: {error.strerror}") from None
    except (ValueError, KeyError) as error:
        lacks = f"it lacks {error}" if isinstance(error, KeyError) else error
        raise ConfigError(f"{str(path)!r} is damaged ({lacks}): begin anew with {anew(path.parent.parent)}") from None
    return found


def seal(values: Mapping[str, Any]) -> str:
    """Return a JSON file of the journal's, by whose digest any damage is noticed."""
    plain = json.loads(json.dumps(values))  # as it is read back: keys are texts, tuples are lists
    return json.dumps({**plain, "digest": digest(plain)}, indent=1)
