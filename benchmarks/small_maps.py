"""Workload 12, small maps: a victim for large images that is given small ones, its last maps multiplied or convolved.

    python -m benchmarks small_maps

The shipped resnet18 on digits, whose last convolutions stand on maps of 2x2: one gradient and one pass of it as `defend
run` prepares it (`defend.assembly.matrices`), against the same with every layer convolved. Both give the same logits up
to rounding, which is checked.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

import defend
from benchmarks.contest import Bar, Result, Scale, compete, ratio
from defend.assembly.matrices import WholeMap
from defend.assembly.prepare import prepare
from defend.boundary.copies import copy_module
from defend.defence import Defence

WORKLOAD = "12 small maps"
OURS, PLAIN = "ours: multiplied", "convolved"
BATCHES, QUICK_BATCHES = (8, 64), (4,)
SAMPLE = 2  # images that `prepare` checks itself on
SHARE = 0.85  # of the time of the convolved victim, in batches as the run has them
MOVED = 1e-5  # of the largest logit


def run(scale: Scale) -> Iterator[Result]:
    """Yield gradients and passes for each size of batch."""
    batches = QUICK_BATCHES if scale.quick else BATCHES
    images, _ = defend.dataset("digits").tensors("test", limit=max(batches), seed=0)
    images = images.to(scale.device)
    victim = defend.load("resnet18", dataset="digits").victim.to(scale.device)
    for size in batches:
        yield contest(scale, victim, images[:size])


def contest(scale: Scale, victim: nn.Module, images: Tensor) -> Result:
    """Time a prepared victim on images [B,C,H,W] against the same with nothing multiplied.

    Raises:
        ArithmeticError: their logits differ.
    """
    ready, _ = prepare(Defence(victim), "auto", images[:SAMPLE])
    network = ready.victim
    plain = convolve(network)
    known, found = answer(plain, images), answer(network, images)
    if not torch.allclose(known, found, atol=MOVED * float(known.abs().max()), rtol=0):
        raise ArithmeticError("multiplied maps gave other logits than convolved ones")
    works = {
        f"{name}, {what}": lambda each=each, way=way: way(each, images)
        for what, way in (("gradient", differentiate), ("pass", answer))
        for name, each in ((PLAIN, plain), (OURS, network))
    }
    timings = compete(works, per=len(images), rounds=scale.rounds, device=scale.device)
    count = sum(isinstance(layer, WholeMap) for layer in network.modules())
    share = ratio(timings, f"{OURS}, gradient", f"{PLAIN}, gradient")
    bar = Bar("multiplied / convolved, a gradient", share, SHARE, "at most")
    promised = () if scale.quick or count == 0 or len(images) < max(BATCHES) else (bar,)
    return Result(WORKLOAD, f"batch {len(images)}, {count} layers multiplied", "ms an image", timings, promised)


def convolve(network: nn.Module) -> nn.Module:
    """Return a copy of a prepared victim whose layers convolve maps of every size."""
    plain = copy_module(network)
    for layer in plain.modules():
        if isinstance(layer, WholeMap):
            layer.meets = (0, 0)
    return plain


def differentiate(network: nn.Module, images: Tensor) -> Tensor:
    """Return the gradient of a loss of the logits, [B,C,H,W]."""
    source = images.detach().requires_grad_()
    (slope,) = torch.autograd.grad(network(source).logsumexp(1).sum(), source)
    return slope


@torch.no_grad()
def answer(network: nn.Module, images: Tensor) -> Tensor:
    """Return logits [B,K] of images [B,C,H,W]."""
    logits: Tensor = network(images)
    return logits
