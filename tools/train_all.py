"""`python -m tools.train_all`: train and measure everything of the papers' tables on one GPU, within a budget.

With `--profile cpu` what a CPU core can, in as many sittings as it takes.

See README.md beside this file.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import fnmatch
import json
import math
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import attrs

from defend.errors import ConfigError, DefendError, did_you_mean
from defend.records.unfinished import FOLDER as UNFINISHED
from defend.util.cores import count_granted
from defend.util.files import cache_dir, place_under, write_text
from tools.parcels import MIB, Limits, Packed, pack, unpack
from tools.perform import Process, Settings, find_done, find_finished, item_command, put_away
from tools.plan import PLAN, Item, Train
from tools.plan_cpu import CPU_PLAN
from tools.schedule import Record, Schedule
from tools.ships import find_shipped

EXIT_WRONG_INPUT, EXIT_INCOMPLETE, EXIT_INTERRUPTED = 2, 3, 130
EXITS = (
    "Exit codes: 0 done, as far as the budget went; 2 wrong input, or something cannot be read or written; 3 an item "
    "failed, or with --unpack a file is not whole; 130 interrupted."
)
MOST_OF_A_RUN = 4 * MIB  # a larger file of a table's run stays where it is
LARGE = 32 * MIB  # larger weights go last: much else travels in the same room
READY = ".ready"  # DATA_DIR/mnist.ready: MNIST is whole


@attrs.frozen
class Profile:
    """What is to be done on a kind of machine, and how it is done there unless the command says otherwise."""

    plan: tuple[Item, ...]
    machine: str
    work: str
    jobs: int
    device: str


PROFILES: Mapping[str, Profile] = {
    "gpu": Profile(PLAN, "an H100", "trained", 4, "auto"),
    "cpu": Profile(CPU_PLAN, "one CPU core", "trained-cpu", 1, "cpu"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what the command line asks for; return one of the exit codes, see `EXITS`."""
    given = parse(arguments)
    try:
        return act(given)
    except DefendError as error:
        sys.stderr.write(f"error: {error}\n")
        return EXIT_WRONG_INPUT
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m tools.train_all", description=__doc__, epilog=EXITS)
    add = parser.add_argument
    add("--list", action="store_true", help="the plan, with estimates; nothing is run")
    add("--only", nargs="+", metavar="PATTERN", help="items by name, for example 'resnet18/*' 'apudae/table-*'")
    add(
        "--profile",
        choices=tuple(PROFILES),
        default="gpu",
        help="the plan of one GPU or of one CPU core (default: gpu)",
    )
    add("--work", type=Path, metavar="DIR", help="where everything goes (default: trained; of a CPU trained-cpu)")
    add("--data-dir", type=Path, metavar="DIR", help="where the data sets lie (default: $DEFEND_DATA_DIR)")
    add("--wait-for-data", action="store_true", help=f"wait for each data set until DATA_DIR/NAME{READY} is there")
    add("--budget", type=float, metavar="SECONDS", help="start nothing that would not end by then, and stop then")
    add("--jobs", type=int, metavar="N", help="items at once (default: 4; on a CPU 1)")
    add(
        "--spawn",
        action="store_true",
        help="begin each process anew instead of forking it: slower, wherever forks fail",
    )
    add("--device", help="auto, cpu, cuda (default: auto; of a CPU's plan cpu)")
    add("--precision", choices=("no", "bf16"), help="of every training (default: bf16 for classifiers, no for others)")
    add("--scale", type=float, default=1.0, metavar="S", help="under 1, a trial: that share of epochs and images")
    add("--batch-size", type=int, default=500, metavar="N", help="images at a time, in tables (default: 500)")
    add("--out", type=Path, metavar="DIR", help="at the end, pack what is new into DIR/part-NNNN.tar")
    add("--pack-only", action="store_true", help="with --out: run nothing, pack what is there now")
    add("--part-mib", type=float, default=16, metavar="N", help="of one part (default: 16)")
    add("--total-mib", type=float, metavar="N", help="of all parts of one round (default: no limit)")
    add("--most-parts", type=int, metavar="N", help="of one round (default: no limit)")
    add("--checkpoints", action="store_true", help="pack those of unfinished trainings too, last")
    add("--again", action="store_true", help="pack everything, also what an earlier round packed")
    add(
        "--unpack",
        type=Path,
        nargs="+",
        metavar="DIR",
        help="put packed weights into the user's cache, the rest in --work",
    )
    add("--replace", action="store_true", help="with --unpack: also over files that differ")
    return parser.parse_args(arguments)


