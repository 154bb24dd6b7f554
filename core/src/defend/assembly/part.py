"""One part of a defence: what was found under its name, its options, and which weights it takes. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs

from defend.custom.spec import CustomSpec
from defend.errors import ConfigError
from defend.options import describe
from defend.plugins import Found, Registry, registry
from defend.stages import Stage
from defend.values.editions import edition_of, is_file, tuned_behind
from defend.weights.find import locate, tuned_name
from defend.weights.origin import Origin, find_origin


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
    """

    stage: Stage
    name: str
    found: Found
    options: Mapping[str, Any] = attrs.field(factory=dict)
    weights: str | None = None
    key: str = ""
    victim: str | None = None
    behind: str | None = None

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

    def say_command(self, dataset: str) -> str:
        """Return the command that trains it."""
        fixed = {option.name for option in describe(self.found.spec.config) if option.architecture}
        # a name may stand for published weights, which a training would start from
        fixed = (fixed | {"pretrained"}) - {self.found.spec.member_option}
        architecture = {key: value for key, value in self.options.items() if key in fixed}
        around = ""
        if self.victim is not None:
            around = f" --victim {self.victim}" + (f" --purifier {self.behind}" if self.behind else "")
            architecture = {}
        return say_training(self.trained_as, self.name, dataset, architecture, edition_of(self.weights)) + around


def find_part(
    stage: Stage,
    name: str,
    options: Mapping[str, Any] | None = None,
    weights: str | None = None,
    *,
    key: str = "",
    victim: str | None = None,
    purifier: str | None = None,
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
    )


def say_training(
    stage: str, name: str, dataset: str, options: Mapping[str, Any] | None = None, edition: str = ""
) -> str:
    """Return the command that trains a stage on a data set."""
    chosen = "".join(f" --set {key}={_typed(value)}" for key, value in (options or {}).items())
    return f"defend train {stage} {name} --dataset {dataset}{f' --edition {edition}' if edition else ''}{chosen}"


def _typed(value: Any) -> str:
    """Return an option's value as it is typed after --set."""
    return ",".join(map(str, value)) if isinstance(value, (tuple, list)) else str(value)
