"""Steps that come over to other victims: momentum (MI-FGSM) and variance tuning (VMI-FGSM), in L-inf."""

from __future__ import annotations

import torch
from torch import Tensor

from defend.attacks.balls import project_linf, unit, wide
from defend.attacks.goals import Goal, choose_goal, settle, step_along
from defend.attacks.objectives import choose_cross_entropy
from defend.attacks.options import MomentumOptions, VarianceOptions
from defend.attacks.target import Target
from defend.randomness import keyed, uniform_like


class Momentum:
    """Step along the sign of a running sum of gradients, each of mean absolute value 1 (Dong et al. 2018, eq. 6).

    With `samples`, to a gradient is added how much those around the last point differed on average from the one there
    (Wang and He 2021, eq. 5): a step goes where a whole neighbourhood rises, not this victim's own ridge.
    """

    norm = "linf"

    def __init__(self, config: MomentumOptions, samples: int = 0, beta: float = 0.0) -> None:
        scale = config.logit_scale
        self._objective = choose_cross_entropy(scale)
        self._config, self._samples, self._beta = config, samples, beta

    def __call__(self, target: Target, images: Tensor, labels: Tensor, *, eps: Tensor, keys: Tensor) -> Tensor:
        """See `defend.stages.Attack`. Every image takes all steps, as what fools this victim may not fool another."""
        config = self._config
        goal = choose_goal(config, target, images, labels, keys)
        size = eps / config.steps if config.step_size is None else torch.full_like(eps, config.step_size)
        current, momentum, variance = images, torch.zeros_like(images), torch.zeros_like(images)
        for step in range(config.steps):
            gradient = target.slope(current, goal.labels, keys, f"momentum/{step}", self._objective).gradient
            momentum = config.decay * momentum + _even(gradient + variance)
            if self._samples and step + 1 < config.steps:
                variance = self._around(target, current, goal, eps, keys, step) - gradient
            current = project_linf(current + step_along(momentum, goal, size), images, eps)
        return settle(goal, target, images, current, labels, keys, "momentum")

    def _around(self, target: Target, images: Tensor, goal: Goal, eps: Tensor, keys: Tensor, step: int) -> Tensor:
        """Return the mean gradient at points drawn around images, as far as `beta` budgets in L-inf.

        They may lie outside the box, as in the paper's code; what is attacked sees them inside.
        """
        total = torch.zeros_like(images)
        for sample in range(self._samples):
            stream = f"momentum/{step}/{sample}"
            with keyed(keys, seed=target.seed, stream=stream):
                point = images + uniform_like(images, -1, 1) * wide(self._beta * eps)
            total += target.slope(point.clamp(0, 1), goal.labels, keys, stream, self._objective, judged=False).gradient
        return total / self._samples


def _even(gradient: Tensor) -> Tensor:
    """Scale every image's gradient to a mean absolute value of 1, however tiny or huge; one of zeros stays."""
    even = unit(gradient)
    mean = even.flatten(1).abs().mean(1)
    return even / wide(torch.where(mean > 0, mean, 1))


def mi_fgsm(config: MomentumOptions) -> Momentum:
    """Build MI-FGSM."""
    return Momentum(config)


def vmi_fgsm(config: VarianceOptions) -> Momentum:
    """Build VMI-FGSM."""
    return Momentum(config, config.samples, config.beta)
