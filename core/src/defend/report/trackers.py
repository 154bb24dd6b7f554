"""Figures of trainings and runs as they come, for the loggers that people have: csv, TensorBoard, W&B, MLflow.

accelerate's trackers write them; none of their packages is a dependency.
"""

from __future__ import annotations

import csv
import importlib.util
import io
import logging
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from defend.errors import ConfigError, did_you_mean
from defend.records.watcher import Relay, TrainingWatcher, Watcher
from defend.util.files import make_folder, write_text
from defend.util.launch import place
from defend.values.floors import left_of_worst

if TYPE_CHECKING:
    from defend.records.rows import RowRecord
    from defend.values.report import Report

CSV = "csv"
PACKAGES: Mapping[str, str] = {"tensorboard": "tensorboard", "wandb": "wandb", "mlflow": "mlflow"}
TRACKERS = (CSV, *PACKAGES)
FILE = "log.csv"
HEADER = ("step", "name", "value")


class Tracker(Protocol):
    """What receives figures; accelerate's trackers do."""

    def log(self, values: dict[str, float], step: int | None = None) -> None:
        """Keep figures of a step."""

    def finish(self) -> None:
        """Nothing more will come."""


class CsvTracker:
    """Writes log.csv, a line a figure: step, name, value.

    What is there of steps before the first one stays: a training that was cut off goes on.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / FILE
        self._lines: list[tuple[str, ...]] | None = None

    def log(self, values: dict[str, float], step: int | None = None) -> None:
        if self._lines is None:
            self._lines = self._read_before(step or 0)
        self._lines += [(str(step), name, repr(float(value))) for name, value in values.items()]
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([HEADER, *self._lines])
        make_folder(self._path.parent)
        write_text(self._path, text.getvalue(), "log")

    def _read_before(self, step: int) -> list[tuple[str, ...]]:
        """Return the lines of steps before one; none of a file that is no log."""
        try:
            header, *lines = map(tuple, csv.reader(io.StringIO(self._path.read_text(encoding="utf-8"), newline="")))
            return [line for line in lines if header == HEADER and int(line[0]) < step]
        except (OSError, ValueError, IndexError, csv.Error):
            return []

    def finish(self) -> None:
        pass


def check_names(names: Sequence[str]) -> None:
    """Refuse loggers that nobody knows, or whose package is not installed, before anything is computed.

    Raises:
        ConfigError: naming the nearest, or the package.
    """
    for name in names:
        if name not in TRACKERS:
            raise ConfigError(f"unknown logger {name!r}: {did_you_mean(name, TRACKERS)}")
        if name != CSV and importlib.util.find_spec(PACKAGES[name]) is None:
            raise ConfigError(f"--log {name} needs the package {PACKAGES[name]}: pip install {PACKAGES[name]}")


class Log:
    """The loggers of one run or training.

    Args:
        names: of `TRACKERS`; none log nothing. Of several processes the first logs.
        title: what the run is called there.
        folder: those that write files put them into its folder TITLE; ./logs if None.
        settings: what was asked for, as the loggers show it.

    Raises:
        ConfigError: see `check_names`; or a folder, and nothing that would write into it.
    """

    def __init__(self, names: Sequence[str], title: str, folder: Path | None, settings: Mapping[str, Any]) -> None:
        check_names(names)
        if folder is not None and not names:
            raise ConfigError(f"--log-dir {str(folder)!r} without --log: nothing is logged there; add --log {CSV}")
        folder = folder or Path("logs")
        self._trackers: dict[str, Tracker] = {}
        self.step = 0  # the last that was logged
        for name in dict.fromkeys(names) if place()[0] == 0 else ():
            try:
                self._trackers[name] = _start(name, title, folder, settings)
            except Exception as error:  # a server may be away: figures are in the report too
                warnings.warn(f"--log {name} could not start ({error}): nothing is logged there", stacklevel=2)

    def write(self, values: Mapping[str, float], step: int) -> None:
        """Log figures of a step; a logger that fails is given up, and a warning says so."""
        self.step = step
        for name, tracker in list(self._trackers.items()):
            try:
                tracker.log(dict(values), step=step)
            except Exception as error:  # a full disk, a server that is away
                del self._trackers[name]
                warnings.warn(f"--log {name} failed ({error}): nothing more is logged there", stacklevel=2)

    def end(self) -> None:
        """Let all loggers finish."""
        for name, tracker in self._trackers.items():
            try:
                tracker.finish()
            except Exception as error:  # as in `write`
                warnings.warn(f"--log {name} failed at the end ({error})", stacklevel=2)
        self._trackers = {}


def _start(name: str, title: str, folder: Path, settings: Mapping[str, Any]) -> Any:
    if name == CSV:
        return CsvTracker(folder / title)
    tracking: Any = importlib.import_module("accelerate.tracking")  # late: it imports torch
    # its own wants accelerate's process state, and making one would choose the device of what follows
    tracking.logger = logging.getLogger(tracking.__name__)
    known = tracking.LOGGER_TYPE_TO_CLASS[name]
    if known.requires_logging_directory:
        make_folder(folder)
        tracker = known(title, logging_dir=str(folder))
    else:
        tracker = known(title)
    tracker.main_process_only = False  # this is the first process; asking accelerate for it would choose a device
    if hasattr(tracker, "start"):
        tracker.start()
    if name != "tensorboard":  # its form of settings is a run of its own
        tracker.store_init_configuration({key: str(value) for key, value in settings.items()})
    return tracker


class LoggedTraining(TrainingWatcher):
    """Logs a training's mean losses of every epoch, and tells another watcher all."""

    def __init__(self, watcher: TrainingWatcher, log: Log, prefix: str = "") -> None:
        self._watcher, self._log, self._prefix = watcher, log, prefix

    def making(self, done: int, total: int) -> None:
        self._watcher.making(done, total)

    def step(self, done: int, total: int, losses: Mapping[str, float]) -> None:
        self._watcher.step(done, total, losses)
        if losses:
            self._log.write({f"{self._prefix}{name}": value for name, value in losses.items()}, done)

    def measuring(self) -> None:
        self._watcher.measuring()

    def end(self) -> None:
        self._watcher.end()


