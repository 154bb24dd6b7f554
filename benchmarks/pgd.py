"""Workload 1: projected gradient descent, against a bare loop and against every peer.

    python -m benchmarks pgd

Fixed steps on untrained networks, in batches of 64 and 256; then, stopping early, on trained ones, where the time is
that to the same robust accuracy.
"""

from __future__ import annotations

import argparse
import gc
import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import defend
from benchmarks import peers, victims
from benchmarks.contest import Bar, Result, Scale, alone, compete, measure_held, ratio, resident
from defend.assembly.prepare import prepare
from defend.attacks.apgd import Apgd
from defend.attacks.iterated import Pgd
from defend.attacks.options import ApgdOptions, PgdOptions
from defend.defence import Defence
from defend.evaluation.precision import explain_unsupported

WORKLOAD = "1 pgd"
STEPS, EPS = 10, 8 / 255
HOW = peers.Pgd(EPS, 2.5 * EPS / STEPS, STEPS)
BATCH, LARGE = 64, 256
SAMPLE = 4  # images that folding is checked on
EXACT = {"resnet18": 1.05, "resnet20": 1.10}
DEFAULT = {"resnet18": 0.80, "resnet20": 0.75}
REDUCED, REDUCED_AGAINST = 0.50, {"foolbox": 3.0, "ART": 3.0, "torchattacks": 2.0}
TRAINED = {"plain": {"torchattacks": 4.0}, "adversarially trained": {"torchattacks": 2.2, "foolbox": 3.0, "ART": 3.0}}
LARGER, LESS_MEMORY = 1.1, 0.5
PAIRS, POINTS = 2000, 0.5
SEEDS = 4
TRAINED_IMAGES = 128
FLOOR, AS_BUILT, FAST, REDUCED_NAME = "floor", "ours, exact", "ours, default", "ours, default, bf16 crafting"
MEASURED_STEPS = 2  # of the attack whose memory is measured


def run(scale: Scale) -> Iterator[Result]:
    """Yield fixed steps for two networks, the large batch, and the trained victims."""
    names = ("resnet20",) if scale.quick else ("resnet20", "resnet18")
    batch = scale.images if scale.quick else BATCH
    for name in names:
        yield time_fixed_steps(name, scale, batch)
    for name in names:
        yield large_batch(name, scale, batch, 4 * batch)
    for kind in TRAINED:
        yield time_trained(kind, scale)
    yield auto_pgd(scale)


def floor(module: nn.Module, images: Tensor, labels: Tensor, steps: int) -> Tensor:
    """Take bare sign steps: a forward pass, the input's gradient, its sign; no projection, no bookkeeping."""
    point = images
    for _ in range(steps):
        point = point.detach().requires_grad_()
        (slope,) = torch.autograd.grad(F.cross_entropy(module(point), labels), point)
        point = point + HOW.step * slope.sign()
    return point


def ours(
    module: nn.Module,
    precision: str,
    sample: Tensor,
    *,
    how: peers.Pgd,
    early_stop: bool = False,
    crafting: torch.dtype | None = None,
    seed: int = 0,
) -> peers.Craft:
    """Return this package's PGD on a prepared victim; `crafting` is the dtype of autocast, None for fp32."""
    ready, _ = prepare(Defence(module), precision, sample)
    attack = Pgd(  # the cross-entropy to the letter, as the floor and the peers have it
        PgdOptions(
            steps=how.steps, step_size=how.step, early_stop=early_stop, random_start=how.random_start, logit_scale=1.0
        )
    )
    target = defend.Target(ready, precision=crafting, seed=seed)
    return lambda images, labels: defend.craft(attack, target, images, labels, eps=how.eps)


def data(name: str, count: int, device: torch.device) -> tuple[nn.Module, Tensor, Tensor]:
    """Return an untrained victim, images, and what it takes them for."""
    module, images = victims.build_untrained(name).to(device), victims.pictures(count).to(device)
    with torch.no_grad():
        labels = torch.cat([module(some).argmax(1) for some in images.split(BATCH)])
    return module, images, labels


