"""Figures from per-image records: pure functions of tensors."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from defend.errors import ConfigError
from defend.util.statistics import wilson

WHOLE = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # types by their bytes
ROUNDING = 1e-9  # 0.29 * 100 is 28.999999999999996 in floats


def check_rate(fpr: float, n: int) -> None:
    """Refuse a false-positive rate that n held-out clean images cannot tell from zero.

    Raises:
        ConfigError: it is no rate, or there are fewer than 1/fpr images.
    """
    if not 0 < fpr < 1:
        raise ConfigError(f"fpr {fpr:g} is out of range: expected above 0 and below 1, for example 0.01")
    if fpr * n + ROUNDING < 1:
        raise ConfigError(
            f"a false-positive rate of {fpr:g} needs at least {math.ceil(1 / fpr - ROUNDING)} held-out clean images, "
            f"and there are {n}: ask for {1 / max(n, 1):.2g} or more"
        )


def threshold_at(scores: Tensor, fpr: float) -> float:
    """Return the smallest threshold that rejects at most a share `fpr` of clean images' scores.

    A score at the threshold or above is rejected, so it stands just above the highest score that may stay. Where more
    than that share have the highest score of all, as of a detector that saturates, that rejects none.

    Args:
        scores: of held-out clean images, [N].
        fpr: the false-positive rate to keep to, in (0,1).

    Raises:
        ConfigError: too few images to tell such a rate from zero (fewer than 1/fpr), or all scores equal.
    """
    n = len(scores)
    check_rate(fpr, n)
    allowed = math.floor(fpr * n + ROUNDING)
    if not torch.isfinite(scores).all():
        raise ConfigError("the detector's scores of clean images are not finite: no threshold can be set")
    ordered = scores.detach().float().cpu().sort(descending=True).values
    kept = ordered[allowed] if allowed < n else ordered[-1]
    if ordered[0] == ordered[-1]:
        raise ConfigError(f"the detector gives every clean image the score {float(kept):g}: no threshold can be set")
    return float(torch.nextafter(kept, torch.tensor(math.inf)))


def round_up(value: float, dtype: torch.dtype) -> Tensor:
    """Return the smallest number of a type of floats that is not below a value, []; infinite above its range."""
    near = torch.tensor(value, dtype=dtype)
    if float(near) >= value:
        return near
    # neighbouring numbers have neighbouring bits, of which the sign is apart
    bits = near.view(WHOLE[near.element_size()])
    return (bits + 1 if float(near) >= 0 else bits - 1).view(dtype)


def auroc(clean: Tensor, attacked: Tensor) -> float:
    """Return the area under the ROC curve of scores that should be higher on attacked images.

    The chance that an attacked image's score [M] exceeds a clean one's [N], ties counted half (Mann and Whitney).
    """
    together = torch.cat([clean, attacked]).double()
    _, inverse, counts = together.unique(return_inverse=True, return_counts=True)
    upto = counts.cumsum(0).double()
    ranks = (upto - (counts.double() - 1) / 2)[inverse]  # of tied scores the mean rank
    n, m = len(clean), len(attacked)
    return float((ranks[n:].sum() - m * (m + 1) / 2) / (n * m)) if n and m else float("nan")


def tpr_at(clean: Tensor, attacked: Tensor, fpr: float) -> float:
    """Return the share of attacked images above the threshold that rejects at most `fpr` of the clean ones."""
    allowed = math.floor(fpr * len(clean) + 1e-9)
    if len(clean) == 0 or allowed >= len(clean):
        return 1.0
    bound = clean.sort(descending=True).values[allowed]
    return share(attacked > bound)


def proportion(which: Tensor) -> dict[str, Any]:
    """Return the share of a bool tensor [N] and its Wilson interval: "accuracy" and "ci95"."""
    return {"accuracy": share(which), "ci95": wilson(int(which.sum()), len(which))}


def share(which: Tensor) -> float:
    """Return the share of a bool tensor [N] that is True; 0 of none."""
    return float(which.double().mean()) if len(which) else 0.0
