"""The sanity checks of a run: which of its rows and images they are given."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from defend.checks import Promise, Subject, check_run
from defend.checks.following import choose_left
from defend.datasets.base import ImageDataset
from defend.evaluation.arms import BuiltDefence
from defend.records.rows import RowRecord
from defend.records.watcher import Watcher
from defend.values.report import Certified, Check
from defend.values.run_config import RunConfig
from defend.values.threats import DEFENDED, UNDEFENDED, threat

FOLLOWED = {"basic": 8, "full": 32}  # images left right from which the loss is followed along the gradient
PROBED = {"basic": 8, "full": 25}  # images that the sanity checks query the defence with
CHECK_STEPS = 10
MOST_CHECK_STEPS = 20


def check(
    config: RunConfig,
    records: Sequence[RowRecord],
    subject: Subject | None,
    watcher: Watcher,
    certified: Certified | None = None,
) -> tuple[Check, ...]:
    """Run the sanity checks that the config asks for: while rows are still missing, on what there is.

    Only those that query something take long enough to be announced. The others run while a row's bar is still shown,
    and older versions of rich refuse a second live display beside it.
    """
    if config.checks == "none":
        return ()
    level: Any = config.checks
    if subject is None:
        return check_run(records, None, level, certified=certified)
    return check_run(records, subject, level, lambda what: watcher.preparing(f"checking: {what}"), certified)


def choose_subject(
    defence: BuiltDefence, dataset: ImageDataset, device: torch.device, records: Sequence[RowRecord]
) -> Subject | None:
    """Return what the checks may query: they take as many steps as the run's own PGD, within reason."""
    config = defence.names.config
    if config.checks == "none":
        return None
    own = [row.plan.steps for row in records if row.plan.name == "pgd" and threat(row.plan.threat.kind).exact]
    steps = min(own[0] or CHECK_STEPS, MOST_CHECK_STEPS) if own else CHECK_STEPS
    keys = dataset.keys("test", PROBED[config.checks], config.seed)
    batch = next(iter(dataset.batches("test", keys, len(keys), device)))
    names = defence.names.names
    left = choose_left(records, FOLLOWED[config.checks])
    return Subject(
        defence=defence.arms[names[DEFENDED]],
        undefended=defence.arms[UNDEFENDED],
        images=batch.images,
        labels=batch.labels,
        keys=batch.keys,
        eps=config.eps,
        seed=config.seed,
        draws=config.draws,
        steps=steps,
        classes=dataset.task().classes,
        calibration=defence.calibration,
        behind=defence.behind,
        parts=defence.parts,
        promise=_promise(defence, dataset),
        plant=config.thorough,
        left=None if left is None else next(iter(dataset.batches("test", left, len(left), device))),
    )


def _promise(defence: BuiltDefence, dataset: ImageDataset) -> Promise | None:
    """Return the clean accuracy that the card of the victim's weights gives."""
    card = defence.built["victim"].card
    if card is None:
        return None
    figures = [card.figures[name] for name in ("test_accuracy", "val_accuracy") if name in card.figures]
    return Promise(float(figures[0]), card.filing == dataset.filed_as) if figures else None
