"""What finished rows say of their own evaluation: checks that ask the defence nothing more.

Each is one part of a check: it adds what it finds, or why it cannot judge.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from defend.checks.common import (
    INFORMED,
    LESS_INFORMED,
    SAME_EPS,
    TAIL,
    Case,
    Findings,
    Outcomes,
    Status,
    beyond,
    classified,
    held,
    paired,
    percent,
    rejections,
    right,
    share,
    title,
    worst_of,
)
from defend.looks import curve_of, gradients_of, left_blind
from defend.metrics import auroc
from defend.rows import RowRecord
from defend.statistics import mcnemar
from defend.threats import DEFENDED, TUNED, UNDEFENDED
from defend.values import Check

HARMLESS = ("none", "noise")
LEAK = "label leak"
AIMS_AT_DETECTOR = ("query", "detector-aware")
CHANCE_BY = 128 / 255
MISSED_SHARE = 0.02
SQUARE_SHARE = 0.002
REACHED = 0.05  # what an attack may leave of an undefended victim, as a share of all images
FAR = 0.05
CLIPPED = 1e-4
BLIND_SHARE = 0.02  # of a row's images: so many left right and never seen are no accident
BLIND = {"absent": "absent", "zero": "zero", "broken": "not finite"}


# 1: budgets


def sweep(case: Case, found: Findings) -> None:
    """Check 1 on rows with several budgets: the curve of the white-box attack that has most of them.

    It is of the classifier: rejecting everything is no attack's success. So detector-aware rows are left out. Rows that
    carry fooled images over to larger budgets (`PlannedRow.carry`) cannot rise, so only where they end tells.
    """
    groups: dict[tuple[str, str, str], dict[float, RowRecord]] = {}
    for record in case.records:
        plan = record.plan
        informed = plan.threat.kind in case.informed_kinds and plan.threat.kind != "detector-aware"
        if informed and plan.threat.norm == "linf" and plan.threat.eps is not None:
            groups.setdefault((plan.name, plan.threat.kind, plan.variant), {})[plan.threat.eps] = record
    curves = [rows for rows in groups.values() if len(rows) > 1]
    if not curves:
        if case.full is None:
            found.add("skip", "the white-box rows have one budget: give --eps several, or --checks full")
        return
    rows = max(curves, key=lambda each: (len(each), -share(classified(each[max(each)]))))
    outcomes = {eps: classified(record) for eps, record in rows.items()}
    if case.clean is not None:
        outcomes[0.0] = classified(case.clean)
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
        if (pair := paired(outcomes[high], outcomes[low])).exceeds
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


# 2: who knows more does not do worse


def attack_order(case: Case, found: Findings) -> None:
    """Check 2: no attacker who knows less fools the defence more often than those who differentiate it.

    The informed attacker is the per-image worst of all white-box rows of a norm and budget. Fooled is accepted and
    misclassified, so that an attacker whom the detector stops has gained nothing.
    """
    informed = case.of(case.informed_kinds)
    if not informed:
        found.add("skip", "no adaptive row: add --threat adaptive")
        return
    weaker = [row for row in case.of(LESS_INFORMED) if row.plan.threat.kind not in case.informed_kinds]
    figures, better, other = {}, [], []
    for row in weaker:
        worst = worst_of([held(each) for each in informed if _same_budget(each, row)])
        pair = paired(worst, held(row))
        if pair.n == 0:
            continue
        figures[title(row)] = {
            "n": pair.n, "informed": pair.first, "weaker": pair.second, "only_weaker_fools": pair.only_first,
        }  # fmt: skip
        if pair.exceeds:
            better.append(f"{title(row)} {percent(pair.second)} against {percent(pair.first)} of {pair.n}")
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
    for fast in case.of(("adaptive", "oblivious")):
        for slow in case.of((fast.plan.threat.kind,)):
            same = slow.plan.variant == fast.plan.variant and _same_budget(slow, fast)
            if fast.plan.name != "fgsm" or slow.plan.name != "pgd" or not same:
                continue
            arm = DEFENDED if fast.plan.threat.kind in INFORMED else _differentiated(fast)
            pair = paired(classified(slow, arm), classified(fast, arm))
            said = f"{title(slow)} leaves {percent(pair.first)} of {pair.n}, {title(fast)} {percent(pair.second)}"
            if pair.exceeds:
                found.add("fail", f"{said}: many steps do worse than one, so the gradient misleads")
            else:
                found.add("pass", said)


def _or_add(case: Case) -> str:
    """Name the threat to add where the white-box rows are too weak, if there is one more that fits the defence."""
    kinds = {record.plan.threat.kind for record in case.records}
    purifies = case.subject is None or case.subject.defence.purifier is not None
    fits = {"detector-aware": _scored(case.records), "bpda": purifies}
    return next((f", or add --threat {kind}" for kind, suits in fits.items() if suits and kind not in kinds), "")


def _same_budget(one: RowRecord, other: RowRecord) -> bool:
    first, second = one.plan.threat, other.plan.threat
    if first.eps is None or second.eps is None:
        return False
    return first.norm == second.norm and math.isclose(first.eps, second.eps, abs_tol=SAME_EPS)


def _differentiated(record: RowRecord) -> str:
    """Return the arm that an oblivious attack differentiates."""
    return TUNED if TUNED in record.arms else UNDEFENDED


# 3: no gradient beats a gradient


def square(case: Case, found: Findings) -> None:
    """Check 3: AutoAttack's own flag, images that every white-box row left right and a query attack fooled.

    The threshold is a share of all images, 0.2 points (Croce and Hein's implementation warns there).
    """
    queries = [row for row in case.of(("query",)) if row.plan.threat.norm == "linf"]
    white = case.of(case.informed_kinds)
    if not queries or not white:
        lacking = "query row: add --threat query" if not queries else "white-box row: add --threat adaptive"
        found.add("skip", f"no {lacking}")
        return
    for row in queries:
        pair = paired(worst_of([held(each) for each in white if _same_budget(each, row)]), held(row))
        if pair.n == 0:
            found.add("skip", f"{title(row)}: no white-box row has its budget and images")
            continue
        found.numbers[title(row)] = {"n": pair.n, "only_query_fools": pair.only_first}
        said = f"{title(row)} fools {pair.only_first} of {pair.n} images that every white-box row left right"
        if pair.only_first / pair.n <= SQUARE_SHARE:
            found.add("pass", said)
        else:
            status: Status = "warn" if pair.only_first == 1 else "fail"
            found.add(
                status,
                f"{said}: the white-box attacks are too weak or their gradient is masked; give them more restarts "
                f"(--set apgd_ce.restarts=5) and steps{_or_add(case)}",
            )


# 4: whether the rows' own attacks had come to an end


def rising(case: Case, found: Findings) -> None:
    """Check 4: the second half of an attack's steps fools hardly anybody more, or its row is an upper bound.

    Of those that look at the defence itself: what the bare victim says of an oblivious attack's images means little.
    """
    loose, ended = [], 0
    for row in case.of((*case.informed_kinds, "query")):
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


# 5: whether the rows' own attacks could see


def blindness(case: Case, found: Findings) -> None:
    """Check 5: no image is left right because the attack never had a gradient there.

    Judged where it happened: on the images that were attacked, at every step.
    """
    saw = 0
    for row in case.of((*INFORMED, "oblivious", "transfer")):
        seen = gradients_of(row, 1)
        if seen is None:
            if row.seen is not None and not bool(row.seen.fooled_at.any()):
                found.add("warn", f"{title(row)}: what its attack saw is not known, as it differentiates by itself")
            continue
        n, blind = len(row.keys), int(left_blind(row).sum())
        found.numbers[title(row)] = {key: seen[key] for key in ("absent", "zero", "broken", "mended", "never")} | {
            "left_blind": blind, "n": n,
        }  # fmt: skip
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


# 8: better under attack than clean


def leak(case: Case, found: Findings) -> None:
    """Check 8: no honest defence gets better by being attacked.

    A purifier that read the true label out of the attack's noise does (paper 000 recovers 98.5 % from 93.1 % clean;
    label leaking, Kurakin et al. 2017). Of attacks that aim at being accepted the classifier alone is judged: they may
    well turn a rejected image into an accepted one.
    """
    clean = case.clean
    attacked = [record for record in case.records if record.plan.threat.kind not in HARMLESS]
    if clean is None or not attacked:
        found.add("skip", "no clean row, or no attacked one")
        return
    better: dict[Status, list[str]] = {"fail": [], "warn": []}
    for record in attacked:
        outcome = classified if record.plan.threat.kind in AIMS_AT_DETECTOR else right
        pair = paired(outcome(record), outcome(clean))
        if pair.only_first > pair.only_second:
            better["fail" if pair.exceeds else "warn"].append(
                f"{title(record)}: {percent(pair.first)} attacked, {percent(pair.second)} clean on the same {pair.n} "
                f"images (p = {mcnemar(pair.only_first, pair.only_second):.2g})"
            )
            found.numbers[title(record)] = {"attacked": pair.first, "clean": pair.second, "n": pair.n}
    how = "repeat with predicted labels (--set ATTACK.labels=predicted)"
    for status, texts in better.items():
        if texts:
            found.add(status, f"more accurate under attack than clean: {'; '.join(texts)}; {how}")
    found.add("pass", f"no attacked row of {len(attacked)} exceeds the clean accuracy on its images")


def label_leak(records: Sequence[RowRecord]) -> Check:
    """Return check 8 as far as records show it: fails beyond two standard errors, warns below, see `leak`."""
    found = Findings()
    leak(Case(records, None, "basic"), found)
    finding = found.finding()
    return Check(LEAK, finding.status, finding.detail, 8, finding.numbers)


# 9: the attack works where nothing defends, and kept to its rules


def undefended(case: Case, found: Findings) -> None:
    """Check 9: an iterated attack on the bare victim wins (Carlini et al. 2019, 1902.06705).

    The strongest row decides; one that alone leaves more than half is a warning, as what it leaves of the defence
    means nothing.
    """
    rows = [
        row
        for row in case.of(("oblivious",))
        if (row.plan.steps or 0) > 1 and row.plan.threat.norm == "linf" and _differentiated(row) == UNDEFENDED
    ]
    if case.clean is None or not rows:
        if case.subject is None:
            found.add("skip", "no iterated oblivious row on the bare victim")
        return
    clean = share(right(case.clean, UNDEFENDED))
    left = worst_of([right(row, UNDEFENDED) for row in rows])
    judge_undefended(found, left, clean, ", ".join(title(row) for row in rows))
    for row in rows:
        alone = share(right(row, UNDEFENDED))
        if len(rows) > 1 and beyond(right(row, UNDEFENDED), REACHED) and alone > clean / 2:
            found.add("warn", f"{title(row)} leaves {percent(alone)} of the undefended victim: say nothing from it")


def judge_undefended(found: Findings, left: Outcomes, clean: float, what: str) -> None:
    """Judge what an attack leaves of the bare victim, whose clean accuracy is given."""
    found.numbers |= {"undefended": share(left), "undefended_clean": clean, "undefended_n": len(left)}
    said = f"{what} leaves {percent(share(left))} of {len(left)} of the undefended victim ({percent(clean)} clean)"
    if not beyond(left, REACHED):
        found.add("pass", said)
    elif share(left) > clean / 2:
        found.add("fail", f"{said}: the attack does not work, or the budget is too small to tell defences apart")
    else:
        found.add("warn", f"{said}, where about 0 % is expected: more steps, or a larger budget")


def rules(case: Case, found: Findings) -> None:
    """Check 9: every attacked image is within norm, budget and [0,1], and no attack had to be clipped to be."""
    attacked = [row for row in case.records if row.plan.threat.kind != "none"]
    if not attacked:
        found.add("skip", "no attacked row")
        return
    for row in attacked:
        threat, example = row.plan.threat, row.example.attacked
        distance = row.linf if threat.norm == "linf" else row.l2
        if threat.eps is not None and float(distance.max()) > threat.eps * (1 + 1e-4) + 1e-5:
            found.add("fail", f"{title(row)}: {threat.norm} up to {float(distance.max()):.4g}, budget {threat.eps:.4g}")
        if example.numel() and (float(example.min()) < 0 or float(example.max()) > 1):
            found.add("fail", f"{title(row)}: attacked images leave [0,1]")
        out = int((row.overshoot > CLIPPED).sum())
        if out:
            found.add(
                "warn",
                f"{title(row)} left its budget or box on {out} of {len(row.keys)} images (by up to "
                f"{float(row.overshoot.max()):.2g}) and was clipped: it is another attack than it says",
            )
    found.numbers["overshoot"] = max(float(row.overshoot.max()) for row in attacked)
    found.add("pass", f"all {len(attacked)} attacked rows keep to norm, budget and box")


def normalisation(case: Case, found: Findings) -> None:
    """Check 9: the bare victim needs nothing that the defence does before it, or attacks on it saw another network."""
    if case.clean is None:
        found.add("skip", "no clean row")
        return
    arm = TUNED if TUNED in case.clean.arms else UNDEFENDED
    pair = paired(right(case.clean), right(case.clean, arm))
    if pair.exceeds and pair.first - pair.second > FAR:
        found.add(
            "fail",
            f"clean images: {percent(pair.second)} without the defence, {percent(pair.first)} behind it: what the "
            "victim needs (normalisation) stands outside it; move it into the victim's forward",
        )
    else:
        found.add("pass", f"the victim alone is right on {percent(pair.second)} of clean images")


# 11: a detector that tells


def separation(case: Case, found: Findings) -> None:
    """Check 11: scores vary, are higher on oblivious rows than chance explains, and the false-positive rate holds."""
    clean = case.clean
    detector = case.subject.defence.detector is not None if case.subject is not None else _scored(case.records)
    if not detector:
        found.add("skip", "no detector")
        return
    if clean is None:
        found.add("skip", "no clean row")
        return
    scores = clean.arms[DEFENDED].score
    everything = torch.cat([record.arms[DEFENDED].score for record in case.records])
    if float(everything.max()) == float(everything.min()):
        found.add("fail", f"the detector gives every image of every row the score {float(scores[0]):.4g}")
        return
    for row in case.of(("oblivious",)):
        attacked = row.arms[DEFENDED].score
        area, z = auroc(scores, attacked), _rank_deviate(scores, attacked)
        found.numbers[title(row)] = {"auroc": area, "z": z}
        said = f"{title(row)}: AUROC {area:.3f} on {len(scores)} clean and {len(attacked)} attacked images"
        if z > 2:
            found.add("pass", said)
        else:
            found.add("warn", f"{said}, no better than chance: the detector does not see even this attack")
    set_on = case.subject.calibration if case.subject is not None else None
    if set_on is not None:
        n, rejected = len(clean.labels), int((~clean.arms[DEFENDED].accepted).sum())
        found.numbers |= {"clean_rejected": rejected / n, "fpr": set_on.fpr}
        text = f"{rejected} of {n} clean images rejected, set for {percent(set_on.fpr)} on {set_on.n}"
        if min(rejections(rejected, n, set_on.fpr, set_on.n)) < TAIL:
            found.add("warn", f"{text}: more or fewer than chance explains; calibrate on images like these")
        else:
            found.add("pass", text)


def _scored(records: Sequence[RowRecord]) -> bool:
    said = [record.arms[DEFENDED] for record in records]
    return any(bool(each.score.any()) or not bool(each.accepted.all()) for each in said)


def _rank_deviate(clean: Tensor, attacked: Tensor) -> float:
    """Return the standard normal deviate of the AUROC under no difference, ties corrected (Mann and Whitney 1947)."""
    n, m = len(clean), len(attacked)
    _, counts = torch.cat([clean, attacked]).unique(return_counts=True)
    ties = float((counts.double() ** 3 - counts.double()).sum())
    total = n + m
    variance = n * m / 12 * (total + 1 - ties / (total * (total - 1)))
    return (auroc(clean, attacked) - 0.5) * n * m / math.sqrt(variance) if variance > 0 else 0.0
