"""A whole defence of CIFAR-10 that was measured and is kept, with its ladder. Imports no torch."""

from __future__ import annotations

from defend.recipes import Recipe

RESULTS = "defend_dae_finetune.results"

RECIPES = (
    Recipe(
        name="cifar10-robust",
        summary="CIFAR-10, eps 8/255: ResNet-20, adversarially trained, and nothing before it",
        config={
            "victim": "resnet20",
            "dataset": "cifar10",
            "finetune": "adversarial",
            "eps": 8 / 255,
            "sources": ("none",),  # or what it is attacked with hangs on which other plugins are installed
        },
        why=(
            "The autoencoder stops attackers who do not know of it, and hardly any who do. Before this victim it "
            "costs: the whole ladder leaves 20 of the same 50 images with it, 24 without."
        ),
        notes=("Its training was made for one CPU core: two steps for each attack, nine epochs, 272,474 parameters.",),
        results=RESULTS,
    ),
)
