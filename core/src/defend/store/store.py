"""Adversarial batches on disk, filed under everything that they depend on.

What an attack makes of a batch against a fixed network is decided by the network, the attack with its options, the
images, labels and keys, the budget, the seed, the precision and the code. `fingerprint.batch_key` hashes all
that, and `Store` keeps what was made under it: another run, with another purifier behind the same victim, finds the
batch instead of making it.

An entry is a safetensors file whose metadata holds a SHA-256 of the whole file, so that a damaged one is noticed,
deleted and made anew. Several processes may share a store: files appear whole, and one that another process deletes is
merely not found. Listing and checking entries imports no torch.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
import warnings
from collections.abc import Callable, Mapping
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from defend.errors import ConfigError, WriteError
from defend.store.entry import StoredBatch, read_about, read_account, read_tensors, to_bytes
from defend.util.files import atomic, cache_dir, make_folder

if TYPE_CHECKING:
    from torch import Tensor


LIMIT_VARIABLE, DEFAULT_LIMIT = "DEFEND_CACHE_LIMIT", "2GB"
UNITS = {
    "B": 1,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
    "KIB": 2**10,
    "MIB": 2**20,
    "GIB": 2**30,
    "TIB": 2**40,
}
FILE_NAME = re.compile(r"[0-9a-f]{64}\.safetensors|(?P<part>\.[0-9a-f]{64}\.safetensors\..*\.part)")
SHARD_NAME = re.compile("[0-9a-f]{2}")
SHARES = 16
ABANDONED = 3600  # seconds after which a file that is still being written is nobody's


@attrs.frozen
class Verified:
    """What `Store.verify` found: entries that were read, how many of them were damaged, and bytes freed with those."""

    checked: int
    damaged: int
    freed: int


class Store:
    """Batches by key, the least recently used of which go when there is no room.

    Args:
        folder: where; made when the first batch is kept. Nothing is touched before.
        limit: bytes in all; 0 turns the store off.

    Attributes:
        damaged: entries that `get` found damaged so far, and deleted.
    """

    def __init__(self, folder: Path, limit: int) -> None:
        self.folder, self.limit = folder, limit
        self.damaged = 0
        self._told = False  # that nothing can be kept
        self._counted: int | None = None  # bytes in the folder when they were last counted
        self._added = 0  # and what this process has added since

    @classmethod
    def users(cls) -> Store:
        """Return the store in the user's cache, as large as $DEFEND_CACHE_LIMIT says (2GB).

        Raises:
            ConfigError: the variable is not a size.
        """
        return cls(cache_dir() / "adversarial", parse_size(os.environ.get(LIMIT_VARIABLE) or DEFAULT_LIMIT))

    def get(self, key: str) -> dict[str, Tensor] | None:
        """Return what is kept under a key, on the CPU, to the bit and in the layout it was put; None if nothing is.

        A damaged entry counts as nothing: it is deleted, and counted in `damaged`.
        """
        path = self._path(key)
        if not self.limit:
            return None
        try:
            data = path.read_bytes()
        except OSError:
            return None
        known = read_account(data, key)
        tensors = None if known is None else read_tensors(data, known["strides"])
        if tensors is None:
            self.damaged += 1
            _delete(path)
            return None
        with contextlib.suppress(OSError):  # a store that may only be read still serves
            _touch(path)
        return tensors

    def put(self, key: str, tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> bool:
        """Keep tensors under a key, then delete the least recently used entries where the limit does not hold.

        What other processes keep is counted now and then: each of several may exceed the limit by a sixteenth.

        Args:
            key: from `batch_key`.
            tensors: by name, on any device.
            about: what `defend cache` tells of it, as JSON: victim, attack, dataset, eps, images.

        Returns:
            Whether it is kept. It is not where the store is off, the entry alone is over the limit, or the disk is full
            or may not be written: a run goes on without its store.
        """
        path = self._path(key)
        if not self.limit:
            return False
        data = to_bytes(key, tensors, about)
        if len(data) > self.limit:
            return False
        try:
            make_folder(path.parent)
            with atomic(path) as temporary:
                temporary.write_bytes(data)
                _touch(temporary)
        except WriteError as error:
            if not self._told:
                warnings.warn(f"attacked images are not kept for other runs: {error}", stacklevel=2)
            self._told = True
            return False
        self._make_room(path, len(data))
        return True

    def entries(self) -> list[StoredBatch]:
        """Return everything that is kept, the last used first; only headers are read."""
        whole, _ = self._files()
        return [
            StoredBatch(file.path.stem, file.size, file.used / 1e9, read_about(file.path))
            for file in sorted(whole, reverse=True)
        ]

    def clear(self) -> int:
        """Delete everything; return the bytes freed."""
        whole, unfinished = self._files()
        freed = sum(file.size for file in whole + unfinished if _delete(file.path))
        for shard in self._shards():
            with contextlib.suppress(OSError):  # another process may be writing there
                os.rmdir(shard)
        self._counted = None
        return freed

    def verify(self, progress: Callable[[int], None] = lambda entries: None) -> Verified:
        """Read and check every entry, and delete the damaged ones; `progress` is told of each."""
        checked = damaged = freed = 0
        whole, _ = self._files()
        for file in whole:
            progress(1)
            try:
                data = file.path.read_bytes()
            except OSError:  # gone meanwhile, or not ours to read
                continue
            checked += 1
            if read_account(data, file.path.stem) is None:
                damaged += 1
                freed += file.size if _delete(file.path) else 0
        return Verified(checked, damaged, freed)

    def _path(self, key: str) -> Path:
        if not re.fullmatch("[0-9a-f]{64}", key):
            raise ValueError(f"key {key!r} is not a SHA-256 in hexadecimal")
        return self.folder / key[:2] / f"{key}.safetensors"

    def _make_room(self, newest: Path, size: int) -> None:
        """Where the limit does not hold, delete the least recently used entries, and a sixteenth of the limit more.

        Counting looks at every file. With that much room, and a new count only once a sixteenth was added, most batches
        are kept without one.
        """
        self._added += size
        share = self.limit // SHARES
        if self._counted is not None and self._counted + self._added <= self.limit and self._added <= share:
            return
        whole, unfinished = self._files()
        total = sum(file.size for file in whole)
        if total > self.limit:
            for file in sorted(whole):
                if total <= self.limit - share:
                    break
                if file.path != newest and _delete(file.path):
                    total -= file.size
        for file in unfinished:
            if time.time() - file.used / 1e9 > ABANDONED:
                _delete(file.path)
        self._counted, self._added = total, 0

    def _shards(self) -> list[os.DirEntry[str]]:
        return [folder for folder in _list(self.folder) if SHARD_NAME.fullmatch(folder.name)]

    def _files(self) -> tuple[list[_File], list[_File]]:
        """Return the entries, and what is being written, or was when its process died."""
        whole: list[_File] = []
        unfinished: list[_File] = []
        for shard in self._shards():
            for file in _list(shard):
                name = FILE_NAME.fullmatch(file.name)
                if name is not None:
                    with contextlib.suppress(OSError):  # it may vanish meanwhile
                        known = file.stat(follow_symlinks=False)
                        kind = unfinished if name["part"] else whole
                        kind.append(_File(known.st_mtime_ns, known.st_size, file))
        return whole, unfinished


@attrs.frozen(order=True)
class _File:
    """A file in the store: its last use in ns, bytes, and place."""

    used: int
    size: int
    file: os.DirEntry[str] = attrs.field(order=lambda file: file.name)

    @property
    def path(self) -> Path:
        return Path(self.file)


def parse_size(text: str) -> int:
    """Read a size in bytes: "2GB", "500 MB", "1.5GiB", "0".

    Raises:
        ConfigError: naming $DEFEND_CACHE_LIMIT, the only place where a size is asked for.
    """
    parts = re.fullmatch(r"([0-9]{1,15}(?:\.[0-9]{1,15})?)\s*([A-Z]*)", text.strip().upper())
    if parts is None or (parts[2] or "B") not in UNITS:
        raise ConfigError(
            f"{LIMIT_VARIABLE}={text!r} is not a size: expected for example 2GB, 500MB, or 0 for no store"
        )
    return int(Decimal(parts[1]) * UNITS[parts[2] or "B"])


def _list(folder: Path | os.DirEntry[str]) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as found:
            return list(found)
    except OSError:
        return []


def _touch(path: Path) -> None:
    now = time.time_ns()  # the system's own "now" is too coarse to order batches made in quick succession
    os.utime(path, ns=(now, now))


def _delete(path: Path) -> bool:
    try:
        path.unlink()
    except OSError:
        return False
    return True
