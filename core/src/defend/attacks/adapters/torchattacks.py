"""torchattacks' attacks (Kim 2020), on whatever is under attack."""

from __future__ import annotations

import contextlib
import inspect
import io
import math
import re
from typing import Any

import torch
from torch import Tensor

from defend.attacks.adapters.library import Plain, arguments, count_classes, load, run
from defend.attacks.adapters.specs import TorchattacksOptions
from defend.attacks.target import Target
from defend.errors import ConfigError

BUDGETS = ("eps", "max_epsilon")  # what they call it
SIZES = ("alpha", "lr")  # of a step, in pixels where there is a budget
NORMS = {"linf": "linf", "l2": "l2"}
LEAST_CLASSES = {"APGDT": 4, "AutoAttack": 4}  # of the targeted difference of logits ratio
BY_DIRECTION = ("PGDL2", "PGDRSL2", "APGD", "APGDT")  # see `library.run`; L-inf's take signs whatever the size
LEAST_FOR_RATIO = 3  # of the one that is not targeted


class Torchattacks:
    """One attack of torchattacks, untargeted, with the budget as its own where it takes one, else clipped to it.

    Its norm is that of its argument `norm`, or the one its documentation names.
    """

    all_or_nothing = True  # some of theirs, and nobody says which

    def __init__(self, config: TorchattacksOptions) -> None:
        self._name = f"torchattacks:{config.attack}"
        library = load("torchattacks", "torchattacks", self._name)
        self._kind: Any = getattr(library, config.attack, None)
        if self._kind is None:
            raise ConfigError(f"{self._name}: torchattacks {library.__version__} has no such attack")
        self._given = arguments(config.arguments, self._name)
        signature = inspect.signature(self._kind)
        self._takes_seed = "seed" in signature.parameters and "seed" not in self._given
        self._budget = next((name for name in BUDGETS if name in signature.parameters), None)
        for own in BUDGETS:
            if own in self._given:
                raise ConfigError(
                    f"{self._name}: arguments has {own}={self._given[own]!r}: the budget comes from --eps"
                )
        try:
            bound = signature.bind(None, **self._given)
        except TypeError as error:
            raise ConfigError(f"{self._name}: {error}; set the option arguments") from None
        self._counts_classes = "n_classes" in signature.parameters and "n_classes" not in self._given
        bound.apply_defaults()
        # theirs is of one budget, 8/255 mostly, and ten such steps do not come to the edge of a larger one
        usual: Any = bound.arguments.get(self._budget or "")
        self._shares: dict[str, float] = {}  # of the budget, that steps have whose size nobody said
        for name in SIZES if isinstance(usual, float) and usual > 0 else ():
            size = bound.arguments.get(name)
            if name not in self._given and isinstance(size, float):
                self._shares[name] = size / usual
        # SPSA has one step by default, of a thirtieth of its budget
        self._iterations = bound.arguments if {"lr", "nb_iter"} <= signature.parameters.keys() else None
        least = LEAST_FOR_RATIO if bound.arguments.get("loss") == "dlr" else 2
        self._least = LEAST_CLASSES.get(config.attack, least)
        documented = re.search(r"Distance Measure\s*:\s*(\w+)", self._kind.__doc__ or "")
        norm = str(bound.arguments.get("norm", documented[1] if documented else ""))
        if norm.lower() not in NORMS:
            raise ConfigError(f"{self._name}: norm {norm!r} is not accepted: expected Linf or L2")
        self.norm = NORMS[norm.lower()]
        # gradients of several passes over one image are summed, each at the size it has
        self._by_direction = config.attack in BY_DIRECTION and bound.arguments.get("eot_iter", 1) == 1
        self._copies = int(bound.arguments["noise_batch_size"]) if config.attack == "PGDRSL2" else 1

    def __call__(self, target: Target, images: Tensor, labels: Tensor, *, eps: Tensor, keys: Tensor) -> Tensor:
        """See `defend.stages.Attack`; and `library.run` for what is seeded.

        Raises:
            ConfigError: too few classes for the attack's loss.
        """
        model = Plain(target, shown=images.dtype)

        def work(some: Tensor, true: Tensor, budget: float) -> Tensor:
            within: dict[str, Any] = {} if self._budget is None else {self._budget: budget}
            within |= {name: share * budget for name, share in self._shares.items()}
            if self._iterations is not None and "nb_iter" not in self._given:
                rate: float = within.get("lr") or self._given["lr"]
                within["nb_iter"] = max(self._iterations["nb_iter"], math.ceil(budget / rate - 1e-6))
            classes = count_classes(model, some, self._name, self._least)
            if self._counts_classes:
                within["n_classes"] = classes  # they assume 10
            if self._takes_seed:  # theirs is always 0, or the time; ours comes from the generator that `run` has seeded
                within["seed"] = int(torch.randint(1 << 31, ()))
            with contextlib.redirect_stdout(io.StringIO()):  # it prints what it finds odd
                attack = self._kind(model, **within, **self._given)
                attack.set_device(some.device)
                found: Tensor = attack(some, true)
            return found

        return run(work, self._name, self.norm, target, images, labels, eps, keys, self._by_direction, self._copies)


def build(config: TorchattacksOptions) -> Torchattacks:
    """Build an attack of torchattacks."""
    return Torchattacks(config)
