"""Workload 7: the default adaptive row against other libraries' PGD at as many gradients: how many images are left.

python -m benchmarks adaptive

The composed `Defence` of each of the five purifiers is given to torchattacks and foolbox as any module, and attacked by
`pgd` as `defend run` sets it under the adaptive threat, on the same images, over several seeds.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator

import torch
from torch import Tensor

import defend
from benchmarks import peers
from benchmarks.contest import Bar, Result, Scale, Timing, timed
from defend.assembly.prepare import prepare
from defend.attacks.iterated import Pgd
from defend.attacks.options import PgdOptions
from defend.defence import Defence
from defend.errors import DefendError
from defend.values.threats import THREATS

WORKLOAD = "7 adaptive"
VICTIM, DATASET, EPS, STEPS = "resnet18", "digits", 0.1, 10
PURIFIERS = {"dae": 64, "unet_gan": 24, "puvae": 24, "vaegan": 24, "apudae": 16}
"""Images an attack gets: fewer where a gradient costs more."""
SEEDS, QUICK_SEEDS, QUICK_IMAGES = 5, 1, 8
OURS = "ours, as `defend run` has it"
PEERS = ("torchattacks", "foolbox")


def run(scale: Scale) -> Iterator[Result]:
    """Yield what is left of each purifier that is installed and has weights for the digits."""
    for name, count in PURIFIERS.items():
        try:
            yield contest(name, QUICK_IMAGES if scale.quick else count, QUICK_SEEDS if scale.quick else SEEDS, scale)
        except DefendError as error:
            yield Result(WORKLOAD, f"{name}: left out", "", notes=(str(error),))


def contest(name: str, count: int, seeds: int, scale: Scale) -> Result:
    """Attack one composed defence with every contender and seed; a random one is judged with draws of its own."""
    defence = defend.load(VICTIM, dataset=DATASET, purifier=name).to(scale.device)
    images, labels = (part.to(scale.device) for part in defend.dataset(DATASET).tensors("test", limit=count, seed=0))
    ready, _ = prepare(defence, "fp32", images[:8])
    options = PgdOptions(steps=STEPS, **THREATS["adaptive"].options["pgd"])
    theirs = peers.pgd(
        defence,
        tuple(images.shape[1:]),
        peers.Pgd(EPS, 2.5 * EPS / STEPS, STEPS),
        count,
        tuple(peer for peer in PEERS if peer in scale.peers),
    )
    left: dict[str, list[int]] = {peer: [] for peer in (OURS, *theirs)}
    seconds: dict[str, list[float]] = {peer: [] for peer in (OURS, *theirs)}
    for seed in range(seeds):
        for peer in left:
            torch.manual_seed(seed)
            target = defend.Target(ready, seed=seed, draws=1)
            ours = functools.partial(defend.craft, Pgd(options), target, images, labels, eps=EPS)
            work = ours if peer == OURS else functools.partial(theirs[peer], images, labels)
            adversarial, taken = timed(work, images.device)
            seconds[peer].append(taken)
            left[peer].append(still_right(defence, adversarial, labels))
    means = {peer: sum(counts) / seeds for peer, counts in left.items()}
    best = min((means[peer] for peer in theirs), default=None)
    bars = (
        ()
        if best is None
        else (Bar(f"images left of {count}, ours against the best peer", means[OURS], best, "at most"),)
    )
    timings = tuple(Timing(peer, [1000 * took / count / STEPS for took in times]) for peer, times in seconds.items())
    title = f"{name} before {VICTIM}, L-inf {EPS:g}, {STEPS} gradients, {count} digits, {seeds} seeds"
    note = "One draw for all contenders where the purifier is random." if defence.random else ""
    return Result(
        WORKLOAD, title, "ms an image-gradient", timings, bars, {"left": left, "mean": means}, (note,) if note else ()
    )


@torch.no_grad()
def still_right(defence: Defence, images: Tensor, labels: Tensor) -> int:
    """Return how many the unprepared defence still gets right."""
    return int((defence.judge(images).labels == labels).sum())
