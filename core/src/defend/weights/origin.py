"""Where weights came from: with a package, out of the user's cache, from a file that was named. Imports no torch.

The user's own are taken before those that came with a package, so whoever reads a figure must be told.
"""

from __future__ import annotations

import contextlib
import datetime
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import attrs

from defend.errors import ConfigError, DefendError, WeightsError, did_you_mean
from defend.util.files import cache_dir
from defend.values.commands import say_command
from defend.weights.card import CUT_SHORT, Card, read_card
from defend.weights.find import find_shipped


@attrs.frozen
class Origin:
    """Where a weights file came from.

    Attributes:
        kind: with a package ("shipped"), the user's own from the "cache", or a "file" that was named.
        file: its name.
        package: which one they came with, or whose weights would be taken if the user's own were not there; "" if none.
        since: when a file of the user's was written, ISO 8601 to the second; "" of shipped ones.
    """

    kind: Literal["shipped", "cache", "file"]
    file: str
    package: str = ""
    since: str = ""

    @property
    def hides(self) -> str:
        """The package whose weights are not taken because of these, "" if none."""
        return self.package if self.kind == "cache" else ""


def find_origin(path: Path, packages: Iterable[str], instead: Path | None = None) -> Origin:
    """Say where a weights file came from.

    Args:
        path: the file.
        packages: those that may ship weights of its stage.
        instead: what would be taken if it were not there; the shipped file of its name if None.
    """
    shipped = find_shipped(packages)
    if path in shipped:
        return Origin("shipped", path.name, _root(shipped[path]))
    if path.parent != cache_dir() / "weights":
        return Origin("file", path.name, since=_written(path))
    names = {each.name: package for each, package in shipped.items()}
    package = names.get(path.name if instead is None else instead.name, "")
    return Origin("cache", path.name, _root(package), _written(path))


def describe(known: Mapping[str, Any]) -> str:
    """Say where weights came from, by what a report holds of them; "" of a report that does not say."""
    since = str(known.get("since", ""))[:16].replace("T", " ")
    failed = f", of a training that failed before its end ({known[CUT_SHORT]})" if known.get(CUT_SHORT) else ""
    match known.get("origin"):
        case "shipped":
            return f"shipped with {known['package']}"
        case "cache":
            return (
                f"your own since {since}" + (f", not those of {known['package']}" if known["package"] else "") + failed
            )
        case "file":
            return f"the file {known['file']} of {since}{failed}"
        case "given":
            return "your own, without a file"
        case _:
            return ""


def warn_of(part: str, known: Mapping[str, Any]) -> str:
    """Say that weights of the user's own stand in the place of shipped ones, and how to go back; "" if they do not."""
    if known.get("origin") != "cache" or not known.get("package"):
        return ""
    since = str(known["since"])[:16].replace("T", " ")
    return (
        f"The weights of the {part} are your own, trained here on {since}, in the place of those shipped with "
        f"{known['package']}; `{forgetting(known['file'])}` goes back to these"
    )


def forgetting(file: str) -> str:
    """Return the command that removes weights of the user's own."""
    return say_command("cache", "--forget", file)


@attrs.frozen
class Own:
    """A weights file in the user's cache; no card where that cannot be read."""

    path: Path
    bytes: int
    origin: Origin
    card: Card | None


def list_own(packages: Iterable[str]) -> list[Own]:
    """Return the user's own weights; `packages` are all that may ship some."""
    every, found = list(packages), []
    for path in sorted((cache_dir() / "weights").glob("*.safetensors")):
        card = None
        with contextlib.suppress(WeightsError):  # one that is damaged stands in the way of others all the same
            card = read_card(path)
        with contextlib.suppress(FileNotFoundError):  # removed meanwhile
            found.append(Own(path, path.stat().st_size, find_origin(path, every), card))
    return found


def forget(file: str) -> Path:
    """Delete weights of the user's own, by the file's name; return where they were.

    Raises:
        ConfigError: there are none of that name; the nearest is offered.
        DefendError: they cannot be deleted.
    """
    known = {path.name: path for path in sorted((cache_dir() / "weights").glob("*.safetensors"))}
    if file not in known:
        offered = did_you_mean(file, known) if known else "you have none"
        raise ConfigError(f"--forget {file!r} is none of your own weights: {offered}")
    try:
        known[file].unlink(missing_ok=True)
    except OSError as error:
        raise DefendError(f"{str(known[file])!r} cannot be deleted: {error.strerror}") from None
    return known[file]


def _root(package: str) -> str:
    return package.partition(".")[0]


def _written(path: Path) -> str:
    at = datetime.datetime.fromtimestamp(path.stat().st_mtime).astimezone()
    return at.isoformat(timespec="seconds")
