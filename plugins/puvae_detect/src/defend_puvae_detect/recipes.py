"""Whole defences that were measured and are kept, with their ladders. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from defend.recipes import Recipe

RESULTS = "defend_puvae_detect.results"

RESTARTED: Mapping[str, Mapping[str, Any]] = {"apgd_ce": {"restarts": 5}, "apgd_dlr": {"restarts": 5}}
"""With one start each, no gradient found two images of 200 that Square fools in L-inf; with five, it finds these two
(MNIST, the victim trained in that norm alone)."""

ALONE = (
    "A purifier that never was part of the training takes away what the training has given: who knows puvae attacks "
    "through it, before a victim adversarially trained within L-inf as before the plain one."
)
BOTH_NORMS = (
    "Half of its training images were attacked within L-inf, half within L2: trained against L-inf alone it keeps more "
    "under L-inf attacks, and less under both."
)
MORE_STARTS = (
    "Auto-PGD had one start in L2: five of either loss take 5 more of the 200 images, and leave 53.0 %. 10 that Square "
    "fools in L2 no gradient finds, with one start or five (check 2)."
)
SOURCES = "Transferred images are those made on the victim before its tuning; other victims are no source of them."


def _robust(name: str, dataset: str, title: str, eps: float, why: str, notes: tuple[str, ...], **config: Any) -> Recipe:
    return Recipe(
        name=name,
        summary=f"{title}, eps {eps}: classifier A, adversarially trained, and nothing before it",
        config={
            "victim": "classifier_a",
            "dataset": dataset,
            "finetune": "adversarial",
            "eps": eps,
            "sources": ("none",),  # or what it is attacked with hangs on which other plugins are installed
            "options": RESTARTED,
            **config,
        },
        why=why,
        notes=notes,
        results=RESULTS,
    )


RECIPES = (
    _robust(
        "mnist-robust",
        "mnist",
        "MNIST",
        0.3,
        f"{ALONE} {BOTH_NORMS}",
        (SOURCES, MORE_STARTS),
        weights={"finetuner": "+norms"},
    ),
    _robust(
        "fashion-mnist-robust",
        "fashion_mnist",
        "Fashion-MNIST",
        0.1,
        ALONE,
        (SOURCES, "Its training of four epochs was short: the accuracy under attack was still rising when it ended."),
    ),
)
