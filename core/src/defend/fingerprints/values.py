"""What a value holds, as one number: of a network, an attack, images, and the code that runs in them."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
import sys
import types
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import attrs

from defend.fingerprints.sources import is_edited, make_unique, module_source

if TYPE_CHECKING:
    from torch import Tensor, nn

# what Python itself puts into a class
NOT_OF_A_CLASS = {
    "__dict__", "__weakref__", "__doc__", "_abc_impl", "__annotations__", "__annotate__", "__annotate_func__",
    "__annotations_cache__", "__static_attributes__", "__firstlineno__",
}  # fmt: skip


def batch_key(**parts: Any) -> str:
    """Return the key of a batch: a SHA-256 of all parts by name, in any order.

    A part may be anything: numbers, text, lists, dictionaries (in any order), tensors (by type, shape and bytes),
    networks, attacks and other objects (by class, the class's source file and all that they hold). Of functions and
    classes that somebody may be editing the code that runs counts too, and the globals that it reads. Two keys are
    equal only if all this is. An object that Python cannot tell so much about makes every key a new one.
    """
    return _Hasher().digest(parts)


def module_hash(module: nn.Module) -> str:
    """Return a SHA-256 of a network: what decides its outputs, as far as it lies in the network.

    Parameters and all buffers, the structure, each part's class and the source file of that class, plain attributes
    (a temperature, a mode, a function), hooks, whether it is in training, and how it lies in memory, which decides how
    results are rounded. Not in it: the device, and library code that no class of it comes from, see `code_version`.
    """
    return _Hasher().digest(module)


def use_hash(module: nn.Module) -> str:
    """Return a SHA-256 of a network that a training uses as it stands; the code of core is no part of it.

    Parameters and all buffers; of each part its class and plain attributes (a quality, a mean, a config), which need
    not lie in the state; and the source of classes and functions that somebody is editing, with the globals they read.
    """
    hasher = _Hasher()
    tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    return hasher.digest((_list_parts(module, hasher), {name: value.detach() for name, value in tensors.items()}))


def code_hash(module: nn.Module) -> str:
    """Return a SHA-256 of what runs in a network: as `use_hash`, less its parameters and buffers."""
    hasher = _Hasher()
    return hasher.digest(_list_parts(module, hasher))


def _list_parts(module: nn.Module, hasher: _Hasher) -> dict[str, Any]:
    import torch

    of_every_module = {*vars(torch.nn.Module()), "stage_name"}
    parts = {}
    for name, part in module.named_modules():
        attributes = {key: value for key, value in vars(part).items() if key not in of_every_module}
        kept = {key: _keep_plain(value, hasher) for key, value in attributes.items()}
        kept = {key: value for key, value in kept.items() if value is not _NO_DATA}
        kind = type(part)
        # what a file of one's own is called as a module depends on where Python was started
        where = kind.__module__ if _source_if_edited(kind) is None else ""
        # hooks are numbered anew in every process
        hooks = {key: _keep_plain(list(vars(part)[key].values()), hasher) for key in HOOKS if vars(part).get(key)}
        parts[name] = where, kind.__qualname__, _keep_class(kind, hasher), hooks, kept
    return parts


HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")
DEEPEST = 8  # levels of an attribute
_NO_DATA = object()


def _keep_plain(value: Any, hasher: _Hasher, depth: int = 0) -> Any:
    """Return what a hash can take of an attribute: data, however nested, and what somebody is editing."""
    if value is None or isinstance(value, bool | int | float | complex | str | bytes | hasher._tensor):
        return value
    if depth > DEEPEST:  # objects may hold each other
        return _NO_DATA
    if isinstance(value, types.FunctionType):
        return _keep_function(value, hasher, depth) if _source_if_edited(value) is not None else _NO_DATA
    if isinstance(value, type):
        return _keep_class(value, hasher, depth + 1) or _NO_DATA
    if isinstance(value, types.MethodType | staticmethod | classmethod):
        return _keep_plain(value.__func__, hasher, depth + 1)
    if isinstance(value, property):
        return _keep_plain([value.fget, value.fset], hasher, depth + 1)
    if isinstance(value, functools.partial):
        value = {"function": value.func, "arguments": value.args, **value.keywords}
    if attrs.has(type(value)):
        value = {field.name: getattr(value, field.name) for field in attrs.fields(type(value))}
    elif hasattr(value, "__dict__") and _source_if_edited(type(value)) is not None:
        value = {**vars(value), "": _keep_class(type(value), hasher, depth + 1)}
    if isinstance(value, dict):
        items: Any = {
            key: _keep_plain(each, hasher, depth + 1) for key, each in value.items() if isinstance(key, str | int)
        }
        return {key: each for key, each in items.items() if each is not _NO_DATA}
    if isinstance(value, list | tuple | set | frozenset):
        items = [_keep_plain(each, hasher, depth + 1) for each in value]
        items = [each for each in items if each is not _NO_DATA]
        return items if isinstance(value, list | tuple) else sorted(items, key=repr)
    return _NO_DATA


def _keep_function(function: types.FunctionType, hasher: _Hasher, depth: int) -> Any:
    """Return the code of a function, and what it reads: the first time that it is met, as functions call each other."""
    if function in hasher.met:
        return function.__code__
    hasher.met.add(function)
    cells = []
    for cell in function.__closure__ or ():
        with contextlib.suppress(ValueError):  # not filled yet
            cells.append(cell.cell_contents)
    read = {"read": globals_read(function), "defaults": function.__defaults__, "more": function.__kwdefaults__}
    return [function.__code__, _keep_plain({**read, "cells": cells}, hasher, depth + 1)]


def _keep_class(kind: type, hasher: _Hasher, depth: int = 0) -> Any:
    """Return what a class is made of and reads, and its bases, as far as somebody is editing them; [] of others."""
    if kind in hasher.met:
        return [kind.__qualname__]
    found = []
    for base in kind.__mro__:
        source = _source_if_edited(base)
        if source is not None and base not in hasher.met:
            hasher.met.add(base)
            held = {name: part for name, part in vars(base).items() if name not in {*NOT_OF_A_CLASS, "__module__"}}
            found.append([base.__qualname__, source, _keep_plain(held, hasher, depth)])
    return found


def _source_if_edited(thing: Any) -> Any:
    """Return what tells one version of a class or function from another, None of core's and of what is installed.

    The file that it is in. Of what a script or a notebook defines, or has no file, its own code: the rest of a script
    changes often.
    """
    module = str(getattr(thing, "__module__", None) or "builtins")
    root = module.partition(".")[0]
    if root == "defend" or root in sys.stdlib_module_names - {"__main__"}:
        return None
    if root == "__main__" or getattr(sys.modules.get(root), "__file__", None) is None:
        return [value.__code__ for value in vars(thing).values() if isinstance(value, types.FunctionType)]
    return module_source(module) if is_edited(root) else None


def _runs_as_edited(thing: Any) -> bool:
    """Whether the running code of a class or function must be looked at, as its file may say something else.

    It may have been written anew since it was imported, and what it reads of its module may have been set from outside,
    by the environment or by another module. Core's own files are of `code_version`.
    """
    root = str(getattr(thing, "__module__", None) or "builtins").partition(".")[0]
    return root != "defend" and is_edited(root)


def globals_read(function: types.FunctionType) -> dict[str, Any]:
    """Return the global values that a function may read, by name, and what it may read of modules that are edited."""
    names = sorted(set(_names(function.__code__)))  # in one order, whatever the process
    found = {name: function.__globals__[name] for name in names if name in function.__globals__}
    waiting = [value for value in found.values() if isinstance(value, types.ModuleType)]
    looked_at = set()
    while waiting:
        module = waiting.pop()
        root = module.__name__.partition(".")[0]
        if module.__name__ in looked_at or root == "defend" or not is_edited(root):
            continue
        looked_at.add(module.__name__)
        read = {f"{module.__name__}.{name}": vars(module)[name] for name in names if name in vars(module)}
        waiting += [value for value in read.values() if isinstance(value, types.ModuleType)]
        found |= read
    return found


def _names(code: types.CodeType) -> Iterator[str]:
    """Yield the names of globals and attributes in a function's code, and in the functions within it."""
    yield from code.co_names
    for part in code.co_consts:
        if isinstance(part, types.CodeType):
            yield from _names(part)


class _Hasher:
    """Hashes values by their content, objects by what `copy` and their likes would keep of them; cycles are fine.

    Functions and classes that somebody may be editing may call each other in circles, and in long chains: where one is
    met its name and code stand for it, and what it holds and reads is hashed once, at the end.
    """

    def __init__(self) -> None:
        import torch

        from defend.boundary.scripted import python_attributes

        self._beside = python_attributes
        self._tensor = torch.Tensor
        self._bytes = torch.uint8
        self._module = torch.nn.Module
        self._scripted = torch.jit.ScriptModule
        self._save = torch.jit.save
        self._known: dict[int, tuple[Any, bytes]] = {}  # the value too, as its id is only its own while it lives
        self._open: dict[int, int] = {}
        self._referred: list[Any] = []
        self.met: set[Any] = set()

    def digest(self, value: Any) -> str:
        """Return the hash of a value, and of all code that it refers to."""
        own = self.of(value)
        # each may refer to others, and the list grows meanwhile
        bodies = [self.of(thing) + self._of_body(thing) for thing in self._referred]
        return (self._join("all", [own, *sorted(bodies)]) if bodies else own).hex()

    def of(self, value: Any) -> bytes:
        """Return 32 bytes."""
        if type(value) in (type(None), bool, int, float, complex, str, bytes):
            # Python refuses to write whole numbers of more than 4,300 digits, but in hexadecimal
            text = hex(value) if type(value) is int else repr(value)
            return hashlib.sha256(f"{type(value).__name__} {text}".encode()).digest()
        if id(value) in self._known:
            return self._known[id(value)][1]
        if id(value) in self._open:
            return self._join("cycle", [self.of(len(self._open) - self._open[id(value)])])
        self._open[id(value)] = len(self._open)
        try:
            digest = self._of_object(value)
        except (RecursionError, ValueError):  # too deep, or a closure not filled yet
            digest = self.of(make_unique())
        finally:
            del self._open[id(value)]
        self._known[id(value)] = value, digest
        return digest

    def _of_object(self, value: Any) -> bytes:
        if isinstance(value, self._tensor):
            return self._of_tensor(value)
        if type(value) in (list, tuple):
            return self._join(type(value).__name__, [self.of(item) for item in value])
        if type(value) in (set, frozenset):
            return self._join(type(value).__name__, sorted(self.of(item) for item in value))
        if type(value) in (dict, types.MappingProxyType):
            return self._join("dict", sorted(self.of(key) + self.of(item) for key, item in value.items()))
        if isinstance(value, type):
            return self._of_class(value)
        if isinstance(value, types.ModuleType):
            source = module_source(value.__name__) or make_unique()
            return self._join("module", [self.of((value.__name__, getattr(value, "__version__", None), source))])
        if isinstance(value, types.FunctionType):
            named = self._of_named(value, value.__qualname__)
            if _runs_as_edited(value) and "<locals>" not in value.__qualname__:
                self._referred.append(value)  # once: it is known from now on
                return self._join("function", [named, self.of(value.__code__)])
            return self._join("function", [named, self.of(value.__code__), self._of_body(value)])
        if isinstance(value, types.MethodType):
            return self._join("method", [self.of(value.__func__), self.of(value.__self__)])
        if isinstance(value, staticmethod | classmethod):
            return self._join(type(value).__name__, [self.of(value.__func__)])
        if isinstance(value, property):
            return self._join("property", [self.of((value.fget, value.fset, value.fdel))])
        if isinstance(value, types.CodeType):
            caught = getattr(value, "co_exceptiontable", b"")
            code = value.co_code, caught, value.co_consts, value.co_names, value.co_freevars, value.co_flags
            return self.of(code)
        return self._of_state(value)

    def _of_tensor(self, value: Tensor) -> bytes:
        try:
            flat = value.detach().cpu().contiguous().reshape(-1).view(self._bytes)
            content = hashlib.sha256(flat.numpy().data).digest()
        except (RuntimeError, NotImplementedError, TypeError):  # sparse, quantised, without memory
            content = self.of(make_unique())
        return self._join(f"tensor {value.dtype} {tuple(value.shape)}", [content])

    def _of_class(self, value: type) -> bytes:
        named = self._of_named(value, value.__qualname__)
        if "<locals>" in value.__qualname__:  # made within a function, whose variables its methods may use
            return self._join("class", [named, self._of_body(value)])
        if _runs_as_edited(value):
            self._referred.append(value)  # once: it is known from now on
        return named

    def _of_body(self, thing: Any) -> bytes:
        """Hash what a class or a function holds, and the globals that edited code reads."""
        try:
            if isinstance(thing, type):
                held = {name: part for name, part in vars(thing).items() if name not in NOT_OF_A_CLASS}
                return self._join("class", [self.of(thing.__bases__), self.of(held)])
            cells = [cell.cell_contents for cell in thing.__closure__ or ()]
            read = globals_read(thing) if _runs_as_edited(thing) else {}
            return self._join("body", [self.of((thing.__defaults__, thing.__kwdefaults__, cells)), self.of(read)])
        except (RecursionError, ValueError):  # too deep, or a closure not filled yet
            return self.of(make_unique())

    def _of_named(self, value: Any, name: str) -> bytes:
        module = getattr(value, "__module__", None) or "builtins"
        source = module_source(module) or make_unique()
        return self._join("named", [self.of((module, name, source))])

    def _of_state(self, value: Any) -> bytes:
        """Hash an object by what it would be rebuilt from; one that cannot be is like no other."""
        if isinstance(value, self._scripted):  # in its file are the code, and constants that are no state
            file = io.BytesIO()
            with contextlib.suppress(RuntimeError), warnings.catch_warnings():  # some refuse, and are like no other
                warnings.simplefilter("ignore")
                self._save(value, file)
            return self._join("scripted", [self.of(file.getvalue() or make_unique()), self.of(self._beside(value))])
        try:
            kept = value.__reduce_ex__(4)
        except Exception:  # classes refuse in many ways
            return self.of(make_unique())
        if isinstance(kept, str):  # the name of something global, which a decorator may have put around code
            named = self.of((getattr(value, "__module__", None), kept, getattr(value, "__wrapped__", None)))
            return self._join("global", [self.of(type(value)), named])
        # the items of lists and dictionaries come as iterators, which say nothing of what they hold
        kept = tuple(list(part) if isinstance(part, Iterator) else part for part in kept)
        more: tuple[Any, ...] = ()
        if isinstance(value, self._module):  # the order of a list of parts, and how parameters lie in memory
            own = [parameter for parameter in value._parameters.values() if parameter is not None]
            more = tuple(value._modules.keys()), [tuple(parameter.stride()) for parameter in own]
        return self._join("object", [self.of(type(value)), self.of(kept), self.of(more)])

    @staticmethod
    def _join(kind: str, digests: list[bytes]) -> bytes:
        return hashlib.sha256(kind.encode() + b"\n" + b"".join(digests)).digest()
