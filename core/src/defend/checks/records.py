"""What finished rows say of their own evaluation: checks that ask the defence nothing more.

Each is one part of a check: it adds what it finds, or why it cannot judge.
"""

from __future__ import annotations

from collections.abc import Sequence

from defend.checks.common import Case, Findings, Status, percent, title
from defend.checks.outcomes import Outcomes, beyond, compare, find_classified, right, share, worst_of
from defend.records.rows import RowRecord
from defend.util.statistics import mcnemar
from defend.values.report import Check
from defend.values.threats import DEFENDED, THREATS, TUNED, UNDEFENDED, is_harmless

LEAK = "label leak"
REACHED = 0.05  # what an attack may leave of an undefended victim, as a share of all images
FAR = 0.05
CLIPPED = 1e-4


def differentiated_arm(record: RowRecord) -> str:
    """Return the arm that attackers of the victim face."""
    return TUNED if TUNED in record.arms else UNDEFENDED


def leak(case: Case, found: Findings) -> None:
    """Check 8: no honest defence gets better by being attacked.

    A purifier that read the true label out of the attack's noise does (paper 000 recovers 98.5 % from 93.1 % clean;
    label leaking, Kurakin et al. 2017). Of attacks that aim at being accepted the classifier alone is judged: they may
    well turn a rejected image into an accepted one.
    """
    clean = case.clean
    attacked = [record for record in case.records if not is_harmless(record.plan.threat.kind)]
    if clean is None or not attacked:
        found.add("skip", "no clean row, or no attacked one")
        return
    better: dict[Status, list[str]] = {"fail": [], "warn": []}
    for record in attacked:
        outcome = find_classified if THREATS[record.plan.threat.kind].evades else right
        pair = compare(outcome(record), outcome(clean))
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


def undefended(case: Case, found: Findings) -> None:
    """Check 9: an iterated attack on the bare victim wins (Carlini et al. 2019, 1902.06705).

    The strongest row decides; one that alone leaves more than half is a warning, as what it leaves of the defence
    means nothing.
    """
    rows = [
        row
        for row in case.of(lambda threat: threat.faces == "victim")
        if (row.plan.steps or 0) > 1 and row.plan.threat.norm == "linf" and differentiated_arm(row) == UNDEFENDED
    ]
    if case.clean is None or not rows:
        # with a subject `climbs.undefended` attacks it instead
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
        # a little more than the budget is rounding in float32
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
    pair = compare(right(case.clean), right(case.clean, arm))
    if pair.exceeds and pair.first - pair.second > FAR:
        found.add(
            "fail",
            f"clean images: {percent(pair.second)} without the defence, {percent(pair.first)} behind it: what the "
            "victim needs (normalisation) stands outside it; move it into the victim's forward",
        )
    else:
        found.add("pass", f"the victim alone is right on {percent(pair.second)} of clean images")


def has_scores(records: Sequence[RowRecord]) -> bool:
    """Whether a detector scored or rejected anything."""
    said = [record.arms[DEFENDED] for record in records]
    return any(bool(each.score.any()) or not bool(each.accepted.all()) for each in said)
