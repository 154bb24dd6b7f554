"""What a run leaves in its folder until it is complete: where it stands, and which configs it has. Imports no torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import attrs

from defend.config import read_toml, run_config
from defend.errors import ConfigError
from defend.values import RunConfig

FOLDER = "unfinished"
ABOUT = "run.json"


def is_unfinished(folder: Path) -> bool:
    """Whether a run was begun in this folder and not finished."""
    return (folder / FOLDER / ABOUT).is_file()


def unfinished(folder: Path) -> list[RunConfig]:
    """Return the configs of the unfinished run in a folder, one an arm; none where the run is complete.

    Raises:
        ConfigError: there is no run, or its table of contents is damaged.
    """
    if not folder.is_dir():
        raise ConfigError(f"--resume {str(folder)!r}: there is no such run folder; begin it with `defend run`")
    begun = [one for one in (folder, *sorted(folder.iterdir())) if is_unfinished(one)]
    if begun:
        configs = [read_toml(text, str(begun[0])) for text in read_about(begun[0] / FOLDER / ABOUT)["configs"]]
        if begun[0] == folder:
            return [attrs.evolve(configs[0], out=str(folder)), *configs[1:]]
        return [attrs.evolve(config, out=str(folder / Path(str(config.out)).name)) for config in configs]
    if (folder / "report.json").is_file() or any(folder.glob("*/report.json")):
        return []
    if (folder / "config.toml").is_file():  # stopped before its first batch
        return [attrs.evolve(run_config({}, folder / "config.toml"), out=str(folder))]
    raise ConfigError(f"--resume {str(folder)!r} holds no run: expected a folder that `defend run` wrote")


def read_about(path: Path) -> dict[str, Any]:
    """Read a journal's table of contents.

    Raises:
        ConfigError: it is damaged.
    """
    try:
        about: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return {"configs": list(about["configs"]), "fingerprint": dict(about["fingerprint"])}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{str(path)!r} is damaged ({type(error).__name__}): begin anew with --config RUN/config.toml"
        ) from None
