"""Auto-PGD (Croce and Hein 2020, arXiv:2003.01690): PGD that chooses its own step size; on any loss, in two norms."""

from __future__ import annotations

import attrs
import torch
from torch import Tensor

from defend.attacks.balls import clip, random_start
from defend.attacks.goals import Goal, choose_goal, confirm, settle, step_along
from defend.attacks.keeping import Attempts, Keeper, choose
from defend.attacks.objectives import LOSSES, OF_PAIRS, Objective
from defend.attacks.options import ApgdOptions, ApgdTargetedOptions
from defend.attacks.target import Slope, Target
from defend.randomness import keyed

MOMENTUM = 0.75  # alpha
FIRST_STEP = 2.0  # in eps
FIRST_CHECK, CHECK_SHRINKS, LEAST_CHECK = 0.22, 0.03, 0.06  # of the steps (section 3.1)


def checkpoints(steps: int) -> list[int]:
    """Return w_j = ceil(p_j N), with p_0 = 0, p_1 = 0.22, p_(j+1) = p_j + max(p_j - p_(j-1) - 0.03, 0.06)."""
    before, share, found = 0.0, FIRST_CHECK, []
    while share <= 1:
        # without rounding, 0.57 of 100 steps is 57.00000000000001, whose ceiling is 58
        found.append(int(-(-round(share * steps, 6) // 1)))
        before, share = share, share + max(share - before - CHECK_SHRINKS, LEAST_CHECK)
    return sorted(set(found))


class Apgd:
    """Momentum, a step that halves where the loss stops rising, and from there on again from the best point.

    An image is left alone once it is fooled. Never against a random defence, whose averaged gradient goes on: there the
    result is the iterate with the highest loss or the one that fooled most draws, whichever fools more of new ones.
    """

    def __init__(self, config: ApgdOptions, loss: str, norm: str = "linf") -> None:
        """The loss is one of `objectives.LOSSES`."""
        self.norm = norm
        self._config, self._objective, self._name = config, LOSSES[loss], f"apgd_{loss}"

    def __call__(self, target: Target, images: Tensor, labels: Tensor, *, eps: Tensor, keys: Tensor) -> Tensor:
        """See `defend.stages.Attack`."""
        config = self._config
        goal = choose_goal(config, target, images, labels, keys)
        attempts = Attempts(target, goal, images, keys, config.restarts, self._name)
        for restart in range(config.restarts):
            left = attempts.left
            if len(left) == 0:
                break
            found = climb(
                target,
                images[left],
                goal.part(left),
                self._objective,
                config,
                eps=eps[left],
                keys=keys[left],
                norm=self.norm,
                stream=(self._name, str(restart)),
            )
            attempts.add(restart, found)
        return settle(goal, target, images, attempts.images, labels, keys, self._name)


def climb(
    target: Target,
    images: Tensor,
    goal: Goal,
    objective: Objective,
    config: ApgdOptions | ApgdTargetedOptions,
    *,
    eps: Tensor,
    keys: Tensor,
    norm: str,
    stream: tuple[str, str],
) -> Tensor:
    """Climb once from a random start; return the first fooling image of each, or the one with the highest loss.

    Without `config.early_stop` it is always that with the highest loss.

    Where there are several draws it is the image that fooled most of them, or the one with the highest loss, whichever
    fools more of new ones.
    It takes `config.steps` gradients, and one at the start. `stream` names the draws: the attack's name, and what
    tells this climb from its others.
    """
    name, own = stream
    with keyed(keys, seed=target.seed, stream=f"{name}/start/{own}"):
        start = clip(random_start(images, eps, norm), images, eps, norm)
    steps, stops, stem = config.steps, config.early_stop and not target.random, f"{name}/{own}"
    checks = checkpoints(steps)
    result, place = start.clone(), torch.arange(len(images), device=images.device)
    slope = _look(target, start, goal, objective, keys, f"{stem}/0")
    state = _State.begin(start, slope, FIRST_STEP * eps, norm, goal if stops else None)
    keeper = Keeper(start) if target.draws > 1 else None
    if keeper is not None:
        keeper.take(start, slope, goal, slope.loss)
    origin, budget, identity, aim = images, eps, keys, goal
    last = 0
    for step in range(1, steps + 1):
        # the first step has no move before it to mix in
        moved = state.step(origin, budget, aim, momentum=MOMENTUM if step > 1 else 1.0)
        slope = _look(target, moved, aim, objective, identity, f"{stem}/{step}")
        state.record(moved, slope, aim if stops else None)
        if keeper is not None:
            keeper.take(moved, slope, aim, slope.loss)
        if step not in checks:
            continue
        state.check(step - last, config.rho)
        last = step
        if stops:
            state.fooled = confirm(state.fooled, target, aim, state.fooling, identity, f"{stem}/confirm/{step}")
        if stops and step < steps:  # the only wait for the device, a dozen times in a hundred steps
            result[place] = state.answer()
            keep = (~state.fooled).nonzero()[:, 0]
            if len(keep) == 0:
                return result
            state, place, origin = state.part(keep), place[keep], origin[keep]
            budget, identity, aim = budget[keep], identity[keep], aim.part(keep)
    # who was fooled since the last check is not confirmed yet
    if stops and last < steps:
        state.fooled = confirm(state.fooled, target, aim, state.fooling, identity, f"{stem}/confirm/{steps}")
    if keeper is not None:  # no image was left behind on the way
        return choose(target, goal, keeper.images, state.best, keys, f"{stem}/choose")
    result[place] = state.answer()
    return result


def _look(target: Target, images: Tensor, goal: Goal, objective: Objective, keys: Tensor, step: str) -> Slope:
    labels = goal.labels
    if goal.own is not None and objective in OF_PAIRS:
        objective, labels = OF_PAIRS[objective], torch.stack((goal.labels, goal.own), 1)
    slope = target.slope(images, labels, keys, step, objective)
    return attrs.evolve(slope, loss=goal.sign * slope.loss)


class _State:
    """Where every image's climb stands; all tensors have the images first, losses are to be raised."""

    def __init__(self, norm: str, **values: Tensor) -> None:
        self._norm = norm
        self.now, self.before, self.gradient, self.loss = (values[k] for k in ("now", "before", "gradient", "loss"))
        self.best, self.best_gradient, self.best_loss = (values[k] for k in ("best", "best_gradient", "best_loss"))
        self.size, self.rises = values["size"], values["rises"]
        self.halved, self.loss_at_check = values["halved"], values["loss_at_check"]
        self.fooled, self.fooling = values["fooled"], values["fooling"]

    @classmethod
    def begin(cls, start: Tensor, slope: Slope, size: Tensor, norm: str = "linf", goal: Goal | None = None) -> _State:
        """Begin at a start; with a goal, one that reaches it is remembered."""
        no = torch.zeros(len(start), dtype=torch.bool, device=start.device)
        return cls(
            norm,
            now=start,
            before=start,
            gradient=slope.gradient,
            loss=slope.loss,
            best=start,
            best_gradient=slope.gradient,
            best_loss=slope.loss,
            size=size,
            rises=torch.zeros_like(size),
            halved=~no,  # so the first check does not ask for a better best: there was no check before it
            loss_at_check=slope.loss,
            fooled=no if goal is None else goal.reached(slope.logits),
            fooling=start,
        )

    def step(self, images: Tensor, eps: Tensor, goal: Goal, momentum: float) -> Tensor:
        """Return x_(k+1) of algorithm 1, lines 7 and 8."""
        reached = clip(self.now + step_along(self.gradient, goal, self.size, self._norm), images, eps, self._norm)
        mixed = self.now + momentum * (reached - self.now) + (1 - momentum) * (self.now - self.before)
        return clip(mixed, images, eps, self._norm)

    def record(self, moved: Tensor, slope: Slope, goal: Goal | None) -> None:
        """Take a step's outcome in; with a goal, remember the first image of each that reaches it."""
        self.rises = self.rises + (slope.loss > self.loss)
        self.before, self.now, self.gradient, self.loss = self.now, moved, slope.gradient, slope.loss
        better = slope.loss > self.best_loss
        wide = better.view(-1, 1, 1, 1)
        self.best = torch.where(wide, moved, self.best)
        self.best_gradient = torch.where(wide, slope.gradient, self.best_gradient)
        self.best_loss = torch.where(better, slope.loss, self.best_loss)
        if goal is not None:
            first = goal.reached(slope.logits) & ~self.fooled
            self.fooling = torch.where(first.view(-1, 1, 1, 1), moved, self.fooling)
            self.fooled = self.fooled | first

    def check(self, since: int, rho: float) -> None:
        """Halve the step of images whose loss rose too seldom, or not past its best, and send them back there."""
        stuck = self.rises < rho * since
        stuck |= ~self.halved & (self.best_loss <= self.loss_at_check)
        self.halved, self.loss_at_check, self.rises = stuck, self.best_loss, torch.zeros_like(self.rises)
        self.size = torch.where(stuck, self.size / 2, self.size)
        wide = stuck.view(-1, 1, 1, 1)
        self.now = torch.where(wide, self.best, self.now)
        self.gradient = torch.where(wide, self.best_gradient, self.gradient)
        self.loss = torch.where(stuck, self.best_loss, self.loss)

    def answer(self) -> Tensor:
        """Return the first fooling image, or the one with the highest loss."""
        return torch.where(self.fooled.view(-1, 1, 1, 1), self.fooling, self.best)

    def part(self, keep: Tensor) -> _State:
        """Return the state of some of the images."""
        tensors = {name: value[keep] for name, value in vars(self).items() if isinstance(value, Tensor)}
        return _State(self._norm, **tensors)


def ce(config: ApgdOptions) -> Apgd:
    """Build APGD on the cross-entropy."""
    return Apgd(config, "ce")


def dlr(config: ApgdOptions) -> Apgd:
    """Build APGD on the difference of logits ratio."""
    return Apgd(config, "dlr")


def margin(config: ApgdOptions) -> Apgd:
    """Build APGD on the difference of logits."""
    return Apgd(config, "margin")


def pm(config: ApgdOptions) -> Apgd:
    """Build APGD on the difference of probabilities."""
    return Apgd(config, "pm")


def ce_l2(config: ApgdOptions) -> Apgd:
    """Build APGD on the cross-entropy, within L2."""
    return Apgd(config, "ce", "l2")


def dlr_l2(config: ApgdOptions) -> Apgd:
    """Build APGD on the difference of logits ratio, within L2."""
    return Apgd(config, "dlr", "l2")


def margin_l2(config: ApgdOptions) -> Apgd:
    """Build APGD on the difference of logits, within L2."""
    return Apgd(config, "margin", "l2")


def pm_l2(config: ApgdOptions) -> Apgd:
    """Build APGD on the difference of probabilities, within L2."""
    return Apgd(config, "pm", "l2")
