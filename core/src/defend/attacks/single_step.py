"""One gradient: FGSM and R-FGSM."""

from __future__ import annotations

from torch import Tensor

from defend.attacks.balls import clip, project_linf
from defend.attacks.goals import choose_goal, settle, step_along
from defend.attacks.objectives import Objective, scaled_cross_entropy
from defend.attacks.options import FgsmOptions, RfgsmOptions
from defend.attacks.target import Target
from defend.randomness import keyed, sign_like, uniform_like


class Fgsm:
    """x + eps * sign(gradient) (Goodfellow et al. 2015); in L2 x + eps * gradient / |gradient| (Miyato et al. 2017)."""

    def __init__(self, config: FgsmOptions, objective: Objective | None = None, norm: str = "linf") -> None:
        """The objective is the cross-entropy if None."""
        self._config, self._objective = config, objective or scaled_cross_entropy(config.logit_scale)
        self.norm = norm

    def __call__(self, target: Target, images: Tensor, labels: Tensor, *, eps: Tensor, keys: Tensor) -> Tensor:
        """See `defend.stages.Attack`."""
        goal = choose_goal(self._config, target, images, labels, keys)
        gradient = target.slope(images, goal.labels, keys, 0, self._objective).gradient
        found = clip(images + step_along(gradient, goal, eps, self.norm), images, eps, self.norm)
        return settle(goal, target, images, found, labels, keys, "fgsm")


class Rfgsm:
    """A random step, then FGSM from there.

    Variant "tramer" (Tramèr et al. 2018): a random sign step of a = share * eps, then a gradient step of
    eps - a. Variant "apudae" (Kalaria et al. 2022, their code): a uniform step of up to 2/255, then a full gradient
    step; projected to eps, unless `strict_code`, which leaves it eps + 2/255.
    """

    norm = "linf"

    def __init__(self, config: RfgsmOptions) -> None:
        self._config = config
        self.excess = config.random_step if config.variant == "apudae" and config.strict_code else 0.0

    def __call__(self, target: Target, images: Tensor, labels: Tensor, *, eps: Tensor, keys: Tensor) -> Tensor:
        """See `defend.stages.Attack`."""
        config = self._config
        goal = choose_goal(config, target, images, labels, keys)
        with keyed(keys, seed=target.seed, stream="rfgsm"):
            if config.variant == "tramer":
                first = config.share * eps
                start = images + sign_like(images) * first.view(-1, 1, 1, 1)
                step = eps - first
            else:
                start = images + uniform_like(images, -config.random_step, config.random_step)
                step = eps
        start = start.clamp(0, 1)
        objective = scaled_cross_entropy(config.logit_scale)
        gradient = target.slope(start, goal.labels, keys, 0, objective).gradient
        found = project_linf(start + step_along(gradient, goal, step), images, eps + self.excess)
        return settle(goal, target, images, found, labels, keys, "rfgsm")


def fgsm(config: FgsmOptions) -> Fgsm:
    """Build FGSM."""
    return Fgsm(config)


def fgsm_l2(config: FgsmOptions) -> Fgsm:
    """Build FGSM in L2."""
    return Fgsm(config, norm="l2")


def rfgsm(config: RfgsmOptions) -> Rfgsm:
    """Build R-FGSM."""
    return Rfgsm(config)
