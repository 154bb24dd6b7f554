"""Checks that ask the defence a few questions: its gradient, its randomness, what it does inside, its loss surface."""

from __future__ import annotations

import attrs
import torch
from torch import Tensor, nn

from defend.attacks.objectives import LEADING, measure_margin
from defend.checks.common import (
    SIGMOID,
    Case,
    Findings,
    Known,
    NoGradientError,
    Status,
    Subject,
    gradient,
    know_draws,
    lead,
    percent,
    squashed_by,
)
from defend.checks.following import follow_rows
from defend.defence import Defence
from defend.gradients import differentiates_inside
from defend.randomness import keyed, sign_like
from defend.records.rows import RowRecord

DIRECTIONS = 2
WIDTH = 2.0**-10  # of the finite difference: a quarter of a grey level, a power of two so that it is exact
DISAGREEMENT = 0.25
VANISHING = 1e-12
DEAD_SHARE = 0.05
PASSES = 5
SAME_LOGITS = 1e-4
ENOUGH_DRAWS = 10
GRID = 15
SURFACE_IMAGES = 2
FLAT = 0.1  # of the change along a random direction
SUITE = "autoattack"


def gradients(case: Case, found: Findings) -> None:
    """Check 5: the input gradient exists, is finite, and is the slope of the loss or one that is useful.

    Taken of the logit margin, which does not saturate as the cross-entropy does; where that does is a warning of its
    own. A random defence is asked with its draws known.
    """
    subject = case.subject
    if subject is None:
        found.add("skip", "nothing to query: only rows were given")
        return
    # away from the edge of the box, as the finite differences step to either side
    whole, images = know_draws(subject), subject.images.clamp(2 * WIDTH, 1 - 2 * WIDTH)
    try:
        _, edge = _slope(whole, subject, subject.images)
        logits, slope = _slope(whole, subject, images)
    except NoGradientError as error:
        found.add("fail", f"no input gradient: {error}; attack with bpda, or let the purifier differentiate")
        return
    n = len(images)
    broken, edgy = (int((~torch.isfinite(one)).flatten(1).any(1).sum()) for one in (slope, edge))
    dead = int((slope.abs().flatten(1).amax(1) < VANISHING).sum())
    share = logits.softmax(1) - torch.nn.functional.one_hot(subject.labels, logits.shape[1])
    saturated = int((share == 0).all(1).sum())  # these are the cross-entropy's slopes with respect to the logits
    found.numbers |= {"n": n, "not_finite": broken, "not_finite_at_edge": edgy, "zero": dead, "saturated": saturated}
    if edgy and not broken:
        found.add(
            "warn",
            f"{edgy} of {n} input gradients are not finite at the images themselves, and are a hair inside the box: "
            "attacks here take them there; those of other libraries may be blind",
        )
    if broken:
        found.add("fail", f"{broken} of {n} input gradients are not finite")
        return
    if dead:
        status: Status = "fail" if dead / n > DEAD_SHARE else "warn"
        found.add(status, f"{dead} of {n} input gradients are zero: masked; attack with bpda or query")
    if saturated:
        found.add(
            "warn",
            f"the logits are so large that the cross-entropy's gradient is zero on {saturated} of {n} images; attack "
            f"{_name_unsaturated(logits.shape[1])}",
        )
    apart = _against_differences(found, subject, whole, images, slope)
    follow_rows(case, subject, found, apart)


def _slope(whole: Known, subject: Subject, at: Tensor) -> tuple[Tensor, Tensor]:
    """Return logits [N,K], and the margin's gradient [N,C,H,W]."""
    source = at.detach().requires_grad_()
    with torch.enable_grad():
        logits = whole(source).float()
        return logits.detach(), gradient(-measure_margin(logits, subject.labels), source)


def _name_unsaturated(classes: int) -> str:
    """Name the attack whose loss still has a slope there."""
    if classes == 2:
        return "the difference of logits (apgd_dlr; of two classes the difference itself, as their ratio is constant)"
    return "the difference of logits (apgd_dlr)"


