"""Check 13: whether what the defence says of an image depends on the images beside it, or on those before it."""

from __future__ import annotations

import attrs
import torch
from torch import Tensor

from defend.boundary.copies import copy_module
from defend.boundary.held import find_moved_buffers
from defend.checks.common import Case, Findings, Subject, lead, percent
from defend.defence import Defence
from defend.randomness import keyed

SINGLES = 4  # images that are asked about alone
ROUNDING = 1e-4  # of the spread of the logits, of the largest score, or of a pixel on average, in float32
EXACT = 1e-6  # the same in float64, where rounding is no longer seen
FAR = 0.01


@attrs.frozen
class _Answer:
    """What a defence said: labels [N], accepted [N], and what is compared, each [N,...]."""

    labels: Tensor
    accepted: Tensor
    columns: tuple[Tensor, ...]


@attrs.frozen
class _Apart:
    """How far two answers are apart: images judged otherwise, and the largest difference, relative to its size."""

    judged: int
    moved: float


def batch(case: Case, found: Findings) -> None:
    """Check 13: a few images alone are judged as in a batch, with the same draws, by the defence and the bare victim.

    Where they are not, float64 tells rounding, which sign steps amplify, from images that influence each other.
    """
    subject = case.subject
    if subject is None:
        found.add("skip", "nothing to query: only rows were given")
        return
    if len(subject.images) < 2:
        found.add("skip", "needs two images or more")
        return
    _judge(found, subject, subject.defence, "the defence")
    if subject.undefended.victim is not subject.defence.victim:
        _judge(found, subject, subject.undefended, "the bare victim")


def _judge(found: Findings, subject: Subject, defence: Defence, who: str) -> None:
    kept = {name: buffer.clone() for name, buffer in defence.named_buffers()}
    together = _ask(subject, defence)
    again = _apart(together, _ask(subject, defence))
    # told first: a pass that changes the next one makes every comparison below meaningless
    moved = find_moved_buffers(defence, kept)
    if moved:
        found.add("fail", f"a pass moves {len(moved)} buffers of {who} ({moved[0]}): what it says depends on the past")
        return
    if again.judged or again.moved > ROUNDING:
        found.add("skip", f"two passes of {who} over one batch differ by more than its declared draws: see check 6")
        return
    places = list(range(0, len(subject.images), max(len(subject.images) // SINGLES, 1)))[:SINGLES]
    apart = _alone(subject, defence, together, places)
    found.numbers[who] = {"n": len(places), "judged_otherwise": apart.judged, "moved": apart.moved}
    if not apart.judged and apart.moved <= ROUNDING:
        found.add("pass", f"{who} says of {len(places)} images alone what it says of them in a batch")
        return
    said = (
        f"{who} judges {apart.judged} of {len(places)} images otherwise alone than in a batch of {len(subject.images)} "
        f"(its answers move by {percent(apart.moved)})"
    )
    exact = _in_float64(subject, defence, places)
    if exact is not None:
        found.numbers[who]["moved_in_float64"] = exact.moved
        if not exact.judged and exact.moved <= EXACT:
            found.add("warn" if apart.judged else "pass", f"{said}: rounding alone, in float64 they agree")
            return
    cure = "use no statistics of the batch, and draw with defend.randomness; no figure holds for another batch size"
    found.add("fail" if apart.judged or apart.moved > FAR else "warn", f"{said}: {cure}")


def _in_float64(subject: Subject, defence: Defence, places: list[int]) -> _Apart | None:
    """Compare again in float64; None where the defence cannot be asked in it."""
    try:
        exact = copy_module(defence).double()
        finer = attrs.evolve(subject, images=subject.images.double())
        return _alone(finer, exact, _ask(finer, exact), places)
    except Exception:  # a stage may be written for float32 alone, and fail in any way
        return None


def _alone(subject: Subject, defence: Defence, together: _Answer, places: list[int]) -> _Apart:
    apart = [_apart(_ask(subject.part(slice(at, at + 1)), defence), together, slice(at, at + 1)) for at in places]
    return _Apart(sum(each.judged for each in apart), max(each.moved for each in apart))


@torch.no_grad()
def _ask(subject: Subject, defence: Defence) -> _Answer:
    with keyed(subject.keys, seed=subject.seed, stream="defender"):
        screening = defence.screen(subject.images)
    with keyed(subject.keys, seed=subject.seed, stream="victim"):
        logits = defence.classify(screening.purified)
    columns = (logits, screening.score, screening.purified.flatten(1))
    return _Answer(logits.argmax(1), screening.accepted, columns)


def _apart(first: _Answer, second: _Answer, where: slice = slice(None)) -> _Apart:
    labels, accepted = second.labels[where], second.accepted[where]
    judged = int(((first.labels != labels) | (first.accepted != accepted)).sum())
    (logits, *others), (all_logits, *all_others) = first.columns, second.columns
    moved = float((lead(logits, all_logits) - lead(all_logits[where], all_logits)).abs().max())
    for one, other in zip(others, all_others, strict=True):
        if one.numel() == 0:
            continue
        size = float(other.abs().max().clamp_min(1e-12))
        difference = (one - other[where]).abs()
        # pixels on average: sign steps answer to rounding, a few pixels by a whole step
        most = difference.mean() if one.ndim == 2 and one is first.columns[2] else difference.max()
        moved = max(moved, float(most) / size)
    return _Apart(judged, moved)
