"""Files to tar parts of limited size, and back: where only so much may travel at once.

A part is a plain tar with a manifest as its last member. A file that is larger than the room left in a part is cut
into pieces. A ledger remembers what earlier rounds sent, so that the next one brings only what is new. Every manifest
says when its round began, so that the newest version of a file is known in whichever folder its part lies.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import re
import shutil
import tarfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any

import attrs
import cattrs

from defend.errors import ConfigError, DataError
from defend.util.files import atomic, sweep, write_text

MIB = 2**20
MANIFEST = "manifest.json"
BLOCK = tarfile.BLOCKSIZE  # every member has a header, and is filled up to a whole number of these
HEADERS = 4 * BLOCK  # of a member, where its name needs an extended header
GROWING = 4 * MIB  # a file up to this size may be written to while it is packed
LEAST_PIECE = 64 * 1024  # smaller pieces are not cut from a file
LEAST_PART = 128 * 1024
_converter = cattrs.Converter()


@attrs.frozen(kw_only=True)
class Limits:
    """How much may travel at once: bytes of one part, how many parts, bytes of all of them; None: no limit."""

    part: int
    parts: int | None = None
    total: int | None = None

    def __attrs_post_init__(self) -> None:
        if self.part < LEAST_PART:
            raise ConfigError(f"a part of {self.part:,} bytes is too small: expected at least {LEAST_PART:,}")


@attrs.frozen
class Piece:
    """`length` bytes from `offset` of a file whose whole size and SHA-256 are given; in its tar called `member`."""

    name: str
    size: int
    sha256: str
    offset: int
    length: int
    member: str


@attrs.frozen
class Manifest:
    """What a part holds, its number, and when its round began: in nanoseconds since 1970; 0: nobody wrote it down."""

    began: int
    number: int
    pieces: list[Piece]


@attrs.frozen
class Packed:
    """What a round made: the parts, their size in bytes, and the files that wait, whole or in part, for the next."""

    parts: tuple[Path, ...]
    size: int
    left: tuple[str, ...]


def pack(
    files: Sequence[tuple[str, Path]], out: Path, limits: Limits, ledger: Path | None = None, *, again: bool = False
) -> Packed:
    """Write files, the first ones first, to `out`/part-NNNN.tar, as far as the limits let.

    A part appears once it is whole. Whatever ends a round early: with a ledger its whole parts stay, and the next round
    goes on behind them; without one none of them stays.

    Args:
        files: (name in the parcel, path).
        out: the folder for the parts; those that are there stay.
        limits: of this round.
        ledger: what earlier rounds sent, brought up to date; a file that has changed since is sent again.
        again: send everything, whatever the ledger says; numbers and times go on where it left them.

    Raises:
        DataError: a file cannot be read.
        WriteError: a part or the ledger cannot be written.
    """
    sent: dict[str, Any] = json.loads(ledger.read_text(encoding="utf-8")) if ledger and ledger.is_file() else {}
    last, before = sent.pop("parts", 0), sent.pop("began", 0)
    if again:
        sent.clear()
    began = max(time.time_ns(), before + 1)  # a clock may have been put back

    def remember(pieces: Sequence[Piece], number: int) -> None:
        for piece in pieces:
            sent[piece.name] = {"sha256": piece.sha256, "sent": piece.offset + piece.length}
        if ledger is not None:
            write_text(ledger, json.dumps({**sent, "parts": number, "began": began}, indent=1))

    out.mkdir(parents=True, exist_ok=True)
    there = [_number(part) for part in _parts_in(out)]
    done: list[Path] = []
    left = []
    try:
        with contextlib.ExitStack() as at_hand:
            writer = _Writer(out, limits, began, max([last, *there]), at_hand, done, remember)
            for name, path in files:
                file = _snapshot(path)
                if file is not None and not _pack_file(writer, name, file, sent.get(name, {})):
                    left.append(name)
            writer.close()
    except BaseException:
        if ledger is None:  # whoever tries again begins anew
            for part in done:
                part.unlink(missing_ok=True)
        raise
    return Packed(tuple(done), sum(part.stat().st_size for part in done), tuple(left))


def _pack_file(writer: _Writer, name: str, file: io.BufferedIOBase, before: dict[str, Any]) -> bool:
    """Pack what was not sent `before` of a file, as far as there is room; return whether all of it is sent."""
    with file:
        size = file.seek(0, io.SEEK_END)
        file.seek(0)
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        begun = before.get("sha256") == digest
        offset = int(before["sent"]) if begun else 0
        file.seek(offset)
        whole = begun and offset == size
        while not whole and (length := writer.room(name, size - offset)) is not None:
            member = name if length == size else f"{name}.from-{offset}"
            writer.add(file, Piece(name, size, digest, offset, length, member))
            offset += length
            whole = offset == size
    return whole


def unpack(folders: Sequence[Path], place: Callable[[str], Path | None]) -> tuple[list[str], list[str]]:
    """Put the files of all parts in some folders where `place` says; None leaves one out.

    Returns:
        The names that were written, and those of which pieces are missing. Of a file that was sent in several
        versions, the one that was sent last is written, of those that are whole.

    Raises:
        DataError: there is no part, one is damaged, a name would leave its folder, or of two versions of a file nobody
            can say which was sent last.
    """
    parts = [part for folder in folders for part in _parts_in(folder)]
    if not parts:
        raise DataError(f"no part-NNNN.tar in {', '.join(map(str, folders)) or 'no folder'}")
    versions: dict[str, dict[str, list[tuple[Piece, Path]]]] = {}
    undated: set[Path] = set()
    manifests = [(_read_manifest(part), part) for part in parts]
    for manifest, part in sorted(manifests, key=lambda one: (one[0].began, one[0].number)):
        if not manifest.began:
            undated.add(part)
        for piece in manifest.pieces:
            of_file = versions.setdefault(piece.name, {})
            # what is sent once more is the newest again
            of_file[piece.sha256] = [*of_file.pop(piece.sha256, []), (piece, part)]
    written, incomplete = [], []
    with contextlib.ExitStack() as stack:
        reader = _Reader(stack)
        for name, hashes in versions.items():
            whole = [pieces for pieces in hashes.values() if _covers([piece for piece, _ in pieces])]
            _check_order(name, whole, undated)
            if not whole:
                incomplete.append(name)
            elif (path := place(name)) is not None:
                path.parent.mkdir(parents=True, exist_ok=True)
                reader.assemble(whole[-1], path)
                written.append(name)
    return written, incomplete


def _snapshot(path: Path) -> io.BufferedIOBase | None:
    """Open a file as it is now: small ones, which may grow (logs), are read at once; others are replaced whole.

    None: it went while others were packed.

    Raises:
        DataError: it cannot be read.
    """
    try:
        file = path.open("rb")
        if path.stat().st_size > GROWING:
            return file
        with file:
            return io.BytesIO(file.read())
    except FileNotFoundError:
        return None
    except OSError as error:
        raise DataError(f"{str(path)!r} cannot be read: {error.strerror or error}") from None


def _parts_in(folder: Path) -> list[Path]:
    return sorted(folder.glob("part-[0-9]*.tar"))


def _number(part: Path) -> int:
    """Return the number in a part's name."""
    return int(re.sub(r"\D.*", "", part.name.removeprefix("part-")))


