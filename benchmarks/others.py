"""Workload 13: what attacks of other libraries fool of the images that our ladder leaves, at as many gradients.

python -m benchmarks others

Three victims and two composed defences are attacked by `defend.evaluate`, under the threat that knows all of them. The
images that every row left right are then given to each L-inf attack of the other libraries, which may look at an image
as often as all of our attacks together did.
"""

from __future__ import annotations

import csv
import functools
import math
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
import torch
from torch import Tensor

import defend
from benchmarks import peers
from benchmarks.contest import Bar, Result, Scale, Timing, progress, timed
from defend.errors import DefendError

WORKLOAD = "13 others"
ATTACKS = ("pgd", "standard")
# with 15 steps of Auto-PGD ours left four images of 50 behind `unet_gan` that a single long run of another's fooled
STEPS = {"pgd": {"steps": 20}, "standard": {"apgd_steps": 100, "fab_steps": 10, "square_queries": 60, "targets": 3}}
QUICK_STEPS = {"pgd": {"steps": 2}, "standard": {"apgd_steps": 2, "fab_steps": 2, "square_queries": 3, "targets": 1}}
QUICK_IMAGES = 6
ONE_IN = 200  # images of which one may be left by us and fooled by them


@attrs.frozen
class Subject:
    """What is attacked: a victim, alone or behind a purifier, at a budget that leaves some of its images."""

    victim: str
    dataset: str
    images: int
    eps: float
    purifier: str | None = None
    finetune: str | None = None

    @property
    def title(self) -> str:
        """The subject in words."""
        parts = (self.purifier and f"{self.purifier} before", self.finetune, self.victim)
        return f"{' '.join(part for part in parts if part)}, {self.dataset}, n={self.images}, L-inf {self.eps:g}"

    @property
    def names(self) -> dict[str, Any]:
        """The parts beside the victim, as `defend.load` and `defend.evaluate` take them."""
        return {"dataset": self.dataset, "purifier": self.purifier, "finetune": self.finetune}


SUBJECTS = (
    Subject("mlp", "mnist", 200, 0.05),
    Subject("classifier_a", "digits", 200, 0.08),
    Subject("classifier_a", "mnist", 200, 0.3, finetune="adversarial"),
    Subject("classifier_a", "digits", 200, 0.08, purifier="dae"),
    Subject("classifier_a", "digits", 50, 0.08, purifier="unet_gan"),
)


def run(scale: Scale) -> Iterator[Result]:
    """Yield one result a subject; one whose data or plugin is missing is left out."""
    for subject in SUBJECTS:
        chosen = attrs.evolve(subject, images=QUICK_IMAGES) if scale.quick else subject
        if chosen.title in scale.kept:
            continue
        try:
            yield contest(chosen, scale)
        except DefendError as error:
            yield Result(WORKLOAD, f"{chosen.title}: left out", "", notes=(str(error),))


def contest(subject: Subject, scale: Scale) -> Result:
    """Attack a subject by our ladder, and what that leaves by everything else.

    Raises:
        DefendError: its data, plugin or weights are missing.
    """
    (left, budget), seconds = timed(functools.partial(attack_ours, subject, scale), scale.device)
    timings = [Timing("ours, all together", [1000 * seconds])]
    images, labels = (
        part[left].to(scale.device)
        for part in defend.dataset(subject.dataset).tensors("test", limit=subject.images, seed=0)
    )
    whole = defend.load(subject.victim, **subject.names).to(scale.device)
    theirs = peers.white_box(whole, tuple(images.shape[1:]), subject.eps, budget, max(len(images), 1), scale.peers)
    fooled: dict[str, int] = {}
    notes: list[str] = []
    with progress() as shown:
        task = shown.add_task("", total=len(theirs))
        for name, craft in theirs.items() if len(images) else ():
            shown.update(task, description=name)
            torch.manual_seed(0)
            try:
                adversarial, seconds = timed(functools.partial(craft, images, labels), scale.device)
            except (ValueError, RuntimeError, AssertionError) as error:
                notes.append(f"{name} gave up: {error}")
                continue
            timings.append(Timing(name, [1000 * seconds]))
            fooled[name] = count_fooled(whole, images, adversarial, labels, subject.eps)
            shown.advance(task)
    # a promise about all of them is not kept by those that answered
    most = max(fooled.values(), default=0) if len(fooled) == len(theirs) else math.nan
    told = f"images of {len(images)} left by ours that one of theirs fools ({len(fooled)} of {len(theirs)} answered)"
    bars = (Bar(told, most, subject.images // ONE_IN, "at most"),) if len(images) and theirs else ()
    figures = {"left by ours": len(images), "looks an image": budget, "fooled of these by": fooled}
    return Result(WORKLOAD, subject.title, "ms in all", tuple(timings), bars, figures, tuple(notes))


def attack_ours(subject: Subject, scale: Scale) -> tuple[Tensor, int]:
    """Return which images all rows leave right, int64 [n], by their place, and the looks of the one looked at most."""
    alone = subject.purifier is None
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        found = defend.evaluate(
            subject.victim,
            subject.dataset,
            purifier=subject.purifier,
            finetune=subject.finetune,
            eps=subject.eps,
            limit=subject.images,
            adaptive_limit=subject.images,
            threats=("oblivious" if alone else "adaptive",),
            attacks=ATTACKS,
            options=QUICK_STEPS if scale.quick else STEPS,
            device=str(scale.device),
            out=out,
        )
        with (out / "records.csv").open(encoding="utf-8", newline="") as lines:
            records = [line for line in csv.DictReader(lines) if line["arm"] == "defended"]
    if found.worst_case is None:
        raise DefendError(f"{subject.title}: the evaluation has no worst case")
    wrong = {int(line["image"]) for line in records if line["predicted"] != line["label"]}
    keys = defend.dataset(subject.dataset).keys("test", subject.images, 0).tolist()
    place = [place for place, key in enumerate(keys) if key not in wrong]
    if len(place) != round(found.worst_case.accuracy * found.worst_case.n):
        raise DefendError(f"{subject.title}: records and worst case disagree")
    return torch.tensor(place, dtype=torch.int64), found.worst_case.gradients or 1


@torch.no_grad()
def count_fooled(whole: defend.Defence, images: Tensor, adversarial: Tensor, labels: Tensor, eps: float) -> int:
    """Return how many attacked images lie within eps, up to rounding, and are wrong by the unprepared defence."""
    within = (adversarial - images).flatten(1).abs().amax(1) <= eps + 1e-6
    return int((within & (whole.judge(adversarial.clamp(0, 1)).labels != labels)).sum())
