"""Several processes at one folder: runs, arms, resumed runs, trainings; and owners that are gone."""

from __future__ import annotations

import contextlib
import errno
import functools
import json
import os
import signal
import tomllib
from collections.abc import Callable, Iterable
from pathlib import Path

from tests.faults.harness import LOST, Answer, Injection, run_command
from tests.faults.toys import PURIFIER, at_once, meet, obey_permissions, with_plugin

QUICKLY = ("--limit", "2", "--attack", "noise", "--threat", "noise", "--checks", "none", "--quiet", "--no-store")
RUN = ("run", "--victim", "resnet18", *QUICKLY)
ARMS = ("run", "--victim", "resnet18", "--purifier", "apudae", "--purifier", "dae", *QUICKLY)
BUSY = "is in use by process"


def injections() -> Iterable[Injection]:
    """Return them all."""
    yield from _together()
    yield from _names()
    yield from _gone()
    yield from _unlockable()
    yield from _trainings()


def _together() -> Iterable[Injection]:
    kind = "runs started together on one folder"
    for count, times in ((2, 6), (3, 3), (5, 2)):
        for time in range(times):
            inject = functools.partial(_race, count=count)
            yield Injection(kind, f"{count} runs, {time}", inject, quick=count == 2 and time == 0)
    for time in range(3):
        yield Injection(kind, f"two of two arms, {time}", functools.partial(_race, count=2, arguments=ARMS))
    yield Injection(kind, "one of two arms, and one of an arm alone", _race_of_arm)
    for time in range(3):
        yield Injection(kind, f"two that go on, {time}", functools.partial(_race_to_resume, arguments=RUN))
    yield Injection(kind, "two that go on with arms", functools.partial(_race_to_resume, arguments=ARMS))


def _names() -> Iterable[Injection]:
    kind = "names of run folders"
    for count in (2, 4):
        yield Injection(kind, f"{count} runs in one second", functools.partial(_same_second, count=count))
    yield Injection(kind, "two processes of one run agree", _agree)


def _gone() -> Iterable[Injection]:
    kind = "owners that are gone"
    for after in (0, 1):
        yield Injection(
            kind, f"killed after {after} batches", functools.partial(_killed, after=after), quick=after == 1
        )
    yield Injection(kind, "killed, and a child that it forked lives on", functools.partial(_killed, after=1, fork=True))
    texts = {
        "a process that is gone": b"process 999999 on elsewhere since 2026-01-01 00:00:00+00:00",
        "a living process with its number": f"process {os.getpid()} on here since 2026-01-01 00:00:00+00:00".encode(),
        "nothing": b"",
        "no text": bytes(range(256)),
    }
    for name, text in texts.items():
        yield Injection(kind, f"a lock that was left, of {name}", functools.partial(_left, text=text))
    yield Injection(kind, "interrupted", functools.partial(_ended, arrange=_interrupted, code=130))
    yield Injection(kind, "failed", functools.partial(_ended, arrange=_failing, code=2))


def _unlockable() -> Iterable[Injection]:
    kind = "folders that cannot be locked"
    yield Injection(kind, "read-only", _read_only, quick=True)
    yield Injection(kind, "a folder in the lock's place", functools.partial(_in_place, make=Path.mkdir))
    yield Injection(kind, "a link in the lock's place", functools.partial(_in_place, make=_link))
    for code in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
        inject = functools.partial(_without_locks, code=code)
        yield Injection(kind, f"the file system knows no locks, {errno.errorcode[code]}", inject)
    yield Injection(kind, "disk full while the owner is named", functools.partial(_without_room))


def _trainings() -> Iterable[Injection]:
    kind = "one training twice"
    for time in range(2):
        yield Injection(kind, f"together, {time}", _train_together, quick=time == 0)
    yield Injection(kind, "again, after one that was killed", _train_after_killed)