def _check_order(name: str, versions: Sequence[Sequence[tuple[Piece, Path]]], undated: set[Path]) -> None:
    """Refuse versions of a file of which no manifest says which was sent last: numbers count in their folder alone."""
    last = [pieces[-1][1] for pieces in versions]
    folders = sorted({str(part.parent) for part in undated.intersection(last)})
    if len(folders) > 1 and last[-1] in undated:
        raise DataError(
            f"{folders[0]!r} and {folders[1]!r} hold two versions of {name!r}, and nothing says which is the newer: "
            "expected parts that say when they were packed; unpack one folder after the other, the newest last"
        )


class _Writer:
    """Writes pieces to numbered parts, and says how much still fits.

    Args:
        out, limits: as of `pack`.
        began: when the round did.
        last: the number of the last part that there is.
        at_hand: what is open of the part at hand, which an error that leaves it takes away.
        done: where whole parts are listed.
        remember: called with the pieces and the number of every part, once it is whole.
    """

    def __init__(
        self,
        out: Path,
        limits: Limits,
        began: int,
        last: int,
        at_hand: contextlib.ExitStack,
        done: list[Path],
        remember: Callable[[Sequence[Piece], int], None],
    ) -> None:
        self._out, self._limits, self._began, self._number = out, limits, began, last
        self._at_hand, self._done, self._remember = at_hand, done, remember
        self._tar: tarfile.TarFile | None = None
        self._pieces: list[Piece] = []
        self._size = self._most = 0

    def room(self, name: str, wanted: int) -> int | None:
        """Return how many bytes of a file to add next, at most `wanted`; None: nothing more this round."""
        listed = 400 + 4 * len(name)  # in the manifest, and in an extended header
        for _ in range(2):
            if self._tar is not None:
                free = (self._most - self._size - HEADERS - listed) // BLOCK * BLOCK
                if wanted <= free or free >= LEAST_PIECE:
                    return min(wanted, free)
            if not self._open():
                return None
        return None

    def add(self, file: io.BufferedIOBase, piece: Piece) -> None:
        """Write the piece that starts where the file stands."""
        assert self._tar is not None  # room() opened it
        info = tarfile.TarInfo(piece.member)
        info.size = piece.length
        self._tar.addfile(info, file)
        self._pieces.append(piece)
        filled = -(-piece.length // BLOCK) * BLOCK
        self._size += HEADERS + filled + 400 + 4 * len(piece.name)

    def close(self) -> None:
        """End the part at hand, if there is one, and give it its name."""
        if self._tar is None:
            return
        text = json.dumps(attrs.asdict(Manifest(self._began, self._number, self._pieces))).encode()
        info = tarfile.TarInfo(MANIFEST)
        info.size = len(text)
        self._tar.addfile(info, io.BytesIO(text))
        self._tar.close()
        self._done.append(self._place())
        self._at_hand.close()
        pieces, self._tar, self._pieces = self._pieces, None, []
        self._remember(pieces, self._number)

    def _place(self) -> Path:
        return self._out / f"part-{self._number:04}.tar"

    def _open(self) -> bool:
        """Begin the next part, unless a limit is reached."""
        self.close()
        most = self._limits.part
        if self._limits.total is not None:
            most = min(most, self._limits.total - sum(part.stat().st_size for part in self._done))
        if most < LEAST_PART or len(self._done) == self._limits.parts:
            return False
        self._number += 1
        sweep(self._out, of=self._place().name)  # what a round left that was killed
        temporary = self._at_hand.enter_context(atomic(self._place(), "part"))
        file = self._at_hand.enter_context(temporary.open("wb"))
        self._tar = tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT)  # noqa: SIM115 - see close()
        self._size, self._most = HEADERS + 2 * BLOCK + tarfile.RECORDSIZE, most
        return True


