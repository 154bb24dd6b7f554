"""The paper's settings, and our decisions where it gives none, each with its reason. Imports no torch.

[P] stands in the paper, [S] in another primary source, [R] is our decision. The authors published no code.
"""

from __future__ import annotations

from defend import option, options

LARGEST = 255  # eps is counted in steps of 8-bit images


@options
class UnetGanOptions:
    """Options of the purifier."""

    mode: str = option(
        "image",
        help="what the network paints: the clean image, or noise that is added to the given one [P: both]",
        choices=("image", "noise"),
        architecture=True,
    )
    width: int | None = option(
        None,
        help="channels of the first stage, doubled at each of the three that follow; None: 64 for colour "
        "[R: 4.00 M parameters, fewer than VGG-13 has], 16 for grey images [R: with the keys pooled a sixteenth of "
        "the arithmetic]",
        at_least=8,
        at_most=512,
        architecture=True,
    )
    up_kernel: int = option(
        1,
        help="kernel of the convolution before a PixelShuffle [R: 1 gives 4.00 M parameters, 3 gives 9.51 M, and the "
        "paper wants fewer than VGG-13's 9.42 M]",
        choices=(1, 3),
        architecture=True,
    )
    key_stride: int | None = option(
        None,
        help="keys and values of every attention are max-pooled by it: 1 not at all [R: the paper names no "
        "pooling], 2 as SAGAN's code does [S]; None: 1 for colour, 2 for grey images [R: a quarter of the "
        "attention's arithmetic]",
        choices=(1, 2),
        architecture=True,
    )
    noise_scale: float | None = option(
        None,
        help="noise mode: the largest change of a pixel, in [0,1] units; None: E_max/255 of the training [P]",
        at_least=0,
        at_most=1,
    )


@options
class UnetGanRecipe:
    """How generator and discriminator are trained: stage 1 as a GAN, stage 2 on a classifier's features [P]."""

    epochs: int = option(
        100, help="passes of stage 1 over the training images [R: a usual length; not compared]", at_least=1
    )
    post_epochs: int = option(
        20, help="passes of stage 2, the post-training [R: a fifth of stage 1; not compared]", at_least=0
    )
    batch_size: int = option(96, help="images a step [P: 3 victims x 2 attacks x 16]", at_least=1)
    lr: float = option(
        2e-4,
        help="Adam's rate in stage 1 and of the discriminator, betas (0.5, 0.999) [R: DCGAN's, Radford et al. 2016]",
        at_least=0,
    )
    post_lr: float = option(1e-4, help="Adam's rate in stage 2 [R: half of stage 1's; not compared]", at_least=0)
    schedule: str = option(
        "constant",
        help="of the rates: constant [R: the paper names none], or one_cycle up to them in either stage",
        choices=("constant", "one_cycle"),
    )
    sources: tuple[str, ...] = option(
        ("inception_v3", "resnet18", "vgg13_bn"), help="victims that the training attacks come from, by name [P]"
    )
    classifier: str = option(
        "inception_v3",
        help="victim whose cross-entropy and features train the generator, by name [R: the one before which all of the "
        "paper's tables judge]",
    )
    eps_max: int = option(
        16,
        help="E_max: every image gets a whole eps from 1 to it, in 1/255 [P: 16 in Table 1, 128 in Tables 2 and 3]",
        at_least=1,
        at_most=LARGEST,
    )
    clean_share: float = option(0.0, help="chance that an image is left clean, eps 0 [P: 0]", at_least=0, at_most=1)
    labels: str = option(
        "true",
        help="labels the attacks raise the loss of: true [P], which tells the network the answer (README); predicted, "
        "which differ only where a source is wrong; random, which tell it nothing [R]",
        choices=("true", "predicted", "random"),
    )
    random_step: float = option(
        0.5,
        help="R-FGSM's random step a, as a share of eps [R: Tramer et al.'s usual setting, from memory; their script "
        "has a = 0.05 by default, S]",
        at_least=0,
        at_most=1,
    )
    l1: float = option(100.0, help="stage 1: weight of L1(x_hat, x) [R: pix2pix's, Isola et al. 2017]", at_least=0)
    adversarial: float = option(1.0, help="weight of the adversarial loss [R: pix2pix's]", at_least=0)
    cross_entropy: float = option(
        1.0, help="stage 1: weight of CE(f(x_hat), y) [R: as heavy as the adversarial loss; not compared]", at_least=0
    )
    post_adversarial: bool = option(
        False, help="keep the adversarial loss in stage 2: the paper's Image Reconstruction-2 [P]"
    )
