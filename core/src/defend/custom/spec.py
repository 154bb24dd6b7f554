"""The spec of a part that no package offers. Imports no torch."""

from __future__ import annotations

import functools
import inspect
import typing
from collections.abc import Callable, Mapping
from typing import Any

import attrs

from defend.custom.reference import load_reference
from defend.datasets.normalisation import OwnNormalisationOptions
from defend.errors import ConfigError
from defend.options import NoOptions, option, options
from defend.stages import Stage, StageSpec
from defend.values.references import shorten

TASK = "task"  # the argument of a user's function that receives the `Task`
IMAGES = ("images", "image", "x", "inputs", "input", "batch", "imgs")
"""What the one argument of a function is called that is a stage itself, and does not make one."""
PLAIN = (bool, int, float, str)
NORMALISATION = ("mean", "std")
"""A victim is wrapped where they are given, unless it is made with arguments of these names."""


@attrs.frozen(kw_only=True)
class CustomSpec(StageSpec):
    """A stage from a user's file or session: `thing` is what was given, or what a reference names.

    `build` is called with the spec first, see `defend.custom.build`. `handed`: it is an object of a session, whose
    functions are of images where they can be; what a reference names may also make a stage. `sequence`: of several
    purifiers in one, what attacks are made against each, by its name.
    """

    name: str
    stage: Stage
    thing: Any = attrs.field(eq=False, repr=False)
    summary: str = "your own"
    build: str = "defend.custom.build:build"
    handed: bool = attrs.field(default=False, eq=False)
    sequence: Mapping[str, tuple[str, ...]] = attrs.field(factory=dict)

    def resolve(self, reference: str) -> Callable[..., Any]:
        """Import what `build` names."""
        return functools.partial(StageSpec.resolve(self, reference), self)

    @property
    def makes(self) -> bool:
        """Whether the thing is called to make the stage: a class, or a function that does not take images itself."""
        if inspect.isclass(self.thing):
            return True
        if not inspect.isroutine(self.thing) or takes_images(self.thing):
            return False
        return not (self.handed and _takes_one_thing(self.thing))


def spec_of_reference(stage: Stage, text: str) -> CustomSpec:
    """Return the spec of what a reference names.

    Raises:
        ConfigError, StageError: it cannot be imported, see `load_reference`; or its arguments cannot be set.
    """
    return spec_of_thing(stage, shorten(text), load_reference(text), handed=False)


def spec_of_thing(stage: Stage, name: str, thing: Any, *, handed: bool = True) -> CustomSpec:
    """Return the spec of an object, a class or a function, called `name` in reports and errors.

    `handed`, as of `CustomSpec`.

    Raises:
        ConfigError: an argument of a function or class cannot be set.
    """
    spec = CustomSpec(name=name, stage=stage, thing=thing, threats=_threats(thing), handed=handed)
    fields, hints = _fields_of(thing, name) if spec.makes else ({}, {})
    base = OwnNormalisationOptions if stage == "victim" else NoOptions
    return attrs.evolve(spec, config=options(type("CustomOptions", (base,), {"__annotations__": hints, **fields})))


def _threats(thing: Any) -> tuple[str, ...]:
    return tuple(getattr(thing, "threats", ("oblivious", "adaptive")))


def takes_images(thing: Any) -> bool:
    """Whether a function takes images, so that it is a stage itself: one argument without a default, called so."""
    needed = [each for each in _parameters(thing) if each.default is each.empty]
    return bool(needed) and needed[0].name in IMAGES


def _takes_one_thing(thing: Any) -> bool:
    """Whether a function needs one argument, by whatever name, that is no option of it and not the task."""
    needed = [each for each in _parameters(thing) if each.default is each.empty]
    return len(needed) == 1 and needed[0].name != TASK and _kind_of(needed[0], thing) is None


def takes(thing: Any, argument: str) -> bool:
    """Whether a function or class has an argument of that name."""
    return any(each.name == argument for each in _parameters(thing))


def _parameters(thing: Any) -> list[inspect.Parameter]:
    try:
        found = inspect.signature(thing).parameters.values()
    except (TypeError, ValueError):  # some of C have none
        return []
    return [each for each in found if each.kind not in (each.VAR_POSITIONAL, each.VAR_KEYWORD)]


def _fields_of(thing: Any, name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return options of a function's arguments and their types, so that `--set victim.width=64` sets one.

    Raises:
        ConfigError: one has no default, so that nothing can be built.
    """
    fields: dict[str, Any] = {}
    hints: dict[str, Any] = {}
    for each in _parameters(thing):
        if each.name == TASK:
            continue
        kind = _kind_of(each, thing)
        if kind is None:
            if each.default is each.empty:
                of_images = "" if inspect.isclass(thing) else f", or call it {IMAGES[0]!r} if the function takes images"
                raise ConfigError(
                    f"{name} has an argument {each.name!r} without a default that could be set: give it one, or "
                    f"annotate it as int, float, str or bool{of_images}"
                )
            continue  # as it is: no text stands for it
        fields[each.name] = attrs.field() if each.default is each.empty else option(each.default, help="your own")
        hints[each.name] = kind
    return fields, hints


def _kind_of(parameter: inspect.Parameter, thing: Any) -> Any:
    """Return the type that an argument's text is parsed to, None where there is none."""
    try:
        where = thing.__init__ if inspect.isclass(thing) else thing
        hint = typing.get_type_hints(where).get(parameter.name)
    except Exception:  # an annotation may name anything
        hint = None
    if hint in PLAIN:
        return hint
    inner = [each for each in typing.get_args(hint) if each is not type(None)]
    if len(inner) == 1 and inner[0] in PLAIN and type(None) in typing.get_args(hint):
        return hint
    default = parameter.default
    if type(default) in PLAIN:
        return type(default)
    return str | None if default is None else None
