"""Auto-PGD towards one wrong class after another (Croce and Hein 2020, arXiv:2003.01690, section 4)."""

from __future__ import annotations

import torch
from torch import Tensor

from defend.attacks.apgd import climb
from defend.attacks.balls import wide
from defend.attacks.goals import Goal
from defend.attacks.objectives import LOSSES, measure_margin
from defend.attacks.options import ApgdTargetedOptions
from defend.attacks.target import Target
from defend.attacks.wrong_classes import choose_classes, still_open

NAME = "apgd_t"


class ApgdTargeted:
    """All the steps towards each class; an image that is fooled, into whatever class, is attacked no further.

    One that is misclassified as it is stays so. A random defence gets all classes and starts, whoever was fooled: its
    draws may have been lucky. What comes back is the candidate whose margin, asked for after each climb, is least.
    Gradients an image: one more than the steps for each class and start, and one for each candidate of `malt`.
    """

    def __init__(self, config: ApgdTargetedOptions, norm: str = "linf") -> None:
        self._config, self.norm = config, norm

    def __call__(self, target: Target, images: Tensor, labels: Tensor, *, eps: Tensor, keys: Tensor) -> Tensor:
        """See `defend.stages.Attack`."""
        config, best = self._config, images.clone()
        logits = target.logits(images, keys, f"{NAME}/before")
        least = measure_margin(logits, labels)
        place = still_open(target, logits, labels)
        if len(place) == 0:
            return best
        aims = choose_classes(
            config, target, images[place], labels[place], logits[place], keys[place], norm=self.norm, stream=NAME
        )
        for number in range(aims.shape[1]):
            for restart in range(config.restarts):
                own = f"{number}/{restart}"
                found = climb(
                    target,
                    images[place],
                    Goal(aims[:, number], -1, labels[place], anywhere=True),
                    LOSSES[config.loss],
                    config,
                    eps=eps[place],
                    keys=keys[place],
                    norm=self.norm,
                    stream=(NAME, own),
                )
                logits = target.logits(found, keys[place], f"{NAME}/judge/{own}")
                margin = measure_margin(logits, labels[place])
                # of equal logits the first decides, so a margin of 0 is fooled or not
                nearer = (margin < least[place]) | (logits.argmax(1) != labels[place]) & (margin <= least[place])
                best[place] = torch.where(wide(nearer), found, best[place])
                least[place] = torch.minimum(margin, least[place])
                keep = still_open(target, logits, labels[place])
                if len(keep) == 0:
                    return best
                place, aims = place[keep], aims[keep]
        return best


def linf(config: ApgdTargetedOptions) -> ApgdTargeted:
    """Build the L-inf attack."""
    return ApgdTargeted(config)


def l2(config: ApgdTargetedOptions) -> ApgdTargeted:
    """Build the L2 attack."""
    return ApgdTargeted(config, "l2")
