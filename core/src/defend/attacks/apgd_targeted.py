"""Auto-PGD towards one wrong class after another (Croce and Hein 2020, arXiv:2003.01690, section 4)."""

from __future__ import annotations

import torch
from torch import Tensor

from defend.attacks.apgd import climb
from defend.attacks.goals import Goal
from defend.attacks.keeping import Best
from defend.attacks.objectives import LOSSES, measure_margin
from defend.attacks.options import ApgdTargetedOptions
from defend.attacks.target import Target
from defend.attacks.wrong_classes import choose_classes, still_open

NAME = "apgd_t"


class ApgdTargeted:
    """All the steps towards each class; an image that is fooled, into whatever class, is attacked no further.

    One that is misclassified as it is stays so. A random defence gets all classes and starts, whoever was fooled: its
    draws may have been lucky. So does every image without `early_stop`. What comes back is the candidate that fools
    most draws, of those that fool as many the one with the least margin. Gradients an image: one more than the steps
    for each class and start, and one for each candidate of `malt`.
    """

    def __init__(self, config: ApgdTargetedOptions, norm: str = "linf") -> None:
        self._config, self.norm = config, norm

    def __call__(self, target: Target, images: Tensor, labels: Tensor, *, eps: Tensor, keys: Tensor) -> Tensor:
        """See `defend.stages.Attack`."""
        config = self._config
        logits, share = target.judge(images, labels, keys, f"{NAME}/judge")
        margin = measure_margin(logits, labels)
        if not config.early_stop and not target.random:  # the image as it is is no candidate for what else judges
            share, margin = torch.full_like(share, -1), torch.full_like(margin, torch.inf)
        best = Best(images, share, margin)
        place = still_open(target, logits, labels, config.early_stop)
        if len(place) == 0:
            return best.images
        aims = choose_classes(
            config, target, images[place], labels[place], logits[place], keys[place], norm=self.norm, stream=NAME
        )
        for number in range(aims.shape[1]):
            for restart in range(config.restarts):
                found = climb(
                    target,
                    images[place],
                    Goal(aims[:, number], -1, labels[place], anywhere=True),
                    LOSSES[config.loss],
                    config,
                    eps=eps[place],
                    keys=keys[place],
                    norm=self.norm,
                    stream=(NAME, f"{number}/{restart}"),
                )
                # under the same draws as all others, so that they compare
                logits, share = target.judge(found, labels[place], keys[place], f"{NAME}/judge")
                best.take(place, found, share, measure_margin(logits, labels[place]))
                keep = still_open(target, logits, labels[place], config.early_stop)
                if len(keep) == 0:
                    return best.images
                place, aims = place[keep], aims[keep]
        return best.images


def linf(config: ApgdTargetedOptions) -> ApgdTargeted:
    """Build the L-inf attack."""
    return ApgdTargeted(config)


def l2(config: ApgdTargetedOptions) -> ApgdTargeted:
    """Build the L2 attack."""
    return ApgdTargeted(config, "l2")
