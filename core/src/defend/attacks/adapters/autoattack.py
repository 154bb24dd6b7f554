"""AutoAttack (Croce and Hein 2020, arXiv:2003.01690), by the package pyautoattack."""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Iterator

from torch import Tensor

from defend.attacks.adapters.library import Plain, count_classes, load, run
from defend.attacks.adapters.specs import AutoAttackOptions
from defend.attacks.target import Target
from defend.errors import ConfigError
from defend.gradients import differentiates_inside
from defend.randomness import step_seed

MOST_TARGETS = 9  # classes that the targeted attacks try, where there are so many
LEAST_CLASSES = {"standard": 4, "rand": 3}  # the difference of logits ratio, targeted and not


class AutoAttack:
    """standard: APGD-CE, targeted APGD-DLR, targeted FAB, Square; rand: APGD-CE and APGD-DLR, averaged over draws.

    The averages of `rand` take the target's `draws` passes, one a pass as its authors do, not 20 regardless.
    """

    all_or_nothing = True  # some of theirs, and nobody says which

    norm = "linf"

    def __init__(self, config: AutoAttackOptions) -> None:
        self._config = config
        self._library = load("pyautoattack", "autoattack", f"autoattack:{config.version}")

    def __call__(self, target: Target, images: Tensor, labels: Tensor, *, eps: Tensor, keys: Tensor) -> Tensor:
        """See `defend.stages.Attack`; and `library.run` for what is seeded.

        Raises:
            ConfigError: too few classes; or `standard` against a defence that is random or optimises at test time,
                unless forced.
        """
        name = f"autoattack:{self._config.version}"
        if self._config.version == "standard" and not self._config.force:
            _refuse(target, images)
        model = Plain(target, draws=1 if self._config.version == "rand" else None, shown=images.dtype)

        def work(some: Tensor, true: Tensor, budget: float) -> Tensor:
            some = some.float()  # which the library computes in, whatever it is given
            classes = count_classes(model, some, name, LEAST_CLASSES[self._config.version])
            attack = self._library.AutoAttack(
                model,
                norm="Linf",
                eps=budget,
                version=self._config.version,
                device=some.device,
                seed=step_seed(target.seed, name) % (1 << 31),
            )
            if self._config.version == "rand":
                attack.apgd.eot_iter = target.draws
            attack.apgd_targeted.n_target_classes = attack.fab.n_target_classes = min(MOST_TARGETS, classes - 1)
            found: Tensor = attack.run_standard_evaluation(some, true, batch_size=len(some))[0]
            return found

        with _quiet():
            return run(work, name, self.norm, target, images, labels, eps, keys)


def _refuse(target: Target, images: Tensor) -> None:
    if target.random:
        why = "the defence is random, and its steps and checks take one draw for the truth"
    elif differentiates_inside(target.module, images[:1]):
        why = "the defence optimises in its forward pass, where AutoAttack overrates what it attacks"
    else:
        return
    raise ConfigError(
        f"attack autoattack:standard is refused: {why}; use autoattack:rand or the adaptive and bpda rows "
        "of pgd and apgd_ce, or set its option force=true"
    )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the library's remarks to itself, and put back the trace function that it takes away."""
    logger = logging.getLogger("auto-attack")
    before, trace = logger.disabled, sys.gettrace()
    logger.disabled = True
    try:
        yield
    finally:
        logger.disabled = before
        sys.settrace(trace)


def build(config: AutoAttackOptions) -> AutoAttack:
    """Build AutoAttack."""
    return AutoAttack(config)
