"""Finds plugins by their entry points and keeps what they offer, by stage and name."""

from __future__ import annotations

import functools
import importlib.metadata
from collections.abc import Iterable, Mapping
from typing import Any

import attrs
import pluggy

from defend import hookspecs
from defend.errors import ConfigError, PluginError, UnknownNameError
from defend.options import make
from defend.recipes import Recipe
from defend.stages import STAGES, Stage, StageSpec
from defend.tables import Table

CORE = ("defend.attacks.plugin", "defend.datasets.plugin", "defend.finetuners.plugin", "defend.victims.plugin")
"""What core itself offers comes through the same hooks; these modules implement them."""


@attrs.frozen
class Entry:
    """A spec, and the distribution that offers it."""

    stage: Stage
    spec: StageSpec
    origin: str


@attrs.frozen
class Failure:
    """A plugin that could not be used, and why, in one line."""

    plugin: str
    cause: str


@attrs.frozen
class Found:
    """The answer to a name.

    Attributes:
        entry: the entry.
        member: which of it, where it is a family.
        tag: which of the member's published weights was named, "" where none was; it counts with `pretrained` alone.
        packages: those whose data may hold its shipped weights, see `Registry.packages`.
    """

    entry: Entry
    member: str | None
    packages: tuple[str, ...] = ()
    tag: str = ""

    @property
    def spec(self) -> StageSpec:
        return self.entry.spec

    @property
    def name(self) -> str:
        """The stage's name or the family member's, without a tag."""
        if self.member is not None and self.spec.prefixed:
            return f"{self.spec.name}:{self.member}"
        return self.member or self.spec.name

    def config(self, values: Mapping[str, Any]) -> Any:
        """Build the stage's options, the family member filled in."""
        chosen = dict(values)
        if self.member is not None:
            whole = f"{self.member}.{self.tag}" if self.tag else self.member
            asked = chosen.get(self.spec.member_option, self.member)
            if asked not in (self.member, whole):
                raise ConfigError(f"{self.spec.member_option}={asked!r} contradicts {self.entry.stage} {self.member!r}")
            chosen[self.spec.member_option] = self.member
            if self.tag and getattr(self._made(chosen), "pretrained", False):
                chosen[self.spec.member_option] = whole
        return self._made(chosen)

    def _made(self, values: Mapping[str, Any]) -> Any:
        return make(self.spec.config, values, f"{self.entry.stage} {self.name}")

    def note(self, config: Any) -> str:
        """Say that a tag was named in vain, "" where none was, or where it counts; `config` are the stage's options."""
        if not self.tag or getattr(config, "pretrained", False):
            return ""
        return (
            f"{self.entry.stage} {self.name}.{self.tag} is {self.name}: {self.tag} names published weights, which only "
            "pretrained=true takes"
        )


