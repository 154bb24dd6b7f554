"""foolbox's attacks (Rauber et al. 2020), on whatever is under attack."""

from __future__ import annotations

import warnings
from typing import Any

from torch import Tensor

from defend.attacks.adapters.library import Plain, arguments, load, run
from defend.attacks.adapters.specs import FoolboxOptions
from defend.attacks.target import Target
from defend.errors import ConfigError

NORMS = {float("inf"): "linf", 2: "l2"}
# base classes of attacks that make every gradient a sign or a unit before anything else
BY_DIRECTION = ("L2BaseGradientDescent", "LinfBaseGradientDescent", "DDNAttack", "VirtualAdversarialAttack")


class Foolbox:
    """One attack of foolbox, untargeted, within the host's budget in the attack's own norm.

    An attack that minimises the distance is told the budget (foolbox then stops early where it can), and its result
    clipped to it: it succeeds where it found something within. One that may use any distance uses L-inf.
    """

    all_or_nothing = True  # some of theirs, and nobody says which

    def __init__(self, config: FoolboxOptions) -> None:
        self._name = f"foolbox:{config.attack}"
        self._foolbox = load("foolbox", "foolbox", self._name)
        kind: Any = getattr(self._foolbox.attacks, config.attack, None)
        if kind is None:
            raise ConfigError(f"{self._name}: foolbox {self._foolbox.__version__} has no such attack")
        given = arguments(config.arguments, self._name)
        if issubclass(kind, self._foolbox.attacks.base.FlexibleDistanceMinimizationAttack):
            given["distance"] = self._foolbox.distances.linf
        try:
            self._attack = kind(**given)
        except ModuleNotFoundError as error:
            raise ConfigError(f"{self._name} needs {error.name}: pip install {error.name}") from None
        except (TypeError, ValueError) as error:
            raise ConfigError(f"{self._name}: {error}; set the option arguments") from None
        self.norm = NORMS[self._attack.distance.p]
        self._by_direction = any(base.__name__ in BY_DIRECTION for base in kind.__mro__)

    def __call__(self, target: Target, images: Tensor, labels: Tensor, *, eps: Tensor, keys: Tensor) -> Tensor:
        """See `defend.stages.Attack`; and `library.run` for what is seeded."""
        plain = Plain(target, shown=images.dtype).eval()
        model = self._foolbox.PyTorchModel(plain, bounds=(0, 1), device=images.device)

        def work(some: Tensor, true: Tensor, budget: float) -> Tensor:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)
                clipped: Tensor = self._attack(model, some, true, epsilons=budget)[1]
            return clipped

        return run(work, self._name, self.norm, target, images, labels, eps, keys, self._by_direction)


def build(config: FoolboxOptions) -> Foolbox:
    """Build an attack of foolbox."""
    return Foolbox(config)
