"""The paper's settings, and our decisions where it gives none, each with its reason. Imports no torch.

[P] stands in the paper, [C] in its authors' notebook, [R] is our decision.
"""

from __future__ import annotations

from defend import option, options
from defend.victims.plugin import VictimRecipe


@options
class PuvaeOptions:
    """Options of the purifier, and of the detector that holds the same network."""

    network: str = option(
        "auto",
        help="c: the network for 28x28 grey images, d: for 32x32 colour [P Table 6]; auto: c for grey, d for colour",
        choices=("auto", "c", "d"),
        architecture=True,
    )
    width: int = option(32, help="channels of every hidden convolution [P]", at_least=1, architecture=True)
    hidden: int = option(
        1024,
        help="neurons of the encoder's fully connected layers, and of d's first decoder layer; c's has half [P]",
        at_least=2,
        architecture=True,
    )
    latent: int | None = option(
        None,
        help="dimensions of z; None: 32, 128 on fashion_mnist, 1024 on colour images [P]",
        at_least=1,
        architecture=True,
    )
    score: str = option(
        "mean_pixel_rms",
        help="the reconstruction error: mean_pixel_rms, the mean over pixels of the root mean square over channels "
        "(what the paper's 'RMSE' is) [C]; rmse. The threshold is in its unit, so it belongs to the weights",
        choices=("mean_pixel_rms", "rmse"),
        architecture=True,
    )
    z_noise: float = option(
        0.1, help="standard deviation of the noise on z at inference, in units of exp(s/2); 0: none [C]", at_least=0
    )


@options
class PuvaeRecipe:
    """How the VAE is trained: 10 CE(clf(x_hat), y) + 0.01 RC + 0.1 KL, the classifier frozen [C]."""

    classifier: str = option("classifier_a", help="the victim whose cross-entropy the loss has; trained before [P]")
    epochs: int = option(350, help="passes over the training images [P]", at_least=1)
    batch_size: int = option(512, help="images a step [P]", at_least=1)
    lr: float = option(1e-3, help="Adam's learning rate [C: Keras's default]", at_least=0)
    schedule: str = option("constant", help="constant [C], or one_cycle up to lr", choices=("constant", "one_cycle"))
    ce_weight: float = option(10.0, help="weight of the classifier's cross-entropy [C]", at_least=0)
    rc_weight: float = option(0.01, help="weight of the reconstruction cost RC, summed over pixels [C]", at_least=0)
    kl_weight: float = option(0.1, help="weight of KL, a mean over batch and dimensions [C]", at_least=0)
    kl: str = option(
        "standard",
        help="standard: mean(m^2 + e^s - s - 1) [R: the notebook's parenthesis is misplaced]; "
        "authors: mean(m^2 + e^s - log(e^s - 1)) [C]",
        choices=("standard", "authors"),
    )
    input_noise: float = option(
        0.0,
        help="largest standard deviation of Gaussian noise on the input, drawn for every image [P: none]",
        at_least=0,
    )
    threshold_rule: str = option(
        "quantile",
        help="quantile: the smallest threshold that rejects at most a share fpr of the clean validation images "
        "[R: on the notebook's grid its own stored run finds none]; "
        "grid: the first of .05, .06 ... .25 that does [C]",
        choices=("quantile", "grid"),
    )
    fpr: float = option(
        0.01,
        help="share of clean validation images that may be rejected [P: 0.001 MNIST, 0.01 Fashion-MNIST, 0.03 CIFAR]",
        at_least=0,
        at_most=1,
    )


@options
class ClassifierRecipe(VictimRecipe):
    """How classifiers A and B are trained: Adam, no augmentation [C]."""

    epochs: int = option(
        64, help="passes over the training images [P: 64 MNIST, 256 Fashion-MNIST, 350 CIFAR-10]", at_least=1
    )
    batch_size: int = option(128, help="images a step [P: 128, and 64 on CIFAR-10]", at_least=1)
    lr: float = option(1e-3, help="Adam's learning rate [C: Keras's default]", at_least=0)
    schedule: str = option(
        "constant",
        help="constant [C], or one_cycle up to lr: in a tenth of the epochs",
        choices=("constant", "one_cycle"),
    )
    weight_decay: float = option(0.0, help="decoupled weight decay [C: none]", at_least=0)
    shift: int = option(0, help="random shift of up to this many pixels [C: none]", at_least=0, at_most=32)
