"""Many gradients within an L-inf or an L2 ball: BIM and PGD."""

from __future__ import annotations

import torch
from torch import Tensor

from defend.attacks.balls import clip, random_start
from defend.attacks.cycles import TRAVEL, Cycles
from defend.attacks.goals import Goal, choose_goal, confirm, settle, step_along
from defend.attacks.keeping import Attempts, Keeper, choose
from defend.attacks.objectives import Objective, choose_cross_entropy, cross_entropy, scaled_cross_entropy
from defend.attacks.options import BimOptions, ClimbOptions, PgdOptions, bim_steps
from defend.attacks.target import Target
from defend.randomness import keyed


def climb_ball(
    target: Target,
    images: Tensor,
    start: Tensor,
    goal: Goal,
    *,
    eps: Tensor,
    keys: Tensor,
    steps: int,
    step_size: Tensor,
    early_stop: bool = True,
    objective: Objective = cross_entropy,
    stream: str = "climb",
    schedule: str = "constant",
    judged: bool = True,
    norm: str = "linf",
    may_cycle: bool = False,
) -> Tensor:
    """Take `steps` projected steps from `start`, at most eps [B] from `images` in the norm, "linf" or "l2".

    A step goes along the gradient's sign, in L2 along the gradient itself. It is `step_size` [B] long; with the
    schedule "linear" that is the first, and the others fall to nothing.
    With `early_stop`, an image is left as it is from the first iterate that reaches the goal: the
    logits of the gradient's own forward pass tell, so it costs nothing. In reduced precision they do
    not decide: there an image is left where full precision confirms it, whenever the batch is
    compacted. The result is where the last step ended, which has not been queried; where there are several draws it is
    that or the iterate that fooled most of them on the way, whichever fools more of new ones. `judged` is False where
    the objective's logits are not the target's own: they decide no success. With `may_cycle`, climbs that come back to
    where they were are cut short (`defend.attacks.cycles`): for an objective that depends on its arguments alone, of
    which that changes no result.
    """
    keeper = Keeper(start) if target.draws > 1 and judged else None
    early_stop = early_stop and judged and not target.random
    compact_every = target.compact_every or (1 if images.device.type == "cpu" else max(steps // 4, 1))
    result = start.clone()
    place = torch.arange(len(images), device=images.device)
    current, origin, budget, size, identity = start, images, eps, step_size, keys
    fixed = schedule == "constant" and norm == "linf" and not target.random and target.precision is None
    cycles = None
    if may_cycle and fixed and bool((steps * step_size > TRAVEL * eps).any()):
        cycles = Cycles(start, steps)
    for step in range(steps):
        slope = target.slope(current, goal.labels, identity, f"{stream}/{step}", objective, judged=judged)
        length = size if schedule == "constant" else size * (1 - step / steps)
        moved = clip(current + step_along(slope.gradient, goal, length, norm), origin, budget, norm)
        if keeper is not None:
            keeper.take(current, slope, goal, goal.sign * slope.loss)
        if not early_stop and cycles is None:
            current = moved
            continue
        due = (step + 1) % compact_every == 0
        if target.precision is not None and not due:
            current = moved  # nobody is believed to be fooled yet: confirming it waits for the device
            continue
        done = torch.zeros_like(goal.labels, dtype=torch.bool) if cycles is None else cycles.over(current, step)
        if early_stop:
            fooled = goal.reached(slope.logits)
            done |= confirm(fooled, target, goal, current, identity, f"{stream}/{step}")
        current = torch.where(done.view(-1, 1, 1, 1), current, moved)
        if due and step + 1 < steps:
            result[place] = current
            keep = (~done).nonzero()[:, 0]
            if len(keep) == 0:
                return result
            if len(keep) < len(place):
                cycles = None if cycles is None else cycles.part(keep)
                place, current, origin, goal = place[keep], current[keep], origin[keep], goal.part(keep)
                budget, size, identity = budget[keep], size[keep], identity[keep]
    if keeper is not None:  # no image was left behind on the way
        return choose(target, goal, keeper.images, current, keys, f"{stream}/choose")
    result[place] = current
    return result


class Bim:
    """The basic iterative method (Kurakin et al. 2017): no random start. In L2 a step is the gradient's unit."""

    def __init__(
        self, config: BimOptions, norm: str = "linf", objective: Objective | None = None, judged: bool = True
    ) -> None:
        """The objective is the cross-entropy if None; `judged` as in `Pgd`."""
        self._config, self.norm, self._judged = config, norm, judged
        self._objective = objective or scaled_cross_entropy(config.logit_scale)

    def __call__(self, target: Target, images: Tensor, labels: Tensor, *, eps: Tensor, keys: Tensor) -> Tensor:
        """See `defend.stages.Attack`."""
        config = self._config
        goal = choose_goal(config, target, images, labels, keys)
        # the ratio of Kalaria et al. 2022 on MNIST: steps of 0.01 within 0.1
        size = eps / 10 if config.step_size is None else torch.full_like(eps, config.step_size)
        steps = [config.steps or bim_steps(*pair) for pair in zip(eps.tolist(), size.tolist(), strict=True)]
        result = images.clone()
        for count in sorted(set(steps)):  # one value, unless the budgets differ from image to image
            some = torch.tensor([own == count for own in steps], device=images.device).nonzero()[:, 0]
            result[some] = climb_ball(
                target,
                images[some],
                images[some],
                goal.part(some),
                eps=eps[some],
                keys=keys[some],
                steps=count,
                step_size=size[some],
                early_stop=config.early_stop,
                objective=self._objective,
                judged=self._judged,
                norm=self.norm,
            )
        return settle(goal, target, images, result, labels, keys, "bim")


class Pgd:
    """Projected gradient descent (Madry et al. 2018): random start, restarts."""

    def __init__(
        self, config: ClimbOptions, objective: Objective | None = None, judged: bool = True, norm: str = "linf"
    ) -> None:
        """The objective is the cross-entropy if None, in its steady form unless a scale of the logits is named.

        `judged` is False where the objective's logits are not the target's own, so they decide no success.
        """
        scale = config.logit_scale if isinstance(config, PgdOptions) else None
        self._objective = objective or choose_cross_entropy(scale)
        self._config, self._judged, self.norm = config, judged, norm
        self._may_cycle = objective is None  # another may remember what it was asked

    def __call__(self, target: Target, images: Tensor, labels: Tensor, *, eps: Tensor, keys: Tensor) -> Tensor:
        """See `defend.stages.Attack`."""
        config = self._config
        goal = choose_goal(config, target, images, labels, keys)
        size = config.first_step(eps)
        attempts = Attempts(target, goal, images, keys, config.restarts, "pgd")
        for restart in range(config.restarts):
            left = attempts.left
            if len(left) == 0:
                break
            some, budget, identity, aim = images[left], eps[left], keys[left], goal.part(left)
            start = some
            if config.random_start:
                with keyed(identity, seed=target.seed, stream=f"pgd/start/{restart}"):
                    start = random_start(some, budget, self.norm)
                start = clip(start, some, budget, self.norm)
            found = climb_ball(
                target,
                some,
                start,
                aim,
                eps=budget,
                keys=identity,
                steps=config.steps,
                step_size=size[left],
                early_stop=config.early_stop,
                objective=self._objective,
                stream=f"pgd/{restart}",
                schedule=config.schedule,
                judged=self._judged,
                norm=self.norm,
                may_cycle=self._may_cycle,
            )
            attempts.add(restart, found)
        return settle(goal, target, images, attempts.images, labels, keys, "pgd")


def bim(config: BimOptions) -> Bim:
    """Build BIM."""
    return Bim(config)


def pgd(config: PgdOptions) -> Pgd:
    """Build PGD."""
    return Pgd(config)


def bim_l2(config: BimOptions) -> Bim:
    """Build BIM in L2."""
    return Bim(config, "l2")


def pgd_l2(config: PgdOptions) -> Pgd:
    """Build PGD in L2."""
    return Pgd(config, norm="l2")
