"""What this package offers to `defend`. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from defend import StageSpec, hookimpl
from defend.attacks.options import BimOptions, FgsmOptions, PgdOptions
from defend.recipes import Recipe
from defend.tables import Table
from defend_puvae_detect.config import ClassifierRecipe, PuvaeOptions, PuvaeRecipe
from defend_puvae_detect.recipes import RECIPES
from defend_puvae_detect.tables import MEASUREMENTS, PAPER, STAND_INS, TABLES

WEIGHTS = "defend_puvae_detect.weights"
# A sixteenth of the parameters, and a fiftieth of the images seen: C's 27.8 million are 56 MB, and 350 epochs days on a
# CPU. So short a training needs RC heavier, or nothing comes through the noise on z (README). See edition "paper".
COMPACT: Mapping[str, Any] = {
    "width": 8,
    "hidden": 256,
    "epochs": 8,
    "batch_size": 64,
    "lr": 2e-3,
    "schedule": "one_cycle",
    "rc_weight": 1.0,
}
EDITIONS: Mapping[str, Mapping[str, Any]] = {
    "paper": {  # for grey images; on cifar10 the usual weights are the paper's
        "width": 32,
        "hidden": 1024,
        "epochs": 350,
        "batch_size": 512,
        "lr": 1e-3,
        "schedule": "constant",
        "rc_weight": 0.01,
    },
    # for cifar10, before a network that ships (its plugin: dae_finetune)
    "compact": {**COMPACT, "classifier": "resnet20", "fpr": 0.03},
    # the paper's weight on the compact network, in 36,000 steps of 64: whether it is RC that keeps its softmax usable.
    # [R] the rate is the paper's 1e-3 for batches of 512, by the square root: in one cycle up to 2e-3, as the usual
    # weights have it, the latent collapsed after some 9,500 steps (README)
    "rc-0.01": {"epochs": 42, "rc_weight": 0.01, "lr": 3.5e-4, "schedule": "constant"},
}
CLASSIFIER_EDITIONS: Mapping[str, Mapping[str, Any]] = {
    "paper": {"epochs": 64, "lr": 1e-3, "schedule": "constant"},  # MNIST's 64 epochs
}
COSTS_A: Mapping[str, str] = {"mnist": "10 min on one CPU core", "fashion_mnist": "25 min on one CPU core"}


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
                "mnist": {**COMPACT, "fpr": 0.001},
                "fashion_mnist": COMPACT,
                "cifar10": {"classifier": "classifier_b", "epochs": 1024, "batch_size": 256, "fpr": 0.03},
                # 1,097 images make 35 steps of 32 an epoch, where MNIST's 54,000 make 105 of 512: more and larger
                # steps, and RC a hundred times heavier, or nothing comes through the noise on z so soon (README).
                "digits": {"epochs": 120, "batch_size": 32, "lr": 2e-3, "schedule": "one_cycle", "rc_weight": 1.0},
            },
            editions=EDITIONS,
            costs={
                "digits": "8 min on one CPU core",
                "mnist": "28 min on one CPU core",
                "fashion_mnist": "28 min on one CPU core",
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
            editions=EDITIONS,
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
                summary=f"classifier {letter.upper()} of Wester 2020: {summary}",
                build=f"defend_puvae_detect.classifiers:build_{letter}",
                paper=PAPER,
                train=f"defend_puvae_detect.classifiers:train_{letter}",
                recipe=ClassifierRecipe,
                recipes={
                    # one cycle reaches 99.3 and 91.9 % in a tenth of the notebook's epochs and less (99.2 and 92.2 %)
                    "mnist": {"epochs": 6, "lr": 2e-3, "schedule": "one_cycle"},
                    "fashion_mnist": {"epochs": 14, "lr": 2e-3, "schedule": "one_cycle"},
                    "cifar10": {"epochs": 350, "batch_size": 64},
                    "digits": {"batch_size": 64},
                },
                editions=CLASSIFIER_EDITIONS if letter == "a" else {},
                costs=COSTS_A if letter == "a" else {},
                weights=WEIGHTS,
            )
        )
    return specs


@hookimpl
def defend_attacks() -> Sequence[StageSpec]:
    """The attacks of the author's notebook, which its columns with the detector were made with."""
    return [
        StageSpec(
            name=f"{name}_rejecting",
            summary=f"{name.upper()} on a defence whose answer to a rejected image is a constant, as its author has it",
            build=f"defend_puvae_detect.attacks:{name}",
            config=config,
            paper=PAPER,
            threats=("adaptive",),
        )
        for name, config in (("fgsm", FgsmOptions), ("bim", BimOptions), ("pgd", PgdOptions))
    ]


@hookimpl
def defend_tables() -> Sequence[Table]:
    """The paper's Tables 3 to 5, what explains them, and what stands in for one."""
    return (*TABLES, *MEASUREMENTS, *STAND_INS)


@hookimpl
def defend_recipes() -> Sequence[Recipe]:
    """The defences that were found by measuring."""
    return RECIPES
