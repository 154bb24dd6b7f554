"""Which parts a defence has: names resolved once, so that every command builds, trains and files the same ones."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from typing import Any, Self

import attrs
from torch import nn

from defend.assembly.part import Part, find_part
from defend.assembly.stage import Built, build_part, check_outputs
from defend.defence import Defence, PurifierSequence
from defend.errors import ConfigError, WeightsError, nearest
from defend.options import say_others
from defend.plugins import Registry, registry
from defend.stages import Task
from defend.values.arguments import check_name, check_options, check_weights
from defend.values.editions import edition_of, is_file
from defend.values.run_config import RunConfig, split_names
from defend.weights.card import Card
from defend.weights.foreign import hash_of
from defend.weights.origin import warn_of


@attrs.frozen
class Missing:
    """Weights that a part needs and nobody has: the command that trains them, and what it takes where that is known."""

    part: Part
    command: str
    cost: str

    def __str__(self) -> str:
        return f"{self.command}{f'  ({self.cost})' if self.cost else ''}"


@attrs.frozen
class Composition:
    """The parts of one defence, in the order in which they are built.

    Attributes:
        parts: the victim, purifiers in their order, the fine-tuner and the detector, as far as there are any.
        purifier: the purifiers as they were named: "dae,apudae".
        plugins: where the parts were found.
    """

    parts: tuple[Part, ...]
    purifier: str | None
    plugins: Registry = attrs.field(repr=False)

    @classmethod
    def of(
        cls,
        victim: str | None = None,
        purifier: str | None = None,
        detector: str | None = None,
        finetune: str | None = None,
        *,
        options: Mapping[str, Mapping[str, Any]] | None = None,
        weights: Mapping[str, str] | None = None,
        plugins: Registry | None = None,
    ) -> Self:
        """Resolve names to parts.

        Args:
            victim, purifier, detector, finetune: names, or None. "dae,apudae" is two purifiers in sequence.
            options, weights: by stage or purifier; those under a purifier's own name win.
            plugins: what is installed, if not all that is.

        Raises:
            UnknownNameError: nothing of that name is installed.
            ConfigError: something that is no name, or no mapping; a purifier that is named twice; or options or weights
                for "purifier" where there are several.
        """
        for stage, name in (("victim", victim), ("purifier", purifier), ("detector", detector), ("finetune", finetune)):
            if name is not None:
                check_name(stage, name)
        options, weights, plugins = options or {}, weights or {}, plugins or registry()
        check_options(options)
        check_weights(weights)
        names = split_names(purifier)
        if len(set(names)) < len(names):
            raise ConfigError(f"purifier {','.join(names)!r} names one twice: expected different ones")
        for kind, given in (("options", options), ("weights", weights)):
            if len(names) > 1 and "purifier" in given:
                raise ConfigError(f"{kind} for 'purifier', and there are {len(names)}: name one of {', '.join(names)}")
        parts = []
        if victim is not None:
            parts.append(find_part("victim", victim, options.get("victim"), weights.get("victim"), plugins=plugins))
        front = tuple(parts)
        for name in names:
            own = {**options.get("purifier", {}), **options.get(name, {})}
            file, key = weights.get(name, weights.get("purifier")), name if len(names) > 1 else "purifier"
            parts.append(find_part("purifier", name, own, file, key=key, around=front, plugins=plugins))
        if finetune is not None:
            own, file = dict(options.get("finetuner", {})), weights.get("finetuner")
            tuner = find_part(
                "finetuner",
                finetune,
                own,
                file,
                victim=victim,
                purifier=purifier,
                around=tuple(parts),
                plugins=plugins,
            )
            parts.append(tuner)
        if detector is not None:
            own, file = dict(options.get("detector", {})), weights.get("detector")
            parts.append(find_part("detector", detector, own, file, around=front, plugins=plugins))
        return cls(tuple(parts), purifier, plugins)

    @classmethod
    def of_config(cls, config: RunConfig, plugins: Registry | None = None) -> Self:
        """Resolve the parts that a config names; see `of`."""
        return cls.of(
            config.victim,
            config.purifier,
            config.detector,
            config.finetune,
            options=config.options,
            weights=config.weights,
            plugins=plugins,
        )

    def of_stage(self, stage: str) -> tuple[Part, ...]:
        """Return the parts of a stage, in their order."""
        return tuple(part for part in self.parts if part.stage == stage)

    def of_victim(self) -> Composition:
        """Return the bare victim alone."""
        return Composition(self.of_stage("victim"), None, self.plugins)

    def behind(self, part: Part) -> Composition:
        """Return what a fine-tuner adapts: the victim, and the purifiers where it is tuned behind them."""
        others = [] if part.behind is None else self.of_stage("purifier")
        return Composition((*self.of_stage("victim"), *others), part.behind, self.plugins)

    def check_keys(self, kind: str, given: Iterable[str], also: Iterable[str] = (), where: str = "this run") -> None:
        """Refuse options or weights (`kind`) for what is no part of this defence, nor among `also`.

        Raises:
            ConfigError: naming the first, and what there is.
        """
        stages, names = ([part.stage for part in self.parts], [part.name for part in self.of_stage("purifier")])
        known = dict.fromkeys([*stages, *names])
        for key in given:
            if key not in known and key not in also:
                listed = sorted({*known, *also}) if also else list(known)
                near = nearest(key, listed)
                raise ConfigError(
                    f"{kind} for {key!r}, which {where} does not have: expected one of {', '.join(listed)}"
                    + (f"; did you mean {near!r}?" if near else "")
                )

    def list_missing(self, dataset: str, filing: str = "", typed: tuple[str, ...] | None = ()) -> list[Missing]:
        """Return the parts whose weights are not there, with what trains them.

        Args:
            dataset: its name.
            filing: what it files weights under; its name if "".
            typed: the words that name it in a command, see `Task`.
        """
        missing = []
        for part in self.parts:
            if part.is_missing(filing or dataset):
                edition = edition_of(part.weights)
                trained_on = f"{dataset}+{edition}" if edition else dataset
                command = part.say_command(dataset, filing, typed)
                missing.append(Missing(part, command, part.found.spec.costs.get(trained_on, "")))
        return missing

    def hash_weights(self, filing: str) -> dict[str, str]:
        """Return the content hashes of the weights that would be loaded now, by the parts' keys."""
        paths = {part.key: part.find_weights(filing) for part in self.parts}
        return {key: hash_of(path) for key, path in paths.items() if path is not None}

    def warn_of_own(self, filing: str) -> None:
        """Warn of weights of the user's own that are taken in the place of shipped ones."""
        for part in self.parts:
            if (path := part.find_weights(filing)) is not None:
                origin = part.find_origin(path, filing)
                known = {"origin": origin.kind, **attrs.asdict(origin)}
                if said := warn_of(f"{part.stage} {part.name}", known):
                    warnings.warn(said, stacklevel=2)

    def build(self, task: Task, victim: Built | None = None) -> dict[str, Built]:
        """Build all parts for a task and load their weights, by key.

        Args:
            task: what they are built for.
            victim: the bare victim, if it has been built.

        Raises:
            WeightsError: victim or purifiers were named with weights, and what is found under the fine-tuner's name was
                tuned from others.
            DefendError: whatever is wrong with an option or the weights, in one line.
        """
        built: dict[str, Built] = {} if victim is None else {"victim": victim}
        for part in self.parts:
            if part.key not in built:
                built[part.key] = build_part(part, task, built["victim"].module if part.victim is not None else None)
            if part.stage in ("victim", "finetuner"):
                tuned = part.stage == "finetuner"
                what = f"{part.victim} as tuned by {part.name}" if tuned else f"victim {part.name}"
                check_outputs(built[part.key].module, task, what)
                if tuned:
                    self._warn_of_options(what, built[part.key].card, built)
                    self._compare_weights(part, what, built, task)
        return built

    def _compare_weights(self, tuner: Part, what: str, built: Mapping[str, Built], task: Task) -> None:
        """Refuse, or warn of, a tuned victim that comes from another victim or purifier than stand here.

        Such weights are found by names, so that one who brings her own victim would see another's figures as what
        tuning made of hers. Refused where that is certain: she named what stands here, and not what was tuned.
        """
        card = built[tuner.key].card
        recipe: Mapping[str, Any] = {} if card is None else card.recipe
        then = {"victim": recipe.get("victim_sha256"), **(recipe.get("purifier_sha256") or {})}
        others = []
        for part in (*self.of_stage("victim"), *self.of_stage("purifier")):
            known = then.get("victim" if part.stage == "victim" else part.name)
            now = built[part.key].content_hash
            if known and now and known != now:
                others.append(
                    (part, f"other weights of {part.stage} {part.name} ({known[:8]}) than stand here ({now[:8]})")
                )
        if not others:
            return
        said = f"{what} was tuned from {', and '.join(words for _, words in others)}"
        named = bool(edition_of(tuner.weights)) or is_file(tuner.weights)
        if named or not any(part.weights is not None for part, _ in others):
            warnings.warn(said, stacklevel=3)
            return
        command = tuner.say_command(task.dataset, task.filing, task.typed)
        how = f"name those that were tuned from these (--finetune-weights), or train them: `{command}`"
        raise WeightsError(f"{said}: {how}")

    def _warn_of_options(self, what: str, card: Card | None, built: Mapping[str, Built]) -> None:
        """Warn where a purifier is not what the victim behind it was tuned to, as its options are others."""
        theirs: Mapping[str, Any] = {} if card is None else card.recipe.get("purifier_options") or {}
        for part in self.of_stage("purifier"):
            ours = built[part.key].list_options()
            then, now = say_others(theirs.get(part.name, {}), ours)
            if then:
                warnings.warn(f"{what} was tuned behind {part.name} with {then}, and stands behind {now}", stacklevel=3)

    def compose(self, built: Mapping[str, Built]) -> Defence:
        """Put built parts together. Without a victim an identity stands in its place, behind all the others."""
        purifiers = [built[part.key].module for part in self.of_stage("purifier")]
        purifier = PurifierSequence(purifiers) if len(purifiers) > 1 else purifiers[0] if purifiers else None
        last = built.get("finetuner", built.get("victim"))
        detector = built["detector"].module if "detector" in built else None
        return Defence(nn.Identity() if last is None else last.module, purifier, detector)