@torch.no_grad()
def _against_differences(
    found: Findings, subject: Subject, whole: Known, images: Tensor, slope: Tensor
) -> float | None:
    """Compare the gradient with finite differences along random signs, all images and directions together.

    Returns the relative error where they disagree, which `following` is to explain; None where they agree.
    """
    taken, differences, size = [], [], 0.0
    for number in range(DIRECTIONS):
        direction = _signs(subject, f"check/direction/{number}")
        sides = [whole(images + side * WIDTH * direction).float() for side in (1, -1)]
        high, low = (-measure_margin(logits, subject.labels) for logits in sides)
        differences.append((high - low) / (2 * WIDTH))
        taken.append((slope * direction).flatten(1).sum(1))
        # of the logits: what is common to them rounds as well, and a class that is far behind has no part in it
        size = max(size, float(sides[0].topk(min(LEADING, sides[0].shape[1]), 1).values.abs().max()))
    found_slope, true_slope = torch.cat(taken), torch.cat(differences)
    # what rounding alone makes of such differences: logits are exact to eps times their size
    rounding = 4 * torch.finfo(torch.float32).eps * size / (2 * WIDTH) * len(true_slope) ** 0.5
    total = float(found_slope.norm() + true_slope.norm())
    apart = max(float((found_slope - true_slope).norm()) - rounding, 0.0)
    error = apart / total if total > 0 else 0.0
    found.numbers["difference_error"] = error
    if error > DISAGREEMENT:
        return error
    found.add("pass", f"finite differences agree with autograd (relative error {error:.2g})")
    return None


def _signs(subject: Subject, stream: str) -> Tensor:
    with keyed(subject.keys, seed=subject.seed, stream=stream):
        return sign_like(subject.images)


@attrs.frozen
class _Spread:
    """How far answers of several passes over the same images are apart: in spreads of logits, and in largest scores."""

    logits: float
    scores: float
    flips: int
    n: int

    @property
    def differ(self) -> bool:
        """Whether that is more than rounding."""
        return self.logits > SAME_LOGITS or self.scores > SAME_LOGITS or self.flips > 0


@torch.no_grad()
def randomness(case: Case, found: Findings) -> None:
    """Check 6: passes that differ make expectation over transformation compulsory (Athalye et al. 2018).

    Over clean images, and over attacked ones: a defence may draw only where it suspects an attack.
    """
    subject = case.subject
    if subject is None:
        found.add("skip", "nothing to query: only rows were given")
        return
    clean, attacked = (_spread(subject.defence, images) for images in (subject.images, _attacked(case, subject)))
    worse, where = (attacked, " over attacked images") if attacked.differ and not clean.differ else (clean, "")
    differ, declared = worse.differ, subject.defence.random
    draws = subject.draws if declared else 1
    found.numbers |= {"differ": differ, "declared": declared, "draws": draws}
    found.numbers |= {"flips": worse.flips, "logits": worse.logits, "differ_when_attacked": attacked.differ}
    said = (
        f"{PASSES} passes{where} differ (logits by {worse.logits:.2g} of their spread, {worse.flips} predictions of "
        f"{worse.n})"
    )
    if not differ:
        declares = ", though it declares itself random" if declared else ""
        found.add("pass", f"{PASSES} passes agree, over clean images and over attacked ones{declares}")
    elif not declared:
        found.add("fail", f"{said}, and the defence does not say so: set `random = True`, or no attack averages")
    elif draws >= ENOUGH_DRAWS:
        found.add("pass", f"{said}; attacks average over {draws} draws")
    elif draws > 1:
        found.add("warn", f"{said}, and attacks average over {draws} draws only: take {ENOUGH_DRAWS} or more (--draws)")
    else:
        found.add("fail", f"{said}, and attacks take one draw for all: average over {ENOUGH_DRAWS} or more (--draws)")


def _spread(defence: Defence, images: Tensor) -> _Spread:
    # not keyed: the draws are to differ from pass to pass
    verdicts = [defence.judge(images) for _ in range(PASSES)]
    first = verdicts[0]
    answers = [lead(each.logits) for each in verdicts]  # so that logits of any size are judged alike
    moved = max(float((each - answers[0]).abs().max()) for each in answers)
    scored = max(float((each.score - first.score).abs().max()) for each in verdicts)
    scored /= max(float(first.score.abs().max()), VANISHING)
    flips = int(torch.stack([each.labels != first.labels for each in verdicts]).any(0).sum())
    return _Spread(moved, scored, flips, len(images))


def _attacked(case: Case, subject: Subject) -> Tensor:
    """Return images as the rows attacked them, some of each row; where there are none, with random signs times eps."""
    shown = [row.example.attacked for row in case.of(lambda threat: True, swept=True)]
    every = [image for images in shown for image in images]
    if every:  # from the first row to the last, as strong attacks look otherwise than weak ones
        places = torch.linspace(0, len(every) - 1, min(len(subject.images), len(every))).round().int().tolist()
        return torch.stack([every[place] for place in places]).to(subject.images)
    return (subject.images + subject.eps * _signs(subject, "check/attacked")).clamp(0, 1)


