"""One part of a defence: what was found under its name, its options, and which weights it takes. Imports no torch."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs

from defend.custom.spec import CustomSpec
from defend.errors import ConfigError
from defend.options import describe
from defend.plugins import Found, Registry, registry
from defend.stages import Stage
from defend.values.commands import say_command, type_settings
from defend.values.editions import edition_of, is_file, tuned_behind
from defend.weights.find import locate, tuned_name
from defend.weights.origin import Origin, find_origin

VICTIM_OPTIONS = ("victim", "classifier")
"""What a recipe calls the victim that its training looks at, where it looks at one."""
SOURCES_OPTION = "sources"
"""What a recipe calls the victims whose attacks it trains on."""


@attrs.frozen(kw_only=True)
class Part:
    """One part of a defence.

    Attributes:
        stage, name: as they were asked for.
        found: what is installed under that name.
        options: its own.
        weights: a file, "+EDITION", "bare" of a fine-tuner's, or None for the usual ones.
        key: what options, weights and reports call it: its stage, or its name where a defence has several purifiers.
        victim, behind: of a fine-tuner: the victim that it adapted, and the purifiers that stood before it meanwhile.
        around: the other parts that a command names which trains this one: of a purifier or detector the victim that it
            stands before, of a fine-tuner that victim and its purifiers.
    """

    stage: Stage
    name: str
    found: Found
    options: Mapping[str, Any] = attrs.field(factory=dict)
    weights: str | None = None
    key: str = ""
    victim: str | None = None
    behind: str | None = None
    around: tuple[Part, ...] = ()

    @property
    def filed_as(self) -> str:
        """What stands in the name of its weights file."""
        return self.found.name if self.victim is None else tuned_name(self.found.name, self.victim, self.behind)

    @property
    def trained_as(self) -> Stage:
        """The stage whose training makes its weights: another one where the two share a network."""
        return self.found.spec.weights_of or self.stage

    @property
    def needs_weights(self) -> bool:
        """Whether it is of no use untrained: it can be trained, and brings no weights of its own."""
        trained = self.found.spec.train is not None or self.found.spec.weights_of is not None
        return trained and not self.pretrained

    @property
    def pretrained(self) -> bool:
        """Whether its options take weights from elsewhere, or it is a user's own, which has its weights."""
        own = isinstance(self.found.spec, CustomSpec) and self.weights is None
        return own or bool(getattr(self.found.config(self.options), "pretrained", False))

    def find_weights(self, filing: str) -> Path | None:
        """Return its weights file, None where there is none. `filing` is what the data set files weights under.

        Raises:
            WeightsError: a file or an edition was named that does not exist.
        """
        if self.pretrained:
            return None
        return locate(self.found, filing, self.weights, None if self.victim is None else self.filed_as)

    def find_origin(self, path: Path, filing: str) -> Origin:
        """Say where its weights file came from, see `find_weights`."""
        filed_as = None if self.victim is None else self.filed_as
        named = is_file(self.weights)
        instead = None if named else locate(self.found, filing, self.weights, filed_as, only_shipped=True)
        return find_origin(path, self.found.packages, instead)

    def is_missing(self, filing: str) -> bool:
        """Whether it needs weights and has none for what a data set files them under."""
        return self.needs_weights and self.find_weights(filing) is None

    def aims_at(self, dataset: str, filing: str) -> Part | None:
        """Return the victim before which it stands, where its training is to look at that one.

        It is where the victim of its recipe has no weights there, and where that very victim stands here with weights
        that were named. `dataset` is a name, `filing` what it files weights under.
        """
        if self.stage == "finetuner" or not self.around:
            return None
        victim, usual = self.around[0], self._list_victims(dataset)
        named = victim.weights is not None and victim.name in usual
        return victim if named or lacking(usual, filing) else None

    def _list_victims(self, dataset: str) -> tuple[str, ...]:
        """Return the victims, by name, that its training looks at by its recipe."""
        trained = self.found if self.trained_as == self.stage else registry().find(self.trained_as, self.name)
        return list_victims(trained, dataset, edition_of(self.weights))

    def say_command(self, dataset: str, filing: str = "", typed: tuple[str, ...] | None = ()) -> str:
        """Return the command that trains it; the call, where no command can name the images (`typed` is None).

        `filing` is what the data set files weights under, `typed` the words that name it, see `Task`.
        """
        fixed = {option.name for option in describe(self.found.spec.config) if option.architecture}
        # a name may stand for published weights, which a training would start from
        fixed = (fixed | {"pretrained"}) - {self.found.spec.member_option}
        architecture = {key: value for key, value in self.options.items() if key in fixed}
        around: tuple[Part, ...] = ()
        first: tuple[str, ...] = ()
        if self.stage == "finetuner":
            architecture = {}
            around = self.around if self.behind else self.around[:1]  # one that was tuned alone knows no purifier
        elif (victim := self.aims_at(dataset, filing or dataset)) is not None:
            around = (victim,)
        elif not self.around and lacking(self._list_victims(dataset), filing or dataset):
            first = ("--train-missing",)  # the victims that it looks at
        if typed is None:
            # an object has no name that could be typed
            given = {part.stage: isinstance(part.found.spec, CustomSpec) for part in around}
            front = "".join(f", {part.stage}={part.stage if given[part.stage] else repr(part.name)}" for part in around)
            return f"defend.train({self.trained_as!r}, {self.name!r}, (images, labels){front})"
        words = (*type_parts(around), *first)
        return say_training(
            self.trained_as, self.name, typed or ("--dataset", dataset), architecture, edition_of(self.weights), words
        )


