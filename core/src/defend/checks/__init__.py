"""The gate: what in an evaluation's records, or in the defence itself, should make a reader suspicious.

| no. | check              | `basic` looks at                  | `full` adds                                         |
|-----|--------------------|-----------------------------------|-----------------------------------------------------|
| 1   | eps sweep          | rows of several budgets           | a PGD of its own from 0 to 255/255                  |
| 2   | attack order       | rows, image by image              | FGSM against PGD through the defence                |
| 3   | square             | query rows against white-box rows |                                                     |
| 4   | convergence        | how many images each step fooled  | ten times the steps, ten restarts, the loss's curve |
| 5   | gradients          | what attacks saw, a few images    | more images that rows leave right                   |
| 6   | randomness         | five passes, clean and attacked   | an attack that knows the draws                      |
| 7   | optimisation inside| one pass                          |                                                     |
| 8   | label leak         | rows                              | attacks with predicted labels                       |
| 9   | undefended victim  | rows, or a PGD of its own         |                                                     |
| 10  | loss surface       |                                   | a slice of 15 by 15 points                          |
| 11  | detector           | rows, and the score's gradient    |                                                     |
| 12  | clean accuracy     | the clean row, and one pass       |                                                     |
| 13  | batch              | a few images alone, and together  |                                                     |
| 14  | planted examples   |                                   | the strongest attack on examples that are planted   |
| 15  | detector's control | rows of noise                     | the same detector with random weights               |
| 16  | certificates       | the vote, attacked                |                                                     |

1, 2, 4 and 9 follow Carlini et al. 2019 (arXiv:1902.06705), whose authors warn that a checklist is neither necessary
nor sufficient. A difference counts where chance explains it less often than a normal deviate beyond two standard
errors, by the exact test (McNemar's where images are paired), so that a handful of images convicts nobody.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence

import attrs
import torch

from defend.boundary.held import as_before
from defend.checks import batch, certificates, clean, climbs, control, detection, ladder, planted, probes, records
from defend.checks.common import Case, Findings, Level, NoGradientError, Promise, Subject, plain
from defend.checks.records import LEAK, label_leak
from defend.errors import DefendError, StageError
from defend.records.rows import RowRecord
from defend.util.memory import out_of_memory
from defend.values.report import Certified, Check

__all__ = ["CHECKS", "Promise", "Subject", "check_run", "label_leak"]

CheckPart = Callable[[Case, Findings], None]

CHECKS: tuple[tuple[str, tuple[CheckPart, ...]], ...] = (
    ("eps sweep", (ladder.sweep, climbs.sweep)),
    ("attack order", (ladder.attack_order, ladder.one_step, climbs.one_step)),
    ("square", (ladder.square,)),
    ("convergence", (ladder.rising, ladder.lost, ladder.unmoved, climbs.convergence)),
    ("gradients", (ladder.blindness, probes.gradients)),
    ("randomness", (probes.randomness, climbs.known_draws)),
    ("optimisation inside", (probes.inside,)),
    (LEAK, (records.leak, climbs.predicted_labels)),
    ("undefended victim", (records.undefended, climbs.undefended, records.rules, records.normalisation)),
    ("loss surface", (probes.surface,)),
    ("detector", (detection.separation, probes.detector_gradient)),
    ("clean accuracy", (clean.outputs, clean.above_chance, clean.as_promised)),
    ("batch", (batch.batch,)),
    ("planted examples", (planted.planted,)),
    ("detector's control", (control.noise, control.untrained)),
    ("certificates", (certificates.certificates,)),
)
"""Names and parts of the checks, in the order of their numbers."""


def check_run(
    records: Sequence[RowRecord],
    subject: Subject | None,
    level: Level,
    watcher: Callable[[str], None] = lambda name: None,
    certified: Certified | None = None,
) -> tuple[Check, ...]:
    """Return all checks of a run in order, numbered from 1; one that cannot judge says "skip" and why.

    Nothing that a defence does in them ends the run: what it raises is the check's outcome. Torch's global random
    generators are as before afterwards, and the outcome does not depend on them; so are the defence's modes, buffers
    and gradients' flags after each part of a check.

    Args:
        records: finished rows, with the arms "undefended" and "defended".
        subject: what may be queried; None judges the records alone.
        level: "basic" costs about 40 passes over the subject's images, "full" attacks it a few dozen times.
        watcher: told each check's name as it begins.
        certified: what the run certified, if it did.
    """
    case = Case(records, subject, level, certified)
    devices = [subject.images.device] if subject is not None and subject.images.is_cuda else []
    done = []
    with torch.random.fork_rng(devices):
        for number, (name, parts) in enumerate(CHECKS, start=1):
            watcher(name)
            # before each check, so that none depends on what another drew
            torch.manual_seed(subject.seed if subject is not None else 0)
            found = Findings()
            for part in parts:
                _guard(part, case, found)
            finding = found.finding()
            done.append(Check(name, finding.status, finding.detail, number, plain(finding.numbers)))
    return tuple(done)


def _guard(part: CheckPart, case: Case, found: Findings) -> None:
    """Run one part, with fewer images where memory runs out; what it raises becomes its finding."""
    subject = case.subject
    asked = () if subject is None else (subject.defence, subject.undefended)
    own = found.copy()
    try:
        with contextlib.ExitStack() as stack:
            for defence in asked:
                stack.enter_context(as_before(defence, "a check"))
            part(case, own)
        found.take(own)
    except Exception as failure:
        if subject is not None and subject.pack > 1 and out_of_memory(failure.__cause__ or failure):
            fewer = subject.halve()
            if subject.images.is_cuda:
                torch.cuda.empty_cache()
            found.remark(f"with {len(fewer.keys)} image{'s' * (len(fewer.keys) > 1)}, as memory ran out")
            _guard(part, attrs.evolve(case, subject=fewer), found)
            return
        found.take(own)
        if isinstance(failure, DefendError) and not isinstance(failure, StageError):  # a stage broke its contract
            found.add("fail", str(failure))
            return
        # what a stage's own code raised: it may be written for other images, or for another type; not "skip", which is
        # not told beside what another part found
        error = failure.__cause__ or failure if isinstance(failure, StageError) else failure
        text = " ".join(str(error).split())
        # autograd's own errors are RuntimeErrors that speak of grad; a defence that raises them cannot be
        # differentiated
        gradient = isinstance(error, NoGradientError) or (isinstance(error, RuntimeError) and "grad" in text)
        found.add("fail" if gradient else "warn", f"could not be judged, {type(error).__name__}: {text}")
