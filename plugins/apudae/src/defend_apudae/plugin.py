"""What this package offers to `defend`. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence

from defend import Paper, StageSpec, hookimpl
from defend_apudae.config import ApudaeOptions, ApudaeRecipe, CounterAttackAOptions, CounterAttackBOptions

PAPER = Paper(
    title="Towards Adversarial Purification using Denoising AutoEncoders",
    authors="Kalaria, Hazra and Chakrabarti",
    year=2022,
    url="https://arxiv.org/abs/2208.13838",
)


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
                "digits": {"epochs": 160, "lr": 2e-3, "schedule": "one_cycle", "batch_size": 64, "s_max": 0.8}
            },
            weights="defend_apudae.weights",
            counter_attacks=("apudae_a",),
        )
    ]


@hookimpl
def defend_attacks() -> Sequence[StageSpec]:
    """The paper's counter-attacks, for a purifier `apudae`."""
    return [
        StageSpec(
            name="apudae_a",
            summary="counter-attack A of APuDAE: PGD through classifier(autoencoder(x))",
            build="defend_apudae.counter_attacks:build_a",
            config=CounterAttackAOptions,
            paper=PAPER,
            threats=("adaptive",),
        ),
        StageSpec(
            name="apudae_b",
            summary="counter-attack B of APuDAE: PGD that also keeps the reconstruction error low",
            build="defend_apudae.counter_attacks:build_b",
            config=CounterAttackBOptions,
            paper=PAPER,
            threats=("adaptive",),
        ),
    ]
