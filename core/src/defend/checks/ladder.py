"""Checks of the ladder itself: rows of larger budgets, more knowledge and more steps leave no more, and could see."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from defend.attacks.given import Replay
from defend.checks.common import SAME_EPS, Case, Findings, Status, percent, title
from defend.checks.outcomes import Outcomes, beyond, compare, find_classified, find_held, share, worst_of
from defend.checks.records import differentiated_arm, has_scores
from defend.records.distances import distances_of
from defend.records.looks import curve_of, find_left_blind, gradients_of
from defend.records.rows import RowRecord, right
from defend.values.threats import DEFENDED, THREATS

CHANCE_BY = 128 / 255  # within this budget every image can be made the same grey, which no classifier tells apart
MISSED_SHARE = 0.02
SQUARE_SHARE = 0.002
BLIND_SHARE = 0.02  # of a row's images: so many left right and never seen are no accident
USED = 0.5  # of a budget: what an attack uses at least of it on some image that it does not fool
UNMOVED = 0.5  # of the images that a row leaves right: what an attack may return as it was, as it found nothing there
BLIND = {"absent": "absent", "zero": "zero", "broken": "not finite"}


def sweep(case: Case, found: Findings) -> None:
    """Check 1 on rows with several budgets: the curve of the white-box attack that has most of them.

    It is of the classifier: rejecting everything is no attack's success. So rows that work against a detector are left
    out. Rows that carry fooled images over to larger budgets (`PlannedRow.carry`) cannot rise, so only where they end
    tells.
    """
    groups: dict[tuple[str, str, str], dict[float, RowRecord]] = {}
    for record in case.of(lambda threat: case.informed(threat) and not threat.evades, swept=True):
        plan = record.plan
        if plan.threat.norm == "linf" and plan.threat.eps is not None:
            groups.setdefault((plan.name, plan.threat.kind, plan.variant), {})[plan.threat.eps] = record
    curves = [rows for rows in groups.values() if len(rows) > 1]
    if not curves:
        if case.full is None:
            found.add("skip", "the white-box rows have one budget: give --eps several, or --checks full")
        return
    rows = max(curves, key=lambda each: (len(each), -share(find_classified(each[max(each)]))))
    outcomes = {eps: find_classified(record) for eps, record in rows.items()}
    if case.clean is not None:
        outcomes[0.0] = find_classified(case.clean)
    classes = case.subject.classes if case.subject is not None else 1 + max(int(r.labels.max()) for r in case.records)
    carried = any(record.plan.carry is not None for record in rows.values())
    found.numbers["rows"] = judge_sweep(found, outcomes, classes, title(rows[max(rows)]), carried)


def judge_sweep(
    found: Findings, outcomes: Mapping[float, Outcomes], classes: int, what: str, carried: bool = False
) -> dict[str, object]:
    """Judge an accuracy-over-budget curve, which cannot rise where images are `carried`; return its figures."""
    budgets = sorted(outcomes)
    rises = [
        f"{percent(pair.second)} at eps {low:.3g}, {percent(pair.first)} at {high:.3g}"
        for place, low in enumerate(budgets)
        for high in budgets[place + 1 :]
        if (pair := compare(outcomes[high], outcomes[low])).exceeds
    ]
    if rises:
        found.add("fail", f"{what}: a larger budget leaves more ({'; '.join(rises)}): the gradient is masked there")
    elif carried:
        found.add("skip", f"{what}: fooled images were carried over to larger budgets; --checks full attacks each anew")
    else:
        found.add("pass", f"{what}: accuracy does not rise from eps {budgets[0]:.3g} to {budgets[-1]:.3g}")
    wide = [eps for eps in budgets if eps >= CHANCE_BY - SAME_EPS]
    last = min(wide) if wide else budgets[-1]
    left = f"{percent(share(outcomes[last]))} at eps {last:.3g}, chance is {percent(1 / classes)}"
    if not beyond(outcomes[last], 1 / classes):
        found.add("pass", left)
    elif wide:
        found.add("fail", f"{what} leaves {left}: an attack with such a budget must win, so this one does not work")
    else:
        found.add("skip", f"the sweep ends at eps {last:.3g}, before 128/255")
    return {
        "what": what,
        "eps": budgets,
        "accuracy": [share(outcomes[eps]) for eps in budgets],
        "n": [len(outcomes[eps]) for eps in budgets],
    }


def attack_order(case: Case, found: Findings) -> None:
    """Check 2: no attacker who knows less fools the defence more often than those who differentiate it.

    The informed attacker is the per-image worst of all white-box rows of a norm and budget. Fooled is accepted and
    misclassified, so that an attacker whom the detector stops has gained nothing.
    """
    informed = case.of(case.informed)
    if not informed:
        found.add("skip", "no adaptive row: add --threat adaptive")
        return
    weaker = case.of(lambda threat: not case.informed(threat) and threat.knows != "unknown")
    figures, better, other = {}, [], []
    for row in weaker:
        worst = worst_of([find_held(each) for each in informed if _same_budget(each, row)])
        pair = compare(worst, find_held(row))
        if pair.n == 0:
            continue
        figures[title(row)] = {
            "n": pair.n,
            "informed": pair.first,
            "weaker": pair.second,
            "only_weaker_fools": pair.only_first,
        }
        if pair.exceeds:
            better.append(f"{title(row)} {percent(pair.second)} against {percent(pair.first)} of {pair.n}")
        # one image proves nothing, however few there are
        elif pair.only_first > 1 and pair.only_first / pair.n > MISSED_SHARE:
            other.append(f"{title(row)} {pair.only_first} of {pair.n}")
    if better:
        found.add(
            "fail",
            f"less informed rows leave less than the informed ones ({'; '.join(better)}): the adaptive attack is not "
            f"one; give it more steps or another loss{_or_add(case)}",
        )
    if other:
        found.add("warn", f"less informed rows fool images that no informed one fools ({'; '.join(other)})")
    if figures:
        found.numbers["rows"] = figures
        found.add("pass", f"none of {len(figures)} less informed rows leaves less than the informed ones")
    elif weaker:
        found.add("skip", "no less informed row has the norm, budget and images of an adaptive one")
    else:
        found.add("skip", "no less informed row to compare with: add --threat oblivious")


def one_step(case: Case, found: Findings) -> None:
    """Check 2, the other half: PGD leaves no more of the arm that both differentiate than FGSM does."""
    rows = case.of(lambda threat: threat.faces in ("victim", "defence") and threat.knows == "gradient")
    for fast in rows:
        for slow in rows:
            pairs = (fast.plan.name, slow.plan.name) == ("fgsm", "pgd") and slow.plan.variant == fast.plan.variant
            if not pairs or slow.plan.threat.kind != fast.plan.threat.kind or not _same_budget(slow, fast):
                continue
            arm = DEFENDED if case.threats[fast.plan.threat.kind].whole else differentiated_arm(fast)
            pair = compare(find_classified(slow, arm), find_classified(fast, arm))
            said = f"{title(slow)} leaves {percent(pair.first)} of {pair.n}, {title(fast)} {percent(pair.second)}"
            if pair.exceeds:
                found.add("fail", f"{said}: many steps do worse than one, so the gradient misleads")
            else:
                found.add("pass", said)


def _or_add(case: Case) -> str:
    """Name the threat to add where the white-box rows are too weak, if there is one more that fits the defence."""
    purifies = case.subject is None or case.subject.defence.purifier is not None
    there = {"detector": has_scores(case.records), "purifier": purifies}
    fit = [kind for kind, threat in THREATS.items() if threat.informed and there.get(threat.needs)]
    return next((f", or add --threat {kind}" for kind in reversed(fit) if kind not in case.threats), "")


def _same_budget(one: RowRecord, other: RowRecord) -> bool:
    first, second = one.plan.threat, other.plan.threat
    if first.eps is None or second.eps is None:
        return False
    return first.norm == second.norm and math.isclose(first.eps, second.eps, abs_tol=SAME_EPS)


def square(case: Case, found: Findings) -> None:
    """Check 3: AutoAttack's own flag, images that every white-box row left right and a query attack fooled.

    The threshold is a share of all images, 0.2 points (Croce and Hein's implementation warns there).
    """
    queries = [row for row in case.of(lambda threat: threat.knows == "answers") if row.plan.threat.norm == "linf"]
    white = case.of(case.informed)
    if not queries or not white:
        lacking = "query row: add --threat query" if not queries else "white-box row: add --threat adaptive"
        found.add("skip", f"no {lacking}")
        return
    for row in queries:
        pair = compare(worst_of([find_held(each) for each in white if _same_budget(each, row)]), find_held(row))
        if pair.n == 0:
            found.add("skip", f"{title(row)}: no white-box row has its budget and images")
            continue
        found.numbers[title(row)] = {"n": pair.n, "only_query_fools": pair.only_first}
        said = f"{title(row)} fools {pair.only_first} of {pair.n} images that every white-box row left right"
        if pair.only_first / pair.n <= SQUARE_SHARE:
            found.add("pass", said)
        else:
            # of few images one is more than the share, and may be chance
            status: Status = "warn" if pair.only_first == 1 else "fail"
            found.add(
                status,
                f"{said}: the white-box attacks are too weak or their gradient is masked; give them more restarts "
                f"(--set apgd_ce.restarts=5) and steps{_or_add(case)}",
            )


def rising(case: Case, found: Findings) -> None:
    """Check 4: the second half of an attack's steps fools hardly anybody more, or its row is an upper bound.

    Of those that look at the defence itself: what the bare victim says of an oblivious attack's images means little.
    """
    loose, ended = [], 0
    for row in case.of(lambda threat: threat.whole or case.informed(threat)):
        curve = curve_of(row)
        if curve is None:
            continue
        found.numbers[title(row)] = {"late": curve["late"], "n": len(row.keys), "steps": curve["at"][-1]}
        if curve["flattened"]:
            ended += 1
        else:
            loose.append(f"{title(row)} {curve['late']} of {len(row.keys)}")
    if loose:
        found.add(
            "warn",
            f"the second half of the steps still fooled images ({'; '.join(loose)}): these rows are upper bounds; more "
            "steps (--set ATTACK.steps=N) go further",
        )
    elif ended:
        found.add("pass", f"the second half of the steps of {ended} rows fooled at most one image in fifty")


def lost(case: Case, found: Findings) -> None:
    """Check 4: an attack that looks for the smallest change found one, however long, of every image.

    Far enough away every image is fooled: who found nothing never began, or lost the way, and the image that counts as
    right was not attacked. One that found nothing of any image that was not wrong as it is does not work.
    """
    told: dict[Status, list[str]] = {"fail": [], "warn": []}
    for row in case.of(lambda threat: threat.whole or case.informed(threat)):
        distances = distances_of(row)
        if distances is not None and distances["found"] < len(row.keys):
            far = row.arms[DEFENDED].distance
            works = far is not None and bool((far.isfinite() & (far > 0)).any())
            said = f"{title(row)} of {len(row.keys) - distances['found']} of {len(row.keys)}"
            told["warn" if works else "fail"].append(said)
    for status, rows in told.items():
        if rows:
            found.add(
                status,
                f"no change, however long, was found after which the defence is wrong ({'; '.join(rows)}): these "
                "images count as right and were hardly attacked; more steps or queries, or another attack",
            )


def unmoved(case: Case, found: Findings) -> None:
    """Check 4: an attack moved the images that it left right, and by more than half of its budget.

    Who comes back as it was counts as right and was not attacked: the row is then one of clean images. An attack that
    moved none of the images that were right before does not work, unless it returns only what fools
    (`Attack.all_or_nothing`), which may be none of them.
    """
    for row in case.of(lambda threat: threat.knows != "nothing"):
        eps = row.plan.threat.eps
        if row.arms[DEFENDED].distance is not None or not eps:  # `lost` judges the first; no budget, no change
            continue
        left, still = right(row, DEFENDED), row.linf == 0
        same = int((left & still).sum())
        attackable = _right_before(case, row)
        idle = bool(attackable.any()) and bool(still[attackable].all())
        if same and idle and not getattr(row.plan.attack, "all_or_nothing", False):
            found.numbers.setdefault("unmoved", {})[title(row)] = same
            found.add(
                "fail",
                f"{title(row)}: all of the {int(attackable.sum())} images that were right before came back as they "
                "were: nothing was attacked, and the row is what the defence makes of clean images; more steps, larger "
                "ones, or another attack",
            )
        elif same > UNMOVED * int(left.sum()):
            found.numbers.setdefault("unmoved", {})[title(row)] = same
            found.add(
                "warn",
                f"{title(row)}: {same} of the {int(left.sum())} images that it leaves right came back as they were: "
                "that is what the defence makes of clean images; more steps, or another attack",
            )
        _timid(case, row, found)


def _timid(case: Case, row: RowRecord, found: Findings) -> None:
    """Warn where an attack used less than half of its budget on each image that it moved and left right.

    Of images made against something else than what judges them nobody knows which fooled that: there all that were
    moved count. An attack that looks for the nearest ones is not asked for more there.
    """
    plan, attacked = row.plan, _attacked_arm(case, row)
    eps, threat = plan.threat.eps, case.threats[plan.threat.kind]
    if eps is None or threat.evades:
        return
    far = row.linf if plan.threat.norm == "linf" else row.l2
    left = (far > 0) & right(row, attacked or DEFENDED)
    moved = far[left if attacked else far > 0]
    nearest = any(getattr(plan.attack, name, False) for name in ("strays", "all_or_nothing"))
    if not bool(left.any()) or (attacked is None and nearest):
        return
    # images that somebody else made may be of several budgets, and one at the full one says nothing of the others
    unknown = threat.knows == "unknown"
    most = float(moved.median() if unknown else moved.max())
    if most >= USED * eps:
        return
    found.numbers.setdefault("timid", {})[title(row)] = most
    found.add(
        "warn",
        f"{title(row)}: of the {len(moved)} images that it moved{' and left right' if attacked else ''} "
        f"{'half were' if unknown else 'none was'} changed by {'no ' if unknown else ''}more than {most:.3g} of its "
        f"budget of {eps:.3g}: the figure is one of a smaller budget; "
        f"{'give the one they were made with' if unknown else 'larger or more steps'}",
    )


def _attacked_arm(case: Case, row: RowRecord) -> str | None:
    """Return the arm that a row attacks, if that arm is one of those that judge it."""
    threat = case.threats[row.plan.threat.kind]
    if threat.whole:
        return DEFENDED
    return differentiated_arm(row) if threat.faces == "victim" else None


def _right_before(case: Case, row: RowRecord) -> Tensor:
    """Return bool [N]: which of a row's images what it attacks classified right before, all where nobody knows."""
    if case.clean is None:
        return torch.ones_like(row.linf, dtype=torch.bool)
    arm = _attacked_arm(case, row) or DEFENDED
    before = right(case.clean, arm if arm in case.clean.arms else DEFENDED)
    good = set(case.clean.keys[before].tolist())
    return torch.tensor([key in good for key in row.keys.tolist()], dtype=torch.bool, device=row.linf.device)


def blindness(case: Case, found: Findings) -> None:
    """Check 5: no image is left right because the attack never had a gradient there.

    Judged where it happened: on the images that were attacked, at every step.
    """
    saw = 0
    for row in case.of(lambda threat: threat.knows == "gradient"):
        if isinstance(row.plan.attack, Replay):  # rounded images of a row that is looked at itself
            continue
        seen = gradients_of(row, 1)
        if seen is None:
            if row.seen is not None and not bool(row.seen.fooled_at.any()):
                found.add("warn", f"{title(row)}: what its attack saw is not known, as it differentiates by itself")
            continue
        n, blind = len(row.keys), int(find_left_blind(row).sum())
        found.numbers[title(row)] = {key: seen[key] for key in ("absent", "zero", "broken", "mended", "never")} | {
            "left_blind": blind,
            "n": n,
        }
        how = ", ".join(f"{what} on {seen[key]}" for key, what in BLIND.items() if seen[key])
        if blind:
            status: Status = "fail" if blind > BLIND_SHARE * n else "warn"
            found.add(
                status,
                f"{title(row)}: {blind} of {n} images are left right of which the attack hardly ever had a usable "
                f"gradient ({how}): that is no robustness; attack with bpda, query or another loss",
            )
        elif seen["broken"]:
            found.add("warn", f"{title(row)}: the gradient is not finite on {seen['broken']} of {n} images")
        else:
            saw += 1
    if saw:
        found.add("pass", f"the attacks of {saw} rows had a gradient on every image that they leave right")
