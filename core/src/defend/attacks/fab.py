"""FAB, targeted (Croce and Hein 2020, arXiv:1907.02044): steps to a boundary that is taken for a plane."""

from __future__ import annotations

import torch
from torch import Tensor

from defend.attacks.balls import measure, wide
from defend.attacks.keeping import Best
from defend.attacks.objectives import measure_margin, targeted_margin
from defend.attacks.options import FabOptions
from defend.attacks.target import Target
from defend.attacks.wrong_classes import choose_classes, still_open

NAME = "fab_t"
MOST_BIAS, OVERSHOOT, BACK = 0.1, 1.05, 0.9  # alpha_max, eta and beta of AutoAttack
COMPACT_ON_GPU = 16  # steps between two looks at which images are done


class FabTargeted:
    """From the image to the plane where two logits are equal, and back towards the image once that is crossed.

    It looks for the smallest change, so it goes where attacks that fill their budget do not. An image is done once a
    change within its budget fools the target, into whatever class; a random defence gets all steps of all classes. The
    answer is the point within the budget that fooled most draws, of those that fooled as many the one with the least
    margin; an image for which no such point was found comes back as it is. Gradients an image: the steps for each
    class, and as many answers; and those of the order `malt`.
    """

    strays = all_or_nothing = True

    def __init__(self, config: FabOptions, norm: str = "linf") -> None:
        self._config, self.norm = config, norm

    def __call__(self, target: Target, images: Tensor, labels: Tensor, *, eps: Tensor, keys: Tensor) -> Tensor:
        """See `defend.stages.Attack`."""
        logits, share = target.judge(images, labels, keys, f"{NAME}/before")
        best = Best(images, share, measure_margin(logits, labels))
        place = still_open(target, logits, labels)
        if len(place) == 0:
            return best.images
        aims = choose_classes(
            self._config, target, images[place], labels[place], logits[place], keys[place], norm=self.norm, stream=NAME
        )
        for number in range(aims.shape[1]):
            keep = self._search(target, images, labels, aims[:, number], eps, keys, place, best, str(number))
            place, aims = place[keep], aims[keep]
            if len(place) == 0:
                break
        return best.images

    def _search(
        self,
        target: Target,
        images: Tensor,
        labels: Tensor,
        aims: Tensor,
        eps: Tensor,
        keys: Tensor,
        place: Tensor,
        best: Best,
        stream: str,
    ) -> Tensor:
        """Make for one class each; tell `best` what is found; return who is left, of `place`."""
        every = target.compact_every or (1 if images.device.type == "cpu" else COMPACT_ON_GPU)
        left, now = torch.arange(len(place), device=images.device), images[place]
        done = torch.zeros_like(left, dtype=torch.bool)
        for step in range(self._config.steps):
            own = place[left]
            origin, true, key = images[own], labels[own], keys[own]
            pairs = torch.stack((aims[left], true), 1)
            slope = target.slope(now, pairs, key, f"{NAME}/{stream}/{step}", targeted_margin)
            now = step_to_plane(now, origin, slope.gradient, slope.loss, self.norm)
            logits, share = target.judge(now, true, key, f"{NAME}/{stream}/{step}/answer", noted=True)
            fooled, inside = logits.argmax(1) != true, measure(now - origin, self.norm) <= eps[own]
            best.take(own, now, share, measure_margin(logits, true), inside)
            now = torch.where(wide(fooled), origin + BACK * (now - origin), now)
            if not target.random:
                done[left] |= fooled & inside
            if (step + 1) % every == 0:
                keep = (~done[left]).nonzero()[:, 0]
                if len(keep) < len(left):
                    left, now = left[keep], now[keep]
                if len(left) == 0:
                    break
        return (~done).nonzero()[:, 0]


def step_to_plane(now: Tensor, origin: Tensor, slope: Tensor, gap: Tensor, norm: str) -> Tensor:
    """Return the next point of algorithm 1: beyond the plane, biased from `now` towards `origin`, [B,C,H,W] in [0,1].

    Args:
        now: where an image stands.
        origin: the image.
        slope, gap: gradient [B,C,H,W] and value [B] at `now` of what is zero on the boundary.
        norm: in which the change from the origin is to be small.
    """
    back_gap = gap + (slope * (origin - now)).flatten(1).sum(1)
    both = torch.cat((now, origin)), slope.repeat(2, 1, 1, 1), torch.cat((gap, back_gap))
    there, back = cross_plane(*both, norm).chunk(2)
    far, near = (measure(change, norm).clamp_min(1e-8) for change in (there, back))
    bias = wide((far / (far + near)).clamp_max(MOST_BIAS))
    return ((now + OVERSHOOT * there) * (1 - bias) + (origin + OVERSHOOT * back) * bias).clamp(0, 1)


def cross_plane(points: Tensor, slope: Tensor, gap: Tensor, norm: str) -> Tensor:
    """Return the smallest change [B,C,H,W] after which gap + slope . change is zero, within the box [0,1].

    A pixel moves by what its slope is worth, the same for all in L-inf, until the box stops it; the multiplier of that
    is found between two pixels that stop. Where the plane does not meet the box, all move as far as they can.
    """
    largest = slope.flatten(1).abs().amax(1)
    unit = torch.where(largest > 0, largest, 1)
    weight, flat = (slope / wide(unit)).flatten(1), points.flatten(1)
    up = torch.where(gap > 0, -1, 1)[:, None] * weight.sign()
    room = torch.where(up > 0, 1 - flat, flat) * up.abs()
    size, need = weight.abs(), (gap / unit).abs()
    worth = size if norm == "l2" else torch.ones_like(size)
    # the multiplier that stops a pixel; one without a slope is never moved
    stop = torch.where(size > 0, room / torch.where(size > 0, worth, 1), 0)
    stop, order = stop.sort(1)
    bought = (size * room).gather(1, order).cumsum(1)
    free = (size * worth).gather(1, order)
    rest = free.flip(1).cumsum(1).flip(1)  # of those that have not stopped before this one
    reached = bought - (size * room).gather(1, order) + stop * rest
    where = (reached < need[:, None]).sum(1, keepdim=True).clamp_max(stop.shape[1] - 1)
    before = torch.where(where > 0, bought.gather(1, (where - 1).clamp_min(0)), 0)
    open_ = rest.gather(1, where)
    multiplier = (need[:, None] - before) / torch.where(open_ > 0, open_, 1)
    multiplier = torch.where(open_ > 0, multiplier, stop[:, -1:])
    change = torch.where(size > 0, torch.minimum(multiplier * worth, room), 0)
    return (up * change).view_as(points)


def linf(config: FabOptions) -> FabTargeted:
    """Build the L-inf attack."""
    return FabTargeted(config)


def l2(config: FabOptions) -> FabTargeted:
    """Build the L2 attack."""
    return FabTargeted(config, "l2")
