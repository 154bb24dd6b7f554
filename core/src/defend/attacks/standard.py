"""The standard ensemble (AutoAttack, Croce and Hein 2020, arXiv:2003.01690) of this package's own attacks."""

from __future__ import annotations

from torch import Tensor

from defend.attacks.apgd import Apgd
from defend.attacks.apgd_targeted import ApgdTargeted
from defend.attacks.fab import FabTargeted
from defend.attacks.keeping import Best
from defend.attacks.objectives import measure_margin
from defend.attacks.options import ApgdOptions, ApgdTargetedOptions, FabOptions, SquareOptions, StandardOptions
from defend.attacks.square import SquareAttack
from defend.attacks.target import Target
from defend.options import make
from defend.stages import Attack


class Standard:
    """Auto-PGD on the cross-entropy, targeted Auto-PGD, targeted FAB, Square; one after the other, image by image.

    An image that one of them fooled is not attacked by the next; with a detector it has to be accepted too. A random
    defence gets all of them, whoever was fooled: its draws may have been lucky. What comes back is what is accepted and
    fools most draws, and of several of the same kind the one with the least margin.
    """

    strays = True  # FAB does

    def __init__(self, config: StandardOptions, norm: str = "linf") -> None:
        self.norm = norm
        targets = {"targets": config.targets, "order": config.order, "candidates": config.candidates}
        apgd, fab = {"steps": config.apgd_steps}, {"steps": config.fab_steps}
        self._parts: dict[str, Attack] = {
            "apgd_ce": Apgd(make(ApgdOptions, apgd, "standard"), "ce", norm),
            "apgd_t": ApgdTargeted(make(ApgdTargetedOptions, {**apgd, **targets}, "standard"), norm),
            "fab_t": FabTargeted(make(FabOptions, {**fab, **targets}, "standard"), norm),
            "square": SquareAttack(make(SquareOptions, {"queries": config.square_queries}, "standard"), norm),
        }

    def __call__(self, target: Target, images: Tensor, labels: Tensor, *, eps: Tensor, keys: Tensor) -> Tensor:
        """See `defend.stages.Attack`."""
        through, share, margin = _judge(target, images, labels, keys, "before")
        best = Best(images, share, margin)
        for name, attack in self._parts.items():
            place = (~through | target.random).nonzero()[:, 0]
            if len(place) == 0:
                break
            found = attack(target, images[place], labels[place], eps=eps[place], keys=keys[place])
            won, share, margin = _judge(target, found, labels[place], keys[place], name)
            best.take(place, found, share, margin)
            through[place] |= won
        target.queries = None  # Square counted its own part
        return best.images


def _judge(target: Target, images: Tensor, labels: Tensor, keys: Tensor, name: str) -> tuple[Tensor, Tensor, Tensor]:
    """Return who is misclassified and accepted, bool [B], in how many of the draws, [B] in [0,1], and the margins."""
    logits, accepted = target.answer(images, keys, f"standard/{name}")
    won = accepted & (logits.argmax(1) != labels)
    share = won.float()
    if target.draws > 1:  # the same for all candidates, so that they compare
        share = accepted * target.judge(images, labels, keys, "standard/judge")[1]
    return won, share, measure_margin(logits, labels)


def linf(config: StandardOptions) -> Standard:
    """Build the L-inf ensemble."""
    return Standard(config)


def l2(config: StandardOptions) -> Standard:
    """Build the L2 ensemble."""
    return Standard(config, "l2")
