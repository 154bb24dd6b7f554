"""Progress in the terminal, on standard error: rich's bars, or plain lines where it is no terminal."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from defend.launch import place

if TYPE_CHECKING:
    from rich.console import Console

    from defend.rows import PlannedRow
    from defend.watcher import TrainingWatcher

PIPED_WIDTH = 120


def open_console(stderr: bool = False) -> Console:
    """Return a console as wide as the terminal, or 120 columns where output is piped."""
    from rich.console import Console

    return Console(stderr=stderr, width=None if sys.stdout.isatty() else PIPED_WIDTH)


def waiting(console: Console, quiet: bool, what: str = "loading torch") -> contextlib.AbstractContextManager[Any]:
    """Show what takes seconds: for one, torch's and timm's imports."""
    return contextlib.nullcontext() if quiet or not console.is_terminal else console.status(what)


def run_watcher(console: Console, quiet: bool) -> Any:
    """Return a `defend.watcher.Watcher` that shows one bar for the row at hand, on standard error."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from defend.watcher import Watcher

    class Bar(Watcher):
        def __init__(self) -> None:
            self._status = console.status("") if console.is_terminal and not quiet else None
            self._bar: Progress | None = None

        def preparing(self, what: str) -> None:
            if self._status is not None:
                self._status.update(what)
                self._status.start()

        def begin(self, rows: Sequence[PlannedRow]) -> None:
            self._still()
            self._rows, self._done = len(rows), 0
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                console=console,
                transient=True,
                disable=quiet or not console.is_terminal,
            )
            self._task = self._bar.add_task("", total=None)
            self._bar.start()

        def row(self, plan: PlannedRow) -> None:
            self._done += 1
            whose = f" against {plan.attacked.split(':')[0]}" if ":" in plan.attacked else ""
            name = "clean" if plan.attack is None else f"{plan.name}, {plan.threat.kind}{whose}"
            text = f"row {self._done} of {self._rows}: {name}, {len(plan.keys)} images"
            assert self._bar is not None
            self._bar.reset(self._task, total=len(plan.keys), description=text)
            if not quiet and not console.is_terminal:
                console.print(text, highlight=False)

        def images(self, count: int) -> None:
            assert self._bar is not None
            self._bar.advance(self._task, count)

        def end(self) -> None:
            self._still()
            if self._bar is not None:
                self._bar.stop()

        def _still(self) -> None:
            if self._status is not None:
                self._status.stop()

        def training(self, title: str) -> TrainingWatcher:
            self._still()
            return training_progress(console, title, quiet)

    return Bar()


@contextlib.contextmanager
def counting(console: Console, title: str, total: int, quiet: bool) -> Iterator[Callable[[int], None]]:
    """Show a bar that advances by what the yielded callback is told."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    with Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
        console=console, transient=True, disable=quiet or not console.is_terminal,
    ) as bar:  # fmt: skip
        task = bar.add_task(title, total=total)
        yield lambda count: bar.advance(task, count)


def training_progress(console: Console, title: str, quiet: bool) -> TrainingWatcher:
    """Return what shows a training: the images that it makes first, steps, time left and losses, and what is measured.

    Silent but on rank 0.
    """
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    from defend.watcher import TrainingWatcher

    silent = quiet or place()[0] != 0
    bar = Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn(),
        TextColumn("{task.fields[losses]}"), console=console, transient=True, disable=silent or not console.is_terminal,
    )  # fmt: skip
    task = bar.add_task(title, total=None, losses="")
    bar.start()

    class Bar(TrainingWatcher):
        def __init__(self) -> None:
            self._made = False

        def making(self, done: int, total: int) -> None:
            if not self._made:
                self._say(f"making the images to train on, {total:,}")
            self._made = True
            bar.update(task, completed=done, total=total, description=f"{title}: making its images")

        def step(self, done: int, total: int, losses: Mapping[str, float]) -> None:
            if self._made:
                self._made = False
                bar.reset(task, total=total, description=title)
            bar.update(task, completed=done, total=total)
            if losses:
                text = ", ".join(f"{key} {value:.4g}" for key, value in losses.items())
                bar.update(task, losses=text)
                self._say(f"step {done} of {total}: {text}")

        def measuring(self) -> None:
            bar.reset(task, total=None, description=f"{title}: measuring", losses="")

        def end(self) -> None:
            bar.stop()

        def _say(self, text: str) -> None:
            if not silent and not console.is_terminal:
                console.print(f"{title}: {text}", highlight=False)

    return Bar()
