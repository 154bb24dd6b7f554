"""What decides an adversarial batch, as one number: the network, the attack, the images and the code.

And which code a training is of: what its stage is made of, and what stands around that.
"""

from __future__ import annotations

import ast
import contextlib
import functools
import hashlib
import importlib.util
import io
import os
import re
import sys
import sysconfig
import types
import uuid
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from defend.hookspecs import GROUP

if TYPE_CHECKING:
    from torch import Tensor, nn


NOT_OF_A_CLASS = {"__dict__", "__weakref__", "__doc__", "_abc_impl"}  # what Python itself puts into one


def batch_key(**parts: Any) -> str:
    """Return the key of a batch: a SHA-256 of all parts by name, in any order.

    A part may be anything: numbers, text, lists, dictionaries (in any order), tensors (by type, shape and bytes),
    networks, attacks and other objects (by class, the class's source file and all that they hold). Two keys are equal
    only if all this is. An object that Python cannot tell so much about makes every key a new one.
    """
    return _Hasher().of(parts).hex()


def module_hash(module: nn.Module) -> str:
    """Return a SHA-256 of a network: what decides its outputs, as far as it lies in the network.

    Parameters and all buffers, the structure, each part's class and the source file of that class, plain attributes
    (a temperature, a mode, a function), hooks, whether it is in training, and how it lies in memory, which decides how
    results are rounded. Not in it: the device, and library code that no class of it comes from, see `code_version`.
    """
    return _Hasher().of(module).hex()


def use_hash(module: nn.Module) -> str:
    """Return a SHA-256 of a network that a training uses as it stands; the code of core is no part of it.

    Parameters and all buffers; of each part its class and plain attributes (a quality, a mean, a config), which need
    not lie in the state; and the source of classes and functions that somebody is editing.
    """
    import torch

    hasher = _Hasher()
    of_every_module = {*vars(torch.nn.Module()), "stage_name"}
    parts = {}
    for name, part in module.named_modules():
        attributes = {key: value for key, value in vars(part).items() if key not in of_every_module}
        kept = {key: _keep_plain(value, hasher) for key, value in attributes.items()}
        kept = {key: value for key, value in kept.items() if value is not _NO_DATA}
        kind = type(part)
        parts[name] = kind.__module__, kind.__qualname__, _source_if_edited(kind), kept
    tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    return hasher.of((parts, {name: value.detach() for name, value in tensors.items()})).hex()


DEEPEST = 8  # levels of an attribute
_NO_DATA = object()


def _keep_plain(value: Any, hasher: _Hasher, depth: int = 0) -> Any:
    """Return what a hash can take of an attribute: data, however nested, and what somebody is editing."""
    if value is None or isinstance(value, bool | int | float | complex | str | bytes | hasher._tensor):
        return value
    if isinstance(value, types.FunctionType):
        return value.__code__ if _source_if_edited(value) is not None else _NO_DATA
    if depth > DEEPEST:  # objects may hold each other
        return _NO_DATA
    if attrs.has(type(value)):
        value = {field.name: getattr(value, field.name) for field in attrs.fields(type(value))}
    elif hasattr(value, "__dict__") and (source := _source_if_edited(type(value))) is not None:
        value = {**vars(value), "": source}
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
    return _module_source(module) if _is_edited(root) else None


def code_version(*modules: str) -> str:
    """Return a SHA-256 of the code that makes a batch.

    It covers every source file of core, and of the packages that `modules` belong to; their versions, and those of the
    libraries that core and plugins ask for, optional ones where installed (torch, timm, foolbox, ...).

    Args:
        modules: modules or "module:function" references, as `defend.stages.StageSpec.build` has them, of the attack
            and the victim.
    """
    return _code_version(modules, _stamp_edited())


@functools.cache
def _code_version(modules: tuple[str, ...], _: object) -> str:
    _, versions, sources = _code(modules)
    return batch_key(python=sys.version, versions=versions, sources=sources)


