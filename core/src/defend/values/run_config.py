"""What a run is asked for: `RunConfig`, frozen and checked field by field."""

from __future__ import annotations

import numbers
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal

import attrs

from defend.errors import ConfigError, did_you_mean
from defend.options import fraction
from defend.values.arguments import as_path, check_name, check_options, check_weights, checks_arguments, say_value
from defend.values.budgets import parse_eps, parse_sweep
from defend.values.durations import check_duration
from defend.values.shards import as_shard
from defend.values.sources import name_source

Precision = Literal["auto", "exact", "fp32", "bf16"]
PRECISIONS: tuple[Precision, ...] = ("auto", "exact", "fp32", "bf16")
IMAGE_FILES = ("npz", "png")
QUICK_LIMIT = 100
QUICK_ADAPTIVE_LIMIT = 25
QUICK_STEPS = 10
CHECKS = ("none", "basic", "full")
QUICK_ATTACKS = ("noise", "fgsm", "pgd")
LADDER = "ladder"
NUMBERS_OF_PASSES = (1, 2, 5, 10, 20)  # at which the accuracy of a random defence is told
NONE = "none"  # in the place of a purifier: the arm that has none
MOST, MOST_SEED = 2**31 - 1, 2**63 - 1


def _check_whole(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise ConfigError(f"{name} is {say_value(value)}: expected a whole number")


def _positive(_: Any, attribute: attrs.Attribute[Any], value: int | None) -> None:
    if value is None:
        return
    _check_whole(attribute.name, value)
    if value < 1:
        raise ConfigError(f"{attribute.name} is {value}: expected at least 1")
    if value > MOST:
        raise ConfigError(f"{attribute.name} is {value}: expected at most {MOST}")


def _positive_number(_: Any, attribute: attrs.Attribute[Any], value: int) -> None:
    _check_whole(attribute.name, value)
    _positive(_, attribute, value)


def _not_negative(_: Any, attribute: attrs.Attribute[Any], value: int) -> None:
    _check_whole(attribute.name, value)
    if value < 0:
        raise ConfigError(f"{attribute.name} is {value}: expected 0 or more")
    if value > MOST:
        raise ConfigError(f"{attribute.name} is {value}: expected at most {MOST}")


def check_seed(seed: int) -> None:
    """Refuse a seed that torch's generators would not take.

    Raises:
        ConfigError: no whole number, negative, or above 2**63 - 1.
    """
    _check_whole("seed", seed)
    if not 0 <= seed <= MOST_SEED:
        raise ConfigError(f"seed is {seed}: expected 0 to {MOST_SEED}")


def _seed(_: Any, __: Any, value: int) -> None:
    check_seed(value)


def _rate(_: Any, attribute: attrs.Attribute[Any], value: Any) -> None:
    if value is None:
        return
    is_number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if not is_number:
        raise ConfigError(f"{attribute.name} is {say_value(value)}: expected a number, for example 0.01")
    if not 0 < value < 1:
        raise ConfigError(f"{attribute.name} is {value:g}: expected above 0 and below 1, for example 0.01")


def _flag(_: Any, attribute: attrs.Attribute[Any], value: bool) -> None:
    if not isinstance(value, bool):  # "no" would count as a yes
        raise ConfigError(f"{attribute.name} is {say_value(value)}: expected True or False")


def _name(_: Any, attribute: attrs.Attribute[Any], value: str) -> None:
    check_name(attribute.name, value)


def _options(_: Any, __: Any, value: Mapping[str, Any]) -> None:
    check_options(value)


def _weights(_: Any, __: Any, value: Mapping[str, Any]) -> None:
    check_weights(value)


def _out(value: Any) -> str | None:
    return as_path("out", value)


def _data_dir(value: Any) -> str | None:
    return as_path("data_dir", value)


def _one_of(choices: tuple[str, ...]) -> Any:
    def check(_: Any, attribute: attrs.Attribute[Any], value: str) -> None:
        if value not in choices:
            raise ConfigError(f"unknown {attribute.name} {value!r}: {did_you_mean(value, choices)}")

    return check


def _names(value: Iterable[str]) -> tuple[str, ...]:
    # one that is no name is refused as such
    return tuple(value) if isinstance(value, Iterable) and not isinstance(value, str) else (value,)


def _names_or_none(value: Iterable[str] | None) -> tuple[str, ...] | None:
    return None if value is None else _names(value)


def _part_or_none(value: str | None) -> str | None:
    return None if value == NONE else value


def _length(value: Any) -> float | None:
    if value is None:
        return None
    try:
        length = fraction(value)
    except ValueError as error:
        raise ConfigError(f"eps_l2 {value!r} is not {error}") from None
    if not 0 < length < float("inf"):
        raise ConfigError(f"eps_l2 {value!r} is out of range: expected above 0, for example 0.5")
    return length


def _texts(name: str, value: Any) -> Iterator[tuple[str, str]]:
    """Yield every text in a value, with where it stands."""
    if isinstance(value, str):
        yield name, value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _texts(f"{name}.{key}".strip("."), inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _texts(name, inner)


def split_names(text: str | None) -> tuple[str, ...]:
    """Split "dae,apudae" into its names; an empty text is an empty name, which nothing answers to."""
    return tuple(name.strip() for name in text.split(",")) if text is not None else ()


def _some(_: Any, attribute: attrs.Attribute[Any], value: tuple[str, ...] | None) -> None:
    if value is None:
        return
    _every(_, attribute, value)
    if not value or not all(value):
        raise ConfigError(f"{attribute.name} is empty: name at least one")


def _every(_: Any, attribute: attrs.Attribute[Any], value: tuple[str, ...]) -> None:
    for each in value:
        check_name(f"one of {attribute.name}", each)


@attrs.frozen(kw_only=True)
class RunConfig:
    """Everything that decides a run; saved with it as config.toml and able to rerun it.

    Attributes:
        victim, purifier, detector: stage names; None leaves a stage out, as "none" does a purifier. Two purifiers in
            sequence: "dae,apudae".
        finetune: the fine-tuner whose tuned weights replace the victim's, or None.
        fpr: calibrate the detector for this false-positive rate on held-out clean images; None keeps the threshold
            that came with its weights, and takes 0.01 if it has none.
        dataset: data set name. A folder or a file ("./pets", "pets.csv", "mine.npz", "hf:NAME") becomes this and
            `data_dir` (`values.sources`).
        data_dir: where its files lie (imagefolder: the folder itself); None: $DEFEND_DATA_DIR, or the user's data
            folder.
        train_missing: train weights that do not exist yet.
        attacks: attack names, each run under every threat in `threats` that fits it; None: noise, FGSM and PGD, or
            what `values.threats` names for each rung where threats were chosen or with `thorough`.
        threats: who attacks (`values.threats`); "ladder" is all that fit. None: noise, oblivious, adaptive (and
            transfer for a fine-tuned victim), or the ladder with `thorough`.
        sources: victims whose gradients the transfer threat takes; empty: others with weights for this data set.
        eps: the L-inf budget in [0,1] units, which the headline is for.
        sweep: other L-inf budgets to attack with as well, for a curve.
        eps_l2: the budget of L2 attacks; None: eps * sqrt(pixels and channels) / 4, which is near the pairs that
            the field uses (MNIST 0.3 and 2, CIFAR-10 8/255 and 0.5).
        limit: how many test images, a seeded stratified sample; None: 100, or all with `thorough`.
        adaptive_limit: how many of them the adaptive rows use; None: 25, or all with `thorough`.
        adaptive_steps: the most steps that an attack takes in the adaptive rows; None: 10, or its own with `thorough`.
        budget: a span of time, "10m": `adaptive_limit` and `adaptive_steps`, where they are not given, are chosen so
            that the run fits it (`evaluation.forecast`).
        thorough: all images, all attacks and the attacks' own step counts, in the adaptive rows too; a quick
            run leaves out single-step adaptive attacks and takes 10 steps of the others.
        draws: forward passes that the adaptive attacker averages over when the defence is random.
        passes: how often a random defence is asked for the worst of N and the majority vote; None: 20 with
            `thorough`, once in a quick run.
        chance: against a random defence, also the attacker who knows its draws, and one who takes one draw a step and
            as many more steps (`values.threats`); a thorough run does.
        certify: certify the vote over so many draws of a purifier's Gaussian noise, on the images of the adaptive rows
            (`evaluation.certify`); None certifies nothing.
        store: take images that another run attacked from the user's store (`defend cache`), and keep new ones there;
            a run without a folder (`out`) never does.
        save_images: write attacked images into the run folder, losslessly in 8 bits: "npz" (one file a row, which
            `--attack file:` reads) or "png" (one folder a row); a row "8-bit" then judges the strongest row's again.
        checks: "basic", those of the sanity checks that cost little; "full", all; "none".
        seed: of everything random: which images, and every draw.
        batch_size: how many images are judged at once; fewer large ones on a CPU; halved where memory runs out.
        workers: processes that read images from files.
        device: "auto", or a name that torch knows ("cpu", "cuda:1").
        precision: "auto", "exact" (nothing rewritten), "fp32" (folded, channels-last) or "bf16"
            (attacks crafted in bfloat16, judged in fp32).
        options: options by stage, for example {"purifier": {"steps": 15}, "pgd": {"steps": 40}}.
        weights: explicit weight files by stage.
        shard: which share of the run's batches is computed, "2/8"; `defend merge` reports on all of them. None computes
            all.
        out: the run folder; None writes nothing.
    """

    victim: str = attrs.field(validator=_name)
    dataset: str = "digits"
    purifier: str | None = attrs.field(
        default=None, converter=_part_or_none, validator=attrs.validators.optional(_name)
    )
    detector: str | None = attrs.field(default=None, validator=attrs.validators.optional(_name))
    finetune: str | None = attrs.field(default=None, validator=attrs.validators.optional(_name))
    fpr: float | None = attrs.field(default=None, validator=_rate)
    attacks: tuple[str, ...] | None = attrs.field(default=None, converter=_names_or_none, validator=_some)
    threats: tuple[str, ...] | None = attrs.field(default=None, converter=_names_or_none, validator=_some)
    sources: tuple[str, ...] = attrs.field(default=(), converter=_names, validator=_every)
    eps: float = attrs.field(default=0.1, converter=parse_eps)
    sweep: tuple[float, ...] = attrs.field(default=(), converter=parse_sweep)
    eps_l2: float | None = attrs.field(default=None, converter=_length)
    limit: int | None = attrs.field(default=None, validator=_positive)
    adaptive_limit: int | None = attrs.field(default=None, validator=_positive)
    adaptive_steps: int | None = attrs.field(default=None, validator=_positive)
    budget: str | None = attrs.field(default=None, converter=check_duration)
    thorough: bool = attrs.field(default=False, validator=_flag)
    draws: int = attrs.field(default=20, validator=_positive_number)
    passes: int | None = attrs.field(default=None, validator=_positive)
    chance: bool = attrs.field(default=False, validator=_flag)
    certify: int | None = attrs.field(default=None, validator=_positive)
    save_images: str | None = attrs.field(default=None, validator=attrs.validators.optional(_one_of(IMAGE_FILES)))
    checks: str = attrs.field(default="basic", validator=_one_of(CHECKS))
    seed: int = attrs.field(default=0, validator=_seed)
    batch_size: int = attrs.field(default=64, validator=_positive_number)
    workers: int = attrs.field(default=2, validator=_not_negative)
    device: str = attrs.field(default="auto", converter=str)
    precision: str = attrs.field(default="auto", validator=_one_of(PRECISIONS))
    data_dir: str | None = attrs.field(default=None, converter=_data_dir)
    train_missing: bool = attrs.field(default=False, validator=_flag)
    store: bool = attrs.field(default=True, validator=_flag)
    options: Mapping[str, Mapping[str, Any]] = attrs.field(factory=dict, validator=_options)
    weights: Mapping[str, str] = attrs.field(factory=dict, validator=_weights)
    shard: str | None = attrs.field(default=None, converter=as_shard)
    out: str | None = attrs.field(default=None, converter=_out)

    def __attrs_post_init__(self) -> None:
        """Name the source of the images, and refuse text that no TOML file holds: config.toml makes a run again."""
        for key, value in zip(("dataset", "data_dir"), name_source(self.dataset, self.data_dir), strict=True):
            object.__setattr__(self, key, value)  # the class is frozen
        for name, text in _texts("", attrs.asdict(self)):
            if "\0" in text or text != text.encode(errors="replace").decode():
                raise ConfigError(f"{name} is {text!r}: expected text without null characters, in UTF-8")

    @property
    def purifiers(self) -> tuple[str, ...]:
        """The purifiers in the order in which they are applied."""
        return split_names(self.purifier)

    @property
    def defended(self) -> bool:
        """Whether there is anything beside the victim as it is."""
        return bool(self.purifiers or self.detector or self.finetune)

    @property
    def undecided(self) -> bool:
        """Whether images or steps are still to be chosen for a budget."""
        return self.budget is not None and (self.adaptive_limit is None or self.adaptive_steps is None)

    @property
    def passes_asked(self) -> int:
        """How often a random defence is asked."""
        return self.passes or (NUMBERS_OF_PASSES[-1] if self.thorough else 1)

    @property
    def chance_asked(self) -> bool:
        """Whether to tell what the draws of a random defence are worth."""
        return self.chance or self.thorough

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


RunConfig.__init__ = checks_arguments("RunConfig")(RunConfig.__init__)  # type: ignore[method-assign]
