"""The paper's own adaptive attacks (section on counter-attacks, eqs. 14 and 15), as resolved in the README."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from defend.attacks.goals import keep_wrong
from defend.attacks.iterated import Pgd
from defend.attacks.objectives import Objective, choose_cross_entropy, steady_odds
from defend.attacks.target import Target
from defend.boundary.given import own
from defend.defence import Defence
from defend.errors import ConfigError
from defend_apudae.config import CounterAttackAOptions, CounterAttackBOptions
from defend_apudae.model import reconstruction_error
from defend_apudae.purifier import ApudaePurifier


def _parts(module: nn.Module) -> tuple[Defence, ApudaePurifier]:
    purifier = getattr(module, "purifier", None)
    if not isinstance(module, Defence) or not isinstance(purifier, ApudaePurifier):
        name = getattr(purifier, "stage_name", "none")
        raise ConfigError(f"the counter-attacks of apudae need --purifier apudae, and the purifier is {name!r}")
    return module, purifier


def ask_through_autoencoder(module: nn.Module, images: Tensor) -> Tensor:
    """Return classifier(DAE(x)), logits [B,K] of images [B,C,H,W].

    Raises:
        ConfigError: the defence has another purifier, or none.
    """
    defence, purifier = _parts(module)
    return defence.classify(purifier.dae(own(images, purifier)).clamp(0, 1))


def through_autoencoder(logit_scale: float | None) -> Objective:
    """Objective A: J(classifier(DAE(x)), y), eq. 14 with the purifier that the text names."""
    return choose_cross_entropy(logit_scale, ask_through_autoencoder)


def low_error(beta: float, logit_scale: float | None) -> Objective:
    """Objective B: J(classifier(x), y) - beta r(x), eq. 15 with the sign that the text wants.

    J is the cross-entropy of logits times a scale, or of None their log-odds against y: where y leads by far, nothing
    of the cross-entropy's slope is left beside that of beta r.
    """

    def objective(module: nn.Module, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        defence, purifier = _parts(module)
        logits = defence.classify(images)
        error = reconstruction_error(own(images, purifier), purifier.dae)
        if logit_scale is None:
            return steady_odds(logits, labels) - beta * error, logits
        return F.cross_entropy(logit_scale * logits, labels, reduction="none") - beta * error, logits

    return objective


class CounterAttackA(Pgd):
    """PGD on objective A. Its logits are not the defence's, so no image is dropped early.

    An image that the defence gets wrong as it is stays so, if the attack would make it right (`keep_wrong`).
    """

    def __init__(self, config: CounterAttackAOptions) -> None:
        super().__init__(config, through_autoencoder(config.logit_scale), judged=False)

    def __call__(self, target: Target, images: Tensor, labels: Tensor, *, eps: Tensor, keys: Tensor) -> Tensor:
        """See `defend.stages.Attack`."""
        found = super().__call__(target, images, labels, eps=eps, keys=keys)
        return keep_wrong(target, images, found, labels, keys, "apudae_a") if self._config.keep_wrong else found


class CounterAttackB:
    """PGD on objective B for every beta in turn; an image keeps the first beta that fools the whole defence.

    Where none does, one that the defence gets wrong as it is stays so (`keep_wrong`).
    """

    norm = "linf"

    def __init__(self, config: CounterAttackBOptions) -> None:
        self._config = config

    def __call__(self, target: Target, images: Tensor, labels: Tensor, *, eps: Tensor, keys: Tensor) -> Tensor:
        """See `defend.stages.Attack`."""
        best = images.clone()
        left = torch.arange(len(images), device=images.device)
        for number, beta in enumerate(self._config.betas):
            attack = Pgd(self._config, low_error(beta, self._config.logit_scale), judged=False)
            found = attack(target, images[left], labels[left], eps=eps[left], keys=keys[left])
            best[left] = found
            predicted = target.logits(found, keys[left], f"apudae_b/{number}").argmax(1)
            left = left[predicted == labels[left]]
            if len(left) == 0:
                return best
        if self._config.keep_wrong:
            best[left] = keep_wrong(target, images[left], best[left], labels[left], keys[left], "apudae_b")
        return best


def build_a(config: CounterAttackAOptions) -> CounterAttackA:
    """Build counter-attack A."""
    return CounterAttackA(config)


def build_b(config: CounterAttackBOptions) -> CounterAttackB:
    """Build counter-attack B."""
    return CounterAttackB(config)
