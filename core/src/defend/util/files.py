"""Files that appear whole or not at all, and where the user's own are kept."""

from __future__ import annotations

import contextlib
import errno
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path, PureWindowsPath

import platformdirs

from defend.errors import DataError, DefendError

LONGEST_NAME = 255  # bytes, on every file system in use


def shorten(name: str, most: int) -> str:
    """Return a name cut to at most so many bytes of UTF-8, at a whole character; bytes that are none are left out."""
    return name.encode(errors="surrogateescape")[:most].decode(errors="ignore")


@contextlib.contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; when the block ends well it takes `path`'s place.

    Raises:
        DefendError: the folder cannot be written to.
    """
    try:
        if len(os.fsencode(path.name)) > LONGEST_NAME:
            raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{shorten(path.name, 120)}.", suffix=".part")
    except OSError as error:
        raise DefendError(f"{str(path)!r} cannot be written: {error.strerror}") from None
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        # mkstemp's files are their owner's alone: give it the rights of any new file; a umask is read by setting it
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_text(path: Path, text: str) -> None:
    r"""Write a text file in UTF-8, atomically; the bytes of a path that is none are written out as \udcff."""
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


def number_twin(name: str, taken: set[str]) -> str:
    """Return a file's name, numbered where it is `taken`, and take it: two names from outside may be made one."""
    free, count = name, 2
    while free in taken:
        free, count = f"{name}-{count}", count + 1
    taken.add(free)
    return free


def place_under(root: Path, name: str, said_by: str) -> Path:
    """Return where a name that came out of a file lies under a folder; links on the way are followed, and judged.

    Args:
        root: the folder, which need not exist.
        name: with "/" between its parts, as archives and manifests have it.
        said_by: whose name it is, for the error.

    Raises:
        DataError: it is absolute, empty, holds "..", a backslash or a drive, or would be written outside of `root`.
    """
    path = place_plainly(root, name, said_by)
    if not path.resolve().is_relative_to(root.resolve()):
        raise _leaves(root, name, said_by)
    return path


def place_plainly(root: Path, name: str, said_by: str) -> Path:
    """Return where a name lies under a folder, as `place_under`, but that links there may lead where their owner likes.

    Raises:
        DataError: it is absolute, empty, or holds "..", a backslash or a drive.
    """
    plain = "\0" not in name and not {"", ".", ".."} & set(name.split("/")) and not PureWindowsPath(name).drive
    if not plain or "\\" in name:
        raise _leaves(root, name, said_by)
    return root / name


def _leaves(root: Path, name: str, said_by: str) -> DataError:
    return DataError(f"{said_by} names {name!r}, which would leave {str(root)!r}: expected a name inside it")


def cache_dir() -> Path:
    """Return the user's cache: $DEFEND_CACHE_DIR, or the platform's own."""
    named = os.environ.get("DEFEND_CACHE_DIR")
    return Path(named) if named else platformdirs.user_cache_path("defend")
