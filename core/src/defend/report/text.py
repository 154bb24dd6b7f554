"""Figures as words of a report: shares in percent, differences in points, both with their 95 % intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from defend.values.report import STILL_FOOLING, Certified, LeastRow, Row, WorstCase, undercut_of_norm
from defend.values.shares import in_percent
from defend.values.threats import THREATS

NORMS = {"linf": "L-inf", "l2": "L2"}
BOUND = f"≤: {STILL_FOOLING}, so the figure is an upper bound"
BESIDE = "After a comma, ≤: what one row alone leaves of all its own images, where that is less"
UNKNOWN_BOUND = "Not recorded then: whether attacks were still fooling images when their steps ended"


def percent(share: float | None, nothing: str = "-") -> str:
    """Return a fraction in percent, such as "61.2", see `in_percent`; `nothing` where there is none."""
    return nothing if share is None else in_percent(share)


def points(difference: float | None) -> str:
    """Return a difference of fractions in points, with its sign, such as "-3.4"; "" where there is none."""
    return "" if difference is None else in_percent(difference, sign="+")


def interval(ci95: Sequence[float] | None, sign: str = "") -> str:
    """Return an interval of fractions in percent, such as "[57.0, 65.2]"; "" where there is none."""
    return "" if ci95 is None else f"[{', '.join(in_percent(end, sign=sign) for end in ci95)}]"


def with_interval(value: float, ci95: Sequence[float] | None, sign: str = "", between: str = " ") -> str:
    """Return a fraction in percent and its interval, such as "61.2 [57.0, 65.2]"; alone where it has none."""
    return in_percent(value, sign=sign) + ("" if ci95 is None else f"{between}{interval(ci95, sign)}")


def bound(loose: object) -> str:
    """Return what stands before a figure which more steps of the attack would plainly lower: it is an upper bound."""
    return "≤ " if loose else ""


def beside(below: LeastRow | None) -> str:
    """Return what stands behind a worst case that a row undercuts: ", ≤ 63.0"; "" where none does."""
    return "" if below is None else f", {bound(True)}{percent(below.accuracy)}"


def undercut_in_words(below: LeastRow | None) -> str:
    """Say which row undercuts a worst case, `WorstCase.undercut_by`; "" where none does."""
    if below is None:
        return ""
    share = with_interval(below.accuracy, below.ci95, between=" % ")
    return f"{bound(True)}{share}, n={below.n:,}: what {below.row} alone leaves of all its images"


def of_norms(figures: Mapping[str, Any], loose: object) -> str:
    """Say what the attacks of each norm leave, `WorstCase.norms`, in a line.

    `loose`: whether more steps would lower the worst case, for those from before this was recorded by norm.
    """
    said = []
    for norm, one in figures.items():
        share = with_interval(one["accuracy"], one["ci95"], between=" %  ")
        below = undercut_in_words(undercut_of_norm(one))
        said.append(f"{NORMS.get(norm, norm)} {bound(one.get('rising', loose))}{share}{f' ({below})' if below else ''}")
    return f"The attacks of one norm alone leave: {'; '.join(said)}"


def row_title(attack: str, threat: str, variant: str, eps: float | None) -> tuple[str, str, str]:
    """Return the first cells of a row in a table: the attack, the threat, and eps."""
    if threat == "none":
        return "clean", "", ""
    return attack, f"{threat}: {variant}" if variant else threat, "-" if eps is None else f"{eps:.4g}"


def over_passes(passes: Mapping[str, Any]) -> str:
    """Say what several passes of a random defence leave, `Row.passes`, in a sentence without its end."""
    worst, majority = (percent(passes[name]["accuracy"]) for name in ("worst", "majority"))
    said = f"The defence is random: right in each of {passes['n']} passes {worst} %, by majority {majority} %"
    if clean := passes.get("clean"):  # older runs have no control
        worst, majority = (percent(clean[-1][name]["accuracy"]) for name in ("worst", "majority"))
        said += f"; unattacked, in each {worst} %, by majority {majority} %"
    return said


def chance_in_words(chance: Mapping[str, Any]) -> str:
    """Say what the draws of a random defence are worth, `Report.chance`, in a sentence without its end."""
    averaged, single, bought = (chance[name] for name in ("averaged", "one_draw", "bought"))
    said = (
        f"{chance['attack']} averaged over {chance['draws']} draws leaves {percent(averaged['accuracy'])} %, with one "
        f"draw a step and as many gradients {percent(single['accuracy'])} %: averaging bought "
        f"{points(bought['difference'])} points {interval(bought['ci95'])}"
    )
    if known := chance.get("known_draws"):
        said += f"; who knows the draws leaves {percent(known['accuracy'])} %"
    return said


def calibration_in_words(set_on: Mapping[str, Any] | None) -> str:
    """Say how a detector's threshold was set, `Calibration`, as what follows "the threshold"."""
    if set_on is None:
        return "came with its weights"
    rate = f"for at most {100 * set_on['fpr']:g} %"
    if set_on.get("measured") == 0:
        rate += ", and rejects none of them"
    if not set_on.get("kept"):  # older reports say nothing of what is kept
        return f"was set here on {set_on['n']} held-out clean images {rate}"
    many = f" on {set_on['n']}" if set_on["n"] else ""
    images = f"{many} held-out clean images of {set_on['dataset']}" if many else f" on {set_on['dataset']}"
    return f"came with its weights, set{images} behind {set_on['behind'] or 'no purifier'} {rate}"


