"""What a random defence loses to an attack that keeps the image that fools most draws, and not its last one.

python -m benchmarks.kept --purifier noise puvae --limit 100 --draws 20 --steps 10

The same PGD, as the adaptive threat sets it, with the choice and without it, on the same images; each is judged under
the same new draws. Right is the share of (image, draw) that is still right; paired images say of how many the one
fools more draws than the other.
"""

from __future__ import annotations

import argparse
import functools
from typing import Any
from unittest import mock

import torch
from torch import Tensor

import defend
from benchmarks.contest import timed
from defend.attacks import iterated
from defend.attacks.keeping import choose as choose_by_draws
from defend.attacks.options import PgdOptions
from defend.defence import Defence
from defend.randomness import keyed
from defend.values.threats import THREATS


def last(*candidates: Any) -> Any:
    """Choose as attacks did that knew of no choice: (target, goal, first, second, ...) to the second."""
    return candidates[3]


@torch.no_grad()
def count_fooled(defence: Defence, images: Tensor, labels: Tensor, passes: int) -> Tensor:
    """Return in how many of `passes` passes each image is misclassified, int64 [N]."""
    keys, fooled = torch.arange(len(images), device=images.device), torch.zeros_like(labels)
    for number in range(passes):
        with keyed(keys, seed=1, stream=f"kept/{number}"):
            fooled += (defence(images).argmax(1) != labels).long()
    return fooled


def main() -> None:
    """Print a line a purifier and schedule of steps."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--purifier", nargs="+", default=["noise"])
    parser.add_argument("--victim", default="resnet18")
    parser.add_argument("--dataset", default="digits")
    for name, value in (("limit", 100), ("draws", 20), ("steps", 10), ("passes", 50)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--eps", type=float, default=0.1)
    parser.add_argument("--device", default="cpu")
    given = parser.parse_args()
    images, labels = (
        part.to(given.device) for part in defend.dataset(given.dataset).tensors("test", limit=given.limit, seed=0)
    )
    for name in given.purifier:
        defence = defend.load(given.victim, dataset=given.dataset, purifier=name).to(given.device)
        for schedule in ("linear", "constant"):
            options = PgdOptions(**{**THREATS["adaptive"].options["pgd"], "steps": given.steps, "schedule": schedule})
            fooled: dict[str, Tensor] = {}
            seconds: dict[str, float] = {}
            for way, choose in (("last", last), ("kept", choose_by_draws)):
                with mock.patch.object(iterated, "choose", choose):
                    target = defend.Target(defence, seed=0, draws=given.draws)
                    work = functools.partial(defend.craft, iterated.Pgd(options), target, images, labels, eps=given.eps)
                    found, seconds[way] = timed(work, images.device)
                fooled[way] = count_fooled(defence, found, labels, given.passes)
            right = {way: 100 * (1 - float(each.double().mean()) / given.passes) for way, each in fooled.items()}
            more = int((fooled["kept"] > fooled["last"]).sum()), int((fooled["kept"] < fooled["last"]).sum())
            print(
                f"{name}, {schedule} steps: last {right['last']:.1f} % right, kept {right['kept']:.1f} %, of "
                f"{len(labels)} images and {given.passes} passes; kept fools more draws of {more[0]} images, fewer of "
                f"{more[1]}; {seconds['last']:.1f} and {seconds['kept']:.1f} s"
            )


if __name__ == "__main__":
    main()
