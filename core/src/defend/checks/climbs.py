"""Checks that attack the defence themselves, with a PGD of their own: budgets, steps, restarts, known draws, labels.

It is a plain PGD, so that what it shows is due to the defence and not to a clever attack: cross-entropy, and sign steps
of 2.5 eps / steps (Madry et al. 2018), which together cross the ball from any start. Against a defence that is not
random the first iterate that fools it is kept.
"""

from __future__ import annotations

from typing import Any

import attrs
import torch
from torch import Tensor, nn

from defend.attacks.balls import project_linf
from defend.attacks.goals import Goal, settle
from defend.attacks.iterated import climb_ball
from defend.attacks.objectives import Objective, cross_entropy
from defend.attacks.target import Slope, Target
from defend.checks.common import Case, Findings, Subject, by_key, judge, know_draws, percent
from defend.checks.ladder import judge_sweep
from defend.checks.outcomes import Outcomes, compare, share
from defend.checks.records import judge_undefended
from defend.defence import Defence
from defend.randomness import keyed, uniform_like

SWEEP = (0.0, 2 / 255, 8 / 255, 32 / 255, 128 / 255, 1.0)
SWEEP_STEPS = 10
MORE = 10  # times the steps, and restarts
POINT = 0.01
STILL_RISING = 0.05  # of all the rise, in the last tenth of the steps


