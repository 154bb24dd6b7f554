"""Workload 3, the purifiers: what ships, against a floor or against the plainest code that computes the same.

    python -m benchmarks purifiers

APuDAE's 15 steps against 15 bare gradients of its autoencoder; PuVAE's ten reconstructions against ten whole passes,
one a label; VAE-GAN's 20 steps against 20 bare gradients of its discriminator and a pass; the single-pass purifiers
against a bare forward; the U-Net's attention fused against plain. The networks are those for 3x32x32 images at the
papers' sizes, and PuVAE's for 28x28 grey ones, with seeded untrained weights. "ours" is what `defend run` makes of them
(`assembly.prepare`). Freed memory is kept for every contender alike, so a ratio owes nothing to the allocator.

Tried and left out: APuDAE's stride-1 transposed convolutions computed as the convolutions they equal, which gains 4 %
in the contiguous layout and nothing in channels-last.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.contest import Bar, Result, Scale, compete, ratio
from defend.assembly.prepare import prepare
from defend.assembly.stage import build_module
from defend.defence import Defence
from defend.evaluation.precision import REDUCED, explain_unsupported
from defend.plugins import registry
from defend.stages import Task

WORKLOAD = "3 purifiers"
COLOUR, GREY = Task("made_up", 3, 32, 32, 10), Task("made_up", 1, 28, 28, 10)
IMAGES, QUICK_IMAGES = 32, 4  # on a CPU
SAMPLE = 4  # images that `prepare` checks itself on
STEPS, CLIMB_STEPS = 15, 20
BARE, NAIVE, OURS, OURS_REDUCED = "bare gradients", "ten naive passes", "ours", "ours, bf16"
FORWARD, CLIMB = "bare forward", "bare gradients and a forward"
APUDAE, APUDAE_REDUCED = 0.85, 0.45
PUVAE, PUVAE_REDUCED = 0.40, 0.33
PLAIN, FUSED, ATTENTION = "plain attention", "ours, fused attention", 0.60


def run(scale: Scale) -> Iterator[Result]:
    """Measure every purifier."""
    yield apudae(scale)
    for task in (COLOUR, GREY):
        yield puvae(scale, task)
    yield vaegan(scale)
    yield attention(scale)
    for name, options, times in (("unet_gan", {}, 1), ("vaegan", {"mode": "recon"}, 2), ("dae", {}, 50)):
        yield single_pass(scale, name, options, times)


def apudae(scale: Scale) -> Result:
    """APuDAE, variant A, on the autoencoder with 15 layers."""
    images = pictures(scale, COLOUR)
    purifier = build("apudae", COLOUR, scale.device, depth=15, variant="A", steps=STEPS)
    return contest(
        scale,
        f"apudae, {STEPS} steps of its 15-layer autoencoder, {describe(images)}",
        purifier,
        images,
        (BARE, lambda: gradients(purifier.dae, images, STEPS)),
        APUDAE,
        APUDAE_REDUCED,
    )


def puvae(scale: Scale, task: Task) -> Result:
    """PuVAE's network D on colour images, its network C on grey ones."""
    images = pictures(scale, task)
    purifier = build("puvae", task, scale.device)
    return contest(
        scale,
        f"puvae, {task.classes} reconstructions, {describe(images)}",
        purifier,
        images,
        (NAIVE, lambda: reconstructions(purifier, images)),
        PUVAE,
        PUVAE_REDUCED,
    )


def vaegan(scale: Scale) -> Result:
    """VAE-GAN's climb of the discriminator, every step of it, and its reconstruction."""
    images = pictures(scale, COLOUR)
    purifier = build("vaegan", COLOUR, scale.device, mode="disc_grad", steps=CLIMB_STEPS, stop="never")

    def floor() -> None:
        for _ in range(CLIMB_STEPS):
            point = images.clone().requires_grad_()
            torch.autograd.grad(purifier.networks.log_dis(point).sum(), point)
        with torch.no_grad():
            purifier.networks.reconstruct(images)

    title = f"vaegan, {CLIMB_STEPS} steps up its discriminator and a reconstruction, {describe(images)}"
    return contest(scale, title, purifier, images, (CLIMB, floor))


def single_pass(scale: Scale, name: str, options: dict[str, Any], times: int) -> Result:
    """One pass of a purifier's networks against the same as it was built, so many times a turn."""
    images = pictures(scale, COLOUR)
    purifier = build(name, COLOUR, scale.device, **options)
    how = "".join(f", {key} {value}" for key, value in options.items())
    title = f"{name}{how}, {describe(images)}"
    return contest(scale, title, purifier, images, (FORWARD, lambda: purify(purifier, images)), times=times)