def _read_manifest(part: Path) -> Manifest:
    try:
        with tarfile.open(part, "r:") as tar:
            found = tar.extractfile(MANIFEST)
            told = json.load(found) if found else []
        if isinstance(told, list):  # an older version packed it
            told = {"began": 0, "number": _number(part), "pieces": told}
        manifest = _converter.structure(told, Manifest)
    except (OSError, EOFError, RecursionError, tarfile.TarError) as error:
        raise DataError(f"part {str(part)!r} is damaged or cut short ({error}): fetch it again") from None
    except (KeyError, ValueError, TypeError, cattrs.BaseValidationError):
        raise DataError(f"part {str(part)!r} has a manifest that is none: fetch it again") from None
    for piece in manifest.pieces:
        if min(piece.size, piece.offset, piece.length, piece.size - piece.offset - piece.length) < 0:
            raise DataError(f"part {str(part)!r} has a piece of {piece.name!r} that is no piece of it: fetch it again")
    return manifest


def _covers(pieces: Sequence[Piece]) -> bool:
    """Whether the pieces, in any order and sent how often so ever, are the whole file."""
    reached = 0
    for piece in sorted(pieces, key=lambda piece: piece.offset):
        if piece.offset > reached:
            return False
        reached = max(reached, piece.offset + piece.length)
    return reached == pieces[0].size


class _Reader:
    """Reads pieces; keeps every part open, with its members by name."""

    def __init__(self, stack: contextlib.ExitStack) -> None:
        self._stack = stack
        self._parts: dict[Path, tuple[tarfile.TarFile, dict[str, tarfile.TarInfo]]] = {}

    def assemble(self, pieces: Sequence[tuple[Piece, Path]], path: Path) -> None:
        """Write a file from its pieces, once they match its checksum."""
        whole = pieces[0][0]
        with atomic(path) as temporary:
            with temporary.open("wb") as file:
                for piece, part in pieces:
                    file.seek(piece.offset)
                    try:
                        shutil.copyfileobj(self._source(piece, part), file)
                    except (tarfile.TarError, EOFError) as error:
                        raise DataError(
                            f"part {str(part)!r} is damaged or cut short ({error}): fetch it again"
                        ) from None
            with temporary.open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != whole.sha256:
                    raise DataError(f"{whole.name!r} does not match its checksum: fetch its parts again")

    def _source(self, piece: Piece, part: Path) -> IO[bytes]:
        if part not in self._parts:
            tar = self._stack.enter_context(tarfile.open(part, "r:"))  # noqa: SIM115
            self._parts[part] = tar, {info.name: info for info in tar.getmembers() if info.isreg()}  # no links
        tar, members = self._parts[part]
        source = tar.extractfile(members[piece.member]) if piece.member in members else None
        if source is None:
            raise DataError(f"part {str(part)!r} lacks {piece.member!r}: fetch it again")
        return source