def modules_of(part: object) -> set[str]:
    """Return the modules of a part's class, of the functions that it holds, and of the parts within it."""
    found: set[str] = set()
    made = not isinstance(part, type)  # a class holds its methods, which are where it is
    for each in part.modules() if made and hasattr(part, "modules") else (part,):
        kept = list(vars(each).values()) if made and hasattr(each, "__dict__") else []
        for one in (type(each), each, *kept):
            module = getattr(one, "__module__", None)
            if isinstance(module, str):
                found.add(module)
    return found - {"builtins"}


def code_of(*modules: str) -> dict[str, str]:
    """Return a hash of every source file of core and of the packages that `modules` belong to, by package.

    Args:
        modules: as for `code_version`. Those of libraries that core and plugins ask for are left out, as is the
            interpreter's own: their versions say it.
    """
    _, _, sources = _code(modules)
    return {root: batch_key(sources=files) for root, files in sorted(sources.items())}


def code_of_stage(*modules: str) -> str:
    """Return a SHA-256 of the code that a stage is made of.

    It covers these modules; what they import of their own package, of core's folder that they are in; and what somebody
    is editing beside them. The rest, of core and of libraries, is in `code_version`.
    """
    own = _own_imports(modules)
    beside = _helpers({name.partition(".")[0] for name in modules}) - {"defend"}
    return batch_key(own=own, beside={root: _package_sources(root) for root in beside})


def _own_imports(modules: Iterable[str]) -> dict[str, str]:
    """Return the hashes of the sources of these modules, and of what they import of their own homes, see `_home`."""
    found: dict[str, str] = {}
    modules = [name for name in modules if name.partition(".")[0] not in sys.stdlib_module_names]
    waiting = list(modules)
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        try:
            spec = importlib.util.find_spec(name)
        except ImportError:  # a name in a module, which is no module of its own
            spec = None
        except ValueError:  # a module made by hand has no spec
            found[name] = _make_unique()
            continue
        if spec is None or not spec.has_location or spec.origin is None:
            found |= {name: _make_unique()} if name in modules else {}
            continue
        found[name] = _file_hash(Path(spec.origin))
        with contextlib.suppress(OSError, ValueError, SyntaxError):  # compiled code has no imports to read
            tree = ast.parse(Path(spec.origin).read_bytes())
            package = name if spec.submodule_search_locations is not None else name.rpartition(".")[0]
            waiting += [each for each in _imports(tree, package) if _home(each) == _home(name)]
    return found


def _home(module: str) -> str:
    """Return where a module's own imports lie: its package; in core the folder, a module of its root being alone."""
    root, _, rest = module.partition(".")
    return f"{root}.{rest.partition('.')[0]}" if root == "defend" else root