def spent(budget: Mapping[str, int]) -> str:
    """Say what was spent on an image of a random defence, `Row.budget`."""
    names = (("draw", "draws"), ("step", "steps"), ("pass", "passes"))
    return " x ".join(f"{budget[many]:,} {one if budget[many] == 1 else many}" for one, many in names)


def distance_in_words(row: Row) -> str:
    """Say how far off an attack that minimises the distance found its images, `Row.distances`; "" of any other."""
    if row.distances is None:
        return ""
    norm, median, found = NORMS.get(row.norm, row.norm), row.distances["median"], row.distances["found"]
    middle = "no median" if median is None else f"median {median:.3g}"
    return f"{middle} in {norm}, found for {found} of {row.n}"


def distances_in_words(rows: Sequence[Row]) -> str:
    """Say the same of all rows that have distances, in a sentence without its end; "" where none has."""
    far = [row for row in rows if row.distances is not None]
    missing = any(row.distances is not None and row.distances["found"] < row.n for row in far)
    said = "; ".join(f"{row.key} {distance_in_words(row)}" for row in far)
    return said + "; where none is found, that is no robustness" * missing


def sources_in_words(worst: WorstCase) -> str:
    """Say which source and which steps of a transfer leave least, `WorstCase.by_threat`; "" where there was no choice.

    So of every threat whose attacker faces other victims.
    """
    keys = [key for threat, key in worst.by_threat.items() if threat in THREATS and THREATS[threat].faces == "sources"]
    return f"Of other victims' images those of {' and '.join(keys)} leave least" if keys else ""


def certified_in_words(found: Certified) -> str:
    """Say what was certified, in sentences: how, of what, and that it is no row of the ladder."""
    return (
        f"randomized smoothing (Cohen et al. 2019): the vote over {found.draws:,} draws of Gaussian noise, standard "
        f"deviation {found.sigma:g}, after {found.selection} others that choose the class. No attack within an image's "
        f"L2 radius moves the vote; that this is wrong has a chance of at most {found.alpha:g} an image. It is said of "
        "the vote: the rows and the worst case are of single passes. "
        f"Of {found.n} images {percent(found.abstained)} % abstain; so many draws can show no radius above "
        f"{found.largest:.3g}" + _attack_on_the_vote(found)
    )


def _attack_on_the_vote(found: Certified) -> str:
    if found.attack is None:  # a report of an older version
        return ""
    threat, steps, draws = (found.attack[name] for name in ("threat", "steps", "draws"))
    return (
        f". Left is what an attack on the vote itself (threat {threat}, {steps} steps of PGD in L2, {draws} "
        "draws each; Salman et al. 2019) does not turn, abstentions included: the vote's accuracy lies between the two"
    )
