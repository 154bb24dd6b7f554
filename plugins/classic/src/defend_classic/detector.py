"""The detector stage: feature squeezing (Xu et al. 2018, section V)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from defend import Task
from defend.errors import ContractError
from defend_classic.config import SqueezeOptions
from defend_classic.filters import reduce_depth, take_median
from defend_classic.purifiers import usual_depth


class Squeeze(nn.Module):
    """Images [B,C,H,W] to how far squeezing moves the victim's answer, [B] from 0 to 2.

    The score is the largest L1 distance between the victim's probabilities of the image and of what a squeezer makes of
    it: fewer bits, or a median. It looks at the images themselves, whatever purifier stands behind it.

    Args:
        depth: bits that the first squeezer leaves a channel.
        median: the window of the second.
        victim: images to logits [B,K]; None until it stands before one.

    Attributes:
        threshold: infinite until it is calibrated.
    """

    threshold: Tensor
    random = False

    def __init__(self, depth: int, median: int, victim: nn.Module | None = None) -> None:
        super().__init__()
        self.depth, self.median, self.victim = depth, median, victim
        self.register_buffer("threshold", torch.tensor(math.inf))

    def forward(self, images: Tensor, purified: Tensor) -> Tensor:
        """Return the scores; differentiable, the bits by a straight-through slope.

        Raises:
            ContractError: no victim stands behind it.
        """
        if self.victim is None:
            raise ContractError(
                "detector squeeze scores by what the victim answers, and no victim stands behind it: its threshold is "
                "of one victim, and set in its run, defend run --victim NAME --detector squeeze --fpr 0.01"
            )
        plain = self.victim(images).softmax(1)
        squeezed = reduce_depth(images, self.depth), take_median(images, self.median)
        moved = [(plain - self.victim(each).softmax(1)).abs().sum(1) for each in squeezed]
        return torch.stack(moved).amax(0)

    def with_victim(self, victim: nn.Module) -> Squeeze:
        """Return the detector that scores by what this victim answers; see `defend.stages.Detector`."""
        other = Squeeze(self.depth, self.median, victim)
        other.threshold = self.threshold
        if hasattr(self, "stage_name"):
            other.stage_name = self.stage_name
        return other


def build(config: SqueezeOptions, task: Task) -> Squeeze:
    """Build the detector for a task; a `Defence` gives it its victim."""
    return Squeeze(usual_depth(config.depth, task, other=5), config.median)
