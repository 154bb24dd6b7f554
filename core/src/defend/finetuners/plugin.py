"""The fine-tuner that core offers, through the same hook as any plugin's. Imports no torch.

[M] stands in Madry et al. 2018, [Z] in Zhang et al. 2019 (TRADES) or its code, [O] in Rice, Wong and Kolter 2020
(robust overfitting), [T] in Tramèr and Boneh 2019 (several norms), [W] in Wang et al. 2020 (MART) or its code,
[A] in Wu et al. 2020 (AWP), [F] in Wong, Rice and Kolter 2020 (fast), [S] in Shafahi et al. 2019 (free), [G] in Gowal
et al. 2020 (weight averages), [R] is our decision.
"""

from __future__ import annotations

from collections.abc import Sequence

from defend.errors import ConfigError
from defend.hookspecs import hookimpl
from defend.options import option, options
from defend.stages import Paper, StageSpec

REPLAYS = 8  # the paper's on CIFAR-10 [S]
BETA = 6.0  # TRADES' [Z]
SINGLE_STEPS = {"fgsm": "1.25 eps", "free": "eps"}  # modes of one step, which may overfit to it, and its size


@options
class AdversarialRecipe:
    """How a victim is trained on the adversarial images of every step: AdamW, one cycle of the learning rate [R]."""

    mode: str = option(
        "pgd",
        help="pgd: cross-entropy on adversarial images [M]; trades: on clean ones, with a penalty for predictions that "
        "a change within eps can move [Z]; mart: on adversarial ones, with that penalty where clean ones are "
        "misclassified [W]; fgsm: as pgd, of one step of 1.25 eps from a random start, watched for overfitting "
        "to it [F]; free: a batch several times over, each backward pass moving weights and images by one step of eps, "
        "watched likewise [S]",
        choices=("pgd", "trades", "mart", "fgsm", "free"),
    )
    eps: float = option(8 / 255, help="L-inf budget of the crafting, in [0,1] units", above=0, at_most=1)
    steps: int = option(10, help="steps of the crafting [Z, W]; fgsm and free take one", at_least=1)
    step_size: float | None = option(
        None, help="size of an L-inf step at full eps (None: 2.5 eps / steps [M])", above=0, at_most=1
    )
    l2_share: float = option(
        0.0,
        help="share of a step's images that are crafted within eps_l2, in L2, and not within eps; 0, none [M]: who "
        "learns one norm alone may fall to the other [T]",
        at_least=0,
        at_most=1,
    )
    eps_l2: float | None = option(
        None, help="L2 budget of that share (None: eps * sqrt(pixels and channels) / 4, as in a run [R])", above=0
    )
    beta: float = option(
        BETA, help="trades, mart: weight of the divergence beside the cross-entropy [Z]; MART's: 5 [W]", at_least=0
    )
    awp: float = option(
        0.0,
        help="the loss is taken at weights moved up it by this share of their length, tensor by tensor: 0.005 [A]; 0, "
        "none. Costs a pass more a step",
        at_least=0,
        at_most=1,
    )
    replays: int = option(
        REPLAYS,
        help="free: how often each batch is learned in a row, m [S]; to take no more gradients than a training without "
        "attacks does, divide epochs by it",
        at_least=1,
    )
    ema: float = option(
        0.0,
        help="the weights that are judged and kept are a running average of those that learn, of which this share "
        "stays at each step: 0.995 [G], less in the first steps [R]; 0, the weights themselves",
        at_least=0,
        at_most=0.99999,
    )
    clean_share: float = option(
        0.0, help="pgd, fgsm, free: share of every batch that is left clean; 0, none [M]", at_least=0, at_most=0.9
    )
    warmup: float = option(
        0.25,
        help="share of the training in which eps and step_size grow linearly to their full size, or a victim that has "
        "seen no attack may fall to one answer for all images [R]",
        at_least=0,
        at_most=1,
    )
    epochs: int = option(15, help="passes over the training images [R]", at_least=1)
    batch_size: int = option(128, help="images a step [M, Z]", at_least=2)
    lr: float = option(1e-3, help="peak of the one-cycle learning rate [R]", at_least=0)
    weight_decay: float = option(5e-2, help="AdamW's weight decay [R]", at_least=0)
    shift: int = option(
        2, help="random shift of up to this many pixels, zero padding, before crafting [R]", at_least=0, at_most=32
    )
    select: str = option(
        "best",
        help="best: the epoch that stands PGD best on validation images, as training on makes the robust accuracy fall "
        "again [O]; last: the last",
        choices=("best", "last"),
    )

    @property
    def on_single_steps(self) -> bool:
        """Whether it learns from images of one step alone, and may overfit to it [F]."""
        return self.mode in SINGLE_STEPS or self.steps == 1

    def __attrs_post_init__(self) -> None:
        if self.mode not in ("trades", "mart") and self.beta != BETA:
            raise ConfigError(
                f"beta={self.beta!r} does nothing for mode={self.mode}: leave it out, or take mode=trades or mode=mart"
            )
        for name, share in (("clean_share", self.clean_share), ("l2_share", self.l2_share)):
            if share and not round(share * self.batch_size):
                raise ConfigError(
                    f"{name}={share!r} is no image of a batch of {self.batch_size}: expected at least "
                    f"{1 / self.batch_size:.2g}, 0 for none, or a larger batch_size"
                )
        if self.mode in ("trades", "mart") and self.clean_share:
            raise ConfigError(
                f"clean_share={self.clean_share!r} does nothing for mode={self.mode}, which learns from every image "
                "clean: leave it at 0, or lower beta"
            )
        if self.mode in SINGLE_STEPS and self.step_size is not None:
            raise ConfigError(
                f"step_size={self.step_size!r} does nothing for mode={self.mode}, whose step is "
                f"{SINGLE_STEPS[self.mode]}: leave it out, or take mode=pgd with steps=1"
            )
        if self.mode == "free" and self.l2_share:
            raise ConfigError(
                f"l2_share={self.l2_share!r} does nothing for mode=free, which is within L-inf: leave it at 0, or take "
                "mode=pgd"
            )
        if self.mode != "free" and self.replays != REPLAYS:
            raise ConfigError(
                f"replays={self.replays!r} does nothing for mode={self.mode}, which learns each batch once: leave it "
                "out, or take mode=free"
            )
        if self.eps_l2 is not None and not self.l2_share:
            raise ConfigError(f"eps_l2={self.eps_l2!r} does nothing while l2_share is 0: set that too, for example 0.5")