def inside(case: Case, found: Findings) -> None:
    """Check 7: what AutoAttack alone cannot judge: optimisation inside the forward pass, probabilities for logits."""
    subject = case.subject
    if subject is None:
        found.add("skip", "nothing to query: only rows were given")
        return
    with torch.no_grad():
        outputs = know_draws(subject)(subject.images).float()
    squashed = squashed_by(outputs)
    if squashed == "softmax":
        found.add("fail", "the outputs are probabilities: attacks on logits saturate; return logits")
    elif squashed:
        found.add("warn", f"{SIGMOID}: attacks on those saturate; return the numbers before it")
    some = subject.part(slice(2))
    declared = any(bool(getattr(module, "optimises", False)) for module in some.defence.modules())
    with keyed(some.keys, seed=some.seed, stream="defender"):
        optimises = declared or differentiates_inside(_Judging(some.defence), some.images)
    found.numbers["optimises"] = optimises
    if not optimises:
        found.add("pass", "no optimisation inside the forward pass, and logits")
        return
    # a surrogate backwards differentiates another function than what optimises
    white = case.of(lambda threat: case.informed(threat) and threat.exact)
    own = [row for row in white if not _of_suite(row)]
    said = "the forward pass optimises, where AutoAttack alone is insufficient (Croce et al. 2022)"
    if own:
        found.add("pass", f"{said}; {len(own)} other white-box rows differentiate it")
    elif white:
        found.add("fail", f"{said}, and it is the only white-box attack: add --attack pgd --threat adaptive")
    else:
        found.add("warn", f"{said}, and no row differentiates it: add --threat adaptive")


class _Judging(nn.Module):
    """A defence asked for its whole answer, the detector's score included."""

    def __init__(self, defence: Defence) -> None:
        super().__init__()
        self.defence = defence

    def forward(self, images: Tensor) -> Tensor:
        return self.defence.judge(images).logits


def _of_suite(row: RowRecord) -> bool:
    return row.plan.name.startswith(SUITE)


@torch.no_grad()
def surface(case: Case, found: Findings) -> None:
    """Check 10: a slice of the loss surface for review (Carlini et al. 2019): margins on a square of side 2 eps.

    `numbers["surface"]`: "axis", [15] from -1 to 1 in units of eps, and "loss", [15][15]: the mean margin over the
    first images, rows along the sign of the gradient, columns along random signs; points are clipped to [0,1].
    """
    if case.full is None:
        found.add("skip", "needs --checks full")
        return
    subject = case.full.part(slice(SURFACE_IMAGES))
    whole, n = know_draws(subject), len(subject.images)
    images = subject.images.clone().requires_grad_()
    with torch.enable_grad():
        up = gradient(-measure_margin(whole(images), subject.labels), images).nan_to_num().sign()
    across = _signs(subject, "check/surface")
    centre = GRID // 2
    axis = torch.arange(-centre, centre + 1, device=up.device) / centre
    places = torch.cartesian_prod(axis, axis) * subject.eps
    heights = []
    for some in places.split(max(subject.pack // n, 1)):
        along, aside = (column.view(-1, 1, 1, 1, 1) for column in some.T)
        points = (subject.images + along * up + aside * across).clamp(0, 1)
        losses = -measure_margin(whole(points.flatten(0, 1)), subject.labels.repeat(len(some)))
        heights.append(losses.view(-1, n).mean(1))
    loss = torch.cat(heights).view(GRID, GRID)
    along_range, across_range = (float(line.max() - line.min()) for line in (loss[:, centre], loss[centre]))
    found.numbers["surface"] = {"axis": axis.tolist(), "loss": loss.tolist()}
    found.numbers |= {"range_along_gradient": along_range, "range_across": across_range}
    said = f"the margin changes by {along_range:.3g} along the gradient, {across_range:.3g} along random signs"
    if not bool(torch.isfinite(loss).all()):
        found.add("fail", "the loss surface is not finite")
    elif along_range <= max(FLAT * across_range, 1e-6):
        found.add("warn", f"{said}: flat where it should be steepest, so the gradient is masked")
    else:
        found.add("pass", f"{said}; stored")


def detector_gradient(case: Case, found: Findings) -> None:
    """Check 11: the score can be differentiated, or no detector-aware attack can aim at it."""
    subject = case.subject
    if subject is None or subject.defence.detector is None:
        return
    images = subject.images.clone().requires_grad_()
    try:
        with torch.enable_grad():
            slope = gradient(know_draws(subject).scores(images).float(), images)
    except NoGradientError as error:
        found.add("fail", f"the score has no gradient: {error}")
        return
    n, sizes = len(images), slope.abs().flatten(1).amax(1)
    broken, dead = int((~torch.isfinite(sizes)).sum()), int((sizes < VANISHING).sum())
    found.numbers |= {"score_gradients_not_finite": broken, "score_gradients_zero": dead}
    if broken or 2 * dead > n:
        found.add("fail", f"the score's gradient is not finite on {broken} and zero on {dead} of {n} images")
    elif dead:
        found.add("warn", f"the score's gradient is zero on {dead} of {n} images ({percent(dead / n)})")
    else:
        found.add("pass", f"the score's gradient is finite and not zero on all {n} images")
