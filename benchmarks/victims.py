"""The classifiers that the attack workloads are timed on."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import defend
from benchmarks.contest import progress
from defend.assembly.stage import build_module
from defend.attacks.balls import project_linf
from defend.plugins import registry
from defend.stages import Task
from defend.util.files import atomic, cache_dir
from defend.victims.training import augment

SHAPE = (3, 32, 32)
CLASSES = 10
OPTIONS = {"resnet18": {"stem": "small"}, "resnet20": {}}
HARD_EPS = 0.1  # the L-inf budget on digits, in training and in the contest
EPOCHS, BATCH, LR, SHIFT = 8, 64, 1e-3, 2
STRETCH = 1.25  # the training attack's one step, in budgets (Wong, Rice and Kolter 2020)


def build_untrained(name: str, seed: int = 0) -> nn.Module:
    """Return a network with seeded weights and batch norms that have something to do, in evaluation mode, frozen.

    Batch norms' own weights and statistics are drawn around one and zero, the statistics then measured on seeded
    images, so that activations keep their scale through the layers.

    Args:
        name: "resnet18" (with the stem for small images) or "resnet20", for images [B,3,32,32] of ten classes.
        seed: of weights and images.
    """
    found = registry().find("victim", name)
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        module = build_module(found, found.config(OPTIONS[name]), Task("made_up", *SHAPE, CLASSES))
        norms = [part for part in module.modules() if isinstance(part, nn.BatchNorm2d)]
        for norm in norms:
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            nn.init.normal_(norm.bias, 0, 0.2)
            norm.momentum = None  # a cumulative average
        with torch.no_grad():
            for _ in range(2):
                module.train()(torch.rand(32, *SHAPE))
        for norm in norms:
            norm.momentum = 0.1
    return module.eval().requires_grad_(False)


def pictures(count: int, seed: int = 0) -> Tensor:
    """Return seeded noise [count,3,32,32] in [0,1]."""
    return torch.rand(count, *SHAPE, generator=torch.Generator().manual_seed(seed))


def robust() -> nn.Module:
    """Return a ResNet-20 for digits that was trained on adversarial images, in evaluation mode, frozen.

    Made once from the shipped ResNet-20 and kept in the user's cache: 8 epochs over the 1,097 training digits, Adam,
    each batch attacked by one sign step of 1.25 eps from a random point of the L-inf ball of eps = 0.1. It is a victim
    that resists, so that an attack has to go on; not a defence to recommend.
    """
    module = defend.load("resnet20").victim
    path = _cache_path(module)
    if path.is_file():
        from safetensors.torch import load_file

        module.load_state_dict(load_file(path))
    else:
        _harden(module)
        from safetensors.torch import save

        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic(path) as temporary:
            temporary.write_bytes(save({key: value.contiguous() for key, value in module.state_dict().items()}))
    return module.eval().requires_grad_(False)


def _cache_path(module: nn.Module) -> Path:
    """Where the weights are kept: named after what they were made from, and how."""
    made = hashlib.sha256(f"{HARD_EPS} {STRETCH} {EPOCHS} {BATCH} {LR} {SHIFT}".encode())
    for value in module.state_dict().values():
        made.update(value.numpy().tobytes())
    return cache_dir() / "benchmarks" / f"resnet20-adversarial-{made.hexdigest()[:16]}.safetensors"


def _harden(module: nn.Module, epochs: int = EPOCHS) -> None:
    """Train a module on adversarial digits, in place, seeded."""
    images, labels = defend.dataset("digits").tensors("train")
    module.requires_grad_(True).train()
    adam = torch.optim.Adam(module.parameters(), LR)
    total = epochs * (len(images) // BATCH)
    cycle = torch.optim.lr_scheduler.OneCycleLR(adam, LR, total_steps=total)
    with torch.random.fork_rng([]), progress() as shown:
        torch.manual_seed(0)
        task = shown.add_task("adversarial training of a victim", total=total)
        for _ in range(epochs):
            for some in torch.randperm(len(images)).split(BATCH)[: len(images) // BATCH]:
                clean, true = augment(images[some], SHIFT, flips=False), labels[some]
                eps = torch.full((len(some),), HARD_EPS)
                point = project_linf(clean + (2 * torch.rand_like(clean) - 1) * HARD_EPS, clean, eps)
                point.requires_grad_()
                (slope,) = torch.autograd.grad(F.cross_entropy(module(point), true), point)
                point = project_linf(point.detach() + STRETCH * HARD_EPS * slope.sign(), clean, eps)
                adam.zero_grad()
                F.cross_entropy(module(point), true).backward()
                adam.step()
                cycle.step()
                shown.advance(task)
