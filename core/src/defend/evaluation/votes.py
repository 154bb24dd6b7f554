"""Votes over a purifier's Gaussian noise (Cohen et al. 2019, arXiv:1902.02918): how they are counted, what is clear."""

from __future__ import annotations

import functools
from statistics import NormalDist
from typing import Any

import torch
from torch import Tensor

from defend.boundary.held import as_before
from defend.defence import Defence
from defend.randomness import keyed
from defend.records.rows import REJECTED
from defend.util.statistics import lower_bound

SELECTION = 100  # draws that choose the class, apart from those that count it (the paper's n0)
ALPHA = 0.001  # the paper's: chance that a certificate is wrong


def radius_of(agreed: int, draws: int, sigma: float) -> float:
    """Return a vote's certified L2 radius, 0 for an abstention: sigma times the normal quantile of its lower bound."""
    bound = lower_bound(agreed, draws, ALPHA)
    return sigma * NormalDist().inv_cdf(bound) if bound > 0.5 else 0.0


@functools.cache
def enough(draws: int) -> int:
    """Return how many of so many draws must agree for a clear vote; one more than there are where none is clear."""
    low, high = 0, draws + 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if lower_bound(middle, draws, ALPHA) > 0.5 else (middle, high)
    return high


def count(
    defence: Defence,
    image: Tensor,
    key: int,
    draws: int,
    *,
    seed: int,
    stream: str,
    batch_size: int,
    of: int | None = None,
    until: int | None = None,
) -> Tensor:
    """Return how many of the draws got each class: int64 [K], on the CPU.

    Args:
        defence: whose first purifier adds the noise.
        image: [C,H,W], on its device.
        key: the image's own, so that it has draws of its own.
        draws, batch_size: how many, and how many at a time.
        seed, stream: of the draws.
        of, until: stop once the class `of` has so many, or can have them no more.
    """
    votes = torch.zeros(0, dtype=torch.int64)
    for start in range(0, draws, batch_size):
        some = min(batch_size, draws - start)
        # a key of its own for every draw of every image, however the draws are cut into batches
        keys = (key << 32) + torch.arange(start, start + some, device=image.device)
        with keyed(keys, seed=seed, stream=f"certify/{stream}"), as_before(defence, "a pass"):
            verdict = defence.judge(image.expand(some, *image.shape))
        got = verdict.labels.cpu().bincount(minlength=verdict.logits.shape[1])
        votes = got if not len(votes) else votes + got
        if of is not None and until is not None:
            has = int(votes[of])
            if has >= until or has + draws - start - some < until:
                break
    return votes


def decide(defence: Defence, image: Tensor, key: int, draws: int, *, seed: int, stream: str, batch_size: int) -> int:
    """Return the class of the vote, or `REJECTED` where it abstains.

    It is decided as the paper's CERTIFY decides: draws of their own choose a class, and it stands if, of the other
    draws, the one-sided lower bound of its share is above a half. The paper's PREDICT is another rule, a two-sided test
    of the two most frequent classes of one set of draws.
    """
    how: dict[str, Any] = {"seed": seed, "batch_size": batch_size}
    chosen = int(count(defence, image, key, SELECTION, stream=f"{stream}/select", **how).argmax())
    needed = enough(draws)
    votes = count(defence, image, key, draws, stream=f"{stream}/count", of=chosen, until=needed, **how)
    return chosen if int(votes[chosen]) >= needed else REJECTED
