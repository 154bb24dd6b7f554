"""What this package offers to `defend`. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from defend import StageSpec, hookimpl
from defend.tables import Table
from defend_vaegan.config import StraightOptions, VaeganOptions, VaeganRecipe
from defend_vaegan.tables import PAPER, TABLES

# Digits' 1,097 images make 17 steps an epoch, not the 937 of 60,000: a larger rate that falls; and pixels beside the
# features, with more weight in the decoder, for reconstructions must keep the class (README).
EARNEST: Mapping[str, Any] = {"lr": 1e-3, "lr_last": 0.02, "gamma": 5e-3, "pixel_weight": 30.0}
# The paper's 10,000 images and 50 epochs; a quarter of the channels, for a CPU.
SMALL: Mapping[str, Any] = {"train_subset": 10_000, "width": 0.25, **EARNEST}


@hookimpl
def defend_purifiers() -> Sequence[StageSpec]:
    """The purifier `vaegan`."""
    return [
        StageSpec(
            name="vaegan",
            summary="moves images along the gradient of a VAE-GAN's discriminator, then decodes their latent",
            build="defend_vaegan.purifier:build",
            config=VaeganOptions,
            paper=PAPER,
            train="defend_vaegan.training:train",
            recipe=VaeganRecipe,
            recipes={"digits": {"epochs": 80, **EARNEST}, "mnist": SMALL, "fashion_mnist": SMALL},
            costs={
                "digits": "7 min on one CPU core",
                "mnist": "an hour on one CPU core",
                "fashion_mnist": "an hour on one CPU core",
            },
            weights="defend_vaegan.weights",
            counter_attacks=("vaegan_straight",),
        )
    ]


@hookimpl
def defend_attacks() -> Sequence[StageSpec]:
    """An attack made against the purifier `vaegan`."""
    return [
        StageSpec(
            name="vaegan_straight",
            summary="PGD that sees of a vaegan purifier only the autoencoder in its gradient",
            build="defend_vaegan.attacks:build",
            config=StraightOptions,
            threats=("adaptive",),
        )
    ]


@hookimpl
def defend_tables() -> Sequence[Table]:
    """The paper's one result, as Table 1."""
    return TABLES