def attention(scale: Scale) -> Result:
    """The U-Net's gradient with the fused attention that it asks for, and with the plain one that it had before."""
    images = pictures(scale, GREY)
    network = build("unet_gan", GREY, scale.device)

    def plain() -> None:
        with sdpa_kernel(SDPBackend.MATH):
            gradients(network, images, 1)

    works = {PLAIN: plain, FUSED: lambda: gradients(network, images, 1)}
    timings = compete(works, per=len(images), rounds=scale.rounds, device=scale.device)
    share = ratio(timings, FUSED, PLAIN)
    bars = () if scale.quick else (Bar("fused / plain, a gradient", share, ATTENTION, "at most"),)
    return Result(WORKLOAD, f"unet_gan, a gradient by its attention, {describe(images)}", "ms an image", timings, bars)


def contest(
    scale: Scale,
    title: str,
    purifier: nn.Module,
    images: Tensor,
    floor: tuple[str, Callable[[], object]],
    bound: float | None = None,
    bound_reduced: float | None = None,
    times: int = 1,
) -> Result:
    """Time the floor, the purifier as `defend run` prepares it, and the same under bf16 where the device has that.

    Args:
        scale: how much work.
        title: of the result.
        purifier: as it was built, frozen.
        images: [B,C,H,W], what all of them get.
        floor: its name and its work.
        bound, bound_reduced: of ours as a share of the floor's time; None promises nothing.
        times: how often a turn does the work, where once is too short to time.
    """
    ready = prepare(Defence(nn.Identity(), purifier), "fp32", images[:SAMPLE])[0].purifier
    assert ready is not None
    contenders: dict[str, Callable[[], object]] = {floor[0]: floor[1], OURS: lambda: purify(ready, images)}
    reason = explain_unsupported(scale.device)
    if reason is None:
        contenders[OURS_REDUCED] = lambda: purify(ready, images, REDUCED)
    turns = {name: repeat(work, times) for name, work in contenders.items()}
    timings = compete(turns, per=len(images) * times, rounds=scale.rounds, device=scale.device)
    bounds = {OURS: bound, OURS_REDUCED: bound_reduced}
    bars = tuple(
        Bar(f"{name} / {floor[0]}", ratio(timings, name, floor[0]), most, "at most")
        for name, most in bounds.items()
        if most is not None and name in contenders
    )
    notes = () if reason is None else (f"bf16 left out: {reason}",)
    return Result(WORKLOAD, title, "ms an image", timings, bars, notes=notes)


def repeat(work: Callable[[], object], times: int) -> Callable[[], None]:
    """Return the work done so many times."""

    def turn() -> None:
        for _ in range(times):
            work()

    return turn


def build(name: str, task: Task, device: torch.device, **options: Any) -> Any:
    """Build a purifier for a task with seeded untrained weights, frozen, as its plugin makes it."""
    found = registry().find("purifier", name)
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        module = build_module(found, found.config(options), task)
    return module.to(device).eval().requires_grad_(False)


def pictures(scale: Scale, task: Task) -> Tensor:
    """Return seeded images of a task's shape in [0,1]: noise that a small kernel has smoothed, as pictures are."""
    count = QUICK_IMAGES if scale.quick else IMAGES if scale.device.type == "cpu" else scale.images
    made = torch.rand(count, task.channels, task.height, task.width, generator=torch.Generator().manual_seed(0))
    return nn.functional.avg_pool2d(made, 3, stride=1, padding=1).to(scale.device)


def describe(images: Tensor) -> str:
    """Return how many images of which shape: "32 images 3x32x32"."""
    return f"{len(images)} images {'x'.join(map(str, images.shape[1:]))}"


def purify(purifier: nn.Module, images: Tensor, precision: torch.dtype | None = None) -> Tensor:
    """Purify images [B,C,H,W] without gradients outside, under autocast to `precision` if there is one."""
    device = images.device.type
    with torch.no_grad(), torch.autocast(device, precision or REDUCED, enabled=precision is not None):
        result: Tensor = purifier(images)
    return result


def gradients(autoencoder: nn.Module, images: Tensor, steps: int) -> Tensor:
    """Take so many bare gradients of the squared reconstruction error, [B,C,H,W], and return the last."""
    gradient = images
    for _ in range(steps):
        point = images.clone().requires_grad_()
        (gradient,) = torch.autograd.grad((autoencoder(point) - point).square().sum(), point)
    return gradient


@torch.no_grad()
def reconstructions(purifier: Any, images: Tensor) -> Tensor:
    """Purify by PuVAE as one would write it first: a whole pass a label, the closest reconstruction kept.

    Draws the noise on z as the purifier does, so that after the same seed the results agree.
    """
    network, config = purifier.network, purifier.config
    noise = config.z_noise * torch.randn(len(images), network.classes, network.latent, device=images.device)
    made = []
    for label in range(network.classes):
        labels = torch.full((len(images),), label, device=images.device)
        made.append(network(images, labels, noise[:, label]).logits.sigmoid())
    candidates = torch.stack(made, 1)
    errors = (images[:, None] - candidates).square().mean(2).sqrt().flatten(2).mean(2)
    return candidates[torch.arange(len(images), device=images.device), errors.argmin(1)]