class LoggedRun(Relay):
    """Logs the accuracy of every arm after each row, and tells another watcher all."""

    def __init__(self, watcher: Watcher, log: Log) -> None:
        super().__init__(watcher)
        self._log, self._rows = log, 0

    def finished(self, record: RowRecord) -> None:
        super().finished(record)
        self._rows += 1
        plan = record.plan
        row = "clean" if plan.attack is None else f"{plan.name}/{plan.threat.kind}"
        row += f"/{plan.variant}" if plan.variant else ""
        row += "" if plan.headline or plan.threat.eps is None else f"/eps {plan.threat.eps:g}"
        right = {name: ((arm.predicted == record.labels) & arm.accepted) for name, arm in record.arms.items()}
        self._log.write(
            {f"{row}/{name.replace(': ', '/')}": float(held.double().mean()) for name, held in right.items()},
            self._rows,
        )

    def training(self, title: str) -> TrainingWatcher:
        return LoggedTraining(super().training(title), self._log, f"{title}/")


def log_verdicts(log: Log, reports: Mapping[str, Report]) -> None:
    """Log what a finished run says of its figures, by arm: how many checks failed and warn, what the worst case is.

    `worst_case_is_upper_bound` is 1 where more steps would plainly lower it; `not_to_be_trusted` where a check failed,
    the run was interrupted, or nothing was checked.
    """
    said: dict[str, float] = {}
    for arm, report in reports.items():
        statuses = [check.status for check in report.checks]
        doubted = bool(report.failed) or report.partial or report.config.checks == "none"
        values: dict[str, float] = {
            "checks/failed": statuses.count("fail"),
            "checks/warned": statuses.count("warn"),
            "not_to_be_trusted": doubted,
        }
        if report.worst_case is not None:
            left = left_of_worst(report.worst_case)
            values |= {"worst_case": left.accuracy, "worst_case_is_upper_bound": left.loose}
        under = f"{arm}/" if len(reports) > 1 else ""
        said |= {f"{under}{name}": float(value) for name, value in values.items()}
    log.write(said, log.step + 1)
