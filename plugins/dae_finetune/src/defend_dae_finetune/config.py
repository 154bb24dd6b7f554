"""The paper's settings, and our decisions where it gives none, each with its reason. Imports no torch.

[P] stands in the paper, [C] in its author's code and logs, [S] in another primary source, [R] is our decision.
"""

from __future__ import annotations

from defend import option, options


@options
class AutoencoderOptions:
    """Options of the purifier."""

    widths: tuple[int, ...] = option(
        (16, 8),
        help="channels of each halving of the image, inwards; the way up is the way down, backwards. 16,8 is Table 1 "
        "[P]; the paper says that it tried other widths and depths, and not what they gave",
        at_least=1,
        at_most=1024,
        architecture=True,
    )


@options
class CraftRecipe:
    """How the fixed adversarial sets are made, once, before any training [P]."""

    eps: float = option(8 / 255, help="L-inf budget of FGSM and PGD, in [0,1] units [P]", above=0, at_most=1)
    pgd_steps: int = option(10, help="PGD's steps, all of them taken: no early stop [P]", at_least=1)
    pgd_step_size: float = option(0.01, help="PGD's step, in [0,1] units [P]", above=0, at_most=1)
    train_subset: int | None = option(
        None,
        help="make the sets of so many training images, of every class its share, and of a tenth as many of val and "
        "test; None: of all [P]; fewer are for CPUs [R]",
        at_least=10,
    )
    craft_precision: str = option(
        "no",
        help="no: gradients in fp32 [P]; bf16: in bfloat16, in half the time where the machine multiplies it itself, "
        "and as many images fooled [R]",
        choices=("no", "bf16"),
    )


@options
class AutoencoderRecipe(CraftRecipe):
    """How the autoencoder is trained: mean squared error to the clean image [P]."""

    victim: str = option("resnet20", help="whose gradients make the adversarial training images [P]")
    inputs: str = option(
        "all",
        help="all: clean, FGSM and PGD images [C], so that clean images stay what they are; adversarial: FGSM and PGD "
        "only [P]",
        choices=("all", "adversarial"),
    )
    epochs: int = option(100, help="passes over the inputs [C]", at_least=1)
    batch_size: int = option(64, help="images a step, of mixed kinds [C]", at_least=1)
    lr: float = option(1e-3, help="Adam's learning rate at first [C: the library's default]", at_least=0)
    factor: float = option(0.2, help="what the rate is multiplied with on a plateau [C]", at_least=0, at_most=1)
    patience: int = option(5, help="epochs without a better training loss that make a plateau [C]", at_least=1)
    min_lr: float = option(1e-4, help="the rate falls no further [C]", at_least=0)
    min_delta: float = option(1e-4, help="how much lower a better loss is [S: Keras' default]", at_least=0)


@options
class FineTuneRecipe(CraftRecipe):
    """How a victim is fine-tuned: cross-entropy on logits, Adam, batch norm in training mode [R: see the README].

    Set 1 holds clean, FGSM and PGD images and the purifier's output for each, set 2 clean images and the purifier's
    three outputs [C].
    """

    schedule: str = option(
        "two_sets",
        help="two_sets: 3 epochs of set 1, 1 of set 2, then 3 of set 2 at the low rate [C, SE-PreResNet-56]; "
        "mix: 3 epochs of set 1 [P, ResNet-20]",
        choices=("two_sets", "mix"),
    )
    repeats: int = option(1, help="multiplies every count of epochs, for small data sets [R]", at_least=1)
    batch_size: int = option(256, help="images a step, of mixed kinds [C]", at_least=2)
    shift: int = option(
        0, help="random shift of up to this many pixels, zero padding; 0, none [C]", at_least=0, at_most=32
    )
    lr: float = option(1e-4, help="Adam's learning rate [P, C]", at_least=0)
    low_lr: float = option(1e-5, help="two_sets: the rate of the last phase [C]", at_least=0)
