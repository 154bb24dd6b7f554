"""What a run leaves in its folder until it is complete: where it stands, and which configs it has. Imports no torch."""

from __future__ import annotations

import json
from pathlib import Path, PurePath
from typing import Any

import attrs

from defend.errors import ConfigError
from defend.records.reading import arms_of, is_partial, is_run
from defend.util.files import place_under
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

    Raises:
        ConfigError: there is no run, or its table of contents is damaged.
    """
    if not folder.is_dir():
        raise ConfigError(f"--resume {str(folder)!r}: there is no such run folder; begin it with `defend run`")
    folders = [folder, *sorted(one for one in folder.iterdir() if one.is_dir())]
    begun = [one for one in folders if is_unfinished(one)]
    if begun:
        return _place(read_about(begun[0] / FOLDER / ABOUT)["configs"], begun[0], folder)
    for one in folders:
        if any((one / FOLDER).glob(f"*{BATCH}")) or is_partial(one):
            raise ConfigError(
                f"run {str(one)!r} is not complete, and {str(one / FOLDER / ABOUT)!r} is gone, without which its "
                f"finished batches cannot be told from others: begin anew with {anew(one)}"
            )
    announced = [one for one in folders if (one / FOLDER / ANNOUNCED).is_file()]
    if announced:  # stopped before its first batch
        return _place(_read(announced[0] / FOLDER / ANNOUNCED, configs=list)["configs"], announced[0], folder)
    if is_run(folder) or arms_of(folder):
        return []
    if (folder / "config.toml").is_file():  # by a version that did not announce its configs
        return [attrs.evolve(run_config({}, folder / "config.toml"), out=str(folder))]
    raise ConfigError(f"--resume {str(folder)!r} holds no run: expected a folder that `defend run` wrote")


def anew(folder: Path) -> str:
    """Return the command that begins a run again, with the settings kept in its folder."""
    return f"defend run --config {folder / 'config.toml'}"


def _place(texts: list[str], begun: Path, folder: Path) -> list[RunConfig]:
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


def _read(path: Path, **kinds: type) -> dict[str, Any]:
    """Read some values of a JSON file of the journal's, each as what it must be."""
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return {name: kind(found[name]) for name, kind in kinds.items()}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{str(path)!r} is damaged ({type(error).__name__}): begin anew with {anew(path.parent.parent)}"
        ) from None


def read_about(path: Path) -> dict[str, Any]:
    """Read a journal's table of contents: "configs" and "fingerprint".

    Raises:
        ConfigError: it is damaged.
    """
    return _read(path, configs=list, fingerprint=dict)
