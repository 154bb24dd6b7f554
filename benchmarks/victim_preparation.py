"""A resnet18's forward and input gradient on digits: as built, and as `defend.speed.prepare` leaves it."""

from __future__ import annotations

import torch

import defend
from benchmarks.timing import compare
from defend.speed import prepare

IMAGES = 64


def main() -> None:
    """Compare the plain module, frozen, and frozen with folding and channels-last."""
    plain = defend.load("resnet18")
    images, labels = defend.dataset("digits").tensors("test", limit=IMAGES)
    contenders = {
        "as built": plain,
        "frozen (--precision exact)": prepare(plain, "exact", images[:4])[0],
        "frozen, folded, channels-last (auto)": prepare(plain, "fp32", images[:4])[0],
    }

    def step(module: torch.nn.Module) -> None:
        point = images.clone().requires_grad_()
        torch.autograd.grad(torch.nn.functional.cross_entropy(module(point), labels), point)

    compare({name: lambda module=module: step(module) for name, module in contenders.items()}, IMAGES)


if __name__ == "__main__":
    main()
