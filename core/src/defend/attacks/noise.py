"""Random noise: no knowledge of the model at all."""

from __future__ import annotations

from torch import Tensor

from defend.attacks.balls import project_linf
from defend.attacks.target import Target
from defend.options import NoOptions
from defend.randomness import keyed, uniform_like


class Noise:
    """x + U(-eps, eps), clipped to [0,1]."""

    norm = "linf"

    def __call__(self, target: Target, images: Tensor, labels: Tensor, *, eps: Tensor, keys: Tensor) -> Tensor:
        """See `defend.stages.Attack`."""
        with keyed(keys, seed=target.seed, stream="noise"):
            step = uniform_like(images, -1, 1) * eps.view(-1, 1, 1, 1)
        return project_linf(images + step, images, eps)


def build(_: NoOptions) -> Noise:
    """Build the noise "attack"."""
    return Noise()
