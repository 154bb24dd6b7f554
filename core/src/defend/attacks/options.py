"""Options of the built-in attacks. Imports no torch."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from defend.errors import ConfigError
from defend.options import option, options

if TYPE_CHECKING:
    from torch import Tensor


GRADIENT = 3
"""Forward passes that a gradient takes as long as: one forwards, about two back."""


@options
class GoalOptions:
    """Options that every attack with a gradient shares. Success is being misclassified, also of a targeted attack."""

    labels: str = option(
        "true", help="labels the gradient is taken for; predicted ones leak nothing", choices=("true", "predicted")
    )
    target: str = option(
        "none",
        help="none (untargeted), next (label + 1), least_likely (by the target's own logits); accuracy counts an image "
        "as fooled in whatever wrong class it ends, and an attack that stops early stops in any",
        choices=("none", "next", "least_likely"),
    )
    keep_wrong: bool = option(
        True,
        help="where labels are not the true ones or there is a target: an image that is misclassified as it is stays "
        "so, if the attack would take it to its true class; false is the bare formula, which helps the defence there",
    )


def _logit_scale() -> float:
    return option(  # type: ignore[no-any-return]
        1.0,
        help="logits are multiplied by it before the loss: below 1 finds the gradient that a saturated softmax hides "
        "(defensive distillation; Carlini and Wagner 2016), above 1 shows what one would hide",
        at_least=1e-3,
    )


def _steady_scale() -> float | None:
    return option(  # type: ignore[no-any-return]
        None,
        help="logits are multiplied by it before the cross-entropy, which is then literal; None: its steady "
        "form, which a saturated softmax does not hide and a factor of the logits does not change",
        at_least=1e-3,
    )


def _labels_of_one_step() -> str:
    return option(  # type: ignore[no-any-return]
        "true",
        help="labels the gradient is taken for; predicted ones tell no more than the model does; random ones, drawn "
        "for each image, tell nothing: a control for defences that read the label from the noise, not an attacker",
        choices=("true", "predicted", "random"),
    )


@options
class FgsmOptions(GoalOptions):
    """Options of `fgsm` and `fgsm_l2`."""

    labels: str = _labels_of_one_step()
    logit_scale: float = _logit_scale()


@options
class RfgsmOptions(GoalOptions):
    """Options of `rfgsm`."""

    labels: str = _labels_of_one_step()
    variant: str = option(
        "tramer", help="tramer, or apudae as the code of Kalaria et al. 2022 has it", choices=("tramer", "apudae")
    )
    share: float = option(0.5, help="tramer: the random step as a share of eps", at_least=0, at_most=1)
    random_step: float = option(2 / 255, help="apudae: bound of the uniform random step", at_least=0, at_most=1)
    strict_code: bool = option(False, help="apudae: leave the total at eps + random_step, as its code does")
    logit_scale: float = _logit_scale()

    def __attrs_post_init__(self) -> None:
        if self.variant == "tramer" and self.share == 1:
            raise ConfigError("share=1.0 leaves nothing of eps for the gradient's step: expected below 1")


def _early_stop() -> bool:
    return option(  # type: ignore[no-any-return]
        True,
        help="stop attacking an image once it is fooled (never against a random defence; off by itself where an "
        "unaware attack's images are judged by more than what it attacks)",
    )


@options
class IteratedOptions(GoalOptions):
    """Options that the iterated attacks share; sizes are in the attack's norm."""

    step_size: float | None = option(None, help="size of a step (None: chosen from eps)", above=0, at_most=1)
    early_stop: bool = _early_stop()


@options
class BimOptions(IteratedOptions):
    """Options of `bim` and `bim_l2`: step_size None means eps/10."""

    steps: int | None = option(None, help="steps (None: floor(2 eps / step_size + 2), Kalaria et al. 2022)", at_least=1)
    logit_scale: float = _logit_scale()

    @property
    def forward_passes(self) -> int:
        """What all steps of an image take, in forward passes."""
        return GRADIENT * (self.steps or bim_steps(1.0, 0.1))


@options
class ClimbOptions(IteratedOptions):
    """Options of `pgd`, and of attacks that climb another loss as it does.

    step_size None means 2.5 eps / steps where steps are constant: enough to reach the ball's edge from any start. The
    first of falling steps is then eps.
    """

    steps: int = option(20, help="steps", at_least=1)
    restarts: int = option(1, help="random starts; an image counts as fooled if any start fools it", at_least=1)
    random_start: bool = option(True, help="start at a uniform point of the eps-ball")
    schedule: str = option(
        "constant",
        help="constant steps, or linear: falling from step_size to nothing, which goes further through a purifier "
        "(benchmarks/README.md) and is what the bpda and adaptive threats take unless told otherwise",
        choices=("constant", "linear"),
    )

    def first_step(self, eps: Tensor) -> Tensor:
        """Return the size of the first step for budgets [B]."""
        if self.step_size is not None:
            return eps.new_full(eps.shape, self.step_size)
        # falling from eps was never plainly worse than other sizes, and on one purifier far better (benchmarks/README)
        return eps if self.schedule == "linear" else 2.5 * eps / self.steps

    @property
    def forward_passes(self) -> int:
        """What all steps and restarts of an image take, in forward passes."""
        return GRADIENT * self.steps * self.restarts


