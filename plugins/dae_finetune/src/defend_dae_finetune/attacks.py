"""FGSM and PGD as the author's code makes them: on a network whose normalisation was left out.

A network g expects normalised images, and a victim is f(x) = g((x - mean) / std). The code takes its gradient from
g(x), which is f(mean + std x): the victim, asked about another image. What comes of it is then shown to the victim.
"""

from __future__ import annotations

from torch import Tensor, nn

from defend.attacks.iterated import Pgd
from defend.attacks.objectives import Objective, scaled_cross_entropy
from defend.attacks.options import FgsmOptions, PgdOptions
from defend.attacks.single_step import Fgsm
from defend.errors import ConfigError


def unnormalised(scale: float = 1.0) -> Objective:
    """Return the cross-entropy of a victim that is not told to normalise.

    Args:
        scale: what its logits are multiplied by before the loss.

    Raises:
        ConfigError: when called on a module that has no mean and std of its own.
    """
    usual = scaled_cross_entropy(scale)

    def objective(module: nn.Module, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        mean, std = statistics(module)
        return usual(module, mean + std * images, labels)

    return objective


def statistics(module: nn.Module) -> tuple[Tensor, Tensor]:
    """Return the mean and std, [1,C,1,1], that a module normalises images by.

    Raises:
        ConfigError: it has none.
    """
    for part in module.modules():
        own = dict(part.named_buffers(recurse=False))
        if {"mean", "std"} <= own.keys():
            return own["mean"], own["std"]
    raise ConfigError(
        "the victim has no buffers 'mean' and 'std', so it has no normalisation to leave out: take fgsm or pgd"
    )


def fgsm(config: FgsmOptions) -> Fgsm:
    """Build FGSM on the un-normalised network."""
    return Fgsm(config, unnormalised(config.logit_scale))


def pgd(config: PgdOptions) -> Pgd:
    """Build PGD on the un-normalised network; its logits are not the victim's own, so it takes all its steps."""
    scale = 1.0 if config.logit_scale is None else config.logit_scale
    return Pgd(config, unnormalised(scale), judged=False)
