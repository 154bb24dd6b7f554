"""Workload 11: the smallest changes that fool, against foolbox's at as many gradients or queries.

python -m benchmarks nearest

The victim alone and two composed defences are attacked by `fmn` and `fmn_l2` beside foolbox's FMN (L-inf) and DDN (L2),
and by `hsj` and `hsj_l2` beside its HopSkipJump, whose questions are counted first. The unprepared defence judges all.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

import defend
from benchmarks import peers
from benchmarks.contest import Bar, Result, Scale, Timing, timed
from defend.assembly.prepare import prepare
from defend.attacks.hop_skip_jump import HopSkipJump
from defend.attacks.minimum_norm import FastMinimumNorm
from defend.attacks.options import FmnOptions, HopSkipJumpOptions
from defend.defence import Defence
from defend.errors import DefendError

WORKLOAD = "11 nearest"
VICTIM, DATASET = "resnet18", "digits"
PURIFIERS = {"": 64, "dae": 64, "unet_gan": 24}
"""Images an attack gets; without a purifier the victim stands alone."""
STEPS, QUICK_STEPS, QUICK_IMAGES = 100, 10, 4
JUMPS, QUICK_JUMPS = 20, 1
OURS, FOOLBOX = "ours", "foolbox"
NO_WORSE = 1.01
JUDGES = {"linf": "LInfFMNAttack", "l2": "DDNAttack"}
BY_QUERIES = "HopSkipJump, as many queries"
Craft = Callable[[Tensor, Tensor], Tensor]


def run(scale: Scale) -> Iterator[Result]:
    """Yield one result a defence, attack and norm; nothing without foolbox."""
    if FOOLBOX not in scale.peers:
        return
    for name, count in PURIFIERS.items():
        try:
            whole = defend.load(VICTIM, dataset=DATASET, purifier=name or None).to(scale.device)
        except DefendError as error:
            yield Result(WORKLOAD, f"{name}: left out", "", notes=(str(error),))
            continue
        images = QUICK_IMAGES if scale.quick else count
        for norm in ("linf", "l2"):
            for compare, about in ((gradients, by_gradients(norm, scale)), (labels_alone, BY_QUERIES)):
                if entitle(about, name, images, norm) not in scale.kept:
                    yield compare(whole, name, images, norm, scale)


def by_gradients(norm: str, scale: Scale) -> str:
    """Return what is compared at as many gradients, in words: foolbox's attack, and how many."""
    return f"{JUDGES[norm]}, {QUICK_STEPS if scale.quick else STEPS} gradients"


def entitle(about: str, name: str, count: int, norm: str) -> str:
    """Return the title of a result."""
    return f"{name or 'nothing'} before {VICTIM}, {norm}: {about}, {count} digits"


def gradients(defence: Defence, name: str, count: int, norm: str, scale: Scale) -> Result:
    """Compare at as many gradients: FMN in L-inf, DDN in L2, as foolbox 3.3.4 does not project its FMN there."""
    import foolbox

    steps = QUICK_STEPS if scale.quick else STEPS
    judge = getattr(foolbox.attacks, JUDGES[norm])(steps=steps)
    model = foolbox.PyTorchModel(defence.eval(), bounds=(0, 1), device=scale.device)
    ready, _ = prepare(defence, "fp32", digits(count, scale)[0][:4])
    attack, target = FastMinimumNorm(FmnOptions(steps=steps), norm), defend.Target(ready)
    crafts: dict[str, Craft] = {
        OURS: lambda images, labels: defend.craft(attack, target, images, labels, eps=None),
        FOOLBOX: lambda images, labels: judge(model, images, labels, epsilons=None)[0],
    }
    return contest(defence, crafts, by_gradients(norm, scale), name, count, norm, scale)


def labels_alone(defence: Defence, name: str, count: int, norm: str, scale: Scale) -> Result:
    """Compare at as many queries: those that foolbox's HopSkipJump asks in so many jumps."""
    import foolbox

    counting = peers.Counting(defence)
    judge = foolbox.attacks.HopSkipJumpAttack(steps=QUICK_JUMPS if scale.quick else JUMPS, constraint=norm)
    model = foolbox.PyTorchModel(counting.eval(), bounds=(0, 1), device=scale.device)
    crafts: dict[str, Craft] = {FOOLBOX: lambda images, labels: judge(model, images, labels, epsilons=None)[0]}
    ready, _ = prepare(defence, "fp32", digits(count, scale)[0][:4])

    def ours(images: Tensor, labels: Tensor) -> Tensor:
        options = HopSkipJumpOptions(queries=max(sum(counting.seen) // count, 1))
        return defend.craft(HopSkipJump(options, norm), defend.Target(ready), images, labels, eps=None)

    return contest(defence, crafts | {OURS: ours}, BY_QUERIES, name, count, norm, scale)


def contest(
    defence: Defence, crafts: dict[str, Craft], about: str, name: str, count: int, norm: str, scale: Scale
) -> Result:
    """Run each contender once, in the order given, and compare how many it fools and how far off."""
    images, labels = digits(count, scale)
    timings, medians, found = [], {}, {}
    for peer, craft in crafts.items():
        torch.manual_seed(0)
        try:
            adversarial, seconds = timed(functools.partial(craft, images, labels), images.device)
        except ValueError as error:  # foolbox's HopSkipJump gives up where one image has no start
            return Result(WORKLOAD, f"{name or VICTIM}: {about}, {norm}: {peer} gave up", "", notes=(str(error),))
        timings.append(Timing(peer, [1000 * seconds / count]))
        far = distances(defence, images, adversarial, labels, norm)
        medians[peer], found[peer] = float(far.sort().values[count // 2]), int((far < torch.inf).sum())
    bars = (
        Bar("median distance, ours against foolbox's", medians[OURS] / medians[FOOLBOX], NO_WORSE, "at most"),
        Bar(f"images fooled of {count}, ours less foolbox's", found[OURS] - found[FOOLBOX], 0, "at least"),
    )
    figures: dict[str, Any] = {"median distance": medians, "fooled": found}
    return Result(WORKLOAD, entitle(about, name, count, norm), "ms an image", tuple(timings), bars, figures)


def digits(count: int, scale: Scale) -> tuple[Tensor, Tensor]:
    """Return so many test images and their labels."""
    images, labels = defend.dataset(DATASET).tensors("test", limit=count, seed=0)
    return images.to(scale.device), labels.to(scale.device)


@torch.no_grad()
def distances(defence: Defence, images: Tensor, adversarial: Tensor, labels: Tensor, norm: str) -> Tensor:
    """Return the distance [B] of what the defence gets wrong, infinity for what it gets right."""
    difference = (adversarial - images).flatten(1)
    far = difference.norm(dim=1) if norm == "l2" else difference.abs().amax(1)
    return torch.where(defence.judge(adversarial).labels != labels, far, torch.inf)