def climb(
    subject: Subject,
    defence: Defence | None = None,
    *,
    eps: float | None = None,
    steps: int | None = None,
    start: int | None = None,
    labels: Tensor | None = None,
    early_stop: bool = True,
) -> Tensor:
    """Attack a subject's images; return attacked ones [N,C,H,W].

    Args:
        subject: whose images, seed, draws, and (unless given) defence, budget and steps are taken.
        defence: what is attacked instead of the subject's own.
        eps: the budget.
        steps: how many.
        start: the number of a random start; None starts at the images themselves.
        labels: int64 [N], to leave instead of the true ones.
        early_stop: leave an image alone once it is fooled (never of a random defence).
    """
    target = Target(defence or subject.defence, seed=subject.seed, draws=subject.draws)
    eps, steps = subject.eps if eps is None else eps, steps or subject.steps
    aims, pack = subject.labels if labels is None else labels, max(subject.pack // target.draws, 1)
    found = [
        _climb(target, subject.part(some), aims[some], eps, steps, 2.5 * eps / steps, start, early_stop=early_stop)
        for some in (slice(place, place + pack) for place in range(0, len(aims), pack))
    ]
    return torch.cat(found)


def _climb(
    target: Target,
    subject: Subject,
    labels: Tensor,
    eps: float,
    steps: int,
    size: float,
    start: int | None,
    objective: Objective = cross_entropy,
    early_stop: bool = True,
) -> Tensor:
    images, keys = subject.images, subject.keys
    budget = images.new_full((len(images),), eps)
    begin = images
    if start is not None:
        with keyed(keys, seed=target.seed, stream=f"check/start/{start}"):
            begin = project_linf(images + uniform_like(images, -1, 1) * eps, images, budget)
    return climb_ball(
        target,
        images,
        begin,
        Goal(labels, 1),
        eps=budget,
        keys=keys,
        steps=steps,
        step_size=torch.full_like(budget, size),
        early_stop=early_stop,
        objective=objective,
        stream=f"check/{start}",
    )


@attrs.define
class _Trace:
    """What a climb of `size` images, draws included, went through: each step's mean loss, and who was ever fooled.

    A step may come in pieces, and a piece twice: once more where its gradient was not finite, which does not count.
    """

    size: int
    first: bool = True
    losses: list[Tensor] = attrs.field(factory=list)
    fooled: Tensor | None = None
    pieces: list[tuple[Tensor, Tensor]] = attrs.field(factory=list)

    def objective(self, module: nn.Module, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """See `defend.attacks.objectives.Objective`."""
        loss, logits = cross_entropy(module, images, labels)
        if not self.first:
            return loss, logits
        self.first = False
        self.pieces.append((loss.detach(), logits.detach().argmax(1) != labels))
        if sum(len(losses) for losses, _ in self.pieces) == self.size:
            losses, wrong = (torch.cat(column) for column in zip(*self.pieces, strict=True))
            self.losses.append(losses.mean())
            self.fooled = wrong if self.fooled is None else self.fooled | wrong
            self.pieces = []
        return loss, logits


class _Traced(Target):
    """A target whose climb leaves a trace."""

    trace: _Trace

    def _slope(self, *about: Any) -> Slope:
        self.trace.first = True
        return super()._slope(*about)


def _trace(subject: Subject, module: nn.Module, steps: int) -> tuple[Tensor, list[float]]:
    """Climb from start 0 for so many steps of the usual size; return who is left right, bool [N], and mean losses.

    What is not random may not be fooled on the way either.
    """
    target = _Traced(module, seed=subject.seed, draws=subject.draws)
    pack = max(subject.pack // target.draws, 1)
    right, losses = [], torch.zeros(steps, dtype=torch.float64)
    for place in range(0, len(subject.images), pack):
        part = subject.part(slice(place, place + pack))
        trace = target.trace = _Trace(len(part.images) * target.draws)
        # that of the shorter climb: more steps go further, and not only finer
        size = 2.5 * subject.eps / subject.steps
        found = _climb(target, part, part.labels, subject.eps, steps, size, 0, trace.objective, early_stop=False)
        ok = judge(part, found)
        right.append(ok if target.random or trace.fooled is None else ok & ~trace.fooled)
        losses += torch.stack(trace.losses).cpu().double() * len(part.images) / len(subject.images)
    return torch.cat(right), losses.tolist()


def _robust(subject: Subject, images: Tensor) -> Outcomes:
    return by_key(subject, judge(subject, images))


def sweep(case: Case, found: Findings) -> None:
    """Check 1: accuracy falls with the budget, to chance by 128/255. No budget starts from another's result."""
    subject = case.full
    if subject is None:
        return
    steps = min(subject.steps, SWEEP_STEPS)
    outcomes = {eps: _robust(subject, climb(subject, eps=eps, steps=steps) if eps else subject.images) for eps in SWEEP}
    found.numbers["probe"] = judge_sweep(found, outcomes, subject.classes, f"PGD-{steps} from the clean image")


def one_step(case: Case, found: Findings) -> None:
    """Check 2: many steps through the defence do not do worse than one."""
    subject = case.full
    if subject is None:
        return
    many, one = (_robust(subject, climb(subject, steps=steps)) for steps in (subject.steps, 1))
    pair = compare(many, one)
    found.numbers["probe"] = {"pgd": pair.first, "fgsm": pair.second, "n": pair.n}
    said = f"PGD-{subject.steps} leaves {percent(pair.first)} of {pair.n}, FGSM {percent(pair.second)}"
    if pair.exceeds:
        found.add("fail", f"{said}: many steps do worse than one, so the gradient misleads")
    else:
        found.add("pass", said)


def convergence(case: Case, found: Findings) -> None:
    """Check 4: ten times the steps, or ten restarts, find no more; and the loss has stopped rising."""
    subject = case.full
    if subject is None:
        if case.subject is not None and not found.numbers:
            found.add("skip", "no row of several steps; more with --checks full")
        return
    right = judge(subject, climb(subject, start=0))
    base = by_key(subject, right)
    found.numbers |= {"n": len(base), "steps": subject.steps, "accuracy": share(base)}
    if not bool(right.any()):
        found.add("pass", f"PGD-{subject.steps} leaves nothing of {len(base)} images to find")
        return
    # a longer climb goes on where the first one ended; only of a random defence may that lose an image again
    some = torch.ones_like(right) if subject.defence.random else right.clone()
    longer, restarted = right.clone(), right.clone()
    longer[some], losses = _trace(_only(subject, some), subject.defence, MORE * subject.steps)
    # start 0 is the climb that they are held against
    for number in range(1, MORE):
        if not bool(restarted.any()):
            break
        left = _only(subject, restarted)
        restarted[restarted.clone()] = judge(left, climb(left, start=number))
    ways = ((f"{MORE} times the steps", "more_steps", longer), (f"{MORE} restarts", "restarts", restarted))
    for what, name, after in ways:
        pair = compare(base, by_key(subject, after))
        found.numbers[name] = pair.second
        said = f"PGD-{subject.steps} leaves {percent(pair.first)} of {pair.n}, with {what} {percent(pair.second)}"
        if pair.first - pair.second < POINT:
            found.add("pass", said)
        else:
            found.add("fail" if pair.exceeds else "warn", f"{said}: it had not converged; set pgd.steps, pgd.restarts")
    rise, late = _rises(losses)
    part = late / rise if rise > 0 else 0.0
    found.numbers |= {"losses": losses[:: max(len(losses) // 50, 1)], "late_rise": part}
    said = f"the last tenth of {len(losses)} steps adds {percent(part)} of the rise of the loss"
    found.add("pass" if part <= STILL_RISING else "warn", said)


def _rises(losses: list[float]) -> tuple[float, float]:
    """Return how far a loss rose in all, and from the tenth before the last to the last (means over each)."""
    tenth = max(len(losses) // MORE, 1)
    last, before = (sum(part) / tenth for part in (losses[-tenth:], losses[-2 * tenth : -tenth]))
    return last - losses[0], last - before


def _only(subject: Subject, which: Tensor) -> Subject:
    return attrs.evolve(subject, images=subject.images[which], labels=subject.labels[which], keys=subject.keys[which])


def known_draws(case: Case, found: Findings) -> None:
    """Check 6: what is left of a random defence whose draws the attacker knows (they are the judge's own)."""
    subject = case.full
    if subject is None or not subject.defence.random:
        return
    left = float(_trace(subject, know_draws(subject), subject.steps)[0].float().mean())
    found.numbers["known_draws"] = left
    found.add("pass", f"an attacker who knows the draws leaves {percent(left)} of {len(subject.images)}")


def predicted_labels(case: Case, found: Findings) -> None:
    """Check 8: attacks on the victim that cannot leak the label, as they take the predicted one, leave no less."""
    subject = case.full
    if subject is None:
        return
    target = Target(subject.undefended, seed=subject.seed, draws=subject.draws)
    guessed = target.logits(subject.images, subject.keys, "check/guess").argmax(1)
    goal = Goal(guessed, 1, wrong=guessed != subject.labels)
    clean = _robust(subject, subject.images)
    for name, steps in (("FGSM", 1), (f"PGD-{subject.steps}", subject.steps)):
        unaware, aware = (
            climb(subject, subject.undefended, steps=steps, labels=labels, early_stop=False)
            for labels in (guessed, subject.labels)
        )
        unaware = settle(goal, target, subject.images, unaware, subject.labels, subject.keys, f"check/{name}")
        honest, knowing = _robust(subject, unaware), _robust(subject, aware)
        pair, before = compare(knowing, honest), compare(knowing, clean)
        found.numbers[name] = {"true": pair.first, "predicted": pair.second, "clean": before.second, "n": pair.n}
        said = (
            f"oblivious {name}: {percent(pair.first)} with true labels, {percent(pair.second)} with predicted ones, "
            f"{percent(before.second)} clean, of {pair.n}"
        )
        if pair.exceeds or before.exceeds:
            found.add("fail", f"{said}: the noise tells the label; quote attacks with predicted labels")
        else:
            found.add("pass", said)


def undefended(case: Case, found: Findings) -> None:
    """Check 9 where no row shows it: a PGD on the bare victim wins."""
    subject = case.subject
    if subject is None or "undefended" in found.numbers:
        return
    bare = attrs.evolve(subject, defence=subject.undefended)
    clean = share(_robust(bare, bare.images))
    judge_undefended(found, _robust(bare, climb(bare, start=0)), clean, f"PGD-{subject.steps}")
