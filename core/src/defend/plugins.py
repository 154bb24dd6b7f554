"""Finds plugins by their entry points and keeps what they offer, by stage and name."""

from __future__ import annotations

import contextlib
import contextvars
import copy
import functools
import importlib.metadata
import importlib.util
import os
from collections.abc import Container, Iterable, Iterator, Mapping
from typing import Any, Literal

import attrs
import pluggy

from defend import hookspecs
from defend.boundary.calls import Calling, say_cause
from defend.custom.spec import CustomSpec, spec_of_reference, spec_of_thing
from defend.errors import ConfigError, DefendError, PluginError, StageError, UnknownNameError, did_you_mean, nearest
from defend.options import make
from defend.recipes import Recipe
from defend.stages import STAGES, Stage, StageSpec
from defend.tables import Table
from defend.util import interrupts
from defend.values.arguments import check_name
from defend.values.references import list_beside, read_reference, shorten, split_reference
from defend.values.run_config import NONE
from defend.values.threats import threat

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
        published: whether the name asked for published weights, see `StageSpec.published`.
        packages: those whose data may hold its shipped weights, see `Registry.packages`.
    """

    entry: Entry
    member: str | None
    packages: tuple[str, ...] = ()
    tag: str = ""
    published: bool = False

    @property
    def spec(self) -> StageSpec:
        return self.entry.spec

    @property
    def name(self) -> str:
        """The stage's name or the family member's, without a tag."""
        if self.member is not None and self.spec.prefixed:
            return shorten(f"{self.spec.name}:{self.member}")
        return self.member or self.spec.name

    def config(self, values: Mapping[str, Any]) -> Any:
        """Build the stage's options, the family member filled in."""
        chosen = {**(self.spec.published if self.published else {}), **values}
        if self.member is not None:
            whole = f"{self.member}.{self.tag}" if self.tag else self.member
            asked = chosen.get(self.spec.member_option, self.member)
            if asked not in (self.member, whole):
                raise ConfigError(f"{self.spec.member_option}={asked!r} contradicts {self.entry.stage} {self.member!r}")
            chosen[self.spec.member_option] = self.member
            if self.tag and getattr(self._make(chosen), "pretrained", False):
                chosen[self.spec.member_option] = whole
        return self._make(chosen)

    def _make(self, values: Mapping[str, Any]) -> Any:
        return make(self.spec.config, values, f"{self.entry.stage} {self.name}")

    def call(self, what: Literal["build", "train"], *given: Any) -> Any:
        """Call what the spec names as its `build` or `train`.

        Raises:
            StageError: it cannot be imported, or failed.
        """
        with Calling(f"{self.entry.stage} {self.name}", what):
            return self.spec.resolve(str(getattr(self.spec, what)))(*given)

    def note(self, config: Any) -> str:
        """Return a sentence where a tag was named that has no effect, else ""; `config` are the stage's options."""
        if not self.tag or getattr(config, "pretrained", False):
            return ""
        return (
            f"{self.entry.stage} {self.name}.{self.tag} is {self.name}: {self.tag} names published weights, which only "
            "pretrained=true takes"
        )


