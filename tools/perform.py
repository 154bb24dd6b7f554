"""Does one item in a process of its own, which may fail without taking the others along."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import signal
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs

from defend.errors import DefendError, WeightsError
from defend.options import describe
from defend.plugins import registry, using
from defend.records.watcher import TrainingWatcher
from defend.util.files import write_text
from defend.weights.card import read_card
from tools.aside import set_aside
from tools.plan import HALF, PLAN, Item, Measure, Train
from tools.ships import find_shipped_file

PATIENCE = 15.0  # seconds for an interrupted item to end
PROGRESS_EVERY = 1.0
CHECKPOINT_SECONDS = 45.0  # checkpoints of several trainings at once are hundreds of megabytes
IMAGES_OF_A_TRIAL = 2
MEMORY = 0.2  # share of a GPU's that a table may take: beyond it, it halves its batches, where a training would fail
SHRUNK = ("epochs", "post_epochs")  # options that a trial makes smaller


@attrs.frozen(kw_only=True)
class Settings:
    """How to do an item.

    Attributes:
        work: the folder of everything: cache, tables, logs.
        plan: of which the items are.
        data_dir: where the data sets lie; None as in `defend`.
        device: "auto", "cpu", "cuda".
        precision: of every training; None: each as planned.
        scale: 1, or less for a trial: of the epochs and of the images.
        threads: of each item, on the CPU.
        batch_size: images at a time, in tables.
        spawn: begin each process anew; a fork, which only Linux is safe with, has torch and the data at once.
    """

    work: Path
    plan: tuple[Item, ...] = PLAN
    data_dir: Path | None = None
    device: str = "auto"
    precision: str | None = None
    scale: float = 1.0
    threads: int = 1
    batch_size: int = 500
    spawn: bool = sys.platform != "linux"

    @property
    def trained(self) -> dict[str, Train]:
        """The plan's trainings, by name."""
        return {item.name: item for item in self.plan if isinstance(item, Train)}

    @property
    def tables(self) -> Path:
        """The folder of runs and results."""
        return self.work / "tables"

    @property
    def cache(self) -> Path:
        """The cache of its own that the items have: weights, checkpoints, attacked images."""
        return self.work / "cache"

    def log(self, item: Item) -> Path:
        """The file that takes what an item prints."""
        return self.work / "logs" / f"{slug(item)}.txt"

    def record(self, item: Item) -> Path:
        """The file that says that an item is done."""
        return self.work / "done" / f"{slug(item)}.json"

    def product(self, item: Item) -> Path:
        """The file that an item makes."""
        if isinstance(item, Train):
            return self.cache / "weights" / item.file
        assert isinstance(item, Measure)
        return self.tables / item.file

    @property
    def aside(self) -> Path:
        """The folder of what is to be made anew."""
        return self.work / "aside"


def slug(item: Item) -> str:
    """Return an item's name as a file is named."""
    return item.name.replace("/", "-")


def find_finished(item: Item, settings: Settings, whole: bool = False) -> str | None:
    """Return the figure of an item that was done before as it would be done now; None where it is still to do.

    As now: by the same command, in the same precision, at this scale, with the weights that there are.

    `whole`: a table that was measured without some of its arms is still to do, as their weights may have come since.
    """
    record = settings.record(item)
    if not record.is_file() or not settings.product(item).is_file():
        return None
    kept = json.loads(record.read_text(encoding="utf-8"))
    if kept["scale"] != settings.scale or kept.get("command") not in _commands(item, settings):
        return None
    then, now = kept.get("made_with"), hash_weights(item, settings)
    if then is None or any(now.get(name) != value for name, value in then.items()):
        return None
    if whole and not (kept["whole"] and all(name in then for name in _list_trained(item, settings))):
        return None
    return str(kept["figure"])


def find_done(plan: Sequence[Item], settings: Settings) -> tuple[dict[str, str], list[Item]]:
    """Look through what was made before.

    Returns:
        The figures of the items that are done, by name; and the items that are to be done anew: what lies there was
        made otherwise than it would be now (of weights without a record nobody knows how), or from such weights.
    """
    done: dict[str, str] = {}
    stale: dict[str, Item] = {}
    for item in sorted(plan, key=lambda item: item.rank):
        of_stale = any(name in stale for name in (*item.needs, *item.after))
        figure = None if of_stale else find_finished(item, settings, whole=True)
        if figure is not None:
            done[item.name] = figure
        elif of_stale or find_finished(item, settings) is None:
            there = settings.product(item) if isinstance(item, Train) else settings.record(item)
            if there.is_file():
                stale[item.name] = item
    return done, list(stale.values())


def put_away(item: Item, settings: Settings) -> list[Path]:
    """Set aside what an item made before, with its record; return what was moved."""
    settings.record(item).unlink(missing_ok=True)
    made = settings.product(item)
    return set_aside((made, made.with_suffix(".html")) if isinstance(item, Measure) else (made,), settings.aside)


