"""`python -m tools.pack_data split|join`: a folder to parts of limited size, and back.

For a machine that the data has to be brought to in parts. Every file keeps its SHA-256, which `join` checks.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from defend.errors import DataError, DefendError
from defend.util.files import place_under
from tools.parcels import MIB, Limits, pack, unpack


def main(arguments: Sequence[str] | None = None) -> int:
    """Split or join; return 0, 2 for wrong input, 130 if interrupted."""
    exits = "Exit codes: 0 done; 2 wrong input, or a part is missing or damaged; 130 interrupted."
    parser = argparse.ArgumentParser(prog="python -m tools.pack_data", description=__doc__, epilog=exits)
    commands = parser.add_subparsers(dest="command", required=True)
    splitting = commands.add_parser("split", help="a folder to OUT/part-0001.tar and on")
    splitting.add_argument("folder", type=Path, metavar="FOLDER")
    splitting.add_argument("out", type=Path, metavar="OUT")
    splitting.add_argument("--most-mib", type=float, default=48, metavar="N", help="of one part (default: 48)")
    joining = commands.add_parser("join", help="parts, from one folder or several, to a folder")
    joining.add_argument("parts", type=Path, nargs="+", metavar="PARTS")
    joining.add_argument("folder", type=Path, metavar="FOLDER")
    given = parser.parse_args(arguments)
    try:
        if given.command == "split":
            say(*split(given.folder, given.out, int(given.most_mib * MIB)))
        else:
            say(join(given.parts, given.folder))
    except DefendError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


def split(folder: Path, out: Path, most: int) -> list[str]:
    """Pack a folder into parts of at most `most` bytes; return a line for each.

    Raises:
        DataError: the folder holds no file, or `out` has parts already.
    """
    files = sorted(path for path in folder.rglob("*") if path.is_file()) if folder.is_dir() else []
    if not files:
        raise DataError(f"{str(folder)!r} holds no file to split")
    if any(out.glob("part-*.tar")):
        raise DataError(f"{str(out)!r} holds parts already: name an empty folder")
    packed = pack([(path.relative_to(folder).as_posix(), path) for path in files], out, Limits(part=most))
    return [f"{part}  {part.stat().st_size / MIB:.1f} MiB" for part in packed.parts]


def join(parts: Sequence[Path], folder: Path) -> str:
    """Write what the parts in some folders hold to `folder`; return a line that says so.

    Raises:
        DataError: a part is missing or damaged; what is whole was written.
    """
    written, incomplete = unpack(parts, lambda name: place_under(folder, name, "a part"))
    if incomplete:
        more = ", ".join(incomplete[:3])
        raise DataError(
            f"parts are missing: {len(incomplete)} files are not whole ({more}); {len(written)} were written"
        )
    return f"{len(written)} files in {folder}"


def say(*lines: str) -> None:
    """Write lines to standard output."""
    sys.stdout.write("".join(f"{line}\n" for line in lines))


if __name__ == "__main__":
    sys.exit(main())