class Registry:
    """All stages that the installed plugins offer.

    A name that two plugins offer belongs to neither: `find` refuses it and names both. All other names work.
    """

    def __init__(self, entry_points: Iterable[importlib.metadata.EntryPoint] | None = None) -> None:
        self.failures: list[Failure] = []
        self.versions: dict[str, str] = {}
        self.tables: dict[str, Table] = {}
        self.recipes: dict[str, Recipe] = {}
        self._entries: dict[Stage, dict[str, Entry]] = {stage: {} for stage in STAGES}
        self._claimed: dict[tuple[str, str], str] = {}
        self._custom: dict[tuple[Stage, str], Found] = {}
        self._manager = pluggy.PluginManager(hookspecs.GROUP)
        self._manager.add_hookspecs(hookspecs)
        for module in CORE:
            self._register(importlib.import_module(module), "defend-core")
        for point in _find_installed() if entry_points is None else entry_points:
            origin = point.dist.name if point.dist is not None else point.name
            with self._note_failures(origin):
                self._register(point.load(), origin)
                if point.dist is not None:
                    self.versions[origin] = point.dist.version

    @contextlib.contextmanager
    def _note_failures(self, origin: str) -> Iterator[None]:
        """Within the block a plugin may fail in any way; the others go on working. The user's Ctrl-C is no failure."""
        with interrupts.listening():
            try:
                yield
            except BaseException as error:
                if interrupts.is_users(error):
                    raise
                self.failures.append(Failure(origin, say_cause(error)))

    def _register(self, plugin: Any, origin: str) -> None:
        try:
            offered, tables, recipes = self._ask(plugin, origin)
        except BaseException:
            if self._manager.is_registered(plugin):
                self._manager.unregister(plugin)
            raise
        # only now, as a plugin that fails halfway offers nothing
        for entry in offered:
            rival = self._entries[entry.stage].setdefault(entry.spec.name, entry)
            if rival is not entry:
                self._claim(entry.stage, entry.spec.name, rival.origin, origin)
        for table in tables:
            other = self.tables.setdefault(table.name, table)
            if other is not table:
                self._claim("table", table.name, f"defend-{other.plugin}", origin)
        for recipe in recipes:
            if self.recipes.setdefault(recipe.name, recipe) is not recipe:
                self._claim("recipe", recipe.name, "another plugin", origin)

    def _ask(self, plugin: Any, origin: str) -> tuple[list[Entry], list[Table], list[Recipe]]:
        """Ask one plugin for all that it offers, and check what it says.

        Raises:
            Exception: whatever is wrong with it.
        """
        offered: list[Entry] = []
        tables: list[Table] = []
        recipes: list[Recipe] = []
        self._manager.register(plugin)
        self._manager.check_pending()
        # this plugin alone is asked, so that a failure is its own
        others = [other for other in self._manager.get_plugins() if other is not plugin]
        for stage in STAGES:
            hook = self._manager.subset_hook_caller(f"defend_{stage}s", remove_plugins=others)
            for specs in hook():
                if isinstance(specs, StageSpec):
                    raise TypeError(f"defend_{stage}s returned one StageSpec, not a list of them")
                for spec in specs:
                    if not isinstance(spec, StageSpec):
                        raise TypeError(f"defend_{stage}s returned {type(spec).__name__}, not StageSpec")
                    _check_threats(stage, spec)
                    _check_weights(stage, spec)
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
        return offered, tables, recipes

    def _claim(self, kind: str, name: str, first: str, second: str) -> None:
        """Note that a name is offered twice."""
        both = f"both {first} and {second}" if first != second else f"{first} twice"
        self._claimed[kind, name] = f"{kind} {name!r} is offered by {both}: uninstall one (pip uninstall {second})"
        self.failures.append(Failure(second, self._claimed[kind, name]))

    def refuse_claimed(self, kind: str, name: str) -> None:
        """Refuse a name of a stage, "table" or "recipe" that two plugins offer.

        Raises:
            PluginError: they do; both are named.
        """
        if (kind, name) in self._claimed:
            raise PluginError(self._claimed[kind, name])

    def entries(self, stage: Stage) -> list[Entry]:
        """All entries of a stage, by name."""
        return [self._entries[stage][name] for name in sorted(self._entries[stage])]

    def find(self, stage: Stage, name: str) -> Found:
        """Look a name up: a stage's own name, "family:member", or a member of any family.

        Raises:
            UnknownNameError: nothing answers to it; the nearest name is offered, and a plugin that
                failed to load is named.
            PluginError: two plugins offer it, be it as a member of a family.
            ConfigError: no name, no text, or "none"; a family's own name, or a member of one whose library is not
                installed.
        """
        if stage not in self._entries:
            raise UnknownNameError("stage", stage, self._entries)
        check_name(stage, name)
        if self.is_object(stage, name):  # its name is a label, and no text to be taken apart
            return Found(self._entries[stage][name], None, self.packages(self._entries[stage][name]))
        self.refuse_claimed(stage, name)
        entries = self._entries[stage]
        if name in entries and entries[name].spec.is_family:
            raise ConfigError(f"{stage} {name!r} is a family: name one of its members ({entries[name].spec.summary})")
        if name not in entries:
            _refuse_nothing(stage, name)
        prefix, _, member = name.rpartition(":")
        if prefix not in entries and (custom := self._find_custom(stage, name)) is not None:
            return custom
        choices = [known for known, entry in entries.items() if not entry.spec.is_family]
        answering = [Found(entries[name], None, self.packages(entries[name]))] if name in entries else []
        for entry in entries.values():
            if not entry.spec.is_family:
                continue
            names = self.names_of(entry)
            published = prefix == entry.spec.name and bool(entry.spec.published)
            if entry.spec.pattern is not None:
                if alike := entry.spec.match(name):
                    answering.append(Found(entry, alike, self.packages(entry), published=True))
                elif name.startswith(f"{entry.spec.name}:"):
                    raise ConfigError(f"{stage} {name!r} is none: expected {entry.spec.summary}")
            elif name in names or (prefix == entry.spec.name and member in names):
                answering.append(Found(entry, member, self.packages(entry), published=published))
            elif entry.spec.tags is not None and "." in member and prefix in ("", entry.spec.name):
                base, tag = entry.spec.split_tag(member)
                if tag:
                    answering.append(Found(entry, base, self.packages(entry), tag, published))
                choices += entry.spec.tagged()
            elif prefix == entry.spec.name and not names:
                raise ConfigError(f"{stage} {name!r} is not installed: {entry.spec.summary}")
            choices += names
        if len(answering) > 1:
            raise PluginError(_several(stage, name, answering))
        if answering:
            return answering[0]
        if name.endswith(".py"):
            what = f"a class or function in it that makes the {stage}"
            raise ConfigError(f"{stage} {name!r} is a whole file: name {what}, {name}:NAME")
        broken = "".join(f"; note: {failure.plugin} failed to load: {failure.cause}" for failure in self.failures)
        self._refuse_module(stage, name, choices, broken)
        beside = f"; the folder of this name is ./{name}" if stage == "dataset" and os.path.isdir(name) else ""
        raise UnknownNameError(stage, name, choices, beside + broken)

    def _find_custom(self, stage: Stage, name: str) -> Found | None:
        """Return what a reference names, once and for all; None of another name."""
        if split_reference(name) is None:
            return None
        if (stage, name) not in self._custom:
            self._custom[stage, name] = Found(Entry(stage, spec_of_reference(stage, name), "your own"), None)
        return self._custom[stage, name]

    def _refuse_module(self, stage: Stage, name: str, known: Container[str], broken: str) -> None:
        """Refuse MODULE:NAME where there is no such module; what is near to a family's member is left to others.

        Raises:
            ConfigError: naming the nearest module, file or family.
        """
        module, what = read_reference(name) or ("", "")
        families = [each.spec.name for each in self.entries(stage) if each.spec.is_family]
        elsewhere = any(each.spec.name == module for each in self.all_entries())
        if not module or elsewhere or module in known or (what in known and nearest(module, families)):
            return
        choices = [f"{each}:{what}" for each in (*list_beside(module), *families)]
        near = did_you_mean(name, choices) if choices else "expected FILE.py:NAME"
        raise ConfigError(
            f"{stage} {name!r}: no module {module!r} (looked in . and the installed packages): {near}{broken}"
        )

    def with_thing(self, stage: Stage, thing: Any, name: str | None = None) -> tuple[str, Registry]:
        """Return a registry that also offers an object, class or function as a stage, and the name that finds it.

        Args:
            stage: what it is to be.
            thing: what a user gave; a text is a name, or a reference, and is returned as it is.
            name: what reports call it; its own, or its class's, if None.
        """
        if isinstance(thing, str):
            return thing, self
        called = name or getattr(thing, "stage_name", None) or getattr(thing, "__name__", None) or type(thing).__name__
        other = copy.copy(self)
        label = stage if "<" in str(called) else str(called)  # a lambda has no name
        spec = spec_of_thing(stage, label if stage == "dataset" else self._label(stage, label), thing)
        parts = {str(getattr(part, "stage_name", "")): part for part in getattr(thing, "purifiers", ())}
        sequence = {name: self._counter_attacks(stage, part) for name, part in parts.items()}
        spec = attrs.evolve(spec, counter_attacks=self._counter_attacks(stage, thing), sequence=sequence)
        other._entries = {**self._entries, stage: {**self._entries[stage], spec.name: Entry(stage, spec, "your own")}}
        return spec.name, other

    def _label(self, stage: Stage, called: str) -> str:
        """Return what an object is found by: like no name, reference or sequence of names, or they would be taken."""
        label = shorten(called).replace(":", " ").replace(",", " + ")
        try:
            self.find(stage, label)
        except UnknownNameError:
            return f"{label} as given" if label == NONE else label
        except DefendError:  # there is something of this name
            pass
        return f"{label} as given"

    def _counter_attacks(self, stage: Stage, thing: Any) -> tuple[str, ...]:
        """Return the attacks made against an object of an installed stage, which has its name."""
        entry = self._entries[stage].get(getattr(thing, "stage_name", ""))
        if entry is None or type(thing).__module__.partition(".")[0] != entry.spec.build.partition(".")[0]:
            return ()
        return entry.spec.counter_attacks

    def is_object(self, stage: Stage, name: str) -> bool:
        """Whether a name stands for what `with_thing` was given: no other process finds it."""
        entry = self._entries[stage].get(name)
        return entry is not None and isinstance(entry.spec, CustomSpec)

    def names_of(self, entry: Entry) -> tuple[str, ...]:
        """Return what a family answers to; nothing, and its failure is noted, where it cannot say."""
        try:
            with Calling(f"{entry.stage} {entry.spec.name}", "its members"):
                return entry.spec.names()
        except StageError as error:  # a plugin may fail in any way; the others go on working
            failure = Failure(entry.origin, f"the members of {entry.spec.name}: {say_cause(error.__cause__ or error)}")
            if failure not in self.failures:
                self.failures.append(failure)
            return ()

    def packages(self, entry: Entry) -> tuple[str, ...]:
        """Return the packages whose data may hold a stage's shipped weights.

        Its own, and for a fine-tuner those of all victims: who offers a victim can ship it tuned too.
        """
        entries = [entry, *(self.entries("victim") if entry.stage == "finetuner" else ())]
        return tuple(dict.fromkeys(each.spec.weights for each in entries if each.spec.weights))

    def all_packages(self) -> tuple[str, ...]:
        """Return the packages that may hold shipped weights of any stage."""
        return tuple(dict.fromkeys(package for entry in self.all_entries() for package in self.packages(entry)))

    def all_entries(self) -> list[Entry]:
        """Every entry of every stage, in the order of the pipeline."""
        return [entry for stage in STAGES for entry in self.entries(stage)]


