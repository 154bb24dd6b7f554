"""The paper's settings, and our decisions where it gives none, each with its reason. Imports no torch.

[P] stands in the paper, [S] in another primary source (Larsen et al. 2016 and its code, Defense-GAN's code),
[R] is our decision.
"""

from __future__ import annotations

from defend import option, options
from defend.attacks.options import PgdOptions


@options
class VaeganOptions:
    """Options of the purifier."""

    width: float = option(
        1.0,
        help="multiplies every layer's channels; 1 is Larsen's 32x32 network [S], 12.01 M parameters for grey images; "
        "the shipped digits weights have 0.25 [R: 1,097 images]",
        at_least=1 / 32,
        at_most=4,
        architecture=True,
    )
    latent: int = option(128, help="dimensions of z [S]", at_least=1, at_most=4096, architecture=True)
    mode: str = option(
        "disc_grad",
        help="recon: Dec(mu(x)); disc_grad: climb log Dis(x), then recon; latent: the z whose image is nearest to x "
        "[R: the paper does not spell the step out; its stated novelty is the discriminator's gradient]",
        choices=("recon", "disc_grad", "latent"),
    )
    steps: int = option(20, help="disc_grad: most steps T [R: a usual number for sign steps; not compared]", at_least=1)
    step_size: float = option(
        2 / 255,
        help="disc_grad: step a, in [0,1] units [R: 20 of them go as far as an eps of 0.15; not compared]",
        at_least=0,
        at_most=1,
    )
    radius: float = option(
        0.3, help="disc_grad: furthest a pixel may move from the input [R: the largest eps]", at_least=0, at_most=1
    )
    stop: str = option(
        "no_gain",
        help="disc_grad: no_gain leaves an image where neither log Dis(x) nor the error of its reconstruction got "
        "better, never takes every step [R: the paper names no end; not compared]",
        choices=("no_gain", "never"),
    )
    sign_slope: str = option(
        "smooth",
        help="disc_grad: what an attacker who differentiates the defence sees of a step. smooth: for sign the slope of "
        "a tanh as wide as the mean gradient, for the clip the identity [R]; exact: the true derivatives, zero for "
        "sign and beyond the clip, which blind the attack (README). Results are the same",
        choices=("smooth", "exact"),
    )
    latent_steps: int = option(
        20,
        help="latent: gradient steps L [R: Defense-GAN has 200 [S], from a random z; ours starts at mu(x)]",
        at_least=0,
    )
    restarts: int = option(
        1,
        help="latent: starts R, the first mu(x), the others drawn from N(0,I); the nearest image is kept "
        "[R: Defense-GAN has 10 [S]]",
        at_least=1,
    )
    latent_lr: float = option(
        10.0,
        help="latent: learning rate for the mean squared error, cut to a tenth after 80 % of the steps [S]",
        at_least=0,
    )
    momentum: float = option(0.7, help="latent: momentum [S]", at_least=0, at_most=1)
    dis_weight: float = option(
        0.01,
        help="latent: lambda, weight of -log Dis(Dec(z)) beside the summed squared error [R: small, so that distance "
        "leads; not compared]",
        at_least=0,
    )


@options
class VaeganRecipe:
    """How the networks are trained: Larsen et al. (2016), algorithm 1."""

    epochs: int = option(50, help="passes over the training images [P]", at_least=1)
    batch_size: int = option(64, help="images a step [S]", at_least=1)
    optimiser: str = option(
        "adam",
        help="adam, betas 0.5 and 0.999 [R: usual for GANs; not compared], or rmsprop [S]",
        choices=("adam", "rmsprop"),
    )
    lr: float = option(
        2e-4, help="learning rate of all three networks [R: the usual one with Adam and a GAN]", at_least=0
    )
    lr_last: float = option(
        1.0,
        help="share of lr that is left in the last epoch, falling by the same amount every epoch [R: 1 is constant; "
        "the published runs anneal]",
        at_least=0,
        at_most=1,
    )
    gamma: float = option(1e-5, help="weight of L_llike against L_GAN in the decoder's loss [S: CIFAR]", at_least=0)
    discriminate: str = option(
        "samples",
        help="which decoded images are fakes to the discriminator: samples of the prior [S: the published runs], or "
        "both, reconstructions too",
        choices=("samples", "both"),
    )
    equilibrium: float = option(0.68, help="balance of the discriminator's mean costs [S]", at_least=0)
    margin: float = option(
        0.35,
        help="the discriminator's step is skipped if a mean cost is below equilibrium - margin, the decoder's if one "
        "is above equilibrium + margin; neither, if both would be [S]",
        at_least=0,
    )
    pixel_weight: float = option(
        0.0,
        help="weight of half the summed squared error of pixels, added to L_llike [R: 0 is Larsen's loss]",
        at_least=0,
    )
    train_subset: int | None = option(
        None,
        help="train on so many images, of every class its share; None: on all [R; the paper names 10,000]",
        at_least=1,
    )
    source: str = option(
        "",
        help="a victim: its FGSM images are encoded, and the clean ones are what is decoded. Empty: clean images are "
        "both [R: the paper's adversarial training set may be the VAE-GAN's, or the classifier's]",
    )
    eps: float = option(
        0.1,
        help="L-inf budget of the source's FGSM, in [0,1] units [R: a usual one of grey images; not compared]",
        above=0,
        at_most=1,
    )


@options
class StraightOptions(PgdOptions):
    """Options of `vaegan_straight`."""
