"""What this package offers to `defend`. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence

from defend import Paper, StageSpec, hookimpl
from defend_puvae_detect.config import ClassifierRecipe, PuvaeOptions, PuvaeRecipe

PAPER = Paper(
    title="Augmenting Robustness Using Adversarial Detection",
    authors="Wester",
    year=2020,
    url="https://github.com/augustwester/augmenting",
)
WEIGHTS = "defend_puvae_detect.weights"


@hookimpl
def defend_purifiers() -> Sequence[StageSpec]:
    """The purifier `puvae`."""
    return [
        StageSpec(
            name="puvae",
            summary="a conditional VAE reconstructs the image for every label; the closest reconstruction is kept",
            build="defend_puvae_detect.purifier:build",
            config=PuvaeOptions,
            paper=PAPER,
            train="defend_puvae_detect.training:train",
            recipe=PuvaeRecipe,
            recipes={
                "mnist": {"fpr": 0.001},
                "cifar10": {"classifier": "classifier_b", "epochs": 1024, "batch_size": 256, "fpr": 0.03},
                # 1,097 images make 35 steps of 32 an epoch, where MNIST's 54,000 make 105 of 512: more and larger
                # steps, and RC a hundred times heavier, or nothing comes through the noise on z so soon (README).
                "digits": {"epochs": 120, "batch_size": 32, "lr": 2e-3, "schedule": "one_cycle", "rc_weight": 1.0},
            },
            weights=WEIGHTS,
        )
    ]


@hookimpl
def defend_detectors() -> Sequence[StageSpec]:
    """The detector `puvae`, which scores with the purifier's network."""
    return [
        StageSpec(
            name="puvae",
            summary="rejects images whose best reconstruction by the purifier puvae has a high error",
            build="defend_puvae_detect.detector:build",
            config=PuvaeOptions,
            paper=PAPER,
            weights=WEIGHTS,
            weights_of="purifier",
        )
    ]


@hookimpl
def defend_victims() -> Sequence[StageSpec]:
    """The paper's classifiers A and B."""
    specs = []
    for letter, summary in (("a", "two convolutions for 28x28 images"), ("b", "three convolutions for 32x32 images")):
        specs.append(
            StageSpec(
                name=f"classifier_{letter}",
                summary=f"classifier {letter.upper()} of paper 003: {summary}",
                build=f"defend_puvae_detect.classifiers:build_{letter}",
                paper=PAPER,
                train=f"defend_puvae_detect.classifiers:train_{letter}",
                recipe=ClassifierRecipe,
                recipes={
                    "fashion_mnist": {"epochs": 256},
                    "cifar10": {"epochs": 350, "batch_size": 64},
                    "digits": {"batch_size": 64},
                },
                weights=WEIGHTS,
            )
        )
    return specs