def time_fixed_steps(name: str, scale: Scale, batch: int) -> Result:
    """Time PGD-10 with all its steps on an untrained network."""
    device = scale.device
    module, images, labels = data(name, batch, device)
    sample = images[:SAMPLE]
    crafts = {AS_BUILT: ours(module, "exact", sample, how=HOW), FAST: ours(module, "fp32", sample, how=HOW)}
    notes = []
    refused = explain_unsupported(device)
    if refused is None:
        crafts[REDUCED_NAME] = ours(module, "fp32", sample, how=HOW, crafting=torch.bfloat16)
    else:
        notes.append(f"reduced-precision crafting left out: {refused}")
    theirs = peers.pgd(module, tuple(images.shape[1:]), HOW, batch, scale.peers)
    contenders: dict[str, Callable[[], object]] = {FLOOR: lambda: floor(module, images, labels, STEPS)}
    contenders |= {name: peers.work(craft, images, labels) for name, craft in crafts.items()}
    contenders |= {name: peers.work(craft, images, labels) for name, craft in theirs.items()}
    rounds, warm_up = _effort(name, scale)
    timings = compete(contenders, per=batch * STEPS, rounds=rounds, device=device, warm_up=warm_up)
    bars = [
        Bar("exact against the floor", ratio(timings, AS_BUILT, FLOOR), EXACT[name], "at most"),
        *(Bar(f"exact against {peer}", ratio(timings, AS_BUILT, peer), 1.0, "at most") for peer in theirs),
        Bar("default against the floor", ratio(timings, FAST, FLOOR), DEFAULT[name], "at most"),
    ]
    if REDUCED_NAME in crafts:
        bars.append(Bar("bf16 crafting against the floor", ratio(timings, REDUCED_NAME, FLOOR), REDUCED, "at most"))
        bars += [
            Bar(f"{peer} against bf16 crafting", ratio(timings, peer, REDUCED_NAME), REDUCED_AGAINST[peer], "at least")
            for peer in theirs
        ]
    title = f"PGD-{STEPS}, L-inf, all steps taken, {name}, batch {batch}, 3x32x32"
    return Result(WORKLOAD, title, "ms an image-step", timings, tuple(bars), notes=tuple(notes))


