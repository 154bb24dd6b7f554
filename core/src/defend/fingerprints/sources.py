"""Source files: where a module's lies, whether somebody may be editing it, and its hash."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import sys
import sysconfig
import uuid
from pathlib import Path

import defend


def is_edited(root: str) -> bool:
    """Whether a top-level module has a file that lies neither in the interpreter nor among installed packages."""
    file = getattr(sys.modules.get(root), "__file__", None)
    return isinstance(file, str) and root not in sys.stdlib_module_names and not is_installed(file)


@functools.cache
def is_installed(file: str) -> bool:
    """Whether a file lies in the interpreter or among installed packages."""
    places = [Path(place) for place in sysconfig.get_paths().values()]
    # an environment may see another one's packages (venv --system-site-packages)
    installed = {"site-packages", "dist-packages"} & set(Path(file).parts)
    return bool(installed) or any(Path(file).is_relative_to(place) for place in places)


def file_hash(path: Path) -> str:
    """Return a SHA-256 of a file, or of nothing that comes again where it cannot be read."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:
        return make_unique()


def module_source(name: str) -> str | None:
    """Return the hash of a module's file, the interpreter's version for its own, or None if it has no file."""
    root = name.partition(".")[0]
    if root in sys.stdlib_module_names:
        return sys.version
    file = getattr(sys.modules.get(name), "__file__", None)
    if file is None:
        return None
    return file_hash(Path(file)) if is_edited(root) else _installed_hash(file)


def hash_as_imported(path: Path) -> str:
    """Return a SHA-256 of an installed source file, or a file of core; unique where it was written since the start.

    An upgrade, or a `git pull`, may have changed it after it was imported: nothing tells then what runs. Of what
    somebody is editing the running code itself is looked at, see `values`.
    """
    of_core = path.is_relative_to(Path(defend.__file__).parent)
    if of_core or is_installed(str(path)):
        with contextlib.suppress(OSError):
            # not st_mtime, which unpacked files have from their archive
            if path.stat().st_ctime > defend.IMPORTED_AT:
                return make_unique()
    return file_hash(path)


@functools.cache
def _installed_hash(file: str) -> str:
    return file_hash(Path(file))


def make_unique() -> str:
    """Return text that never comes again, so that an entry cannot be found; finding a wrong one would be worse."""
    return uuid.uuid4().hex