def hash_weights(item: Item, settings: Settings) -> dict[str, str]:
    """Return the content hashes of the weights that an item is made with, of those that are there, by their items.

    Where the plan's are not there, shipped ones stand in for them.
    """
    made, found = _list_trained(item, settings), {}
    for name in (*item.needs, *item.after):
        path = made.get(name)
        if path is None and (other := settings.trained.get(name)) is not None:
            path = next(iter(find_shipped_file(other) or ()), None)
        if path is not None:
            try:
                found[name] = read_card(path).content_sha256
            except WeightsError:
                found[name] = "damaged"
    return found


def _list_trained(item: Item, settings: Settings) -> dict[str, Path]:
    """Return the files of the weights that an item is made with and the plan has made, by their items.

    Every record says of these; of shipped ones, those from before they were written down do not.
    """
    files = {
        name: settings.product(one) for name, one in settings.trained.items() if name in (*item.needs, *item.after)
    }
    return {name: path for name, path in files.items() if path.is_file()}


class Process:
    """An item in a process of its own."""

    def __init__(self, item: Item, settings: Settings) -> None:
        self._item, self._settings = item, settings
        self._progress = settings.work / "progress" / slug(item)
        self._progress.unlink(missing_ok=True)
        settings.record(item).unlink(missing_ok=True)
        if isinstance(item, Train):  # where it fails, nothing may take what is there for what it was to make
            put_away(item, settings)
        what = (item, settings, self._progress)
        log = settings.log(item)
        self._logged = log.stat().st_size if log.is_file() else 0  # by earlier tries
        self._process: multiprocessing.process.BaseProcess
        if settings.spawn or sys.platform == "win32":
            self._process = multiprocessing.get_context("spawn").Process(target=perform, args=what, name=item.name)
        else:
            self._process = multiprocessing.get_context("fork").Process(target=perform, args=what, name=item.name)
        self._process.start()

    def poll(self) -> tuple[bool, str] | None:
        if self._process.is_alive():
            return None
        figure = find_finished(self._item, self._settings) if self._process.exitcode == 0 else None
        return (True, figure) if figure is not None else (False, self._trouble())

    def progress(self) -> str:
        with contextlib.suppress(OSError):
            return self._progress.read_text(encoding="utf-8")
        return "begun"

    def interrupt(self) -> None:
        if self._process.pid is not None and self._process.is_alive():
            os.kill(self._process.pid, signal.SIGINT)

    def stop(self) -> None:
        self._process.join(PATIENCE)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()

    def _trouble(self) -> str:
        if self._process.exitcode == 0:
            return "it ended, but what it was made with is not what is there now"
        printed = b""
        with contextlib.suppress(OSError):  # it may have ended before it opened its log
            printed = self._settings.log(self._item).read_bytes()[self._logged :]
        lines = printed.decode(errors="replace").split("\n")
        last = next((line for line in reversed(lines) if line.strip()), "nothing was printed")
        return f"exit code {self._process.exitcode}: {last.strip()[:160]}"


def perform(item: Item, settings: Settings, progress: Path) -> None:
    """Do an item, and write down that it is done; what it prints goes to its log, an error too, with exit code 1."""
    log = settings.log(item)
    for folder in (log.parent, progress.parent, settings.record(item).parent):
        folder.mkdir(parents=True, exist_ok=True)
    with log.open("a", encoding="utf-8") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.environ["DEFEND_CACHE_DIR"] = str(settings.cache)
    began = time.time()
    made_with = hash_weights(item, settings)
    try:
        figure, whole = (_train if isinstance(item, Train) else _measure)(item, settings, progress)
    except KeyboardInterrupt:
        sys.exit(130)
    except DefendError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(2)
    except BaseException:
        traceback.print_exc()
        sys.exit(1)
    values = {
        "figure": figure,
        "seconds": round(time.time() - began, 1),
        "scale": settings.scale,
        "whole": whole,
        "command": item_command(item, settings),
        "made_with": made_with,
    }
    write_text(settings.record(item), json.dumps(values, indent=1))


def item_command(item: Item, settings: Settings) -> str:
    """Return the command that does the same as an item, in the precision that it is given."""
    assert isinstance(item, Train | Measure)
    if isinstance(item, Train):
        item = attrs.evolve(item, precision=precision_of(item, settings))
    return item.command()


def _commands(item: Item, settings: Settings) -> set[str]:
    """Return the commands that make the same of an item: one whose precision is the machine's has two."""
    if isinstance(item, Train) and item.precision == HALF and settings.precision is None:
        return {attrs.evolve(item, precision=precision).command() for precision in ("no", "bf16")}
    return {item_command(item, settings)}


def precision_of(item: Train, settings: Settings) -> str:
    """Return the precision of a training: of all, if that is set, else as it is planned."""
    planned = settings.precision or item.precision
    return ("bf16" if multiplies_bfloat16() else "no") if planned == HALF else planned


def multiplies_bfloat16() -> bool:
    """Whether this machine's CPU multiplies bfloat16 itself."""
    import torch

    from defend.evaluation.precision import explain_unsupported

    return explain_unsupported(torch.device("cpu")) is None