def _imports(tree: ast.AST, package: str) -> Iterator[str]:
    """Yield the dotted names that a module's source imports; of "from a import b" both "a" and "a.b"."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.rsplit(".", node.level - 1)[0] if node.level > 1 else package
            base = ".".join(part for part in (above if node.level else "", node.module or "") if part)
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)


def _code(modules: Iterable[str]) -> tuple[set[str], dict[str, str], dict[str, dict[str, str]]]:
    roots = {"defend", *(module.partition(":")[0].partition(".")[0] for module in modules)}
    roots |= _helpers(roots)
    points = importlib.metadata.entry_points(group=GROUP)
    names = {point.module.partition(".")[0]: point.dist.name for point in points if point.dist is not None}
    names["defend"] = "defend-core"
    versions: dict[str, str] = {}
    for root in roots & set(names):
        versions |= _versions(names[root])
    libraries = set(versions) - set(names)  # whose version says it all
    installed = {name.replace("-", "_").lower() for name in libraries}
    sources = {
        root: _package_sources(root)
        for root in roots - libraries
        if root.lower() not in installed and root not in sys.stdlib_module_names
    }
    return roots, versions, sources


def _helpers(roots: Iterable[str]) -> set[str]:
    """Return the top-level modules that those packages import and that somebody may be editing, see `_is_edited`.

    Their source counts, as no version tells of a change in it.
    """
    found: set[str] = set()
    looked_at: set[str] = set()  # thousands of values are of a few modules
    waiting = [root for root in roots if root != "defend" and _is_edited(root)]
    while waiting:
        root = waiting.pop()
        for name, module in list(sys.modules.items()):
            if name.partition(".")[0] != root:
                continue
            named = {
                value.__name__ if isinstance(value, types.ModuleType) else getattr(value, "__module__", None)
                for value in list(vars(module).values())
            }
            # a number or a tensor does not say where it is from, and an import statement does
            named |= _imports_of(getattr(module, "__file__", None), name)
            for other in sorted({each.partition(".")[0] for each in named if isinstance(each, str)}):
                if other in looked_at or other == root:
                    continue
                looked_at.add(other)
                if _is_edited(other):
                    found.add(other)
                    waiting.append(other)
    return found


def _imports_of(file: object, name: str) -> set[str]:
    """Return the names that a module's file imports; nothing of what has no source."""
    if not isinstance(file, str) or not file.endswith(".py"):
        return set()
    with contextlib.suppress(OSError, ValueError, SyntaxError):
        path = Path(file)
        package = name if path.name == "__init__.py" else name.rpartition(".")[0]
        return set(_imports(ast.parse(path.read_bytes()), package))
    return set()


def _stamp_edited() -> tuple[tuple[str, int], ...]:
    """Return when the files of the modules that somebody may be editing were last written."""
    roots = {name.partition(".")[0] for name in list(sys.modules)}
    edited = {root for root in roots if root != "defend" and _is_edited(root)}
    stamps = []
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] in edited and isinstance(file := getattr(module, "__file__", None), str):
            with contextlib.suppress(OSError):
                stamps.append((file, os.stat(file).st_mtime_ns))
    return tuple(sorted(stamps))


def _is_edited(root: str) -> bool:
    """Whether a top-level module has a file that lies neither in the interpreter nor among installed packages."""
    file = getattr(sys.modules.get(root), "__file__", None)
    return isinstance(file, str) and root not in sys.stdlib_module_names and not _is_installed(file)


@functools.cache
def _is_installed(file: str) -> bool:
    """Whether a file lies in the interpreter or among installed packages."""
    places = [Path(place) for place in sysconfig.get_paths().values()]
    # an environment may see another one's packages (venv --system-site-packages)
    installed = {"site-packages", "dist-packages"} & set(Path(file).parts)
    return bool(installed) or any(Path(file).is_relative_to(place) for place in places)


def _versions(distribution: str) -> dict[str, str]:
    """Return the versions of an installed distribution and of those that it asks for, by name."""
    found = {}
    try:
        asked = importlib.metadata.requires(distribution) or []
    except importlib.metadata.PackageNotFoundError:
        return {}
    for requirement in (distribution, *asked):
        name = re.split(r"[^\w.-]", requirement, maxsplit=1)[0]
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def _package_sources(root: str) -> dict[str, str]:
    """Return the hashes of a package's Python files by their names in it, or of a lone module's file."""
    try:
        spec = importlib.util.find_spec(root)
    except ValueError:  # a module made by hand has no spec
        spec = None
    folders = [Path(folder) for folder in (spec and spec.submodule_search_locations) or ()]
    if not folders:
        return {"": _make_unique() if spec is None or spec.origin is None else _file_hash(Path(spec.origin))}
    return {
        path.relative_to(folder).as_posix(): _file_hash(path) for folder in folders for path in folder.rglob("*.py")
    }