def _race(folder: Path, count: int, arguments: tuple[str, ...] = RUN) -> str:
    """Start runs that differ in their seed; one is made, whole and of its own config, and the others are refused."""
    answers = _start(folder, [(*arguments, "--seed", str(seed), "--out", str(folder / "r")) for seed in range(count)])
    return _one_won(answers) or _whole(folder / "r", seed=[each.code for each in answers].index(0))


def _race_of_arm(folder: Path) -> str:
    one = (*ARMS, "--out", str(folder / "r"))
    other = (*RUN, "--purifier", "dae", "--seed", "1", "--out", str(folder / "r" / "dae"))
    answers = _start(folder, [one, other])
    return _one_won(answers) or _whole(folder / "r" / "dae", seed=[each.code for each in answers].index(0))


def _race_to_resume(folder: Path, arguments: tuple[str, ...]) -> str:
    run_command(_own(folder, 9), *arguments, "--out", folder / "r", arrange=functools.partial(_kill_after, 1))
    answers = _start(folder, [("run", "--quiet", "--resume", str(folder / "r"))] * 2)
    return _one_won(answers) or _whole(folder / "r", seed=0)


def _start(folder: Path, commands: list[tuple[str, ...]]) -> list[Answer]:
    """Run commands that come to their folders at the same moment."""
    place = folder / "meeting"
    place.mkdir()
    arrange = functools.partial(_meet_before_claim, place, len(commands))
    runs = [
        functools.partial(run_command, _own(folder, number), *each, arrange=arrange)
        for number, each in enumerate(commands)
    ]
    return at_once(runs)


def _own(folder: Path, number: int) -> Path:
    own = folder / f"process-{number}"
    own.mkdir(exist_ok=True)
    return own


def _meet_before_claim(place: Path, count: int) -> None:
    from defend.evaluation import runner

    plan = runner.plan

    def planned(*arguments: object) -> object:
        rows = plan(*arguments)
        meet(place, count)
        return rows

    runner.plan = planned  # the step before the folder is made


def _one_won(answers: list[Answer]) -> str:
    codes = sorted(each.code for each in answers)
    if codes != [0, *[2] * (len(answers) - 1)]:
        return f"exit codes {codes}, expected one 0 and else 2: {[each.line for each in answers]}"
    wrong = (each.misbehaved(code=2, words=(BUSY, "--out")) for each in answers if each.code)
    return next((one for one in wrong if one), "")


def _whole(folder: Path, seed: int) -> str:
    """Say what is wrong with a finished run of a seed, or with its arms."""
    from defend.records.reading import read_results, run_folders

    for each in run_folders([folder]):
        results = read_results(each)
        config = tomllib.loads((each / "config.toml").read_text())
        said = {results.report.seed, config.get("seed", 0)}
        if said != {seed}:
            return f"{LOST}{each.name} holds seeds {said}, expected {seed}"
        if results.report.partial:
            return f"{LOST}{each.name} is partial"
    return _litter(folder)


def _litter(folder: Path) -> str:
    left = [str(each.relative_to(folder)) for each in folder.rglob("*") if each.name.startswith(".")]
    left += [str(each.relative_to(folder)) for each in folder.rglob("unfinished")]
    return f"left in the folder: {left}" if left else ""


def _same_second(folder: Path, count: int) -> str:
    """Start runs without --out in one folder at the same moment."""
    place, shared = folder / "meeting", folder / "shared"
    place.mkdir()
    shared.mkdir()
    arrange = functools.partial(_meet_at_name, place, shared, count)
    own = [_own(folder, number) for number in range(count)]
    answers = at_once([functools.partial(run_command, each, *RUN, arrange=arrange) for each in own])
    wrong = next((one for each in answers if (one := each.misbehaved(code=0))), "")
    made = len(list((shared / "runs").glob("*/report.json")))
    return wrong or ("" if made == count else f"{LOST}{made} run folders, expected {count}")


