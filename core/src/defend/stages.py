"""What a stage is: the spec that a hook returns, and the protocol of what its `build` makes.

A hook must be cheap, so a spec names its code as "module:function" strings, which are imported only
when the stage is used. Nothing here imports torch.

| stage     | `build` is called as          | and returns                                                 |
|-----------|-------------------------------|-------------------------------------------------------------|
| attack    | `build(config)`               | `Attack`                                                    |
| purifier  | `build(config, task)`         | `Purifier`, an `nn.Module`: images to images                |
| detector  | `build(config, task)`         | `Detector`, an `nn.Module`: images to scores                |
| victim    | `build(config, task)`         | `nn.Module`: images in [0,1] to logits, normalisation inside|
| finetuner | `build(config, task, victim)` | `nn.Module`: the victim that will hold the adapted weights  |
| dataset   | `build(config)`               | `defend.datasets.base.ImageDataset`                              |
"""

from __future__ import annotations

import pkgutil
import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal, Protocol, get_args, runtime_checkable

import attrs

from defend.options import NoOptions

if TYPE_CHECKING:
    from torch import Tensor

    from defend.attacks.target import Target

Stage = Literal["attack", "purifier", "detector", "victim", "finetuner", "dataset"]
STAGES: tuple[Stage, ...] = get_args(Stage)


@attrs.frozen
class Paper:
    """The publication that a stage implements."""

    title: str
    authors: str = ""
    year: int | None = None
    url: str = ""


@attrs.frozen
class Task:
    """What a network is built for: the shape of the images and the number of classes.

    `mean` and `std` are the training images' per channel, in [0,1] units; `flips` says whether a
    mirrored image is still of its class. `class_names` are the classes by label, empty where unknown. `filed_as` is
    what weights are filed under where the data set's name does not say which images it has, else "". `typed` are the
    words by which a command names the data set: none where its name does, None where no command can. None of the three
    decides what is built, so that tasks with others are equal.
    """

    dataset: str
    channels: int
    height: int
    width: int
    classes: int
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    flips: bool = False
    class_names: tuple[str, ...] = attrs.field(default=(), eq=False)
    filed_as: str = attrs.field(default="", eq=False)
    typed: tuple[str, ...] | None = attrs.field(default=(), eq=False)

    @property
    def filing(self) -> str:
        """What the weights for this task are filed under."""
        return self.filed_as or self.dataset


def _lazy_reference(_: Any, attribute: attrs.Attribute[Any], value: Any) -> None:
    if value is not None and not re.fullmatch(r"[\w.]+:\w+", str(value)):
        raise ValueError(f"{attribute.name}={value!r} is not of the form 'package.module:function'")


def _name(spec: Any, __: Any, value: Any) -> None:
    # weights files are named with dashes between the parts of their names, of which a prefix is none
    allowed = r"[a-z0-9][a-z0-9_-]*" if spec.prefixed else r"[a-z0-9][a-z0-9_]*"
    if not isinstance(value, str) or not re.fullmatch(allowed, value):
        raise ValueError(f"name={value!r} is not lower-case letters, digits and underscores")


@attrs.frozen(kw_only=True)
class StageSpec:
    """One stage that a plugin offers, as its hook returns it.

    Attributes:
        name: what the user types, for example "apudae".
        summary: one line for `defend list`.
        build: "module:function", see the table at the top of this module.
        config: the option class that `build` receives.
        paper: the publication, if there is one.
        train: "module:function" called as `train(config, recipe, task)`, returning a
            `defend.train.Training`; None where there is nothing to train.
        recipe: the option class of the training.
        recipes: data set name to the options, of the recipe or of the architecture, that differ there from the
            defaults. A fine-tuner's is called as `train(config, recipe, task, victim, purifier)`; the purifier may be
            None.
        editions: other weights for the same data sets, by name: the options that they are trained with, which win
            over `recipes`. They are asked for as "+NAME" where a weights file is named.
        costs: what a training takes, by data set or "DATASET+EDITION", for those who are told to run it: "20 min on
            one CPU core".
        weights: the package whose data holds shipped weights, for example "defend_apudae.weights"; a victim's may
            hold those of its fine-tuned forms too.
        weights_of: a stage whose weights of the same name serve this one too: a detector that scores with the
            purifier's network names "purifier". Both modules then have the same state_dict.
        members: for a family that answers to many names (all timm models): "module:function"
            returning them. `member_option` is the option that receives the chosen one.
        tags: for a family whose members have published weights: "module:function" returning "MEMBER.TAG" for each. Such
            a name is the member's network; which of its weights is meant counts where the option `pretrained` is on.
        pattern: for a family whose members nobody can list: a regular expression that their names match.
        published: for a family whose members have published weights: the options that are on, unless set otherwise,
            where a member is called "family:member", for example {"pretrained": True}. An option `pretrained` takes
            weights from elsewhere; it is off where a weights file is named.
        prefixed: a member is called "family:member" and answers to nothing shorter; where there are no members, the
            family's library is not installed, and the summary says what it needs.
        threats: attacks only: the threats under which this attack makes sense.
        counter_attacks: names of attacks made against this stage, which the adaptive threat adds.
    """

    name: str = attrs.field(validator=_name)
    summary: str
    build: str = attrs.field(validator=_lazy_reference)
    config: type = NoOptions
    paper: Paper | None = None
    train: str | None = attrs.field(default=None, validator=_lazy_reference)
    recipe: type = NoOptions
    recipes: Mapping[str, Mapping[str, Any]] = attrs.field(factory=dict)
    editions: Mapping[str, Mapping[str, Any]] = attrs.field(factory=dict)
    costs: Mapping[str, str] = attrs.field(factory=dict)
    weights: str | None = None
    weights_of: Stage | None = None
    members: str | None = attrs.field(default=None, validator=_lazy_reference)
    member_option: str = "model"
    tags: str | None = attrs.field(default=None, validator=_lazy_reference)
    pattern: str | None = None
    published: Mapping[str, Any] = attrs.field(factory=dict)
    prefixed: bool = False
    threats: tuple[str, ...] = ("oblivious", "adaptive")
    counter_attacks: tuple[str, ...] = ()

    @property
    def is_family(self) -> bool:
        """Whether it answers to its members' names, and not to its own."""
        return self.members is not None or self.pattern is not None

    def names(self) -> tuple[str, ...]:
        """Return what the stage answers to: its own name, or its members' as the user types them, as far as listed."""
        if self.members is None:
            return () if self.is_family else (self.name,)
        known = self.resolve(self.members)()
        return tuple(f"{self.name}:{member}" for member in known) if self.prefixed else tuple(known)

    def match(self, name: str) -> str:
        """Return the member that "family:member" names in a family that lists none, "" where it names none."""
        family, _, member = name.partition(":")
        known = self.pattern is not None and family == self.name and re.fullmatch(self.pattern, member)
        return member if known else ""

    def tagged(self) -> tuple[str, ...]:
        """Return the members' names with the tags of their published weights, "MEMBER.TAG"."""
        return () if self.tags is None else tuple(self.resolve(self.tags)())

    def split_tag(self, name: str) -> tuple[str, str]:
        """Split a name that the stage answers to into the member and its tag; ("", "") where it does not know it."""
        if name in self.names():
            return name, ""
        member, _, tag = name.partition(".")
        return (member, tag) if tag and name in self.tagged() else ("", "")

    def resolve(self, reference: str) -> Callable[..., Any]:
        """Import what `build`, `train` or `members` names."""
        found: Callable[..., Any] = pkgutil.resolve_name(reference)
        return found