def type_parts(parts: Sequence[Part]) -> tuple[str, ...]:
    """Return the words that name victim, purifiers and detector in a command, with their weights and options."""
    words: list[str] = []
    for stage in ("victim", "purifier", "detector"):
        several = [part for part in parts if part.stage == stage]
        if several:
            words += (f"--{stage}", ",".join(part.name for part in several))
        for part in several:
            if part.weights is not None:
                named = part.weights if part.key == stage else f"{part.key}={part.weights}"
                words += (f"--{stage}-weights", named)
            words += type_settings(part.key, part.options)
    return tuple(words)


def list_victims(
    found: Found, dataset: str, edition: str = "", options: Mapping[str, Any] | None = None
) -> tuple[str, ...]:
    """Return the victims, by name, that the training of a stage looks at, by its recipe and the user's options."""
    usual = {known.name: known.default for known in describe(found.spec.recipe)}
    chosen = {**found.spec.recipes.get(dataset, {}), **found.spec.editions.get(edition, {}), **(options or {})}
    return victims_in({name: chosen.get(name, default) for name, default in usual.items()})


def victims_in(recipe: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the victims, by name, that the values of a recipe name, as they are typed or parsed."""
    said = [recipe.get(name) or () for name in (*VICTIM_OPTIONS, SOURCES_OPTION)]
    names = (name for each in said for name in (each.split(",") if isinstance(each, str) else each))
    return tuple(dict.fromkeys(names))


def lacking(names: Iterable[str], filing: str, plugins: Registry | None = None) -> list[Part]:
    """Return the victims of these names that have no weights for a data set; those that nobody knows are left out."""
    found = []
    for name in names:
        with contextlib.suppress(ConfigError):  # whoever builds it says so best
            part = find_part("victim", name, plugins=plugins)
            if part.is_missing(filing):
                found.append(part)
    return found


def find_part(
    stage: Stage,
    name: str,
    options: Mapping[str, Any] | None = None,
    weights: str | None = None,
    *,
    key: str = "",
    victim: str | None = None,
    purifier: str | None = None,
    around: tuple[Part, ...] = (),
    plugins: Registry | None = None,
) -> Part:
    """Look one part up; of a fine-tuner with the victim that it adapts, and the purifiers before that.

    Raises:
        UnknownNameError: nothing of that name is installed.
        ConfigError: published weights and a file were asked for, or an option is wrong.
    """
    found = (plugins or registry()).find(stage, name)
    behind = None if victim is None else tuned_behind(purifier, weights)
    if weights is not None and getattr(found.config(options or {}), "pretrained", False):
        if "pretrained" in (options or {}):
            raise ConfigError(
                f"{stage} {name}: pretrained=true takes published weights, and {weights!r} was named: give one"
            )
        options = {**(options or {}), "pretrained": False}  # the name stands for the network alone
    return Part(
        stage=stage,
        name=name,
        found=found,
        options=options or {},
        weights=weights,
        key=key or stage,
        victim=victim,
        behind=behind,
        around=around,
    )


def say_training(
    stage: str,
    name: str,
    typed: Iterable[str],
    options: Mapping[str, Any] | None = None,
    edition: str = "",
    around: Iterable[str] = (),
) -> str:
    """Return the command that trains a stage.

    Args:
        stage, name: which.
        typed: the words that name the data set.
        options: of the stage.
        edition: which edition, "" for the usual weights.
        around: the words that name the other parts.
    """
    chosen = ("--edition", edition) if edition else ()
    return say_command("train", stage, name, *typed, *around, *chosen, *type_settings("", options or {}))
