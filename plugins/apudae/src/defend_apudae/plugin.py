"""What this package offers to `defend`. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from defend import StageSpec, hookimpl
from defend.tables import Table
from defend.victims.plugin import VictimRecipe
from defend_apudae.config import ApudaeOptions, ApudaeRecipe, CounterAttackAOptions, CounterAttackBOptions, MlpOptions
from defend_apudae.tables import MEASUREMENTS, PAPER, TABLES

WEIGHTS = "defend_apudae.weights"
MLP: Mapping[str, Any] = {"epochs": 3, "lr": 2e-3, "weight_decay": 0.0, "shift": 0}


@hookimpl
def defend_purifiers() -> Sequence[StageSpec]:
    """The purifier `apudae`."""
    return [
        StageSpec(
            name="apudae",
            summary="descends the reconstruction error of a denoising autoencoder, variants A to G",
            build="defend_apudae.purifier:build",
            config=ApudaeOptions,
            paper=PAPER,
            train="defend_apudae.training:train",
            recipe=ApudaeRecipe,
            recipes={
                # 1,097 images make 9 steps an epoch, not MNIST's 430: more epochs, a larger rate that falls;
                # and stronger noise, which denoises eps = 0.1 better on these upsampled digits (README).
                "digits": {"epochs": 160, "lr": 2e-3, "schedule": "one_cycle", "batch_size": 64, "s_max": 0.8},
                # after 220 steps with s_max = 0.2, PGD of eps 0.3 on classifier A left 0 of 200 held-out images; after
                # 12 epochs with 0.5 and noise that is not clipped, the direct output was better than the descent
                "mnist": {"epochs": 12, "lr": 2e-3, "schedule": "one_cycle", "s_max": 0.7, "clip": True},
                "fashion_mnist": {"epochs": 12, "lr": 2e-3, "schedule": "one_cycle", "s_max": 0.7, "clip": True},
                # never run to its end: patches, as a pass over whole images is 50 times CIFAR-10's work an image
                "imagenet": {"epochs": 1, "lr": 1e-3, "schedule": "one_cycle", "batch_size": 64, "crop": 96},
            },
            # CIFAR-10's usual weights saw 5 epochs; 14 of 16-pixel crops cost what 3.5 of whole images do, and denoise
            editions={
                "crops": {"epochs": 14, "batch_size": 64, "lr": 1e-3, "schedule": "one_cycle", "crop": 16},
            },
            costs={
                "digits": "16 min on one CPU core",
                "cifar10+crops": "90 min on one CPU core",
                "mnist": "66 min on one CPU core",
                "fashion_mnist": "65 min on one CPU core",
            },
            weights=WEIGHTS,
            counter_attacks=("apudae_a",),
        )
    ]


@hookimpl
def defend_victims() -> Sequence[StageSpec]:
    """The victim of the paper's MNIST tables."""
    return [
        StageSpec(
            name="mlp",
            summary="fully connected, one hidden layer of 128 neurons, for small grey images",
            build="defend_apudae.victims:build",
            config=MlpOptions,
            paper=PAPER,
            train="defend_apudae.victims:train",
            recipe=VictimRecipe,
            recipes={"mnist": MLP, "fashion_mnist": {**MLP, "epochs": 5}},
            editions={"two-layers": {"hidden": 256, "layers": 2, "dropout": 0.2, "epochs": 10}},
            costs={
                "mnist": "10 s on one CPU core",
                "mnist+two-layers": "2 min on one CPU core",
                "fashion_mnist": "20 s on one CPU core",
            },
            weights=WEIGHTS,
        )
    ]


@hookimpl
def defend_tables() -> Sequence[Table]:
    """The paper's Tables 2 to 5, and what explains them."""
    return (*TABLES, *MEASUREMENTS)


@hookimpl
def defend_attacks() -> Sequence[StageSpec]:
    """The paper's counter-attacks, for a purifier `apudae`."""
    return [
        StageSpec(
            name="apudae_a",
            summary="counter-attack A of APuDAE: PGD through classifier(autoencoder(x))",
            build="defend_apudae.attacks:build_a",
            config=CounterAttackAOptions,
            paper=PAPER,
            threats=("adaptive",),
        ),
        StageSpec(
            name="apudae_b",
            summary="counter-attack B of APuDAE: PGD that also keeps the reconstruction error low",
            build="defend_apudae.attacks:build_b",
            config=CounterAttackBOptions,
            paper=PAPER,
            threats=("adaptive",),
        ),
    ]
