"""What this package offers to `defend`. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from defend import Paper, StageSpec, hookimpl
from defend_unet_gan.config import UnetGanOptions, UnetGanRecipe

PAPER = Paper(title="Robust Recovery of Adversarial Examples")
GREY: Mapping[str, Any] = {"sources": ("resnet34", "resnet18"), "classifier": "resnet34"}
RECIPES: Mapping[str, Mapping[str, Any]] = {
    # resnet18 is the one victim that core ships; E_max 32 holds eps = 0.1 (25.5/255) with room above. 1,097 images
    # make 11 steps of 96 an epoch and converge in few passes: smaller batches, a larger rate that falls.
    "digits": {
        "sources": ("resnet18",), "classifier": "resnet18", "eps_max": 32, "epochs": 20, "post_epochs": 5,
        "batch_size": 32, "lr": 1e-3, "schedule": "one_cycle",
    },
    # timm's inception_v3 takes no images under 75 pixels, its vgg13_bn none under 32
    "cifar10": {"sources": ("resnet34", "resnet18", "vgg13_bn"), "classifier": "resnet34"},
    "mnist": {**GREY, "eps_max": 96},
    "fashion_mnist": {**GREY, "eps_max": 32},
}  # fmt: skip


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
            weights="defend_unet_gan.weights",
        )
    ]