def _meet_at_name(place: Path, shared: Path, count: int) -> None:
    import datetime

    from defend.values import toml

    class Stopped(datetime.datetime):
        @classmethod
        def now(cls, tz: datetime.tzinfo | None = None) -> Stopped:
            return cls(2026, 1, 31, 12, tzinfo=tz)

    os.chdir(shared)
    named, toml.datetime = toml.default_out, type(datetime)("datetime")
    toml.datetime.datetime = Stopped

    def default_out(*arguments: object) -> object:
        name = named(*arguments)
        meet(place, count)
        return name

    toml.default_out = default_out


def _agree(folder: Path) -> str:
    """Start two processes of one run; both say which folder is theirs."""
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    own = [_own(folder, number) for number in range(2)]
    launch = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    answers = at_once(
        [
            functools.partial(
                run_command,
                each,
                *RUN,
                arrange=functools.partial(_tell_folder, folder),
                environment={**launch, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            )
            for rank, each in enumerate(own)
        ]
    )
    wrong = next((one for each in answers if (one := each.misbehaved(code=0))), "")
    told = {each.read_text() for each in folder.glob("told-*")}
    return wrong or ("" if len(told) == 1 else f"the processes write to {sorted(told)}")


def _tell_folder(folder: Path) -> None:
    from defend.evaluation import runner

    conclude = runner.Course.conclude

    def told(run: runner.Course) -> object:
        (folder / f"told-{os.environ['RANK']}").write_text(str(run.defences[0].names.config.out))
        return conclude(run)

    runner.Course.conclude = told


def _killed(folder: Path, after: int, fork: bool = False) -> str:
    """Kill a run; another goes on with it, and nothing is left of the first."""
    out = folder / "r"
    run_command(folder, *RUN, "--out", out, arrange=functools.partial(_kill_after, after, fork))
    answer = run_command(folder, "run", "--quiet", "--resume", out)
    with contextlib.suppress(OSError, ValueError):
        os.kill(int((folder / "child").read_text()), signal.SIGKILL)
    return answer.misbehaved(code=0) or _whole(out, seed=0)


def _kill_after(batches: int, fork: bool = False) -> None:
    from defend.records.journal import Journal

    keep, left = Journal.keep, iter(range(batches))

    def kept(*arguments: object) -> None:
        if next(left, None) is not None:
            keep(*arguments)
            return
        if fork and (child := os.fork()) == 0:
            signal.pause()
        if fork:
            Path("child").write_text(str(child))
        os.kill(os.getpid(), signal.SIGKILL)

    Journal.keep = kept


def _left(folder: Path, text: bytes) -> str:
    out = folder / "r"
    out.mkdir()
    (out / ".lock").write_bytes(text)
    return run_command(folder, *RUN, "--out", out).misbehaved(code=0) or _whole(out, seed=0)


def _ended(folder: Path, arrange: Callable[[], object], code: int) -> str:
    out = folder / "r"
    answer = run_command(folder, *RUN, "--out", out, arrange=arrange)
    left = [each.name for each in out.glob(".*")]
    wrong = "" if answer.code == code == 130 else answer.misbehaved(code=code)  # it has a line of its own
    return wrong or (f"left in the folder: {left}" if left else "")


def _interrupted() -> None:
    _raise_at_second_batch(KeyboardInterrupt())


def _failing() -> None:
    from defend.errors import ContractError

    _raise_at_second_batch(ContractError("a made-up fault"))


def _raise_at_second_batch(error: BaseException) -> None:
    from defend.records.journal import Journal

    keep, left = Journal.keep, iter(range(1))

    def kept(*arguments: object) -> None:
        if next(left, None) is None:
            raise error
        keep(*arguments)

    Journal.keep = kept


def _read_only(folder: Path) -> str:
    out = folder / "r"
    out.mkdir(mode=0o555)
    return run_command(folder, *RUN, "--out", out, arrange=obey_permissions).misbehaved(code=2, words=(str(out),))


def _in_place(folder: Path, make: Callable[[Path], object]) -> str:
    out = folder / "r"
    out.mkdir()
    make(out / ".lock")
    answer = run_command(folder, *RUN, "--out", out)
    if (folder / "elsewhere").read_text() != "mine" if (folder / "elsewhere").exists() else False:
        return f"{LOST}the file that the link led to"
    return answer.misbehaved(code=2, words=(str(out),))


def _link(path: Path) -> None:
    elsewhere = path.parents[1] / "elsewhere"
    elsewhere.write_text("mine")
    path.symlink_to(elsewhere)


def _without_locks(folder: Path, code: int) -> str:
    out = folder / "r"
    answer = run_command(folder, *RUN, "--out", out, arrange=functools.partial(_refuse_locks, code))
    return answer.misbehaved(code=0) or _whole(out, seed=0)


def _refuse_locks(code: int) -> None:
    import fcntl

    def flock(descriptor: int, operation: int) -> None:
        raise OSError(code, os.strerror(code))

    fcntl.flock = flock


def _without_room(folder: Path) -> str:
    out = folder / "r"
    return run_command(folder, *RUN, "--out", out, arrange=_refuse_text).misbehaved(code=0) or _whole(out, seed=0)


def _refuse_text() -> None:
    write = Path.write_text

    def written(path: Path, *arguments: object, **named: object) -> int:
        if path.name == ".lock":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(path, *arguments, **named)

    Path.write_text = written


TRAIN = ("train", "purifier", "toy", "--quiet", "--json")


def _train_together(folder: Path) -> str:
    """Start one training twice with one cache; one is made, the other is refused, and then finds what was made."""
    place = folder / "meeting"
    place.mkdir()
    cache = {"DEFEND_CACHE_DIR": str(folder / "cache")}
    arrange = with_plugin(PURIFIER, functools.partial(_meet_in_training, place, 2))
    own = [_own(folder, number) for number in range(2)]
    answers = at_once(
        [functools.partial(run_command, each, *TRAIN, arrange=arrange, environment=cache) for each in own]
    )
    if wrong := _one_trained(answers):
        return wrong
    again = run_command(own[0], *TRAIN, arrange=with_plugin(PURIFIER), environment=cache)
    return again.misbehaved(code=0) or _same_weights(answers, again) or _left_in_cache(folder)


def _one_trained(answers: list[Answer]) -> str:
    codes = sorted(each.code for each in answers)
    if codes != [0, 2]:
        return f"exit codes {codes}, expected 0 and 2: {[each.line for each in answers]}"
    return next(each for each in answers if each.code).misbehaved(code=2, words=(BUSY,))


def _same_weights(answers: list[Answer], again: Answer) -> str:
    hashes = {json.loads(each.out)["card"]["content_sha256"] for each in (*answers, again) if each.code == 0}
    return "" if len(hashes) == 1 else f"{LOST}one training gave {len(hashes)} weights"


def _meet_in_training(place: Path, count: int) -> None:
    """Meet when a training begins, and once more in its course, unless one was refused by then."""
    from defend.training import loop, stage

    fit, built = stage.fit_in_course, stage.code_version

    def before(*arguments: object) -> object:
        version = built(*arguments)
        meet(place, count)
        return version

    def slowly(*arguments: object) -> object:
        import time

        time.sleep(0.5)  # the other comes to the folder meanwhile
        return fit(*arguments)

    stage.code_version, stage.fit_in_course = before, slowly
    assert loop.fit_in_course is fit


def _train_after_killed(folder: Path) -> str:
    run_command(folder, *TRAIN, arrange=with_plugin(PURIFIER, _kill_in_epoch))
    return run_command(folder, *TRAIN, arrange=with_plugin(PURIFIER)).misbehaved(code=0) or _left_in_cache(folder)


def _kill_in_epoch() -> None:
    from defend.training.loop import _Course

    def killed(course: _Course, epoch: int) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    _Course._close = killed


def _left_in_cache(folder: Path) -> str:
    left = [each.name for each in folder.rglob(".lock")]
    return f"left: {left}" if left else ""