def _refuse_nothing(stage: Stage, name: str) -> None:
    """Refuse a name that means that there be none: whoever typed an empty one may believe to have a part."""
    needed = stage in ("victim", "attack", "dataset")
    cure = f"name one, see `defend list {stage}`" if needed else f"name one, or leave the {stage} out"
    if not name.strip():
        raise ConfigError(f"{stage} {name!r} is an empty name: {cure}")
    if name == NONE:
        alone = "; of a run's purifiers it stands alone, and in no sequence" if stage == "purifier" else ""
        raise ConfigError(f"{stage} {name!r} is none: {cure}{alone}")


def _find_installed() -> list[importlib.metadata.EntryPoint]:
    points = importlib.metadata.entry_points(group=hookspecs.GROUP)
    return sorted(points, key=lambda point: (point.dist.name if point.dist else "", point.name))


def _several(stage: str, name: str, answering: list[Found]) -> str:
    """Say who offers one name, and how a family's member is meant nonetheless."""
    origins = " and ".join(
        found.entry.origin + (f" (family {found.spec.name})" if found.member is not None else "") for found in answering
    )
    family = next(found for found in answering if found.member is not None)
    last = next(found for found in answering if found is not family)
    own = " (with its published weights: pretrained=false takes others)" if family.spec.published else ""
    return (
        f"{stage} {name!r} is offered by both {origins}: name {family.spec.name}:{name} for the family's{own}, or "
        f"uninstall one (pip uninstall {last.entry.origin})"
    )


