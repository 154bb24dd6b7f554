"""Workload 2, second half: Square, a query's time and who is left at equal budget.

python -m benchmarks square
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

import defend
from benchmarks import peers, victims
from benchmarks.contest import Bar, Result, Scale, compete, ratio
from benchmarks.pgd import AS_BUILT, BATCH, FAST, FLOOR, SAMPLE, digits
from defend.assembly.prepare import prepare
from defend.attacks.options import SquareOptions
from defend.attacks.square import SquareAttack
from defend.defence import Defence

WORKLOAD = "2 square"
QUERIES, QUICK_QUERIES = 100, 10
NO_SLOWER = 1.0
SPREAD = 2.0  # standard errors of the paired difference that chance may explain


def run(scale: Scale) -> Iterator[Result]:
    """Yield the contest on the plain and on the adversarially trained ResNet-20."""
    yield contest("plain", scale)
    if not scale.quick:
        yield contest("adversarially trained", scale)


def ours(module: nn.Module, precision: str, sample: Tensor, how: peers.Square) -> peers.Craft:
    """Return this package's Square in L-inf on a prepared victim."""
    ready, _ = prepare(Defence(module), precision, sample)
    attack = SquareAttack(SquareOptions(queries=how.queries, p_init=how.p_init), "linf")
    target = defend.Target(ready)
    return lambda images, labels: defend.craft(attack, target, images, labels, eps=how.eps)


@torch.no_grad()
def floor(module: nn.Module, images: Tensor, queries: int) -> None:
    """Ask the bare module about every image so many times."""
    for _ in range(queries):
        module(images)


def contest(kind: str, scale: Scale) -> Result:
    """Time the attack to the end of its queries, and compare who is still right."""
    module, images, labels = digits(kind, scale)
    images, labels = images[:BATCH], labels[:BATCH]
    device, count = scale.device, len(images)
    how = peers.Square(victims.HARD_EPS, QUICK_QUERIES if scale.quick else QUERIES)
    mine = {name: ours(module, kind, images[:SAMPLE], how) for name, kind in ((AS_BUILT, "exact"), (FAST, "fp32"))}
    theirs = peers.square(module, tuple(images.shape[1:]), how, count, scale.peers)
    found: dict[str, Tensor] = {}

    def turn(name: str, craft: peers.Craft) -> Callable[[], object]:
        def work() -> None:
            found[name] = craft(images, labels)

        return work

    contenders: dict[str, Callable[[], object]] = {FLOOR: lambda: floor(module, images, how.queries)}
    contenders |= {name: turn(name, craft) for name, craft in (mine | theirs).items()}
    rounds = max(2 * scale.rounds // 5, 1)
    timings = compete(contenders, per=count * how.queries, rounds=rounds, device=device, warm_up=0)
    left = {name: still_right(module, one, labels) for name, one in found.items()}
    bars = [Bar(f"exact against {peer}", ratio(timings, AS_BUILT, peer), NO_SLOWER, "at most") for peer in theirs]
    for peer in theirs:
        difference = left[FAST].float() - left[peer].float()
        error = float(difference.std() / count**0.5)
        bars.append(
            Bar(
                f"share left right, ours less {peer}'s, beyond {SPREAD:g} standard errors of the paired difference",
                float(difference.mean()) - SPREAD * error,
                0.0,
                "at most",
            )
        )
    title = f"Square, L-inf {how.eps:g}, {how.queries} queries, {kind} ResNet-20, {count} digits"
    accuracy = {name: float(right.float().mean()) for name, right in left.items()}
    notes = ("The floor asks about every image every time; attacks leave out images that are done.",)
    return Result(WORKLOAD, title, "ms an image-query", timings, tuple(bars), {"accuracy left": accuracy}, notes)


@torch.no_grad()
def still_right(module: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """Return bool [B]: who the plain module, in fp32, still gets right."""
    right: Tensor = module(images).argmax(1) == labels
    return right
