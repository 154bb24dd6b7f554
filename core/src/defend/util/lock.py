"""One process at a time in a folder. The operating system holds the lock, so that one of a dead process is none."""

from __future__ import annotations

import contextlib
import datetime
import errno
import os
import socket
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

from defend.errors import BusyError, DefendError

NAME = ".lock"
UNLOCKABLE = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP}  # what such a file system answers
LONGEST_OWNER = 200  # characters that are read of the owner's line
LOOKS = 10


@contextlib.contextmanager
def hold(folder: Path, what: str, instead: str) -> Iterator[None]:
    """Hold a folder, which is there, for a block; nobody waits.

    The lock is `flock`'s on a file in the folder. It ends with its process, however that ends, so a file that is left
    is no lock, and a process that got a dead one's number is no owner. It also holds between the machines of a shared
    file system (NFS since Linux 2.6.12). On one that knows no locks a warning says so, and the block runs.

    Args:
        folder: which.
        what: what the folder is, for the error: "run folder 'runs/1'".
        instead: what to do where another process holds it.

    Raises:
        BusyError: another process holds it; which, and since when.
        DefendError: the folder cannot be written to.
    """
    from filelock import FileLock, Timeout

    path = folder / NAME
    lock = FileLock(path, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise BusyError(f"{what} is in use by {_owner(path)}: {instead}") from None
    except OSError as error:
        if error.errno not in UNLOCKABLE:
            raise DefendError(f"{what} cannot be written to: {error.strerror or error}") from None
        with contextlib.suppress(OSError):  # nobody holds it
            path.unlink()
        said = f"{what} cannot be locked here ({error.strerror}): do not start another process on it meanwhile"
        warnings.warn(said, stacklevel=3)
        yield
        return
    try:
        with contextlib.suppress(OSError):  # it only names the owner: a full disk unlocks nothing
            if not _holds_marker(lock):
                path.write_text(_introduce(), encoding="utf-8")
        yield
    finally:
        # before it is released: whoever opened it meanwhile sees that it is no file of the folder any more
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)
        lock.release()


def _holds_marker(lock: object) -> bool:
    """Whether the lock file's content is the lock itself, as filelock has it where `flock` is missing."""
    return isinstance(getattr(lock, "pid", None), int)


def _introduce() -> str:
    now = datetime.datetime.now().astimezone().isoformat(sep=" ", timespec="seconds")
    return f"process {os.getpid()} on {socket.gethostname()} since {now}"


def _owner(path: Path) -> str:
    for _ in range(LOOKS):
        with contextlib.suppress(OSError):
            said = path.read_text(encoding="utf-8", errors="replace")[:LONGEST_OWNER]
            if said.startswith("process ") and said.isprintable():
                return said
        time.sleep(0.02)  # it took the lock a moment ago, and is about to say who it is
    return "another process"