class Registry:
    """All stages that the installed plugins offer.

    Raises:
        PluginError: two plugins offer one name in one stage.
    """

    def __init__(self, entry_points: Iterable[importlib.metadata.EntryPoint] | None = None) -> None:
        self.failures: list[Failure] = []
        self.versions: dict[str, str] = {}
        self.tables: dict[str, Table] = {}
        self.recipes: dict[str, Recipe] = {}
        self._entries: dict[Stage, dict[str, Entry]] = {stage: {} for stage in STAGES}
        self._manager = pluggy.PluginManager(hookspecs.GROUP)
        self._manager.add_hookspecs(hookspecs)
        for module in CORE:
            self._register(importlib.import_module(module), "defend-core")
        for point in _installed() if entry_points is None else entry_points:
            origin = point.dist.name if point.dist is not None else point.name
            try:
                plugin = point.load()
            except (Exception, SystemExit) as error:  # a plugin may fail in any way; the others go on working
                self.failures.append(Failure(origin, _cause(error)))
                continue
            if self._register(plugin, origin) and point.dist is not None:
                self.versions[origin] = point.dist.version

    def _register(self, plugin: Any, origin: str) -> bool:
        offered: list[Entry] = []
        tables: list[Table] = []
        recipes: list[Recipe] = []
        try:
            self._manager.register(plugin)
            self._manager.check_pending()
            others = [other for other in self._manager.get_plugins() if other is not plugin]
            for stage in STAGES:
                hook = self._manager.subset_hook_caller(f"defend_{stage}s", remove_plugins=others)
                for specs in hook():
                    if isinstance(specs, StageSpec):
                        raise TypeError(f"defend_{stage}s returned one StageSpec, not a list of them")
                    for spec in specs:
                        if not isinstance(spec, StageSpec):
                            raise TypeError(f"defend_{stage}s returned {type(spec).__name__}, not StageSpec")
                        offered.append(Entry(stage, spec, origin))
            for found in self._manager.subset_hook_caller("defend_tables", remove_plugins=others)():
                tables += found
            for table in tables:
                if not isinstance(table, Table):
                    raise TypeError(f"defend_tables returned {type(table).__name__}, not Table")
            for cooked in self._manager.subset_hook_caller("defend_recipes", remove_plugins=others)():
                recipes += cooked
            for recipe in recipes:
                if not isinstance(recipe, Recipe):
                    raise TypeError(f"defend_recipes returned {type(recipe).__name__}, not Recipe")
        except Exception as error:
            if self._manager.is_registered(plugin):
                self._manager.unregister(plugin)
            self.failures.append(Failure(origin, _cause(error)))
            return False
        for entry in offered:
            rival = self._entries[entry.stage].get(entry.spec.name)
            if rival is not None:
                raise PluginError(
                    f"{entry.stage} {entry.spec.name!r} is offered by both {rival.origin} and {origin}: "
                    f"uninstall one (pip uninstall {origin})"
                )
            self._entries[entry.stage][entry.spec.name] = entry
        for table in tables:
            if table.name in self.tables:
                raise PluginError(
                    f"table {table.name!r} is offered by {origin} and by another plugin: uninstall one "
                    f"(pip uninstall {origin})"
                )
            self.tables[table.name] = table
        for recipe in recipes:
            if recipe.name in self.recipes:
                raise PluginError(
                    f"recipe {recipe.name!r} is offered by {origin} and by another plugin: uninstall one "
                    f"(pip uninstall {origin})"
                )
            self.recipes[recipe.name] = recipe
        return True

    def entries(self, stage: Stage) -> list[Entry]:
        """All entries of a stage, by name."""
        return [self._entries[stage][name] for name in sorted(self._entries[stage])]

    def find(self, stage: Stage, name: str) -> Found:
        """Look a name up: a stage's own name, "family:member", or a member of any family.

        Raises:
            UnknownNameError: nothing answers to it; the nearest name is offered, and a plugin that
                failed to load is named.
            ConfigError: a family's own name, or a member of one whose library is not installed.
        """
        entries = self._entries[stage]
        if name in entries and entries[name].spec.members is None:
            return Found(entries[name], None, self.packages(entries[name]))
        if name in entries:
            raise ConfigError(f"{stage} {name!r} is a family: name one of its members ({entries[name].spec.summary})")
        prefix, _, member = name.rpartition(":")
        choices = [known for known, entry in entries.items() if entry.spec.members is None]
        for entry in entries.values():
            if entry.spec.members is None:
                continue
            names = entry.spec.names()
            if name in names or (prefix == entry.spec.name and member in names):
                return Found(entry, member, self.packages(entry))
            if entry.spec.tags is not None and "." in member and prefix in ("", entry.spec.name):
                base, tag = entry.spec.split_tag(member)
                if tag:
                    return Found(entry, base, self.packages(entry), tag)
                choices += entry.spec.tagged()
            if prefix == entry.spec.name and not names:
                raise ConfigError(f"{stage} {name!r} is not installed: {entry.spec.summary}")
            choices += names
        broken = "".join(f"; note: {failure.plugin} failed to load: {failure.cause}" for failure in self.failures)
        raise UnknownNameError(stage, name, choices, broken)

    def packages(self, entry: Entry) -> tuple[str, ...]:
        """Return the packages whose data may hold a stage's shipped weights.

        Its own, and for a fine-tuner those of all victims: who offers a victim can ship it tuned too.
        """
        entries = [entry, *(self.entries("victim") if entry.stage == "finetuner" else ())]
        return tuple(dict.fromkeys(each.spec.weights for each in entries if each.spec.weights))

    def all_entries(self) -> list[Entry]:
        """Every entry of every stage, in the order of the pipeline."""
        return [entry for stage in STAGES for entry in self.entries(stage)]


def _installed() -> list[importlib.metadata.EntryPoint]:
    points = importlib.metadata.entry_points(group=hookspecs.GROUP)
    return sorted(points, key=lambda point: (point.dist.name if point.dist else "", point.name))


def _cause(error: BaseException) -> str:
    text = " ".join(str(error).split()) or "no message"
    return f"{type(error).__name__}: {text}"


@functools.cache
def registry() -> Registry:
    """The registry of what is installed, built once a process."""
    return Registry()
