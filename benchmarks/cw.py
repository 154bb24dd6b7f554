"""Workload 2, first half: Carlini and Wagner's L2 attack, an iteration's time and the strength at equal budget.

python -m benchmarks cw
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

import defend
from benchmarks import peers
from benchmarks.contest import Bar, Result, Scale, compete, ratio
from benchmarks.pgd import AS_BUILT, FAST, FLOOR, SAMPLE, digits, floor
from defend.assembly.prepare import prepare
from defend.attacks.cw import CarliniWagner
from defend.attacks.options import CwOptions
from defend.defence import Defence

WORKLOAD = "2 cw"
HOW = peers.Cw(steps=20, constants=2, initial=1.0, lr=0.05)
SHORT = peers.Cw(steps=5, constants=1, initial=10.0, lr=0.1)
LONGER = peers.Cw(steps=30, constants=4, initial=0.1, lr=0.05)
IMAGES = 32
EXACT, DEFAULT = 1.05, 0.75
AGAINST = {"foolbox": 2.0, "ART": 12.0}
NO_WORSE = 1.0


def run(scale: Scale) -> Iterator[Result]:
    """Yield the time of an iteration, everybody at the same budget; then the strength at a larger one, without ART."""
    yield contest(scale, SHORT if scale.quick else HOW, scale.peers, "an iteration")
    if not scale.quick:
        quick = tuple(peer for peer in scale.peers if peer != "art")
        yield contest(scale, LONGER, quick, "strength at a larger budget")


def ours(module: nn.Module, precision: str, sample: Tensor, how: peers.Cw) -> peers.Craft:
    """Return this package's CW-L2 on a prepared victim, the perturbation not clipped."""
    ready, _ = prepare(Defence(module), precision, sample)
    attack = CarliniWagner(
        CwOptions(clip="none", steps=how.steps, binary_search_steps=how.constants, initial_const=how.initial, lr=how.lr)
    )
    target = defend.Target(ready)
    return lambda images, labels: defend.craft(attack, target, images, labels, eps=None)


def contest(scale: Scale, how: peers.Cw, present: tuple[str, ...], about: str) -> Result:
    """Time the attack on the trained ResNet-20, and compare how many images it fools and how far it moves them."""
    module, images, labels = digits("plain", scale)
    images, labels = images[:IMAGES], labels[:IMAGES]
    device, shape, count = scale.device, tuple(images.shape[1:]), len(images)
    iterations = how.steps * how.constants
    mine = {name: ours(module, kind, images[:SAMPLE], how) for name, kind in ((AS_BUILT, "exact"), (FAST, "fp32"))}
    theirs = peers.cw(module, shape, how, count, present)
    found: dict[str, Tensor] = {}

    def turn(name: str, craft: peers.Craft) -> Callable[[], object]:
        def work() -> None:
            found[name] = craft(images, labels)

        return work

    contenders: dict[str, Callable[[], object]] = {FLOOR: lambda: floor(module, images, labels, iterations)}
    contenders |= {name: turn(name, craft) for name, craft in (mine | theirs).items()}
    rounds = scale.rounds if how is not LONGER else 1
    timings = compete(contenders, per=count * iterations, rounds=max(2 * rounds // 5, 1), device=device, warm_up=0)
    counting = peers.Counting(module)
    asked: dict[str, float] = {}
    if how is not LONGER:
        for name, craft in peers.cw(counting, shape, how, count, present).items():
            counting.seen.clear()
            craft(images[:SAMPLE], labels[:SAMPLE])
            asked[name] = sum(counting.seen) / SAMPLE / iterations
    strength = {name: distances(module, images, one, labels) for name, one in found.items()}
    fooled = {name: one < torch.inf for name, one in strength.items()}
    figures: dict[str, Any] = {
        "fooled": {name: float(one.float().mean()) for name, one in fooled.items()},
        "mean L2 of those": {name: float(one[fooled[name]].mean()) for name, one in strength.items()},
    }
    if asked:
        figures[f"images shown to the model, an image and iteration, batch {SAMPLE}"] = asked
    bars = []
    if how is not LONGER:
        bars += [
            Bar("exact against the floor, an iteration", ratio(timings, AS_BUILT, FLOOR), EXACT, "at most"),
            Bar("default against the floor, an iteration", ratio(timings, FAST, FLOOR), DEFAULT, "at most"),
        ]
        bars += [
            Bar(f"{peer} against ours", ratio(timings, peer, FAST), bound, "at least")
            for peer, bound in AGAINST.items()
            if peer in theirs
        ]
    for peer in theirs:
        both = fooled[FAST] & fooled[peer]
        more = float(fooled[FAST].float().mean() - fooled[peer].float().mean())
        share = float(strength[FAST][both].mean() / strength[peer][both].mean())
        bars += [
            Bar(f"share of images fooled, ours less {peer}'s", more, 0.0, "at least"),
            Bar(f"mean L2, ours against {peer}'s, where both fool", share, NO_WORSE, "at most"),
        ]
    title = f"CW-L2, {about}: {how.constants} constants, {how.steps} iterations each, ResNet-20, {count} digits"
    notes = ("A peer that gives up early shows fewer forward passes, and a time by iteration that flatters it.",)
    return Result(WORKLOAD, title, "ms an image-iteration", timings, tuple(bars), figures, notes)


@torch.no_grad()
def distances(module: nn.Module, images: Tensor, adversarial: Tensor, labels: Tensor) -> Tensor:
    """Return the L2 distance [B] of what fools the plain module in fp32, infinity for what does not."""
    distance = (adversarial - images).flatten(1).norm(dim=1)
    return torch.where(module(adversarial).argmax(1) != labels, distance, torch.inf)