def _file_hash(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:
        return _make_unique()


def _module_source(name: str) -> str | None:
    """Return the hash of a module's file, the interpreter's version for its own, or None if it has no file."""
    root = name.partition(".")[0]
    if root in sys.stdlib_module_names:
        return sys.version
    file = getattr(sys.modules.get(name), "__file__", None)
    if file is None:
        return None
    return _file_hash(Path(file)) if _is_edited(root) else _installed_hash(file)


@functools.cache
def _installed_hash(file: str) -> str:
    return _file_hash(Path(file))


def _make_unique() -> str:
    """Return text that never comes again, so that an entry cannot be found; finding a wrong one would be worse."""
    return uuid.uuid4().hex


class _Hasher:
    """Hashes values by their content, objects by what `copy` and their likes would keep of them; cycles are fine."""

    def __init__(self) -> None:
        import torch

        self._tensor = torch.Tensor
        self._bytes = torch.uint8
        self._module = torch.nn.Module
        self._scripted = torch.jit.ScriptModule
        self._save = torch.jit.save
        self._known: dict[int, tuple[Any, bytes]] = {}  # the value too, as its id is only its own while it lives
        self._open: dict[int, int] = {}

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
            digest = self.of(_make_unique())
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
            source = _module_source(value.__name__) or _make_unique()
            return self._join("module", [self.of((value.__name__, getattr(value, "__version__", None), source))])
        if isinstance(value, types.FunctionType):
            cells = [cell.cell_contents for cell in value.__closure__ or ()]
            held = (value.__code__, value.__defaults__, value.__kwdefaults__, cells)
            return self._join("function", [self._of_named(value, value.__qualname__), self.of(held)])
        if isinstance(value, types.MethodType):
            return self._join("method", [self.of(value.__func__), self.of(value.__self__)])
        if isinstance(value, staticmethod | classmethod):
            return self._join(type(value).__name__, [self.of(value.__func__)])
        if isinstance(value, property):
            return self._join("property", [self.of((value.fget, value.fset, value.fdel))])
        if isinstance(value, types.CodeType):
            return self.of((value.co_code, value.co_consts, value.co_names, value.co_freevars, value.co_flags))
        return self._of_state(value)

    def _of_tensor(self, value: Tensor) -> bytes:
        try:
            flat = value.detach().cpu().contiguous().reshape(-1).view(self._bytes)
            content = hashlib.sha256(flat.numpy().data).digest()
        except (RuntimeError, NotImplementedError, TypeError):  # sparse, quantised, without memory
            content = self.of(_make_unique())
        return self._join(f"tensor {value.dtype} {tuple(value.shape)}", [content])

    def _of_class(self, value: type) -> bytes:
        named = self._of_named(value, value.__qualname__)
        if "<locals>" not in value.__qualname__:
            return named
        # made within a function, whose variables its methods may use
        held = {name: part for name, part in vars(value).items() if name not in NOT_OF_A_CLASS}
        return self._join("class", [named, self.of(value.__bases__), self.of(held)])

    def _of_named(self, value: Any, name: str) -> bytes:
        module = getattr(value, "__module__", None) or "builtins"
        source = _module_source(module) or _make_unique()
        return self._join("named", [self.of((module, name, source))])

    def _of_state(self, value: Any) -> bytes:
        """Hash an object by what it would be rebuilt from; one that cannot be is like no other."""
        if isinstance(value, self._scripted):  # all of it is in its file: the code, and constants that are no state
            file = io.BytesIO()
            with contextlib.suppress(RuntimeError), warnings.catch_warnings():  # some refuse, and are like no other
                warnings.simplefilter("ignore")
                self._save(value, file)
            return self._join("scripted", [self.of(file.getvalue() or _make_unique())])
        try:
            kept = value.__reduce_ex__(4)
        except Exception:  # classes refuse in many ways
            return self.of(_make_unique())
        if isinstance(kept, str):  # the name of something global
            return self._join("global", [self.of(type(value)), self.of((getattr(value, "__module__", None), kept))])
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