@hookimpl
def defend_finetuners() -> Sequence[StageSpec]:
    """The fine-tuner `adversarial`."""
    return [
        StageSpec(
            name="adversarial",
            summary="adversarial training (PGD, TRADES, MART, FGSM, free; AWP, EMA), end to end behind a purifier",
            build="defend.finetuners.adversarial:build",
            paper=Paper(
                title="Towards Deep Learning Models Resistant to Adversarial Attacks",
                authors="Madry, Makelov, Schmidt, Tsipras and Vladu",
                year=2018,
                url="https://arxiv.org/abs/1706.06083",
            ),
            train="defend.finetuners.adversarial:train",
            recipe=AdversarialRecipe,
            # Tried with three layers on 4,000 images of MNIST, accuracy under PGD: 56 % in 625 steps of 32 at lr 2e-3
            # without shifts, 21 % without the warm-up too, 32 % in 310 steps of 64 at lr 1e-3 with shifts of 2 pixels.
            # What limits a victim at a large eps is how well it fits.
            recipes={
                "digits": {"eps": 0.1, "epochs": 12, "batch_size": 32, "lr": 2e-3, "shift": 1},
                "mnist": {"eps": 0.3, "epochs": 4, "batch_size": 64, "lr": 2e-3, "shift": 0, "warmup": 0.5},
                "fashion_mnist": {"eps": 0.1, "steps": 7, "epochs": 4, "batch_size": 64, "lr": 2e-3, "shift": 1},
                "cifar10": {"shift": 4},
            },
            editions={
                "trades": {"mode": "trades"},
                "mart": {"mode": "mart", "beta": 5.0},
                "awp": {"awp": 5e-3},
                "trades-awp": {"mode": "trades", "awp": 5e-3},
                "fgsm": {"mode": "fgsm"},
                "free": {"mode": "free"},
                "ema": {"ema": 0.995},
                "eps-0.1": {"eps": 0.1},
                "norms": {"l2_share": 0.5},
            },
            costs={
                "mnist": "70 min on one CPU core for two convolutions (classifier_a)",
                "fashion_mnist": "45 min on one CPU core for two convolutions (classifier_a)",
                "mnist+eps-0.1": "1 min on one CPU core for a network of one hidden layer",
            },
        )
    ]
