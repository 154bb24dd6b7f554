"""FGSM, BIM and PGD as the author's notebook makes them: on a defence that answers a rejected image with a constant.

The notebook's network has eleven outputs [C]. Where an image is accepted they are the ten logits and a 0; where it is
rejected they are ten zeros and a 1, whatever the image is. So the attack has no gradient there, and none that tells it
how to be accepted.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from defend.attacks.iterated import Bim, Pgd
from defend.attacks.objectives import Objective
from defend.attacks.options import BimOptions, FgsmOptions, PgdOptions
from defend.attacks.single_step import Fgsm
from defend.errors import ConfigError


def rejecting(scale: float | None) -> Objective:
    """Return the cross-entropy of the notebook's eleven outputs, constant where an image is rejected.

    Args:
        scale: what the ten logits are multiplied by; None: 1.

    Raises:
        ConfigError: when called on a module without a detector, which rejects nothing.
    """

    def objective(module: Any, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        detector = getattr(module, "detector", None)
        if detector is None:
            raise ConfigError(
                "the attack is made on a defence that rejects, and this one has no detector: add one (--detector "
                "puvae), or take fgsm, bim or pgd"
            )
        logits, scores = module.answer(images)
        accepted = F.pad((scale or 1.0) * logits, (0, 1))
        rejected = F.pad(torch.zeros_like(logits), (0, 1), value=1.0)
        outputs = torch.where((scores < detector.threshold)[:, None], accepted, rejected)
        return F.cross_entropy(outputs, labels, reduction="none"), logits

    return objective


def fgsm(config: FgsmOptions) -> Fgsm:
    """Build FGSM on the eleven outputs."""
    return Fgsm(config, rejecting(config.logit_scale))


def bim(config: BimOptions) -> Bim:
    """Build BIM on the eleven outputs; they are not the defence's own answer, so it takes all its steps."""
    return Bim(config, objective=rejecting(config.logit_scale), judged=False)


def pgd(config: PgdOptions) -> Pgd:
    """Build PGD on the eleven outputs; they are not the defence's own answer, so it takes all its steps."""
    return Pgd(config, rejecting(config.logit_scale), judged=False)
