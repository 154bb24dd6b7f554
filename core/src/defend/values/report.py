"""What a run reports: report.json as values. All are frozen attrs classes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal

import attrs

from defend.options import say_others
from defend.values.run_config import RunConfig
from defend.values.threats import THREATS, is_unknown, knows_the_defence


@attrs.frozen
class ArmResult:
    """One arm's result on a row, in fractions.

    Attributes:
        accuracy: the share of images that are right; a rejected one is wrong.
        ci95: its Wilson 95 % interval.
        rejected: the share that the detector rejects.
        accuracy_with_credit: the share that is right where a rejected attacked image counts as right (Wester 2020);
            equals `accuracy` on clean rows.
    """

    accuracy: float
    ci95: tuple[float, float]
    rejected: float = 0.0
    accuracy_with_credit: float = 0.0


@attrs.frozen
class Row:
    """One attack under one threat, as the report shows it.

    Attributes:
        attack, threat: their names; "none" in the clean row.
        norm: the norm of the budget, "linf" or "l2".
        eps: the budget, in units of images in [0,1]; 0 in the clean row, None of an attack without a budget.
        n: how many images were judged.
        steps: how many steps the attack took at most, None of an attack without steps.
        seed: the run's.
        undefended: what the bare victim answers to the row's images.
        defended: what the whole defence answers.
        mean_linf, mean_l2: the mean change of an image, in either norm.
        seconds: how long the "attack" took, and to "purify".
        partial: whether the row was cut off: its figures are over fewer images.
        arms: the others' results where there are any: "tuned" and "untuned" (`defend.values.threats`).
        variant: which of several ways the threat was carried out: the source of a transfer ("resnet20", "resnet20
            behind apudae"), what a bpda attack differentiates instead ("identity", "autoencoder").
        headline: whether the row counts in the worst case: it has a budget, and that is the run's own.
        queries: of an attack that counts them: "mean", "median", "max" per image; without those that a smaller budget
            had fooled, of which nothing was asked.
        paired: the defended arm against the undefended on the same images: "difference" (a fraction, positive where
            the defence helps), "ci95" (Bonett and Price 2012), "only_defended" and "only_undefended" (images that only
            this arm got right), "p" (McNemar's exact test).
        passes: where the defence is random and was asked several times: "n", and "one_shot", "worst" (right in every
            pass) and "majority" with their "accuracy" and "ci95"; the "curve" of the two over the first 1, 2, 5, 10,
            ... passes ("n"), and "clean", the same of these images unattacked: what chance alone takes.
        budget: what was spent on an image of a random defence: "draws" a step, "steps" with all restarts, and the
            "passes" that judged.
        success_at_fpr: of an attack that knows the detector: the share accepted and misclassified, by false-positive
            rate ("0.01", "0.05").
        reused: how many of the attacked images another run had made (`defend cache`); their seconds are not counted.
        gradients: what the attack saw: "looks" an image (its gradients, or its questions) as "mean" and "max", each of
            so many "draws"; how many images ever had an "absent", "zero" or "broken" gradient, or one that was "mended"
            a hair inside the box (`defend.records.seen.Seen`); how many "never" had a usable one; how many had none at
            half of the looks or more and are left right, "left_blind"; the "first" look that was blind, null if none.
        curve: of an attack of several looks: the share of images "left" after the steps "at"; how many images the
            second half of them still fooled, "late"; and whether it has "flattened": at most one in fifty, or none is
            left.
        distances: of an attack that minimises the distance, in the row's norm: "images", the smallest change found of
            each, in the order of records.csv: 0 where the arm is wrong without any, or rejects, null where none
            was found; their "median", null where there is none; how many were "found"; and "curve", the "accuracy" at
            any "eps" with its "ci95": the share whose change is longer. At the row's own eps that is the row's
            accuracy, so that what it leaves right is not at 0.
        of_rising: whether its images are another row's, judged again, whose attack was still fooling when it ended.
        made_of: a digest of the attack: its name and options, and what is in it where it is a file of images or code of
            one's own; None of the clean row, and where it was not recorded.
    """

    attack: str
    threat: str
    norm: str
    eps: float | None
    n: int
    steps: int | None
    seed: int
    undefended: ArmResult
    defended: ArmResult
    mean_linf: float
    mean_l2: float
    seconds: Mapping[str, float]
    partial: bool = False
    arms: Mapping[str, ArmResult] = attrs.field(factory=dict)
    variant: str = ""
    headline: bool = True
    queries: Mapping[str, float] | None = None
    paired: Mapping[str, Any] | None = None
    passes: Mapping[str, Any] | None = None
    budget: Mapping[str, int] | None = None
    success_at_fpr: Mapping[str, float] | None = None
    reused: int = 0
    gradients: Mapping[str, Any] | None = None
    curve: Mapping[str, Any] | None = None
    distances: Mapping[str, Any] | None = None
    made_of: str | None = None
    of_rising: bool = False

    @property
    def rising(self) -> bool:
        """Whether more steps would plainly fool more: the row is an upper bound that is known to be loose."""
        return self.of_rising or (self.curve is not None and not self.curve["flattened"])

    def is_loose(self, has_defence: bool) -> bool:
        """Whether what the row leaves of the defence, or of a bare victim, is such a bound, see `is_loose`."""
        return is_loose(self.rising, self.threat, has_defence)

    @property
    def key(self) -> str:
        """The row's name in lists, see `row_key`."""
        return row_key(self.attack, self.threat, self.variant, None if self.headline else self.eps)


STILL_FOOLING = "an attack was still fooling images when its steps ended"
"""Of a figure that is an upper bound for that reason, see `is_loose`."""


def row_key(attack: str, threat: str, variant: str = "", beside: float | None = None) -> str:
    """Return a row's name in lists: "attack/threat", with ":variant" where there is one, "@eps" beside the headline."""
    said = f"{attack}/{threat}" + (f":{variant}" if variant else "")
    return said if beside is None else f"{said}@{beside:.4g}"


def is_loose(rising: bool, threat: str, has_defence: bool) -> bool:
    """Whether what a row leaves of a defence is an upper bound that more steps would plainly lower.

    `rising`, as of `Row`. Who does not know the defence took its steps against the bare victim.
    """
    return rising and (knows_the_defence(threat) or not has_defence)


@attrs.frozen
class LeastRow:
    """What the row that leaves least leaves of all the images that it judged itself, a fraction.

    Attributes:
        row: its name, by `Row.key`.
        accuracy: the share of its images that are right.
        ci95: its Wilson 95 % interval.
        n: how many images it judged.
    """

    row: str
    accuracy: float
    ci95: tuple[float, float]
    n: int


@attrs.frozen
class WorstCase:
    """Per-image worst case of the defended arm: right under every row named in `over`.

    Attributes:
        accuracy: the share of images that are right in every row.
        ci95: its Wilson 95 % interval.
        n: how many images all rows judged.
        over: the rows, by `Row.key`.
        undefended: the same of the bare victim.
        weakest: the row that alone leaves least, on the images that all rows judged.
        weakest_accuracy: the share of these images that it leaves; None where that was not recorded.
        with_credit: with a detector, "accuracy" and "ci95" of the same where a rejected attacked image counts as
            right: no attack was accepted and misclassified (Wester 2020). A rejected clean one is wrong.
        passes: of a random defence, as in `Row.passes`, over all rows: "worst" is right in every pass of every row.
        norms: where attacks of several norms are among the rows, "accuracy" and "ci95" over the rows of each norm alone
            (and those without an attack), on the same images; "rising" and "least_row" as below, among these rows,
            where that was recorded.
        steps: the most that one of the rows took.
        gradients: what all rows took of the image that they looked at most, draws counted; null where unknown.
        rising: the rows among them whose curve has not flattened (`Row.curve`).
        by_threat: of each threat with several rows among them, the row that alone leaves least.
        least_row: the row among them that leaves least of all its own images, which may be more than `n`; None where
            that was not recorded.
        least_row_with_credit: the same where a rejected attacked image counts as right.
    """

    accuracy: float
    ci95: tuple[float, float]
    n: int
    over: tuple[str, ...]
    undefended: float
    weakest: str = ""
    with_credit: Mapping[str, Any] | None = None
    passes: Mapping[str, Any] | None = None
    norms: Mapping[str, Any] | None = None
    steps: int | None = None
    gradients: int | None = None
    rising: tuple[str, ...] = ()
    by_threat: Mapping[str, str] = attrs.field(factory=dict)
    weakest_accuracy: float | None = None
    least_row: LeastRow | None = None
    least_row_with_credit: LeastRow | None = None

    @property
    def undercut_by(self) -> LeastRow | None:
        """The row that leaves less of all its own images than this, which bounds it from above, see `undercut`."""
        return undercut(self.accuracy, self.least_row)

    @property
    def undercut_with_credit(self) -> LeastRow | None:
        """The same of `with_credit`."""
        return undercut(self.with_credit["accuracy"], self.least_row_with_credit) if self.with_credit else None


def undercut_of_norm(figures: Mapping[str, Any]) -> LeastRow | None:
    """Return the row that undercuts what the attacks of one norm leave, a value of `WorstCase.norms`."""
    least = figures.get("least_row")
    return undercut(figures["accuracy"], LeastRow(**least) if least else None)


def undercut(accuracy: float, least: LeastRow | None) -> LeastRow | None:
    """Return a worst case's least row where it leaves less than the worst case, None elsewhere.

    A row may have judged more images than all rows did: over all of these the worst case can only be lower still.
    """
    return least if least is not None and least.accuracy < accuracy else None


@attrs.frozen
class Check:
    """One sanity check of the evaluation.

    Attributes:
        name: what is checked.
        status: pass, warn, fail or skip; one that fails blocks the headline.
        detail: why, in one or two sentences, with the figures that decided.
        number: its place in the list of checks (`defend.checks`), from 1.
        numbers: the figures themselves, for machines: plain numbers, texts, lists and dicts.
    """

    name: str
    status: Literal["pass", "warn", "fail", "skip"]
    detail: str
    number: int = 0
    numbers: Mapping[str, Any] = attrs.field(factory=dict)


@attrs.frozen(kw_only=True)
class Calibration:
    """How a detector's threshold was set: `fpr` was asked for, and it rejects `measured` of `n` clean images.

    Attributes:
        threshold: scores of at least this are rejected.
        fpr, measured: fractions.
        n: how many images of the "split"; 0 where an old file does not say.
        dataset: whose images they were, by what it files weights under.
        behind: the purifiers that the detector stood behind, as in "dae,blur"; None for none.
        parts: the options of the detector and of each of these purifiers, as "purifier dae", with the hash of its
            weights as "weights", and of code of the user's own that of its code as "code"; empty where it was set in
            this run, or an old file does not say.
        kept: whether it came with the detector's weights (`defend calibrate`), and was not set in this run.
    """

    threshold: float
    fpr: float
    measured: float
    n: int
    split: str
    dataset: str = ""
    behind: str | None = None
    kept: bool = False
    parts: Mapping[str, Mapping[str, Any]] = attrs.field(factory=dict)

    def say_elsewhere(self, behind: str | None, parts: Mapping[str, Mapping[str, Any]]) -> str:
        """Say that it was set behind other purifiers than those that the detector stands behind; "" if it was not.

        Args:
            behind, parts: what the detector stands behind, and what it and they are like, as the attributes.
        """
        if self.behind != behind:
            then, now = (each or "no purifier" for each in (self.behind, behind))
            return f"the threshold was set behind {then}, and the detector stands behind {now}"
        others = ((name, *say_others(each, parts.get(name, {}))) for name, each in self.parts.items())
        said = "; ".join(f"{name} had {then}, and here it has {now}" for name, then, now in others if then)
        return f"the threshold was set where {said}" if said else ""

    @property
    def blunt(self) -> bool:
        """Whether it rejects none of these images: too many have the highest score, or it is kept too coarsely."""
        return self.measured == 0


def _as_tuple(values: Iterable[int]) -> tuple[int, ...]:
    return tuple(values)  # a journal's lists


@attrs.frozen
class CertifiedImage:
    """What was certified of an image.

    Attributes:
        image: its place in the split.
        label: its true class.
        predicted: the vote's class; -1 for an abstention.
        radius: no image within this L2 distance of it gets another class by the vote; 0 for an abstention.
        attacked: the vote's class, or -1, after an attack within each radius of `Certified.curve`, carried on from what
            was turned with less.
        blind: whether that attack never had a gradient that it could use.
    """

    image: int
    label: int
    predicted: int
    radius: float
    attacked: tuple[int, ...] = attrs.field(default=(), converter=_as_tuple)
    blind: bool = False


@attrs.frozen(kw_only=True)
class Certified:
    """What randomized smoothing certifies (Cohen et al. 2019): of the vote over the noise, not of single passes.

    Attributes:
        sigma: standard deviation of the noise.
        draws, selection: passes an image that counted the class, and others that chose it.
        alpha: chance that one image's certificate is wrong (Clopper and Pearson's bound on the share of draws).
        n, abstained: how many images, and the share of which nothing can be said.
        largest: the L2 radius of an image of which all draws agree: no larger one can be shown with so many.
        curve: "accuracy" at each "radius", with its "ci95" (Wilson): the share of images whose vote is right and
            certified at least that far. Also "left", with its "left_ci95": of how many an attack on the vote within
            that radius does not make it another class than the label, those included that end "unsure", as an
            abstention. Certified is what holds against every attack, left what this one did not turn.
        images: every image's.
        attack: which attack that was: its "threat", "attack", "norm", "steps", "draws" a step, and the share of images
            of which it was "blind". None in reports of older versions.
    """

    sigma: float
    draws: int
    selection: int
    alpha: float
    n: int
    abstained: float
    largest: float
    curve: tuple[Mapping[str, Any], ...]
    images: tuple[CertifiedImage, ...]
    attack: Mapping[str, Any] | None = None


@attrs.frozen
class Cost:
    """What the defence costs.

    Attributes:
        victim_ms_per_image, defence_ms_per_image: milliseconds an image in the fastest batch of the clean row, of the
            bare victim and of the whole defence.
        parameters: how many the defence adds to those of its victim; a tensor that two parts share counts once.
        batch_size: of how many images a batch was.
    """

    victim_ms_per_image: float
    defence_ms_per_image: float
    parameters: int
    batch_size: int


@attrs.frozen
class DatasetInfo:
    """Which images were judged.

    Attributes:
        name, split: the data set, and its split.
        n: how many of its images were judged, in the row that has most.
        sha256: the hash of the whole split.
        images: where the split's images come from: "n" of them, the "folder" they lie in, whether they were "cut_off"
            from the training images and by which "seed" out of how many ("of"), and the same in words, "said".
        seen: for each part with weights whether these were trained on images that are judged here: "no" where they
            were trained on this data set's training split, "some" where that has copies of them, "unknown" where they
            were trained on other images, or nothing says on which.
        duplicates: how many test images stand in train or val too ("n"), and a few "pairs" of names; and the same of
            "val" images that stand in train; None where nobody looked.
        warnings: what a reader must know of these images, a sentence each.
    """

    name: str
    split: str
    n: int
    sha256: str
    images: Mapping[str, Any] = attrs.field(factory=dict)
    seen: Mapping[str, str] = attrs.field(factory=dict)
    duplicates: Mapping[str, Any] | None = None
    warnings: tuple[str, ...] = ()


def find_caveats(checks: str, screened: bool, threats: Iterable[str]) -> tuple[str, ...]:
    """Return what is missing behind a run's figures, a sentence each.

    A defence is attacked by its own gradient, or a surrogate's: who only asks, however often, may miss what that finds
    at once. Of a victim without purifier and detector its own gradient is asked for, not another victim's.

    Args:
        checks: which checks were asked for.
        screened: whether there is a purifier or a detector.
        threats: of the rows that count in the worst case.
    """
    found = []
    if checks == "none":
        found.append("nothing was checked (checks none), so nothing says whether these figures are to be trusted")
    there = list(threats)
    known = [THREATS[name] for name in there if name in THREATS]
    if not any(one.informed if screened else one.differentiates_the_victim for one in known):
        what, add = ("defence", "adaptive") if screened else ("victim", "oblivious")
        missing = f"no attacker took the gradient of the {what}"
        if any(map(is_unknown, there)):
            missing = f"no attacker is known to have taken the gradient of the {what}"
        elif screened and not any(map(knows_the_defence, there)):
            missing = "no attacker knew of the defence"
        found.append(f"{missing}: add --threat {add}, which may leave far less")
    return tuple(found)


@attrs.frozen
class Report:
    """The result of a run. `defend.records.document.to_json` writes it as report.json (schema 1).

    Attributes:
        versions: of defend-core, Python, torch, timm and the other libraries that the figures come from.
        plugins: the versions of the installed plugins, by distribution.
        config: what the run was asked for, its defaults filled in; config.toml has the same.
        seed: of everything random.
        device: where it ran.
        precision: what `--precision` chose, and why.
        seconds: how long the run took.
        dataset: which images were judged.
        rows: one for each attack under each threat; the first is the clean one.
        worst_case: the headline; None where no row counts in it.
        detector: its "threshold" and how that was set, "auroc" and "tpr_at_fpr" on the row where it tells least; None
            without one.
        checks: what the run found to doubt in itself.
        cost: milliseconds and parameters.
        weights: of each part with weights, the "file", its "sha256", the card's "figures", and where it came from; with
            "cut_short", why its training failed, where it was kept from before the end of that.
        partial: whether the run was cut off.
        left_out: threats that do not fit this defence, and what else was asked for by name and is not among the rows
            ("attack square", "source resnet20"), with the reason.
        notes: what else a reader should know, a sentence each.
        certified: what holds against every attack, where that was asked for; it stands apart from the rows.
        given: the stages of which a program gave objects: that program alone makes the run again, and no command does.
        chance: what the draws of a random defence are worth, of one "attack" on the same "n" images: what it leaves
            "averaged" over so many "draws", with "one_draw" a step and as many gradients (the difference is what
            averaging "bought"), and with "known_draws" (what they have "hidden"); None where no rows tell.
    """

    versions: Mapping[str, str]
    plugins: Mapping[str, str]
    config: RunConfig
    seed: int
    device: str
    precision: Mapping[str, str]
    seconds: float
    dataset: DatasetInfo
    rows: tuple[Row, ...]
    worst_case: WorstCase | None
    detector: Mapping[str, Any] | None
    checks: tuple[Check, ...]
    cost: Cost | None
    weights: Mapping[str, Mapping[str, Any]]
    partial: bool = False
    left_out: Mapping[str, str] = attrs.field(factory=dict)
    notes: tuple[str, ...] = ()
    certified: Certified | None = None
    given: tuple[str, ...] = ()
    chance: Mapping[str, Any] | None = None

    @property
    def defended(self) -> bool:
        """Whether there is a defence at all."""
        return bool(self.config.purifier or self.config.detector or self.config.finetune)

    @property
    def caveats(self) -> tuple[str, ...]:
        """What these figures rest on that a reader would not guess, see `find_caveats`."""
        screened = bool(self.config.purifier or self.config.detector)
        return find_caveats(self.config.checks, screened, [row.threat for row in self.rows if row.headline])

    @property
    def failed(self) -> tuple[Check, ...]:
        """The checks that failed: where there are any, the headline is not to be trusted."""
        return tuple(check for check in self.checks if check.status == "fail")
