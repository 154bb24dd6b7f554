"""Workload 16: how many steps the adaptive attacks need, before purifiers and without one.

python -m benchmarks steps

Each attack runs with 10 to 200 steps on the same images, from the same starts. What the number of a thorough run (100)
leaves is held against what twice as many do. A run says `≤` where the second half of an attack's steps still fooled
images; here is how much lower such a figure goes.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator

import torch

import defend
from benchmarks.contest import Bar, Result, Scale, progress, timed
from benchmarks.settings import Setting
from defend.assembly.prepare import prepare
from defend.attacks.apgd import Apgd
from defend.attacks.apgd_targeted import ApgdTargeted
from defend.attacks.iterated import Pgd
from defend.attacks.options import ApgdOptions, ApgdTargetedOptions, PgdOptions
from defend.errors import DefendError
from defend.stages import Attack

WORKLOAD = "16 steps"
STEPS = (10, 20, 50, 100, 200)
THOROUGH = 100
QUICK_STEPS, QUICK_IMAGES = (2, 4), 6
ONE_IN = 50  # images of which twice the steps may fool one more
SETTINGS = (
    Setting("classifier_a", "digits", None, 100, 0.1),
    Setting("classifier_a", "digits", "dae", 100, 0.1),
    Setting("classifier_a", "digits", "unet_gan", 100, 0.1),
    Setting("classifier_a", "digits", "vaegan", 24, 0.1),
)


def attacks(steps: int) -> dict[str, Attack]:
    """Return the contenders, by name: as a thorough run takes them through a defence, with so many steps."""
    return {
        "pgd": Pgd(PgdOptions(steps=steps, schedule="linear")),
        "apgd_ce": Apgd(ApgdOptions(steps=steps), "ce"),
        "apgd_t": ApgdTargeted(ApgdTargetedOptions(steps=steps, targets=3)),
    }


def run(scale: Scale) -> Iterator[Result]:
    """Yield what each number of steps leaves of each defence; one whose data or plugin is missing is left out."""
    for setting in SETTINGS:
        images = QUICK_IMAGES if scale.quick else setting.images
        front = f"{setting.purifier} before " if setting.purifier else ""
        title = f"{front}{setting.victim}, {setting.dataset}, n={images}, L-inf {setting.eps:g}"
        if title in scale.kept:
            continue
        try:
            yield compare(setting, images, title, scale)
        except DefendError as error:
            yield Result(WORKLOAD, f"{title}: left out", "", notes=(str(error),))


def compare(setting: Setting, count: int, title: str, scale: Scale) -> Result:
    """Return, by attack and number of steps, how many images are left.

    Raises:
        DefendError: data, plugin or weights are missing.
    """
    defence = defend.load(setting.victim, dataset=setting.dataset, purifier=setting.purifier).to(scale.device)
    images, labels = (
        part.to(scale.device) for part in defend.dataset(setting.dataset).tensors("test", limit=count, seed=0)
    )
    ready, _ = prepare(defence, "fp32", images[:8])
    target, every = defend.Target(ready, seed=0), QUICK_STEPS if scale.quick else STEPS
    left: dict[str, dict[str, int]] = {name: {} for name in attacks(1)}
    seconds: dict[str, dict[str, float]] = {name: {} for name in left}
    right = {steps: torch.ones(count, dtype=torch.bool) for steps in every}  # whom no attack of so many fooled
    with progress() as shown:
        task = shown.add_task("", total=len(every) * len(left))
        for steps in every:
            for name, attack in attacks(steps).items():
                shown.update(task, description=f"{name}, {steps} steps")
                work = functools.partial(defend.craft, attack, target, images, labels, eps=setting.eps)
                adversarial, seconds[name][str(steps)] = timed(work, scale.device)
                own = (defence.judge(adversarial).labels == labels).cpu()
                left[name][str(steps)] = int(own.sum())
                right[steps] &= own
                shown.advance(task)
    figures = {
        "images": count,
        "left": left,
        "left by all": {str(steps): int(own.sum()) for steps, own in right.items()},
        "seconds": seconds,
    }
    bars: tuple[Bar, ...] = ()
    if THOROUGH in right:
        said = f"images of {count} that {2 * THOROUGH} steps fool and {THOROUGH} leave"
        lost = int((right[THOROUGH] & ~right[2 * THOROUGH]).sum())
        bars = (Bar(said, lost, count // ONE_IN, "at most"),)
    return Result(WORKLOAD, title, "", bars=bars, figures=figures)