@runtime_checkable
class Attack(Protocol):
    """Makes adversarial images within a budget, against a target it may query and differentiate.

    `norm` is the norm of its budget, "linf" or "l2"; one that minimises the distance instead has an attribute
    `minimal` that is true, and gets infinite budgets. If `nearest` is true too, its row is at the run's budget: of an
    image that was found further off, the clean one is judged there. One that looks beyond its budget on its way has
    `strays`: the host takes no such look for a success (`target.sight`). One that returns an image as it was unless it
    found something within the budget that fools has `all_or_nothing`: else a row that moved nothing fails a check. One
    with `begins_elsewhere` finds held-out
    images in `target.others`. An attack that counts how often it asks leaves that in `target.queries`. The host checks
    and clips what comes back, see `defend.attacks.host`.
    """

    norm: str

    def __call__(self, target: Target, images: Tensor, labels: Tensor, *, eps: Tensor, keys: Tensor) -> Tensor:
        """Return adversarial images.

        Args:
            target: what to attack.
            images: [B,C,H,W] in [0,1].
            labels: int64 [B], the true labels.
            eps: [B], the budget of each image in the attack's norm.
            keys: int64 [B], the identity of each image, from which its random draws come.
        """
        ...


@runtime_checkable
class Purifier(Protocol):
    """Image to image: [B,C,H,W] in [0,1] to the same.

    Must work under `torch.no_grad()` even if it differentiates inside, and must be differentiable
    end to end where gradients are on. `random` says whether two passes may differ; draws come from
    `defend.randomness`, so that the host can key them by image. One that is hard to differentiate may have a method
    `surrogates()`: modules, by name, that the bpda threat differentiates in its place (`defend.evaluation.bpda`).

    One that can compute the same faster may have a method `prepared()`: it returns a module for evaluation alone,
    with frozen weights, equal up to rounding. The host uses it unless the precision is "exact", and only if it agrees
    with the original on a few images (`defend.assembly.prepare`). What the host reads must stay: `random`, `threshold`,
    `surrogates()`, `beside()`, `smoothing_sigma`, and the type where other stages ask for it.

    One that adds Gaussian noise of one standard deviation to whatever image it is given, and clips or works on that sum
    alone, says so by an attribute `smoothing_sigma`: `defend run --certify` then certifies the vote over its draws.

    Its training ends with a measurement of how well it takes plain noise away (`defend.training.denoising`). One that
    optimises at test time may have a method `denoiser()`: the module that was trained, which is measured in its place.
    """

    random: bool

    def __call__(self, images: Tensor) -> Tensor: ...


@runtime_checkable
class Detector(Protocol):
    """A score per image, higher is more suspicious; rejected at `threshold` and above.

    It gets the purifier's output too (the images themselves where there is none), [B,C,H,W] each, and
    returns [B]. `threshold` is a buffer, infinite until it is calibrated. A detector may have a method
    `beside(purifier)`, which returns what to use behind that purifier: itself, or a lighter module that
    takes the purifier's output for the reconstruction it would have computed. One that scores by what the victim
    answers has a method `with_victim(victim)`, which returns the module to use before that victim (images to logits
    [B,K]), with the same `threshold` tensor. A detector may have `prepared()` too, see `Purifier`.
    """

    random: bool
    threshold: Tensor

    def __call__(self, images: Tensor, purified: Tensor) -> Tensor: ...
