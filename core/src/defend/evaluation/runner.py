"""RunConfig to Report: the entrances."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Sequence

import attrs

from defend.datasets.base import ImageDataset
from defend.errors import ConfigError, WriteError
from defend.evaluation.course import Course, Outcome
from defend.evaluation.forecast import Forecast
from defend.plugins import Registry, registry
from defend.records.shards import Shards
from defend.records.unfinished import way_on
from defend.records.watcher import Watcher
from defend.util import interrupts
from defend.util.fp32 import ieee_fp32
from defend.util.processes import Processes
from defend.values.arguments import checks_arguments, say_value
from defend.values.report import Report
from defend.values.run_config import RunConfig


@checks_arguments("run")
def run(config: RunConfig, watcher: Watcher | None = None, plugins: Registry | None = None) -> Report:
    """Evaluate a defence as a config describes it; write the run folder if the config names one.

    Raises:
        DefendError: anything wrong with the config, before or during the run; finished rows are kept
            in the run folder.
    """
    _check([config])
    if config.shard is not None:
        raise ConfigError(f"shard {config.shard} has no report of its own: run it with `defend run --shard`")
    return run_arms([config], watcher, plugins)[0].report


@checks_arguments("run_arms")
def run_arms(
    configs: Sequence[RunConfig],
    watcher: Watcher | None = None,
    plugins: Registry | None = None,
    resume: bool = False,
    dataset: ImageDataset | None = None,
    shards: Shards | None = None,
) -> list[Outcome]:
    """Evaluate several defences of one victim side by side, see `alternatives`.

    An attack on the bare victim is made once and judged by all of them; each gets a report, and a run folder if
    its config names one. Every finished batch is kept in the first of these folders until the run is complete, and
    with `resume` it is taken from there. Where a launcher (torchrun) started several processes they share the
    batches; process 0 alone writes, and alone runs the checks that query the defence. A `dataset` that is open
    already is not read again.

    A shard leaves its finished batches in its folder, and nothing is returned: it has no report. Given all `shards`,
    their batches are taken, and only what no shard has is computed: certificates, and the checks.

    Raises:
        DefendError: as `run`.
        BusyError: another run is at work in one of the folders.
        ProcessLostError: another process of the run is gone; what was finished is in the run folder.
    """
    _check(configs)
    try:
        with interrupts.careful(), ieee_fp32(), contextlib.ExitStack() as folders:
            run = Course(configs, watcher or Watcher(), plugins or registry(), resume, dataset, folders, shards)
            run.evaluate()
            outcomes = run.conclude()
    except WriteError as error:
        raise WriteError(f"{error}; {way_on(configs[0])}") from None
    if run.journal is not None and run.journal.damaged:
        warnings.warn(
            f"{run.journal.damaged} finished batches of run {str(run.outs[0])!r} were not as they were written, and "
            "were computed again with those after them",
            stacklevel=2,
        )
    return _agree(outcomes, run.processes)


def plan_arms(
    configs: Sequence[RunConfig],
    watcher: Watcher | None = None,
    plugins: Registry | None = None,
    dataset: ImageDataset | None = None,
) -> tuple[Forecast, RunConfig]:
    """Return what a run will take, and its first config, with images and steps where a budget chooses them.

    Nothing is written, trained or taken from earlier runs.

    Raises:
        DefendError: as `run`.
    """
    _check(configs)
    if configs[0].train_missing:
        raise ConfigError("a plan trains nothing, and --train-missing was given: leave it out, and train first")
    bare = [attrs.evolve(each, out=None, store=False, save_images=None) for each in configs]
    with ieee_fp32(), contextlib.ExitStack() as folders:
        run = Course(bare, watcher or Watcher(), plugins or registry(), False, dataset, folders)
        found = run.forecast()
    given = {name: getattr(configs[0], name) for name in ("out", "store", "save_images")}
    return found, attrs.evolve(run.defences[0].names.config, **given)


def _check(configs: Sequence[RunConfig]) -> None:
    """Refuse what are no runs.

    Raises:
        ConfigError: there are none, or something else.
    """
    if isinstance(configs, RunConfig):
        raise ConfigError("a run came alone, expected a list of them: defend.run takes one")
    if len(configs) == 0:
        raise ConfigError("no runs were given: expected one defend.RunConfig or more")
    for each in configs:
        if not isinstance(each, RunConfig):
            raise ConfigError(f"a run is {say_value(each)}, expected a defend.RunConfig")


def _agree(outcomes: list[Outcome], processes: Processes) -> list[Outcome]:
    """Give every process what process 0 found: it alone queried the defence for checks and certificates."""
    said = processes.tell(
        [(one.report.partial, one.report.checks, one.report.certified) for one in outcomes], "its report"
    )
    return [
        attrs.evolve(one, report=attrs.evolve(one.report, partial=partial, checks=checks, certified=certified))
        for one, (partial, checks, certified) in zip(outcomes, said, strict=True)
    ]
