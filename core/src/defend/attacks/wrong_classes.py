"""Which wrong classes an attack makes for, one after another, and which images it still has to attack."""

from __future__ import annotations

import torch
from torch import Tensor

from defend.attacks.balls import measure_slope
from defend.attacks.objectives import targeted_margin
from defend.attacks.options import TargetsOptions
from defend.attacks.target import Target


def choose_classes(
    config: TargetsOptions,
    target: Target,
    images: Tensor,
    labels: Tensor,
    logits: Tensor,
    keys: Tensor,
    *,
    norm: str,
    stream: str,
) -> Tensor:
    """Return the wrong classes that are tried for each image, in order: int64 [B,T], T at most one less than there are.

    By rank: the largest `logits` [B,K] first. MALT (Melamed et al. 2024, arXiv:2407.02240) takes a network for linear
    as far as a budget reaches, and sorts the first candidates by how far off that puts them: the margin over the length
    of its slope, in the norm that is dual to the budget's (L1 for L-inf). A class whose margin has no slope comes last.
    """
    classes = logits.shape[1]
    others = logits.scatter(1, labels[:, None], -torch.inf)
    ranked = others.argsort(dim=1, descending=True, stable=True)[:, : classes - 1]
    count = min(config.targets, classes - 1)
    candidates = ranked[:, : max(min(config.candidates, classes - 1), count)]
    if config.order == "rank" or candidates.shape[1] == 1:
        return ranked[:, :count]
    far = []
    for aim in candidates.unbind(1):
        # of one step, so that all candidates are compared under the same draws
        slope = target.slope(images, torch.stack((aim, labels), 1), keys, f"{stream}/order", targeted_margin, full=True)
        length = measure_slope(slope.gradient, norm)
        far.append(torch.where(length > 0, slope.loss / length, torch.inf))
    order = torch.stack(far, 1).argsort(dim=1, stable=True)
    return candidates.gather(1, order)[:, :count]


def still_open(target: Target, logits: Tensor, labels: Tensor, early_stop: bool = True) -> Tensor:
    """Return which images are attacked on, as places in the batch: those not fooled.

    All of a random target; and all without `early_stop`, where something else judges them than what is attacked.
    """
    return ((logits.argmax(1) == labels) | target.random | (not early_stop)).nonzero()[:, 0]