@options
class PgdOptions(ClimbOptions):
    """Options of `pgd` and `pgd_l2` (Madry et al. 2018)."""

    logit_scale: float | None = _steady_scale()


@options
class MomentumOptions(GoalOptions):
    """Options of `mi_fgsm` (Dong et al. 2018); the defaults are its paper's."""

    steps: int = option(10, help="steps", at_least=1)
    step_size: float | None = option(None, help="size of a step (None: eps / steps)", above=0, at_most=1)
    decay: float = option(1.0, help="what is kept of the sum of earlier gradients at each step", at_least=0)
    logit_scale: float | None = _steady_scale()


@options
class VarianceOptions(MomentumOptions):
    """Options of `vmi_fgsm` (Wang and He 2021); the defaults are its paper's."""

    samples: int = option(20, help="gradients around each point", at_least=1)
    beta: float = option(1.5, help="how far around, in budgets", at_least=0)

    @property
    def forward_passes(self) -> int:
        """What all steps and the points around each of an image take, in forward passes."""
        return GRADIENT * self.steps * (1 + self.samples)


def _restarts() -> int:
    return option(  # type: ignore[no-any-return]
        1, help="random starts; an image counts as fooled if any start fools it", at_least=1
    )


def _rho() -> float:
    return option(  # type: ignore[no-any-return]
        0.75, help="share of steps that must raise the loss, or the step is halved", at_least=0, at_most=1
    )


@options
class ApgdOptions(GoalOptions):
    """Options of `apgd_ce` and its like on other losses and in L2; AutoAttack's are 100 steps (Croce and Hein 2020)."""

    steps: int = option(100, help="steps", at_least=1)
    restarts: int = _restarts()
    rho: float = _rho()
    early_stop: bool = _early_stop()

    @property
    def forward_passes(self) -> int:
        """What all steps and restarts of an image take, in forward passes."""
        return GRADIENT * self.steps * self.restarts


@options
class TargetsOptions:
    """Options of the attacks that make for one wrong class after another."""

    targets: int = option(9, help="how many classes are tried; at most all the wrong ones", at_least=1)
    order: str = option(
        "malt",
        help="which first: rank, by the logits; malt, by the margin over the length of its slope, which costs a "
        "gradient for each candidate (Melamed et al. 2024)",
        choices=("rank", "malt"),
    )
    candidates: int = option(100, help="malt: how many classes, by the logits, are compared", at_least=1)


@options
class ApgdTargetedOptions(TargetsOptions):
    """Options of `apgd_t` and `apgd_t_l2`: all the steps for every class and start; success is any wrong class."""

    steps: int = option(100, help="steps for each class and start", at_least=1)
    restarts: int = _restarts()
    rho: float = _rho()
    early_stop: bool = _early_stop()
    loss: str = option("dlr", help="what is climbed", choices=("ce", "dlr", "margin", "pm"))

    @property
    def forward_passes(self) -> int:
        """What all steps, classes and restarts of an image take, in forward passes."""
        return GRADIENT * self.steps * self.targets * self.restarts


@options
class FabOptions(TargetsOptions):
    """Options of `fab_t` and `fab_t_l2` (Croce and Hein 2020); AutoAttack's are 100 steps, 9 targets by rank."""

    steps: int = option(100, help="steps for each class", at_least=1)

    @property
    def forward_passes(self) -> int:
        """What all steps and classes of an image take, in forward passes."""
        return GRADIENT * self.steps * self.targets


@options
class StandardOptions(TargetsOptions):
    """Options of `standard` and `standard_l2`: AutoAttack's. A quick run takes no fewer: the name stands for them."""

    apgd_steps: int = option(100, help="steps of Auto-PGD, for each class of the targeted one", at_least=1)
    fab_steps: int = option(100, help="steps of FAB for each class", at_least=1)
    square_queries: int = option(5000, help="answers that Square may ask for", at_least=1)

    @property
    def forward_passes(self) -> int:
        """What all parts of an image take, in forward passes."""
        return GRADIENT * (self.apgd_steps + (self.apgd_steps + self.fab_steps) * self.targets) + self.square_queries


