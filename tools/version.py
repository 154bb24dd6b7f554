"""The version of core, plugins and citation: `python -m tools.version` prints it, with 0.6.0 behind it sets it.

It stands in `defend.__version__`. A plugin must say its own in its pyproject.toml, and a test holds them together.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
SOURCE = (ROOT / "core/src/defend/__init__.py", re.compile(r'^__version__ = "([^"]+)"$', re.MULTILINE))
PROJECT = re.compile(r'^version = "([^"]+)"$', re.MULTILINE)
NEEDS = re.compile(r'"defend-core>=([^"]+)"')
CITATION = re.compile(r"^version: (\S+)$", re.MULTILINE)


def places() -> Iterator[tuple[Path, re.Pattern[str]]]:
    """Yield every file that says the version, and where in it."""
    yield SOURCE
    yield ROOT / "CITATION.cff", CITATION
    for path in sorted(ROOT.glob("plugins/*/pyproject.toml")):
        yield path, PROJECT


def read(path: Path, where: re.Pattern[str]) -> str:
    """Return the version that a file says.

    Raises:
        ValueError: it says none, or several.
    """
    found = where.findall(path.read_text(encoding="utf-8"))
    if len(found) != 1:
        raise ValueError(f"{path}: expected one version, found {found}")
    return str(found[0])


def write(version: str) -> None:
    """Set the version everywhere; plugins then ask for a core of its first two numbers."""
    if not re.fullmatch(r"\d+\.\d+\.\d+((a|b|rc)\d+)?", version):
        raise ValueError(f"version {version!r} is none: expected NUMBER.NUMBER.NUMBER, for example 0.6.0")
    core = ".".join(version.split(".")[:2])
    for path, where in places():
        old = read(path, where)
        text = where.sub(lambda found, old=old: found[0].replace(old, version), path.read_text(encoding="utf-8"))
        path.write_text(NEEDS.sub(f'"defend-core>={core}"', text), encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> int:
    """Set the version, if one is given, and print it; return 0, or 2 for what is no version."""
    parser = argparse.ArgumentParser(prog="python -m tools.version", description=__doc__)
    parser.add_argument("version", nargs="?", metavar="VERSION", help="to set, for example 0.6.0")
    given = parser.parse_args(arguments)
    try:
        if given.version is not None:
            write(given.version)
        print(read(*SOURCE))
    except ValueError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