def _effort(name: str, scale: Scale) -> tuple[int, int]:
    """Return rounds and warm-up turns: a turn of resnet18 takes ten times one of ResNet-20, and two fifths of them."""
    if name == "resnet20":
        return scale.rounds, 1
    return max(2 * scale.rounds // 5, 1), 0


def large_batch(name: str, scale: Scale, batch: int, large: int) -> Result:
    """Time one large batch against the same images in small ones, and measure the memory that an attack adds."""
    device = scale.device
    module, images, labels = data(name, large, device)
    steps = STEPS if name == "resnet20" else MEASURED_STEPS
    how = peers.Pgd(EPS, HOW.step, steps)
    craft = ours(module, "fp32", images[:SAMPLE], how=how)
    small, whole = f"{FAST}, batch {batch}", f"{FAST}, batch {large}"
    bare = f"{FLOOR}, batch {large}"
    contenders: dict[str, Callable[[], object]] = {
        bare: lambda: floor(module, images, labels, steps),
        small: peers.work(craft, images, labels, batch),
        whole: peers.work(craft, images, labels),
    }
    if name == "resnet20":
        lean = tuple(peer for peer in scale.peers if peer == "torchattacks")  # the others are slower at any size
        theirs = peers.pgd(module, tuple(images.shape[1:]), how, large, lean)
        contenders |= {f"{peer}, batch {large}": peers.work(one, images, labels) for peer, one in theirs.items()}
    rounds = max(2 * scale.rounds // 5, 1) if name == "resnet20" else 1
    timings = compete(contenders, per=large * steps, rounds=rounds, device=device, warm_up=0)
    bars = [Bar(f"batch {large} against batch {batch}, an image", ratio(timings, whole, small), LARGER, "at most")]
    figures: dict[str, Any] = {}
    if name == "resnet18":
        figures["memory added by the attack, MiB"] = added = {
            which: memory(which, name, large, device) for which in (FLOOR, FAST)
        }
        bars.append(Bar("memory added against the floor's", added[FAST] / added[FLOOR], LESS_MEMORY, "at most"))
    title = f"PGD-{steps}, L-inf, all steps taken, {name}, batch {large}, 3x32x32"
    return Result(WORKLOAD, title, "ms an image-step", timings, tuple(bars), figures)


def memory(which: str, name: str, batch: int, device: torch.device) -> float:
    """Return the MiB that an attack adds at its peak, in a process of its own."""
    return float(alone("benchmarks.pgd", which, name, str(batch), str(device))["mib"])


def measure(which: str, name: str, batch: int, device: torch.device) -> float:
    """Attack once in this process, a prepared copy of the victim included; return its peak less that before, in MiB."""
    module, images, labels = data(name, SAMPLE, device)
    images, labels = images.repeat(batch // SAMPLE, 1, 1, 1), labels.repeat(batch // SAMPLE)
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device) / 2**20
    else:
        before = measure_held()
    if which == FLOOR:
        floor(module, images, labels, MEASURED_STEPS)
    else:
        how = peers.Pgd(EPS, HOW.step, MEASURED_STEPS)
        ours(module, "fp32", images[:SAMPLE], how=how)(images, labels)
    after = torch.cuda.max_memory_allocated(device) / 2**20 if device.type == "cuda" else resident()
    return after - before


def digits(kind: str, scale: Scale) -> tuple[nn.Module, Tensor, Tensor]:
    """Return a trained ResNet-20 ("plain" or "adversarially trained") and test digits that it gets right."""
    module = defend.load("resnet20").victim if kind == "plain" else victims.robust()
    module.requires_grad_(False).to(scale.device)
    images, labels = (part.to(scale.device) for part in defend.dataset("digits").tensors("test"))
    with torch.no_grad():
        right = (module(images).argmax(1) == labels).nonzero()[: min(scale.images, TRAINED_IMAGES), 0]
    return module, images[right], labels[right]


def time_trained(kind: str, scale: Scale) -> Result:
    """Time an attack that stops early, end to end, on a trained ResNet-20; compare who is still right, one by one.

    The contest includes each side's set-up. Strength is compared without random starts, as no two libraries draw the
    same; a peer's attack is then the same algorithm on the same loss, up to the order of additions.
    """
    module, images, labels = digits(kind, scale)
    device, shape, batch = scale.device, tuple(images.shape[1:]), min(BATCH, len(images))
    how = peers.Pgd(victims.HARD_EPS, 2.5 * victims.HARD_EPS / STEPS, STEPS)

    def mine(how: peers.Pgd, **choices: Any) -> Callable[[], Tensor]:
        def turn() -> Tensor:
            return peers.in_batches(ours(module, "fp32", images[:SAMPLE], how=how, **choices), images, labels, batch)

        return turn

    def their(module_name: str, how: peers.Pgd) -> Callable[[], Tensor]:
        def turn() -> Tensor:
            (craft,) = peers.pgd(module, shape, how, batch, (module_name,)).values()
            return peers.in_batches(craft, images, labels, batch)

        return turn

    known = {"torchattacks": "torchattacks", "foolbox": "foolbox", "ART": "art"}
    present = {peer: module_name for peer, module_name in known.items() if module_name in scale.peers}
    bare = f"{FLOOR}, all steps"
    contenders: dict[str, Callable[[], object]] = {
        bare: peers.work(lambda some, true: floor(module, some, true, STEPS), images, labels, batch),
        FAST: mine(how, early_stop=True),
        "ours, all steps": mine(how),
    }
    notes = []
    refused = explain_unsupported(device)
    if refused is None:
        contenders[REDUCED_NAME] = mine(how, early_stop=True, crafting=torch.bfloat16)
    else:
        notes.append(f"reduced-precision crafting left out: {refused}")
    contenders |= {peer: their(module_name, how) for peer, module_name in present.items()}
    rounds = max(3 * scale.rounds // 5, 1)
    timings = compete(contenders, per=len(images), rounds=rounds, device=device, warm_up=0)

    still = peers.Pgd(how.eps, how.step, how.steps, random_start=False)
    left = {"ours, all steps": _right(module, mine(still)(), labels)}
    left[FAST] = _right(module, mine(still, early_stop=True)(), labels)
    left |= {peer: _right(module, their(name, still)(), labels) for peer, name in present.items()}
    figures: dict[str, Any] = {
        "images a second": {one.name: 1000 / one.median for one in timings},
        "robust accuracy, no random start": {name: float(right.float().mean()) for name, right in left.items()},
        f"images that only one of two leaves right, {FAST} and": {
            name: int((right != left[FAST]).sum()) for name, right in left.items() if name != FAST
        },
    }
    bars = [
        Bar(f"{peer} against ours", ratio(timings, peer, FAST), bound, "at least")
        for peer, bound in TRAINED[kind].items()
        if peer in present
    ]
    bars += [
        Bar(f"images that ours leaves right and {name} does not", float((left[FAST] & ~right).sum()), 0, "at most")
        for name, right in left.items()
        if name != FAST
    ]
    if refused is None and not scale.quick:
        points = compare(module, how, scale)
        figures[f"bf16 crafting less fp32, points of robust accuracy, {PAIRS} pairs"] = points
        bars.append(Bar("points of robust accuracy lost by bf16 crafting", points, POINTS, "at most"))
    title = f"PGD-{STEPS}, L-inf {how.eps:g}, to the end, {kind} ResNet-20 on {len(images)} digits, set-up included"
    return Result(WORKLOAD, title, "ms an image", timings, tuple(bars), figures, tuple(notes))


def compare(module: nn.Module, how: peers.Pgd, scale: Scale) -> float:
    """Return by how many points crafting in bf16 leaves more images right than fp32 does.

    The 500 test digits, each with four random starts that both share.
    """
    images, labels = (part.to(scale.device) for part in defend.dataset("digits").tensors("test", limit=PAIRS // SEEDS))
    left = {None: 0, torch.bfloat16: 0}
    for seed in range(SEEDS):
        for dtype in left:
            craft = ours(module, "fp32", images[:SAMPLE], how=how, early_stop=True, crafting=dtype, seed=seed)
            left[dtype] += int(_right(module, peers.in_batches(craft, images, labels, BATCH), labels).sum())
    return 100 * (left[torch.bfloat16] - left[None]) / (SEEDS * len(images))


def auto_pgd(scale: Scale) -> Result:
    """Time Auto-PGD on the cross-entropy on the adversarially trained victim; compare the accuracy left."""
    module, images, labels = digits("adversarially trained", scale)
    images, labels = images[:BATCH], labels[:BATCH]
    batch = min(BATCH, len(images))
    steps = STEPS if scale.quick else 2 * STEPS
    ready, _ = prepare(Defence(module), "fp32", images[:SAMPLE])
    attack, target = Apgd(ApgdOptions(steps=steps), "ce"), defend.Target(ready)

    def mine(some: Tensor, true: Tensor) -> Tensor:
        return defend.craft(attack, target, some, true, eps=victims.HARD_EPS)

    crafts: Mapping[str, peers.Craft] = {FAST: mine, **peers.apgd(module, victims.HARD_EPS, steps, scale.peers)}
    works = {name: peers.work(craft, images, labels, batch) for name, craft in crafts.items()}
    contenders: dict[str, Callable[[], object]] = {**works, FAST: works[FAST]}
    timings = compete(contenders, per=len(images), rounds=max(2 * scale.rounds // 5, 1), device=scale.device)
    left = {name: float(_right(module, work(), labels).float().mean()) for name, work in works.items()}
    bars = [Bar(f"ours against {peer}", ratio(timings, FAST, peer), 1.0, "at most") for peer in crafts if peer != FAST]
    title = f"APGD-{steps} on the cross-entropy, L-inf {victims.HARD_EPS:g}, adversarially trained ResNet-20, digits"
    return Result(WORKLOAD, title, "ms an image", timings, tuple(bars), {"robust accuracy": left})


@torch.no_grad()
def _right(module: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """Return bool [B]: who the plain module, in fp32, still gets right."""
    return torch.cat([module(some).argmax(1) for some in images.split(BATCH)]) == labels


def main() -> None:
    """Print the memory that one attack adds, as JSON: for `alone`."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("which", choices=(FLOOR, FAST))
    parser.add_argument("name", choices=tuple(victims.OPTIONS))
    parser.add_argument("batch", type=int)
    parser.add_argument("device", type=torch.device)
    given = parser.parse_args()
    print(json.dumps({"mib": measure(given.which, given.name, given.batch, given.device)}))


if __name__ == "__main__":
    main()