def act(given: argparse.Namespace) -> int:
    """Run one of the modes."""
    profile = PROFILES[given.profile]
    given.work = given.work or Path(profile.work)
    given.jobs = profile.jobs if given.jobs is None else given.jobs
    if given.unpack:
        return bring_home(given.unpack, given.work, given.replace)
    if not 0 < given.scale <= 1 or given.jobs < 1 or (given.budget is not None and given.budget <= 0):
        raise ConfigError("expected --scale above 0 and at most 1, --jobs of at least 1, --budget above 0")
    if given.pack_only and given.out is None:
        raise ConfigError("--pack-only needs --out, the folder for the parts")
    plan = choose(given.only, profile.plan)
    settings = Settings(
        work=given.work.absolute(),
        plan=profile.plan,
        data_dir=None if given.data_dir is None else given.data_dir.absolute(),
        device=given.device or profile.device,
        precision=given.precision,
        scale=given.scale,
        threads=max(count_granted() // given.jobs, 1),
        batch_size=given.batch_size,
        spawn=given.spawn or sys.platform != "linux",
    )
    if given.list:
        say(*listing(plan, settings, profile))
        return 0
    code = 0
    if not given.pack_only:
        with alone(settings.work):
            code = carry_out(plan, settings, given.budget, given.jobs, given.wait_for_data)
    if given.out is not None:
        limits = Limits(
            part=int(given.part_mib * MIB),
            parts=given.most_parts,
            total=None if given.total_mib is None else int(given.total_mib * MIB),
        )
        packed = parcel(settings, given.out, limits, checkpoints=given.checkpoints, again=given.again)
        say(f"{len(packed.parts)} parts, {packed.size / MIB:.1f} MiB, in {given.out}")
        if packed.left:
            say(f"for the next round: {', '.join(packed.left)}")
    return code


def choose(patterns: Sequence[str] | None, plan: Sequence[Item] = PLAN) -> list[Item]:
    """Return the items that some patterns name; all, without one.

    Raises:
        ConfigError: a pattern names none.
    """
    if not patterns:
        return list(plan)
    found: dict[str, Item] = {}
    for pattern in patterns:
        mine = [item for item in plan if fnmatch.fnmatchcase(item.name, pattern)]
        if not mine:
            near = did_you_mean(pattern, [item.name for item in plan])
            raise ConfigError(f"--only {pattern!r} names no item: {near}; see --list")
        found |= {item.name: item for item in mine}
    return sorted(found.values(), key=lambda item: item.rank)


def listing(plan: Sequence[Item], settings: Settings, profile: Profile) -> Iterator[str]:
    """Yield the plan as lines."""
    done, _ = find_done(plan, settings)
    shipped = find_shipped(plan, settings.cache) if profile.plan is CPU_PLAN else {}
    for item in plan:
        state = "done" if item.name in done else "ships" if item.name in shipped else ""
        mark = " " if item.measured else "~"
        said = f"{item.rank:3}  {mark}{item.seconds / 60:5.1f} min  {state:5} {item.name:42}"
        yield f"{said} {item_command(item, settings)}"
    left = [item for item in plan if item.name not in done and item.name not in shipped]
    total = sum(item.seconds for item in left) / 60
    yield (
        f"{len(left)} of {len(plan)} items are left, {total:.0f} min one after the other on {profile.machine}; ~ is "
        "estimated; see README.md"
    )


def check_others(plan: Sequence[Item], settings: Settings) -> None:
    """See that the weights which some items take from items that are not part of the plan are as they would be now.

    Weights without a record are taken: whoever put them there knows what they are.

    Raises:
        ConfigError: some were trained otherwise: by a trial, in another precision, with other options.
    """
    named, trained = {item.name for item in plan}, settings.trained
    for item in plan:
        for name in (*item.needs, *item.after):
            other = trained.get(name)
            if other is None or name in named or not settings.record(other).is_file():
                continue
            if settings.product(other).is_file() and find_finished(other, settings) is None:
                raise ConfigError(
                    f"{item.name} would take {str(settings.product(other))!r}, which was not made by "
                    f"`{item_command(other, settings)}` at --scale {settings.scale:g}: add {name!r} to --only, give "
                    "the --scale and --precision that it was trained with, or another --work"
                )


def carry_out(plan: Sequence[Item], settings: Settings, budget: float | None, jobs: int, wait: bool) -> int:
    """Run the plan, say what happens, and end with a summary, whatever ends it.

    Returns:
        130 if interrupted, 3 if an item failed, else 0.
    """
    for folder in ("", "cache", "tables", "logs", "done", "progress"):
        (settings.work / folder).mkdir(parents=True, exist_ok=True)
    log = settings.work / "log.txt"

    def tell(line: str) -> None:
        timed = f"{time.strftime('%H:%M:%S')}  {line}"
        say(timed)
        with contextlib.suppress(OSError), log.open("a", encoding="utf-8") as file:  # a full disk: it was said
            file.write(f"{timed}\n")

    check_others(plan, settings)
    done, stale = find_done(plan, settings)
    for item in stale:
        if put_away(item, settings):
            tell(f"aside    {item.name}  was made otherwise than it would be now: moved to {settings.aside}")
    _import_now()
    if settings.plan is CPU_PLAN:
        done = find_shipped(plan, settings.cache) | done
    broken: set[str] = set()

    def available(dataset: str) -> bool:
        if wait and settings.data_dir is not None and not (settings.data_dir / f"{dataset}{READY}").is_file():
            return False
        if not settings.spawn:
            _open(dataset, settings, broken)
        return True

    schedule = Schedule(
        plan,
        budget=math.inf if budget is None else budget,
        jobs=jobs,
        done=done,
        available=available,
        start=lambda item: Process(item, settings),
        say=tell,
    )
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    records = list(schedule.records.values())
    try:
        schedule.run()
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    finally:
        summarise(records, settings)
    return EXIT_INCOMPLETE if any(record.status == "failed" for record in records) else 0


def summarise(records: Sequence[Record], settings: Settings) -> None:
    """Say what became of every item, and write it down."""
    lines = list(summary(records))
    say(*lines)
    write_text(settings.work / "summary.json", json.dumps([as_dict(record, settings) for record in records], indent=1))
    write_text(settings.work / "summary.txt", "\n".join(lines) + "\n")


def _import_now() -> None:
    """Import what every item needs, once, before any process is forked; on one thread, which a fork survives."""
    os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
    os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"  # who asks whether there is a GPU does not begin CUDA here
    import accelerate  # noqa: F401
    import timm  # noqa: F401
    import torch

    import defend.report.reproduction_page
    import defend.reproduce.measure
    import defend.training.stage  # noqa: F401

    torch.set_num_threads(1)


def _open(dataset: str, settings: Settings, broken: set[str]) -> None:
    """Open a data set in this process, for those that are forked; one that cannot be opened fails in its items."""
    from tools.held import hold

    if dataset in broken:
        return
    try:
        hold(dataset, settings.data_dir, settings.scale)
    except DefendError:
        broken.add(dataset)


def as_dict(record: Record, settings: Settings) -> dict[str, object]:
    """Return a record as JSON has it."""
    return {
        "item": record.item.name,
        "status": record.status,
        "seconds": round(record.seconds, 1),
        "estimate": round(record.item.seconds, 1),
        "said": record.said,
        "command": item_command(record.item, settings),
    }


def summary(records: Sequence[Record]) -> Iterator[str]:
    """Yield a line for each item: what became of it, minutes, its figures."""
    yield f"{'item':42} {'status':8} {'min':>5} {'est.':>5}  figures"
    for record in records:
        status = "left" if record.status == "waiting" else record.status
        spent, estimate = record.seconds / 60, record.item.seconds / 60
        yield f"{record.item.name:42} {status:8} {spent:5.1f} {estimate:5.1f}  {record.said}".rstrip()


def parcel(settings: Settings, out: Path, limits: Limits, *, checkpoints: bool, again: bool) -> Packed:
    """Pack results, weights by rank, what the tables' runs left: what earlier rounds did not, or all if `again`."""
    work = settings.work
    files = [work / "summary.txt", work / "summary.json", work / "log.txt"]
    files += sorted((work / "tables").glob("*.*")) + sorted((work / "done").glob("*.json"))
    files += sorted((work / "logs").glob("*.txt"))
    weights = [path for item in settings.plan if isinstance(item, Train) and (path := settings.product(item)).is_file()]
    large = [path for path in weights if path.stat().st_size > LARGE]
    runs = sorted(path for path in (work / "tables").glob("*/**/*") if path.is_file() and UNFINISHED not in path.parts)
    files += [path for path in weights if path not in large]
    files += [path for path in runs if path.stat().st_size <= MOST_OF_A_RUN] + large
    if checkpoints:
        files += find_unfinished(settings)
    named = [(path.relative_to(work).as_posix(), path) for path in files if path.is_file()]
    return pack(named, out, limits, work / "packed.json", again=again)


def find_unfinished(settings: Settings) -> list[Path]:
    """Return the checkpoints of trainings that were begun and not finished, the smallest first."""
    begun: Counter[str] = Counter()
    for item in settings.plan:
        if isinstance(item, Train) and settings.log(item).is_file() and not settings.record(item).is_file():
            stem = item.file.removesuffix(".safetensors")
            begun[stem.removesuffix(f"+{item.edition}") if item.edition else stem] += 1
    found: list[Path] = []
    for stem, count in begun.items():  # editions share a name; those that were finished are older
        folders = (settings.work / "cache" / "training").glob(f"{stem}-*")
        for folder in sorted(folders, key=lambda folder: folder.stat().st_mtime)[-count:]:
            found += folder.iterdir()
    return sorted(found, key=lambda path: path.stat().st_size)


def bring_home(parts: Sequence[Path], work: Path, replace: bool) -> int:
    """Put weights and checkpoints into the user's cache, and the rest into `work`; return 0, 3 if a file is not whole.

    A file that is there with other contents stays, and a line says so, unless `replace`.
    """
    stayed = []

    def place(name: str) -> Path | None:
        inside = name.removeprefix("cache/")
        root = work if inside == name else cache_dir()
        path = place_under(root, inside, "a part")
        if path.exists() and not replace and inside != name:
            stayed.append(str(path))
            return None
        return path

    written, incomplete = unpack(parts, place)
    say(
        *(f"{name}" for name in written),
        f"{len(written)} files: weights in {cache_dir() / 'weights'}, the rest in {work}",
    )
    if stayed:
        say(f"left as they are (--replace writes over them): {', '.join(stayed)}")
    if incomplete:
        say(f"not whole yet, parts are missing: {', '.join(incomplete)}")
    return EXIT_INCOMPLETE if incomplete else 0


@contextlib.contextmanager
def alone(work: Path) -> Iterator[None]:
    """Hold a folder, so that no other run writes to it.

    Raises:
        ConfigError: another one does.
    """
    work.mkdir(parents=True, exist_ok=True)
    with (work / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ConfigError(f"another run works in {str(work)!r}: wait for it, or name another --work") from None
        yield


def say(*lines: str) -> None:
    """Write lines to standard output, at once."""
    sys.stdout.write("".join(f"{line}\n" for line in lines))
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