def _check_threats(stage: str, spec: StageSpec) -> None:
    """Refuse an attack that names a threat that there is none of: it would be left out without a word."""
    if stage != "attack":
        return
    named: Any = spec.threats
    if isinstance(named, str):
        raise ConfigError(f"attack {spec.name}: threats={named!r} is one text, expected a tuple of names")
    for kind in named:
        try:
            threat(kind)
        except ConfigError as error:
            raise ConfigError(f"attack {spec.name}: {error}") from None


def _check_weights(stage: str, spec: StageSpec) -> None:
    """Refuse a package of shipped weights that is not there: whoever looks for weights would meet it."""
    package: Any = spec.weights
    if package is None:
        return
    if not isinstance(package, str):
        raise TypeError(f"{stage} {spec.name}: weights={package!r}, expected the name of a package")
    try:
        there = importlib.util.find_spec(package) is not None
    except (ImportError, ValueError):  # a package around it is missing, or the name is none
        there = False
    if not there:
        raise PluginError(f"{stage} {spec.name}: package {package!r} with the shipped weights is missing")


_used: contextvars.ContextVar[Registry | None] = contextvars.ContextVar("defend_registry", default=None)


@contextlib.contextmanager
def using(plugins: Registry) -> Iterator[None]:
    """Within the block `registry()` returns these: objects of a session are found by stages that name a victim."""
    token = _used.set(plugins)
    try:
        yield
    finally:
        _used.reset(token)


def registry() -> Registry:
    """The registry of what is installed, built once a process; see `using`."""
    return _used.get() or _installed()


@functools.cache
def _installed() -> Registry:
    return Registry()


def forget_installed() -> None:
    """Find what is installed anew when it is asked for next: something was installed, or removed, meanwhile."""
    _installed.cache_clear()
