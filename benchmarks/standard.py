"""Workload 10: the standard ensemble against pyautoattack's; the order of wrong classes; PGD that walks in circles.

python -m benchmarks standard

The defaults of `apgd_t` and what a thorough run takes of it (`defend.values.threats`) were chosen by it.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator

import attrs
from torch import Tensor, nn

import defend
from benchmarks import peers
from benchmarks.contest import Bar, Result, Scale, Timing, timed
from benchmarks.square import still_right
from defend.attacks.apgd import Apgd
from defend.attacks.apgd_targeted import ApgdTargeted
from defend.attacks.iterated import Pgd
from defend.attacks.objectives import LOSSES, steady_cross_entropy
from defend.attacks.options import ApgdOptions, ApgdTargetedOptions, PgdOptions, StandardOptions
from defend.attacks.standard import Standard
from defend.errors import DefendError
from defend.stages import Attack

WORKLOAD = "10 standard"
TARGETS, STEPS = (1, 2, 3, 9), 10
CIRCLES, STEP = 100, 0.25  # steps of PGD, and the size of one in budgets, as with 2/255 of 8/255


@attrs.frozen
class Setting:
    """A victim, with the L-inf budget at which some of its images are left."""

    victim: str
    dataset: str
    images: int
    eps: float


SETTINGS = (
    Setting("classifier_a", "digits", 48, 0.08),
    Setting("mlp", "mnist", 100, 0.05),
    Setting("resnet20", "digits", 24, 0.03),
)


def run(scale: Scale) -> Iterator[Result]:
    """Yield all three for each victim; one whose data or plugin is missing is left out."""
    for setting in SETTINGS:
        count = 6 if scale.quick else setting.images
        title = f"{setting.victim}, {setting.dataset}, n={count}, L-inf {setting.eps:.3g}"
        whole, reached, circled = (
            f"standard, {title}",
            f"images left by {STEPS} steps, {title}",
            f"PGD-{CIRCLES}, steps of {STEP:g} eps, {title}",
        )
        if {whole, reached, circled} <= scale.kept:
            continue
        try:
            victim = defend.load(setting.victim, dataset=setting.dataset).to(scale.device).requires_grad_(False)
            images, labels = (
                part.to(scale.device) for part in defend.dataset(setting.dataset).tensors("test", limit=count, seed=0)
            )
        except DefendError as error:
            yield Result(WORKLOAD, f"{title}: left out", "", notes=(str(error),))
            continue
        if whole not in scale.kept:
            yield contest(whole, victim, images, labels, setting.eps, scale)
        if reached not in scale.kept:
            figures = reach(victim, images, labels, setting.eps, TARGETS[:2] if scale.quick else TARGETS)
            yield Result(WORKLOAD, reached, "", figures=figures)
        if circled not in scale.kept:
            yield circles(circled, victim, images, labels, setting.eps)


def contest(title: str, victim: nn.Module, images: Tensor, labels: Tensor, eps: float, scale: Scale) -> Result:
    """Run ours, by either order, and theirs to the end, once; compare image by image who is left."""
    sizes = {"apgd_steps": 3, "fab_steps": 3, "square_queries": 5, "targets": 2} if scale.quick else {}
    found, timings = {}, []
    for order in ("malt", "rank"):
        attack = Standard(StandardOptions(order=order, **sizes))
        left, seconds = _left(attack, victim, images, labels, eps)
        found[f"ours, {order}"] = left
        timings.append(Timing(f"ours, {order}", [seconds]))
    bars: tuple[Bar, ...] = ()
    if "pyautoattack" in scale.peers and not scale.quick:
        theirs = peers.library("pyautoattack").AutoAttack(
            peers.plain(victim), norm="Linf", eps=eps, seed=0, device=images.device
        )
        theirs.logger.disabled = True
        work = functools.partial(theirs.run_standard_evaluation, images, labels, batch_size=len(images))
        (adversarial, *_), seconds = timed(work, images.device)
        timings.append(Timing("pyautoattack", [1000 * seconds]))
        judged = found["pyautoattack"] = still_right(victim, adversarial, labels)
        for name, left in list(found.items())[:2]:
            bars += (
                Bar(f"{name}: images left that theirs fools", int((left & ~judged).sum()), 1, "at most"),
                Bar(f"{name} / pyautoattack, time", _ms(timings, name) / _ms(timings, "pyautoattack"), 1, "at most"),
            )
    figures = {"left": {name: int(left.sum()) for name, left in found.items()}}
    return Result(WORKLOAD, title, "ms in all", tuple(timings), bars, figures)


def reach(
    victim: nn.Module, images: Tensor, labels: Tensor, eps: float, targets: tuple[int, ...] = TARGETS
) -> dict[str, int]:
    """Return how many images are left by Auto-PGD on each loss, and towards so many classes in each order."""
    attacks: dict[str, Attack] = {f"apgd_{loss}": Apgd(ApgdOptions(steps=STEPS), loss) for loss in LOSSES}
    attacks |= {
        f"apgd_t, {order}, {count}": ApgdTargeted(ApgdTargetedOptions(steps=STEPS, targets=count, order=order))
        for order in ("rank", "malt")
        for count in targets
    }
    return {name: int(_left(attack, victim, images, labels, eps)[0].sum()) for name, attack in attacks.items()}


def circles(title: str, victim: nn.Module, images: Tensor, labels: Tensor, eps: float) -> Result:
    """Time PGD cut short where it walks in circles, and not; count the pixels in which the images differ."""
    options = PgdOptions(steps=CIRCLES, step_size=STEP * eps)
    found, timings = [], []
    # with an objective of its own it looks for no circles
    for name, attack in (("cut short", Pgd(options)), ("all its steps", Pgd(options, objective=steady_cross_entropy))):
        work = functools.partial(defend.craft, attack, defend.Target(victim), images, labels, eps=eps)
        adversarial, seconds = timed(work, images.device)
        found.append(adversarial)
        timings.append(Timing(name, [1000 * seconds]))
    left = int(still_right(victim, found[0], labels).sum())
    figures = {"left": left, "images that differ": int((found[0] != found[1]).flatten(1).any(1).sum())}
    return Result(WORKLOAD, title, "ms in all", tuple(timings), figures=figures)


def _left(attack: Attack, victim: nn.Module, images: Tensor, labels: Tensor, eps: float) -> tuple[Tensor, float]:
    """Return who is still right, bool [N], and the milliseconds that it took."""
    work = functools.partial(defend.craft, attack, defend.Target(victim), images, labels, eps=eps)
    adversarial, seconds = timed(work, images.device)
    return still_right(victim, adversarial, labels), 1000 * seconds


def _ms(timings: list[Timing], name: str) -> float:
    return next(one.median for one in timings if one.name == name)