def options_of(item: Train, scale: float) -> dict[str, Any]:
    """Return a training's options, fewer epochs for a trial: those that are named, and those of the edition."""
    if scale >= 1:
        return dict(item.options)
    spec = registry().find(item.stage, item.stage_name).spec
    known = {option.name for option in describe(spec.recipe)}
    chosen = {**spec.recipes.get(item.dataset, {}), **spec.editions.get(item.edition, {}), **item.options}
    fewer = {name: max(round(scale * chosen[name]), 1) for name in SHRUNK if name in known and name in chosen}
    return {**item.options, **fewer}


class Told(TrainingWatcher):
    """Keeps the share that is done in a file, and prints what an epoch ended with."""

    def __init__(self, file: Path) -> None:
        self._file, self._told = file, 0.0

    def making(self, done: int, total: int) -> None:
        self._keep(f"its images {done / total:.0%}")

    def step(self, done: int, total: int, losses: Mapping[str, float]) -> None:
        self._keep(f"{done / total:.0%}")
        if losses:
            means = ", ".join(f"{name} {value:.4g}" for name, value in losses.items())
            sys.stdout.write(f"step {done} of {total}: {means}\n")
            sys.stdout.flush()

    def _keep(self, text: str) -> None:
        if time.monotonic() - self._told >= PROGRESS_EVERY:
            self._told = time.monotonic()
            write_text(self._file, text)


def _train(item: Item, settings: Settings, progress: Path) -> tuple[str, bool]:
    """Train; return the figures of its card, and that nothing is missing."""
    import torch

    from defend.assembly.composition import Composition
    from defend.training.loop import FitSettings
    from defend.training.missing import prepare_training
    from defend.training.stage import train_stage
    from tools.held import hold

    assert isinstance(item, Train)
    torch.set_num_threads(settings.threads)
    images, options = hold(item.dataset, settings.data_dir, settings.scale), options_of(item, settings.scale)
    how = FitSettings(
        device=settings.device,
        precision=precision_of(item, settings),
        progress=Told(progress),
        checkpoint_seconds=CHECKPOINT_SECONDS,
    )
    found = registry().find(item.stage, item.stage_name)
    around = Composition.of(item.victim, item.purifier, weights=item.weights)
    aimed = prepare_training(found, around, images, options, item.edition, how=how)
    with using(aimed.plugins):
        _, card = train_stage(
            item.stage,
            item.stage_name,
            images,
            adapted=aimed.adapted,
            options=aimed.options,
            edition=item.edition,
            settings=how,
            plugins=aimed.plugins,
        )
    return ", ".join(f"{name} {value:.4g}" for name, value in card.figures.items())[:200] or "trained", True


def _measure(item: Item, settings: Settings, progress: Path) -> tuple[str, bool]:
    """Measure a table; return how much of it there is, and whether every arm had the weights that are trained for it.

    Nothing is set that `defend reproduce` does not set, but the threads: a GPU's products keep all their digits.

    Raises:
        DefendError: runs of some arms failed; what the others came to is written.
    """
    import torch

    from defend.report.reproduction_page import page_name, write_page
    from defend.reproduce.jobs import MeasureSettings as Measuring
    from defend.reproduce.measure import reproduce
    from tools.held import HeldRegistry, hold
    from tools.stale import find_stale_runs

    assert isinstance(item, Measure)
    torch.set_num_threads(settings.threads)
    hold(item.dataset, settings.data_dir, settings.scale)

    if settings.device != "cpu" and torch.cuda.is_available():
        torch.cuda.set_per_process_memory_fraction(MEMORY)

    def announce(line: str) -> None:
        sys.stdout.write(f"{line}\n")
        sys.stdout.flush()
        if "run " in line:  # "apudae/table-2, run 3 of 9: ..."
            write_text(progress, line.partition(":")[0].partition(", ")[2])

    installed = HeldRegistry()
    table = installed.tables[item.table]
    how = Measuring(
        out=settings.tables,
        limit=None if settings.scale >= 1 else IMAGES_OF_A_TRIAL,
        device=settings.device,
        data_dir=None if settings.data_dir is None else str(settings.data_dir),
        batch_size=settings.batch_size,
        only_open=item.only_open,
        announce=announce,
    )
    settings.tables.mkdir(parents=True, exist_ok=True)
    for run in set_aside(find_stale_runs(table, how, installed), settings.aside):
        announce(f"{table.name}: {run.name} was measured with other weights, and is measured anew")
    trained = settings.trained
    absent = [name for name in (*item.needs, *item.after) if not settings.product(trained[name]).is_file()]
    result = reproduce(table, how, None, installed)
    write_page(table, result, settings.tables / page_name(table))
    if result.partial:
        raise KeyboardInterrupt
    if result.failed:
        arm, why = next(iter(result.failed.items()))
        raise DefendError(f"{len(result.failed)} of {len(table.arms)} arms failed, for example {arm}: {why}")
    measured = [cell for cell in result.cells if cell.ours is not None]
    fine = sum(cell.standing in ("same", "better") for cell in measured)
    said = f"{len(measured)} of {len(result.cells)} cells measured, {fine} as the paper's or better"
    said += f"; not trained here: {', '.join(absent)}" if absent else ""  # there may be shipped ones in their place
    return said, not result.missing and not absent
