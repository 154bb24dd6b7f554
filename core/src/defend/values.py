"""The values that flow through a run: what was asked for, what was recorded, what is reported.

All are frozen attrs classes. Nothing here imports torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Literal

import attrs

from defend.errors import ConfigError, did_you_mean
from defend.options import fraction

if TYPE_CHECKING:
    from torch import Tensor

Precision = Literal["auto", "exact", "fp32", "bf16"]
PRECISIONS: tuple[Precision, ...] = ("auto", "exact", "fp32", "bf16")
QUICK_LIMIT = 100
QUICK_ADAPTIVE_LIMIT = 25
CHECKS = ("none", "basic", "full")
QUICK_ATTACKS = ("noise", "fgsm", "pgd")
QUICK_THREATS = ("noise", "transfer", "oblivious", "adaptive")
LADDER = "ladder"
PASSES = 10
MOST, MOST_SEED = 2**31 - 1, 2**63 - 1


def parse_eps(value: Any) -> float:
    """Read a perturbation budget in [0,1] units: "8/255", "0.03" or 0.03.

    Raises:
        ConfigError: not a number, negative, or above 1 ("8" is asked back as 8/255).
    """
    try:
        eps = fraction(value)
    except ValueError as error:
        raise ConfigError(f"eps {value!r} is not {error}") from None
    if 1 < eps <= 255 and "/" not in str(value):
        raise ConfigError(f"eps {value!r} is above 1, and images are in [0,1]: did you mean {value}/255?")
    if not 0 <= eps <= 1:
        raise ConfigError(f"eps {value!r} is out of range: expected 0 to 1, for example 8/255 or 0.03")
    return eps


def parse_sweep(values: Any) -> tuple[float, ...]:
    """Read several budgets: "2/255,4/255", or a list of what `parse_eps` reads; ascending, each once."""
    parts = values.split(",") if isinstance(values, str) else values
    if not isinstance(parts, (list, tuple, set, frozenset)):
        raise ConfigError(f"sweep {values!r} is not a list of budgets: expected for example 2/255,4/255")
    return tuple(sorted({parse_eps(part.strip() if isinstance(part, str) else part) for part in parts}))


@attrs.frozen
class Threat:
    """Who attacks, knowing what, within which budget.

    `eps` is None for an attack that minimises the distance instead of keeping to a budget.
    """

    kind: str
    norm: str
    eps: float | None


@attrs.frozen
class Verdict:
    """What a defence says of a batch of images (`Defence.judge`).

    Attributes:
        labels: int64 [B], the predicted class.
        confidence: float32 [B], the softmax probability of that class.
        accepted: bool [B], False where the detector rejects.
        score: float32 [B], the detector's score; zeros without a detector.
        purified: [B,C,H,W] in [0,1], what the victim saw.
        logits: [B,classes].
    """

    labels: Tensor
    confidence: Tensor
    accepted: Tensor
    score: Tensor
    purified: Tensor
    logits: Tensor


def _positive(_: Any, attribute: attrs.Attribute[Any], value: int | None) -> None:
    if value is not None and value < 1:
        raise ConfigError(f"{attribute.name} is {value}: expected at least 1")
    if value is not None and value > MOST:
        raise ConfigError(f"{attribute.name} is {value}: expected at most {MOST}")


def _not_negative(_: Any, attribute: attrs.Attribute[Any], value: int) -> None:
    if value < 0:
        raise ConfigError(f"{attribute.name} is {value}: expected 0 or more")
    if value > MOST:
        raise ConfigError(f"{attribute.name} is {value}: expected at most {MOST}")


def check_seed(seed: int) -> None:
    """Refuse a seed that torch's generators would not take.

    Raises:
        ConfigError: negative, or above 2**63 - 1.
    """
    if not 0 <= seed <= MOST_SEED:
        raise ConfigError(f"seed is {seed}: expected 0 to {MOST_SEED}")


def _seed(_: Any, __: Any, value: int) -> None:
    check_seed(value)


def _rate(_: Any, attribute: attrs.Attribute[Any], value: float | None) -> None:
    if value is not None and not 0 < value < 1:
        raise ConfigError(f"{attribute.name} is {value:g}: expected above 0 and below 1, for example 0.01")


def _known(choices: tuple[str, ...]) -> Any:
    def check(_: Any, attribute: attrs.Attribute[Any], value: str) -> None:
        if value not in choices:
            raise ConfigError(f"unknown {attribute.name} {value!r}: {did_you_mean(value, choices)}")

    return check


def _names(value: Iterable[str]) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) else tuple(value)


def _names_or_none(value: Iterable[str] | None) -> tuple[str, ...] | None:
    return None if value is None else _names(value)


def _length(value: Any) -> float | None:
    if value is None:
        return None
    try:
        length = fraction(value)
    except ValueError as error:
        raise ConfigError(f"eps_l2 {value!r} is not {error}") from None
    if not 0 <= length < float("inf"):
        raise ConfigError(f"eps_l2 {value!r} is out of range: expected 0 or more, for example 0.5")
    return length


def split_names(text: str | None) -> tuple[str, ...]:
    """Split "dae,apudae" into its names."""
    return tuple(name.strip() for name in text.split(",")) if text else ()


def _some(_: Any, attribute: attrs.Attribute[Any], value: tuple[str, ...] | None) -> None:
    if value is not None and (not value or not all(value)):
        raise ConfigError(f"{attribute.name} is empty: name at least one")


@attrs.frozen(kw_only=True)
class RunConfig:
    """Everything that decides a run; saved with it as config.toml and able to rerun it.

    Attributes:
        victim, purifier, detector: stage names; None leaves a stage out. Two purifiers in sequence: "dae,apudae".
        finetune: the fine-tuner whose tuned weights replace the victim's, or None.
        fpr: calibrate the detector for this false-positive rate on held-out clean images; None keeps the threshold
            that came with its weights, and takes 0.01 if it has none.
        dataset: data set name; `data_dir` is where its files lie (imagefolder: the folder itself).
        attacks: attack names, each run under every threat in `threats` that fits it; None: noise, FGSM and PGD, or
            what `defend.threats` names for each rung where threats were chosen or with `thorough`.
        threats: who attacks (`defend.threats`); "ladder" is all that fit. None: noise, oblivious, adaptive (and
            transfer for a fine-tuned victim), or the ladder with `thorough`.
        sources: victims whose gradients the transfer threat takes; empty: others with weights for this data set.
        eps: the L-inf budget in [0,1] units, which the headline is for.
        sweep: other L-inf budgets to attack with as well, for a curve.
        eps_l2: the budget of L2 attacks; None: eps * sqrt(pixels and channels) / 4, which is near the pairs that
            the field uses (MNIST 0.3 and 2, CIFAR-10 8/255 and 0.5).
        limit: how many test images, a seeded stratified sample; None: 100, or all with `thorough`.
        adaptive_limit: how many of them the adaptive rows use; None: 25, or all with `thorough`.
        thorough: all images, all attacks and the attacks' own step counts, in the adaptive rows too; a quick
            run leaves out single-step adaptive attacks and takes 10 steps of the others.
        draws: forward passes that the adaptive attacker averages over when the defence is random.
        passes: how often a random defence is asked for the worst of N and the majority vote; None: 10 with
            `thorough`, once in a quick run.
        store: take images that another run attacked from the user's store (`defend cache`), and keep new ones there;
            a run without a folder (`out`) never does.
        checks: "basic", those of the sanity checks that cost little; "full", all; "none".
        precision: "auto", "exact" (nothing rewritten), "fp32" (folded, channels-last) or "bf16"
            (attacks crafted in bfloat16, judged in fp32).
        options: options by stage, for example {"purifier": {"steps": 15}, "pgd": {"steps": 40}}.
        weights: explicit weight files by stage.
        out: the run folder; None writes nothing.
    """

    victim: str
    dataset: str = "digits"
    purifier: str | None = None
    detector: str | None = None
    finetune: str | None = None
    fpr: float | None = attrs.field(default=None, validator=_rate)
    attacks: tuple[str, ...] | None = attrs.field(default=None, converter=_names_or_none, validator=_some)
    threats: tuple[str, ...] | None = attrs.field(default=None, converter=_names_or_none, validator=_some)
    sources: tuple[str, ...] = attrs.field(default=(), converter=_names)
    eps: float = attrs.field(default=0.1, converter=parse_eps)
    sweep: tuple[float, ...] = attrs.field(default=(), converter=parse_sweep)
    eps_l2: float | None = attrs.field(default=None, converter=_length)
    limit: int | None = attrs.field(default=None, validator=_positive)
    adaptive_limit: int | None = attrs.field(default=None, validator=_positive)
    thorough: bool = False
    draws: int = attrs.field(default=20, validator=_positive)
    passes: int | None = attrs.field(default=None, validator=_positive)
    checks: str = attrs.field(default="basic", validator=_known(CHECKS))
    seed: int = attrs.field(default=0, validator=_seed)
    batch_size: int = attrs.field(default=64, validator=_positive)
    workers: int = attrs.field(default=2, validator=_not_negative)
    device: str = "auto"
    precision: str = attrs.field(default="auto", validator=_known(PRECISIONS))
    data_dir: str | None = None
    train_missing: bool = False
    store: bool = True
    options: Mapping[str, Mapping[str, Any]] = attrs.field(factory=dict)
    weights: Mapping[str, str] = attrs.field(factory=dict)
    out: str | None = None

    @property
    def purifiers(self) -> tuple[str, ...]:
        """The purifiers in the order in which they are applied."""
        return split_names(self.purifier)

    @property
    def passes_asked(self) -> int:
        """How often a random defence is asked."""
        return self.passes or (PASSES if self.thorough else 1)

    @property
    def row_limit(self) -> int | None:
        """How many images the cheap rows use; None means all."""
        return self.limit if self.limit is not None or self.thorough else QUICK_LIMIT

    @property
    def adaptive_row_limit(self) -> int | None:
        """How many images the adaptive rows use; None means as many as the others."""
        if self.adaptive_limit is not None or self.thorough:
            return self.adaptive_limit
        return QUICK_ADAPTIVE_LIMIT


@attrs.frozen
class Arm:
    """One arm's result on a row: fractions, and the Wilson 95 % interval of `accuracy`.

    `accuracy` counts a rejected image as wrong; `accuracy_with_credit` counts a rejected attacked
    image as right (paper 003's definition), and equals `accuracy` on clean rows.
    """

    accuracy: float
    ci95: tuple[float, float]
    rejected: float = 0.0
    accuracy_with_credit: float = 0.0


@attrs.frozen
class Row:
    """One attack under one threat, as the report shows it. `seconds` has "attack" and "purify".

    Attributes:
        arms: the others' results where there are any: "tuned" and "untuned" (`defend.threats`).
        variant: which of several ways the threat was carried out: the source of a transfer ("resnet20", "resnet20
            behind apudae"), what a bpda attack differentiates instead ("identity", "autoencoder").
        headline: whether the row counts in the worst case: it has a budget, and that is the run's own.
        queries: of an attack that counts them: "mean", "median", "max" per image.
        paired: the defended arm against the undefended on the same images: "difference" (a fraction, positive where
            the defence helps), "ci95" (Bonett and Price 2012), "only_defended" and "only_undefended" (images that only
            this arm got right), "p" (McNemar's exact test).
        passes: where the defence is random and was asked several times: "n", and "one_shot", "worst" (right in every
            pass) and "majority" with their "accuracy" and "ci95".
        success_at_fpr: of an attack that knows the detector: the share accepted and misclassified, by false-positive
            rate ("0.01", "0.05").
        reused: how many of the attacked images another run had made (`defend cache`); their seconds are not counted.
        gradients: what the attack saw: "looks" an image (its gradients, or its questions) as "mean" and "max", each of
            so many "draws"; how many images ever had an "absent", "zero" or "broken" gradient, or one that was "mended"
            a hair inside the box (`defend.attacks.sight.Seen`); how many "never" had a usable one; how many had none at
            half of the looks or more and are left right, "left_blind"; the "first" look that was blind, null if none.
        curve: of an attack of several looks: the share of images "left" after the steps "at"; how many images the
            second half of them still fooled, "late"; and whether it has "flattened": at most one in fifty.
    """

    attack: str
    threat: str
    norm: str
    eps: float | None
    n: int
    steps: int | None
    seed: int
    undefended: Arm
    defended: Arm
    mean_linf: float
    mean_l2: float
    seconds: Mapping[str, float]
    partial: bool = False
    arms: Mapping[str, Arm] = attrs.field(factory=dict)
    variant: str = ""
    headline: bool = True
    queries: Mapping[str, float] | None = None
    paired: Mapping[str, Any] | None = None
    passes: Mapping[str, Any] | None = None
    success_at_fpr: Mapping[str, float] | None = None
    reused: int = 0
    gradients: Mapping[str, Any] | None = None
    curve: Mapping[str, Any] | None = None

    @property
    def rising(self) -> bool:
        """Whether more steps would plainly fool more: the row is an upper bound that is known to be loose."""
        return self.curve is not None and not self.curve["flattened"]

    @property
    def key(self) -> str:
        """The row's name in lists: "attack/threat", with ":variant" where there is one, "@eps" beside the headline."""
        variant = f":{self.variant}" if self.variant else ""
        return f"{self.attack}/{self.threat}{variant}" + (
            "" if self.headline or self.eps is None else f"@{self.eps:.4g}"
        )


@attrs.frozen
class WorstCase:
    """Per-image worst case of the defended arm: right under every row named in `over`.

    Attributes:
        undefended: the same of the bare victim.
        weakest: the row that alone leaves least, on the images that all rows judged.
        with_credit: with a detector, "accuracy" and "ci95" of the same where a rejected attacked image counts as
            right: no attack was accepted and misclassified (paper 003's definition). A rejected clean one is wrong.
        passes: of a random defence, as in `Row.passes`, over all rows: "worst" is right in every pass of every row.
        norms: where attacks of several norms are among the rows, "accuracy" and "ci95" over the rows of each norm alone
            (and those without an attack), on the same images.
        steps: the most that one of the rows took.
        gradients: what all rows took of the image that they looked at most, draws counted; null where unknown.
        rising: the rows among them whose curve has not flattened (`Row.curve`).
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
    """How a detector's threshold was set: `fpr` was asked for, and it rejects `measured` of `n` clean images."""

    threshold: float
    fpr: float
    measured: float
    n: int
    split: str


@attrs.frozen
class Cost:
    """What the defence costs per image, in the fastest batch of the clean row, victim included; and its size."""

    victim_ms_per_image: float
    defence_ms_per_image: float
    parameters: int
    batch_size: int


@attrs.frozen
class DatasetInfo:
    """Which images were judged; `sha256` is that of the whole split.

    Attributes:
        images: where the split's images come from: "n" of them, the "folder" they lie in, whether they were "cut_off"
            from the training images and by which "seed" out of how many ("of"), and the same in words, "said".
        seen: for each part with weights whether these were trained on images that are judged here: "no" where they
            were trained on this data set's training split, "some" where that has copies of them, "unknown" where they
            were trained on other images, or nothing says on which.
        duplicates: how many test images stand in train or val too ("n"), and a few "pairs" of names; None where nobody
            looked.
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


@attrs.frozen
class Report:
    """The result of a run. `defend.report.to_json` writes it as report.json (schema 1).

    `left_out` are threats that do not fit this defence, and what else was asked for by name and is not among the rows
    ("attack square", "source resnet20"), with the reason; `notes` what else a reader should know, a sentence each.
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

    @property
    def failed(self) -> tuple[Check, ...]:
        """The checks that failed: where there are any, the headline is not to be trusted."""
        return tuple(check for check in self.checks if check.status == "fail")
