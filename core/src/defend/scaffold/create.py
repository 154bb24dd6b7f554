"""`defend new-plugin`: a package for a new stage, complete and working, whose middle is to be replaced.

What is written lies in `templates/`: `common/` for every stage, and a folder a stage. A file's place there is its
place in the package; `.in` is dropped, `NAME` in a folder's name is the plugin's, and `$name`, `$stage`, ... in the
text are filled in. Imports no torch.
"""

from __future__ import annotations

import importlib.util
import keyword
import re
import string
import tempfile
from pathlib import Path

from defend import __version__
from defend.errors import ConfigError, UnknownNameError, WriteError
from defend.plugins import Entry, registry
from defend.stages import STAGES
from defend.util.files import sweep

TEMPLATES = Path(__file__).with_name("templates")
NAME = re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)*")
LONGEST_NAME = 40
RESERVED = frozenset({*keyword.kwlist, *keyword.softkwlist, *STAGES, "core", "defend", "none"})
"""Names that would read wrongly or clash: `--set STAGE.OPTION`, the distribution defend-core, "none" for nothing."""


def create(name: str, stage: str, folder: Path) -> list[Path]:
    """Write the package `folder/NAME`, whole or not at all.

    Args:
        name: what users will type, for example "haze": also the folder, the import package `defend_NAME` and, with
            hyphens, the distribution.
        stage: one of `defend.stages.STAGES`.
        folder: an existing folder.

    Returns:
        The files written, sorted.

    Raises:
        UnknownNameError: no such stage; the nearest is offered.
        ConfigError: a name that cannot be used or is taken, or a folder that is missing or not empty.
        WriteError: the folder cannot be written to.
    """
    if stage not in STAGES:
        raise UnknownNameError("stage", stage, STAGES)
    _check_name(name)
    place = folder / name
    if not folder.is_dir():
        raise ConfigError(f"folder {str(folder)!r} does not exist: make it first, or name another")
    if place.exists() and not (place.is_dir() and not any(place.iterdir())):
        raise ConfigError(f"{str(place)!r} exists and is not an empty folder: choose another name or folder")
    files = package_files(name, stage)
    sweep(folder, of=name)
    try:
        with tempfile.TemporaryDirectory(
            dir=folder, prefix=f".{name}.", suffix=".part", ignore_cleanup_errors=True
        ) as temporary:
            built = Path(temporary) / name
            for path, text in files.items():
                (built / path).parent.mkdir(parents=True, exist_ok=True)
                (built / path).write_text(text, encoding="utf-8")
            if place.is_dir():
                place.rmdir()
            built.rename(place)
    except OSError as error:
        raise WriteError(f"{str(place)!r} cannot be written: {error.strerror}") from None
    return sorted(place / path for path in files)


def package_files(name: str, stage: str) -> dict[str, str]:
    """Return the files of a new package: path in it to text."""
    package, trained = f"defend_{name}", (TEMPLATES / stage / "src/defend_NAME/weights").is_dir()
    data = '"py.typed", "weights/*.safetensors"' if trained else '"py.typed"'
    values = {
        "name": name,
        "stage": stage,
        "package": package,
        "distribution": package.replace("_", "-"),
        "data": data,
        "core": ".".join(__version__.split(".")[:2]),
    }
    found = {}
    for part in ("common", stage):
        for source in sorted((TEMPLATES / part).rglob("*.in")):
            path = source.relative_to(TEMPLATES / part).with_suffix("").as_posix().replace("NAME", name)
            found[path] = string.Template(source.read_text(encoding="utf-8")).substitute(values)
    return found


def _check_name(name: str) -> None:
    if name in RESERVED:
        raise ConfigError(f"plugin name {name!r} is reserved: did you mean {f'my_{name}'!r}?")
    if not NAME.fullmatch(name) or len(name) > LONGEST_NAME or name.startswith("defend_"):
        raise ConfigError(
            f"plugin name {name!r} is not accepted{_guess(name)}: expected a lower-case letter, then letters, digits "
            f"and single underscores, {LONGEST_NAME} at most, without defend_ in front"
        )
    for entry in registry().all_entries():
        if _answers(entry, name):
            raise ConfigError(
                f"{entry.stage} {name!r} is offered by {entry.origin} already: choose another name, for example "
                f"{f'my_{name}'!r}"
            )
    if importlib.util.find_spec(f"defend_{name}") is not None:
        raise ConfigError(
            f"the package defend_{name} is installed already: choose another name, for example {f'my_{name}'!r}"
        )


def _guess(name: str) -> str:
    """Return " (did you mean 'x'?)", x the nearest name that is accepted, or nothing."""
    words = re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")
    near = words.removeprefix("defend_").lstrip("0123456789_")[:LONGEST_NAME].rstrip("_")
    return f" (did you mean {near!r}?)" if NAME.fullmatch(near) and near not in RESERVED else ""


def _answers(entry: Entry, name: str) -> bool:
    """Whether a stage answers to a name: as its own, or as that of a family's member."""
    return name == entry.spec.name or name in entry.spec.names()