@options
class CwOptions(GoalOptions):
    """Options of `cw`; the defaults are ours, for fewer and longer steps than are published.

    Kalaria et al. 2022 have DeepRobust's MNIST setting: steps=1000, lr=5e-3, confidence=1e-4, and for the rest as here.
    """

    clip: str = option(
        "linf",
        help="linf: the result clipped to eps, as Kalaria et al. 2022 report; none: minimal L2",
        choices=("linf", "none"),
    )
    steps: int = option(100, help="Adam steps for each constant", at_least=1)
    binary_search_steps: int = option(5, help="how many constants are tried", at_least=1)
    initial_const: float = option(1e-2, help="the first constant", above=0)
    confidence: float = option(0.0, help="margin by which the class must change", at_least=0)
    lr: float | None = option(
        None,
        help="Adam's learning rate in tanh space (None: 0.01, or 1 / steps where that is more: fewer steps go as far)",
        above=0,
    )

    @property
    def rate(self) -> float:
        """The learning rate."""
        return max(1e-2, 1 / self.steps) if self.lr is None else self.lr

    @property
    def forward_passes(self) -> int:
        """What all steps and constants of an image take, in forward passes."""
        return GRADIENT * self.steps * self.binary_search_steps


@options
class FmnOptions(GoalOptions):
    """Options of `fmn` and `fmn_l2` (Pintor et al. 2021)."""

    steps: int = option(100, help="steps", at_least=1)
    step_size: float = option(
        1.0,
        help="the first step: its length in L2, in L-inf a share of the ball's radius; the last is a hundredth of it",
        above=0,
    )
    gamma: float | None = option(
        None,
        help="share by which the first step shrinks or widens the ball (None: 5 / steps, at most 0.3; so 0.05, as "
        "published, of 100 steps, and fewer steps go as far)",
        at_least=1e-3,
        at_most=1,
    )

    @property
    def first_gamma(self) -> float:
        """The share of the first step."""
        return min(5 / self.steps, 0.3) if self.gamma is None else self.gamma


@options
class SquareOptions:
    """Options of `square` and `square_l2` (Andriushchenko et al. 2020); the defaults are AutoAttack's."""

    queries: int = option(5000, help="answers that may be asked for, an image and restart", at_least=1)
    p_init: float = option(0.8, help="share of the pixels that the first proposals change", above=0, at_most=1)
    restarts: int = option(1, help="searches from the beginning, for images not yet fooled", at_least=1)

    @property
    def forward_passes(self) -> int:
        """What all questions of an image take, in forward passes."""
        return self.queries * self.restarts


@options
class HopSkipJumpOptions:
    """Options of `hsj` and `hsj_l2` (Chen et al. 2020); all but the number of queries are its paper's."""

    queries: int = option(5000, help="labels that may be asked for, an image", at_least=1)
    initial_evals: int = option(100, help="questions for the first direction; the t-th gets sqrt(t) times", at_least=1)
    max_evals: int = option(10_000, help="questions for one direction at most", at_least=1)
    gamma: float = option(1.0, help="how roughly the boundary is found and asked around, as a factor", at_least=1e-6)
    starts: int = option(100, help="points tried until one fools: noise, itself turned, other images", at_least=1)


@options
class DetectorAwareOptions:
    """Options that the attacks on classifier and detector share: step_size None means 2.5 eps / steps."""

    steps: int = option(100, help="steps", at_least=1)
    step_size: float | None = option(None, help="size of a step (None: chosen from eps)", above=0, at_most=1)
    restarts: int = option(1, help="starts; the best candidate of all counts", at_least=1)
    random_start: bool = option(True, help="start at a uniform point of the eps-ball")

    @property
    def forward_passes(self) -> int:
        """What all steps and restarts of an image take, in forward passes."""
        return GRADIENT * self.steps * self.restarts


@options
class JointOptions(DetectorAwareOptions):
    """Options of `pgd_joint`."""

    weights: tuple[float, ...] = option(
        (0.0, 0.1, 1.0, 10.0, 100.0),
        help="weights of the detector's score, in thresholds, beside the class; each gets all the steps",
        at_least=0,
    )

    @property
    def forward_passes(self) -> int:
        """What all steps, restarts and weights of an image take, in forward passes."""
        return GRADIENT * self.steps * self.restarts * len(self.weights)


@options
class GivenOptions:
    """Options of a file of attacked images."""

    path: str | None = option(None, help="the file, as named after file:")
    norm: str | None = option(
        None, help="the norm of their budget (none: as the file says, else linf)", choices=("linf", "l2")
    )


def bim_steps(eps: float, step_size: float) -> int:
    """Return floor(2 eps / step + 2) (Kalaria et al. 2022), rounded first, as float32 is inexact."""
    return math.floor(round(2 * eps / step_size + 2, 3)) if step_size > 0 else 1


def count_forward_passes(settings: object) -> int:
    """Return what an attack with these options asks of an image, in forward passes: a gradient counts as `GRADIENT`.

    Options that take more than one gradient a step, or one pass a query, say so by a `forward_passes` of their own.
    """
    own = getattr(settings, "forward_passes", None)
    if isinstance(own, int):
        return max(own, 1)
    queries = getattr(settings, "queries", None)
    steps = getattr(settings, "steps", None)
    return max(queries if isinstance(queries, int) else GRADIENT * (steps if isinstance(steps, int) else 1), 1)
