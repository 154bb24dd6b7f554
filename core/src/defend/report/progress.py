"""Progress in the terminal, on standard error: rich's bars, or plain lines where it is no terminal.

rich is imported when something is shown, so that `defend --help` need not wait for it.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from defend.records.watcher import TrainingWatcher, Watcher
from defend.report.time_left import TimeLeft
from defend.util.launch import place
from defend.util.printable import escape
from defend.values.durations import say_duration

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

    from defend.records.rows import PlannedRow, RowRecord


PIPED_WIDTH = 120


def open_console(stderr: bool = False) -> Console:
    """Return a console as wide as the terminal, or 120 columns where output is piped.

    It takes no text for markup: paths, names and summaries come from outside, and `r[/b]` is a folder. Nor does it hand
    on what a terminal would obey.
    """
    from rich.console import Console, ConsoleOptions, RenderableType
    from rich.segment import Segment

    class Plain(Console):
        def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterator[Segment]:
            for segment in super().render(renderable, options):
                yield segment if segment.control else Segment(escape(segment.text, keep="\n"), segment.style)

    width = None if sys.stdout.isatty() else PIPED_WIDTH
    return Plain(stderr=stderr, width=width, markup=False, emoji=False, highlight=False)


def show_waiting(
    console: Console, quiet: bool, what: str = "loading torch"
) -> contextlib.AbstractContextManager[object]:
    """Show what takes seconds: for one, torch's and timm's imports."""
    from rich.text import Text

    return contextlib.nullcontext() if quiet or not console.is_terminal else console.status(Text(what))


def _bar(console: Console, quiet: bool, field: str = "", *, training: bool = False) -> Progress:
    """Return a bar that is gone when it ends, with a text beside it; of a training also with the time left."""
    from rich import progress as rich

    columns = [rich.TextColumn("{task.description}", markup=False), rich.BarColumn(), rich.MofNCompleteColumn()]
    columns += [rich.TimeElapsedColumn()]
    if training:
        columns += [rich.TimeRemainingColumn()]
    if field:
        columns += [rich.TextColumn(f"{{task.fields[{field}]}}", markup=False)]
    return rich.Progress(*columns, console=console, transient=True, disable=quiet or not console.is_terminal)


@contextlib.contextmanager
def show_count(console: Console, title: str, total: int, quiet: bool) -> Iterator[Callable[[int], None]]:
    """Show a bar that advances by what the yielded callback is told."""
    with _bar(console, quiet) as bar:
        task = bar.add_task(title, total=total)
        yield lambda count: bar.advance(task, count)


class RunBar(Watcher):
    """Shows what is prepared, then one bar for the row at hand."""

    def __init__(self, console: Console, quiet: bool) -> None:
        self._console, self._quiet = console, quiet
        self._status = console.status("") if console.is_terminal and not quiet else None
        self._bar: Progress | None = None

    def preparing(self, what: str) -> None:
        from rich.text import Text

        if self._status is not None:
            self._status.update(Text(what))
            self._status.start()

    def begin(self, rows: Sequence[PlannedRow]) -> None:
        self._still()
        self._rows, self._done, self._left = len(rows), 0, TimeLeft(rows)
        self._bar = _bar(self._console, self._quiet, "left")
        self._task = self._bar.add_task("", total=None, left="")
        self._bar.start()

    def row(self, plan: PlannedRow) -> None:
        self._done += 1
        self._left.row(plan)
        self._rows = max(self._rows, self._done)  # one that rests on the others is not planned with them
        whose = f" against {plan.attacked.split(':')[0]}" if ":" in plan.attacked else ""
        name = "clean" if plan.attack is None else f"{plan.name}, {plan.threat.kind}{whose}"
        text = f"row {self._done} of {self._rows}: {name}, {len(plan.keys)} images"
        assert self._bar is not None
        self._bar.reset(self._task, total=len(plan.keys), description=text, left=self._say_left())
        if not self._quiet and not self._console.is_terminal:
            left = self._say_left()
            self._console.print(f"{text}{'; ' if left else ''}{left}", highlight=False)

    def images(self, count: int) -> None:
        assert self._bar is not None
        self._left.images(count)
        self._bar.update(self._task, advance=count, left=self._say_left())

    def finished(self, record: RowRecord) -> None:
        self._left.finished(record)

    def _say_left(self) -> str:
        seconds = self._left.seconds()
        return "" if seconds is None else f"about {say_duration(seconds)} left"

    def end(self) -> None:
        self._still()
        if self._bar is not None:
            self._bar.stop()

    def _still(self) -> None:
        if self._status is not None:
            self._status.stop()

    def training(self, title: str) -> TrainingBar:
        self._still()
        return TrainingBar(self._console, title, self._quiet)


class TrainingBar(TrainingWatcher):
    """Shows a training: the images that it makes first, steps, time left and losses, and what is measured.

    Silent but on rank 0.
    """

    def __init__(self, console: Console, title: str, quiet: bool) -> None:
        self._console, self._title = console, title
        self._silent = quiet or place()[0] != 0
        self._made = False
        self._bar = _bar(console, self._silent, "losses", training=True)
        self._task = self._bar.add_task(title, total=None, losses="")
        self._bar.start()

    def making(self, done: int, total: int) -> None:
        if not self._made:
            self._say(f"making the images to train on, {total:,}")
        self._made = True
        self._bar.update(self._task, completed=done, total=total, description=f"{self._title}: making its images")

    def step(self, done: int, total: int, losses: Mapping[str, float]) -> None:
        if self._made:
            self._made = False
            self._bar.reset(self._task, total=total, description=self._title)
        self._bar.update(self._task, completed=done, total=total)
        if losses:
            text = ", ".join(f"{key} {value:.4g}" for key, value in losses.items())
            self._bar.update(self._task, losses=text)
            self._say(f"step {done} of {total}: {text}")

    def measuring(self) -> None:
        self._bar.reset(self._task, total=None, description=f"{self._title}: measuring", losses="")

    def end(self) -> None:
        self._bar.stop()

    def _say(self, text: str) -> None:
        if not self._silent and not self._console.is_terminal:
            self._console.print(f"{self._title}: {text}", highlight=False)
