"""The paper's settings, and our decisions where it gives none, each with its reason. Imports no torch.

[P] stands in the paper, [C] in its authors' code, [R] is our decision.
"""

from __future__ import annotations

from defend import option, options
from defend.attacks.options import PgdOptions


@options
class ApudaeOptions:
    """Options of the purifier."""

    depth: int | None = option(
        None,
        help='encoder layers N; None: 5 for grey images, 15 for colour [P, "Table 1" of the autoencoder]',
        at_least=2,
        at_most=64,
        architecture=True,
    )
    width: int = option(64, help="channels of every hidden layer [P]", at_least=1, architecture=True)
    variant: str = option(
        "A",
        help="direct: the autoencoder's output; A fixed steps, B momentum, C adaptive rate, D target distance, "
        "E hinge, F hinge and noise, G hinge and transform [P; letters as resolved in the README]",
        choices=("direct", "A", "B", "C", "D", "E", "F", "G"),
    )
    steps: int = option(
        15, help="updates n, exactly [P: 15 on MNIST; 12, 15, 18 on CIFAR-10; C: A 12, D 16, F 13]", at_least=1
    )
    step_size: float = option(
        0.01, help="step a, in [0,1] units [P: 0.01 on MNIST, 1/255 on ImageNet; C: A 1/255, D and F 2/255]", at_least=0
    )
    sigma: float | None = option(
        None,
        help="the deviation of clean errors; None: as measured with the weights [P]. The authors overwrite "
        "theirs by 0.5 before they evaluate [C]",
        at_least=1e-6,
    )
    rule: str = option(
        "auto",
        help="auto: sign for A, adam for B to G [R: only normalised steps reach a*n >= eps]; adam for A too [C]; "
        "gd is eq. 8 to the letter, ema is eq. 9",
        choices=("auto", "sign", "adam", "gd", "ema"),
    )
    sign_slope: str = option(
        "smooth",
        help="sign: what an attacker who differentiates the defence sees. smooth: the slope of a tanh as wide as the "
        "mean gradient [R]; exact: zero, the true derivative, which blinds the attack (README). Results are the same",
        choices=("smooth", "exact"),
    )
    momentum: float = option(0.9, help="ema: the decay of eq. 9's average [R: Adam's default]", at_least=0, at_most=1)
    noise: str = option(
        "uniform",
        help="F: uniform, grows with the error, stays in the image [C]; gaussian, only where the gradient is taken [P]",
        choices=("uniform", "gaussian"),
    )
    noise_size: float | None = option(
        None,
        help="F: None is 0.7/255 for uniform [C], and for gaussian g = 2/255 [R: as large as a step of the authors' F; "
        "not compared]",
        at_least=0,
        at_most=1,
    )
    resize: float = option(
        0.1,
        help="G: f ~ U(1 - resize, 1 + resize) [R: small enough to leave the class; not compared]",
        at_least=0,
        at_most=0.9,
    )
    rotate: float = option(
        10.0, help="G: angle ~ U(-rotate, rotate), degrees [R: as for resize]", at_least=0, at_most=180
    )


@options
class ApudaeRecipe:
    """How the autoencoder is trained: MSE(DAE(x + s N(0,1)), x), s ~ U[0, s_max] [P]."""

    epochs: int = option(50, help="passes over the training images [C: a leftover of the script]", at_least=1)
    batch_size: int = option(
        128, help="images a step [R: a usual size, not compared; a leftover of the script has 16, C]", at_least=1
    )
    lr: float = option(1e-4, help="Adam's learning rate [R: a usual one; not compared]", at_least=0)
    schedule: str = option(
        "constant",
        help="constant [R: the paper names no other], or one_cycle up to lr",
        choices=("constant", "one_cycle"),
    )
    s_max: float = option(
        0.2,
        help="largest standard deviation of the training noise [R: to bring the mean error of clean CIFAR-10 near the "
        "authors' saved mu of 2.856, C]",
        at_least=0,
    )
    clip: bool = option(
        False, help="clip noisy images to [0,1], as every attacked one is [R: off, the formula has no clip]"
    )
    crop: int | None = option(
        None, help="train on random squares of this side; None: whole images. Convolutions know no size [R]", at_least=8
    )


@options
class MlpOptions:
    """Options of the victim `mlp`."""

    hidden: int = option(128, help="neurons of a hidden layer [R: see victims.py]", at_least=1, architecture=True)
    layers: int = option(
        1,
        help="hidden layers [R: with 1 the accuracies are nearer the paper's]; the authors' collection has 2 [C]",
        at_least=1,
        architecture=True,
    )
    dropout: float = option(
        0.0,
        help="share of a hidden layer that training leaves out [R: none, as for layers]; 0.2 there [C]",
        at_least=0,
        at_most=0.9,
        architecture=True,
    )


@options
class CounterAttackAOptions(PgdOptions):
    """Options of `apudae_a`."""


@options
class CounterAttackBOptions(PgdOptions):
    """Options of `apudae_b`."""

    betas: tuple[float, ...] = option(
        (1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0),
        help="weights of the reconstruction error, tried in turn until one fools the image [R: the paper gives none]; "
        "beside the log-odds against the label, whose slope does not fall where the label leads, or with a logit_scale "
        "beside the cross-entropy, whose does [P]",
    )
