"""What this package offers to `defend`. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from defend import StageSpec, hookimpl
from defend.tables import Table
from defend_unet_gan.config import UnetGanOptions, UnetGanRecipe
from defend_unet_gan.stand_ins import STAND_INS
from defend_unet_gan.tables import PAPER, TABLES

GREY: Mapping[str, Any] = {"sources": ("resnet34", "resnet18"), "classifier": "resnet34"}
RECIPES: Mapping[str, Mapping[str, Any]] = {
    # one source, of the two victims that core ships; E_max 32 holds eps = 0.1 (25.5/255) with room above. 1,097 images
    # make 11 steps of 96 an epoch and converge in few passes: smaller batches, a larger rate that falls.
    "digits": {
        "sources": ("resnet18",),
        "classifier": "resnet18",
        "eps_max": 32,
        "epochs": 20,
        "post_epochs": 5,
        "batch_size": 32,
        "lr": 1e-3,
        "schedule": "one_cycle",
    },
    "mnist": {**GREY, "eps_max": 96},
    "fashion_mnist": {**GREY, "eps_max": 32},
}
# [R] for the stand-ins of the tables: what one CPU core trains on CIFAR-10 within the hour, in front of the one
# network whose weights come with a plugin. Narrow and with pooled keys, a sixteenth of the arithmetic.
NARROW: Mapping[str, Any] = {
    "width": 16,
    "key_stride": 2,
    "sources": ("resnet20",),
    "classifier": "resnet20",
    "epochs": 1,
    "post_epochs": 1,
    "batch_size": 32,
    "lr": 1e-3,
    "schedule": "one_cycle",
}
EDITIONS: Mapping[str, Mapping[str, Any]] = {
    "noise": {"mode": "noise"},  # Table 1, Noise
    "image-2": {"post_adversarial": True},  # Table 1, Image Reconstruction-2
    "eps128": {"eps_max": 128},  # Tables 2 and 3
    "narrow": NARROW,
    "narrow-noise": {**NARROW, "mode": "noise"},
    "narrow-image-2": {**NARROW, "post_adversarial": True},
    "narrow-eps128": {**NARROW, "eps_max": 128},
}


@hookimpl
def defend_purifiers() -> Sequence[StageSpec]:
    """The purifier `unet_gan`."""
    return [
        StageSpec(
            name="unet_gan",
            summary="an attention U-Net trained as a GAN on single-step attacks paints the image clean",
            build="defend_unet_gan.purifier:build",
            config=UnetGanOptions,
            paper=PAPER,
            train="defend_unet_gan.training:train",
            recipe=UnetGanRecipe,
            recipes=RECIPES,
            editions=EDITIONS,
            weights="defend_unet_gan.weights",
        )
    ]


@hookimpl
def defend_tables() -> Sequence[Table]:
    """The paper's Tables 1 to 3, and the same before a ResNet-20."""
    return (*TABLES, *STAND_INS)
