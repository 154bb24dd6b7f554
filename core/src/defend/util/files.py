"""Files that appear whole or not at all, and where the user's own are kept."""

from __future__ import annotations

import contextlib
import difflib
import errno
import os
import re
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path, PureWindowsPath

import platformdirs

from defend.errors import DataError, WriteError
from defend.util.interrupts import careful

LONGEST_NAME = 255  # bytes, on every file system in use
ABANDONED = 24 * 3600.0  # seconds after which nobody still writes a file


def shorten(name: str, most: int) -> str:
    """Return a name cut to at most so many bytes of UTF-8, at a whole character; bytes that are none are left out."""
    return name.encode(errors="surrogateescape")[:most].decode(errors="ignore")


@contextlib.contextmanager
def atomic(path: Path, what: str = "") -> Iterator[Path]:
    """Yield a temporary path beside `path`; when the block ends well it takes `path`'s place.

    Args:
        path: the file; what stands there is replaced, if it is one.
        what: what is written, in words, for the error.

    Raises:
        WriteError: the file cannot be written; nothing is left of it, and what stood there still does.
    """
    with careful(), _writing(path, what):
        temporary = _make_temporary(path)
        try:
            yield temporary
            _give_rights(temporary)
            temporary.replace(path)
        except BaseException:
            with contextlib.suppress(OSError):  # the first error is the one to tell
                temporary.unlink()
            raise


def check_writable(path: Path, what: str = "") -> None:
    """See that a file could be written, before hours are spent on what is to be in it; its folder is made.

    Raises:
        WriteError: it could not.
    """
    make_folder(path.parent)
    with _writing(path, what):
        _make_temporary(path).unlink()


def write_text(path: Path, text: str, what: str = "") -> None:
    r"""Write a text file in UTF-8, see `atomic`; the bytes of a path that is none are written out as \udcff.

    What a writer of it left that was killed goes, once it is old.
    """
    sweep(path.parent, of=path.name)
    with atomic(path, what) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


def nearest(path: Path) -> str:
    """Return ": did you mean 'x'?" of what lies beside a path that does not exist; "" where nothing is alike."""
    with contextlib.suppress(OSError):
        near = difflib.get_close_matches(path.name, [each.name for each in path.parent.iterdir()], n=1)
        return f": did you mean {str(path.parent / near[0])!r}?" if near else ""
    return ""


def write_bytes(path: Path, data: bytes, what: str = "") -> None:
    """Write a file, see `atomic`."""
    with atomic(path, what) as temporary:
        temporary.write_bytes(data)


def make_folder(path: Path, what: str = "folder") -> None:
    """Make a folder, and those above it.

    Raises:
        WriteError: it cannot be made; `what` it is stands in the message.
    """
    with _writing(path, what, "made"):
        path.mkdir(parents=True, exist_ok=True)


def sweep(folder: Path, of: str = "", age: float = ABANDONED) -> None:
    """Delete what writers that were killed left in a folder: what `atomic` began, and no other file.

    Args:
        folder: which need not exist.
        of: the name of the file that they wrote, of any if "": give it where the folder is not this package's own.
        age: in seconds, what was written later may still be being written; 0 for whoever knows that nobody writes here.
    """
    begun = re.compile(rf"\.{re.escape(of[:120]) or '.+'}\.[a-z0-9_]{{8}}\.part")
    before = time.time() - age
    for left in (one for one in list_folder(folder) if begun.fullmatch(one.name)):
        with contextlib.suppress(OSError):
            if age and left.stat().st_mtime > before:
                continue
            if left.is_dir():
                shutil.rmtree(left, ignore_errors=True)
            else:
                left.unlink()


def list_folder(folder: Path) -> list[Path]:
    """Return what lies in a folder, by name; nothing where it is no folder, or not ours to read."""
    try:
        return sorted(folder.iterdir())
    except OSError:
        return []


@contextlib.contextmanager
def _writing(path: Path, what: str, how: str = "written") -> Iterator[None]:
    """Tell of a system's error as one line that names the path."""
    try:
        yield
    except OSError as error:
        named = f"{what} {str(path)!r}" if what else repr(str(path))
        raise WriteError(f"{named} cannot be {how}: {error.strerror or error}") from None


def _make_temporary(path: Path) -> Path:
    there = _kind(path)
    if stat.S_ISDIR(there):
        raise OSError(errno.EISDIR, os.strerror(errno.EISDIR))
    if there and not stat.S_ISREG(there):  # which a rename would replace: /dev/null, for everybody
        raise OSError(errno.EINVAL, "a device or pipe stands there, expected a file")
    if len(os.fsencode(path.name)) > LONGEST_NAME:
        raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{shorten(path.name, 120)}.", suffix=".part")
    os.close(handle)
    return Path(name)


def _kind(path: Path) -> int:
    """Return the mode of what stands at a path, 0 for nothing; asked once, as others may come and go between."""
    try:
        return path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return 0


def _give_rights(temporary: Path) -> None:
    """Give a file the rights of any new one, as mkstemp's are their owner's alone."""
    umask = os.umask(0)  # which is read by setting it
    os.umask(umask)
    with contextlib.suppress(OSError):  # where there are no such rights, as on a stick's file system
        temporary.chmod(0o666 & ~umask)


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
