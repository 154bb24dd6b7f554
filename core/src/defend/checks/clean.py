"""Whether what is evaluated classifies at all: of a victim at chance on clean images no attack can say anything."""

from __future__ import annotations

import torch

from defend.checks.common import Case, Findings, percent, same_answers
from defend.checks.guessing import Guessing, find_guessing
from defend.checks.outcomes import TAIL, chance_of_at_most, right, share
from defend.records.rows import RowRecord
from defend.values.threats import DEFENDED, UNDEFENDED

MARGIN = 0.05  # what a clean accuracy may lack of the one in the card before chance is asked
CAUSES = (
    "normalisation that the victim needs and does not do itself (--mean, --std), classes in another order than the "
    "data set's, images of another size than it was trained on, or weights for something else, be it for another stem"
)
TITLES = {UNDEFENDED: "the bare victim", DEFENDED: "the defence"}
REJECTED = -1


def outputs(case: Case, found: Findings) -> None:
    """Check 12: victim and defence answer for as many classes as the data set has."""
    subject = case.subject
    if subject is None:
        return
    for name, defence in ((UNDEFENDED, subject.undefended), (DEFENDED, subject.defence)):
        with torch.no_grad():
            classes = defence.classify(subject.images[:1]).shape[1]
        if classes != subject.classes:
            found.add(
                "fail",
                f"{TITLES[name]} answers for {classes} classes, and the data set has {subject.classes}: classes "
                "that are missing, or that shift the others",
            )
            return


def above_chance(case: Case, found: Findings) -> None:
    """Check 12: clean accuracy is above chance, which is what answers that know nothing of the images would reach.

    See `Guessing`: what few images leave open is a warning, and only what they rule out fails.
    """
    if case.clean is None:
        found.add("skip", "no clean row")
        return
    # one sentence is enough where the two are the same
    for arm in (UNDEFENDED,) if same_answers(case.clean) else TITLES:
        stands = _find_guessing(case.clean, arm)
        accuracy, n, chance = stands.accuracy, stands.n, stands.chance
        found.numbers[arm] = {"accuracy": accuracy, "ci95": list(stands.ci95), "n": n, "chance": chance}
        said = f"{TITLES[arm]} is right on {percent(accuracy)} of {n} clean images, where chance is {percent(chance)}"
        if stands.status == "fail":
            said += f": this is no evaluation. Usual causes: {_causes(case, arm)}"
        elif stands.status == "warn":
            said += ": too few images to tell them apart, take more (--limit)"
        found.add(stands.status, said)


def as_promised(case: Case, found: Findings) -> None:
    """Check 12: clean accuracy is not plainly below what the victim's weights' card gives for its own test images."""
    promise = None if case.subject is None else case.subject.promise
    if case.clean is None or promise is None:
        return
    good = right(case.clean, UNDEFENDED)
    n, held, least = len(good), sum(good.values()), promise.accuracy - MARGIN
    found.numbers["promised"] = promise.accuracy
    said = f"the bare victim is right on {percent(share(good))} of {n} clean images, its weights' card says "
    said += percent(promise.accuracy)
    if not (0 < least < 1 and held / n < least and chance_of_at_most(held, n, least) < TAIL):
        found.add("pass", said)
    elif promise.same_data:
        found.add("fail", f"{said}. Usual causes: {CAUSES}")
    else:
        found.add("warn", f"{said}, which is of other images. Usual causes: that, {CAUSES}")


def _causes(case: Case, arm: str) -> str:
    assert case.clean is not None
    if arm == DEFENDED and beats_chance(case.clean, UNDEFENDED):
        return "a purifier that destroys what the victim needs, or a detector that rejects clean images"
    return CAUSES


def beats_chance(clean: RowRecord, arm: str) -> bool:
    """Whether an arm is right on clean images more often than chance leaves open."""
    return _find_guessing(clean, arm).beats_chance


def _find_guessing(clean: RowRecord, arm: str) -> Guessing:
    said = clean.arms[arm]
    # a rejection is an answer that is never right
    answers = said.predicted.where(said.accepted, torch.full_like(said.predicted, REJECTED))
    return find_guessing(answers, clean.labels)
