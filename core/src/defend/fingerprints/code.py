"""Which code something is made by: hashes and versions of core, of plugins, and of what they import."""

from __future__ import annotations

import ast
import contextlib
import functools
import importlib.metadata
import importlib.util
import os
import re
import sys
import types
from collections.abc import Iterable, Iterator
from pathlib import Path

from defend.fingerprints.sources import hash_as_imported, is_edited, make_unique
from defend.fingerprints.values import batch_key
from defend.hookspecs import GROUP

# they show, write, lock or load plugins: no image, weight or verdict comes from them
WITHOUT_FIGURES = frozenset({"click", "filelock", "jinja2", "matplotlib", "platformdirs", "pluggy", "rich", "tomli-w"})


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
    """Return the modules of a part's class, of the functions and modules that it holds, and of the parts within it."""
    found: set[str] = set()
    made = not isinstance(part, type)  # a class holds its methods, which are where it is
    for each in part.modules() if made and hasattr(part, "modules") else (part,):
        kept = list(vars(each).values()) if made and hasattr(each, "__dict__") else []
        for one in (type(each), each, *kept):
            module = one.__name__ if isinstance(one, types.ModuleType) else getattr(one, "__module__", None)
            if isinstance(module, str):
                found.add(module)
    return found - {"builtins"}


def code_of(*modules: str) -> dict[str, str]:
    """Return a hash of every source file of core and of the packages that `modules` belong to, by package.

    Args:
        modules: as for `code_version`. Those of libraries that core and plugins ask for are left out, as is the
            interpreter's own: their versions say it, see `versions_of`.
    """
    _, _, sources = _code(modules)
    return {root: batch_key(sources=files) for root, files in sorted(sources.items())}


def versions_of(*modules: str) -> dict[str, str]:
    """Return the versions of core and of the libraries that figures come from, by distribution.

    Args:
        modules: as for `code_version`; core, and the plugins among their packages, say which libraries they ask for.
            Of core's extras those count whose modules are among them too: an adapter holds its library.
    """
    roots = _roots(modules)
    known = _distributions()
    found: dict[str, str] = {}
    for root in sorted(roots & set(known)):
        # a plugin may take what it finds installed, and nothing of it need show that
        found |= _versions(known[root], roots if root == "defend" else None)
    plugins = set(known.values()) - {known["defend"]}
    return {name: found[name] for name in sorted(found) if name not in plugins | WITHOUT_FIGURES}


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
            found[name] = make_unique()
            continue
        if spec is None or not spec.has_location or spec.origin is None:
            found |= {name: make_unique()} if name in modules else {}
            continue
        found[name] = hash_as_imported(Path(spec.origin))
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


def _roots(modules: Iterable[str]) -> set[str]:
    """Return the packages of modules, core's, and those of the helpers beside them."""
    roots = {"defend", *(module.partition(":")[0].partition(".")[0] for module in modules)}
    return roots | _helpers(roots)


def _distributions() -> dict[str, str]:
    """Return the distributions of core and of the installed plugins by their packages."""
    points = importlib.metadata.entry_points(group=GROUP)
    names = {point.module.partition(".")[0]: point.dist.name for point in points if point.dist is not None}
    return {**names, "defend": "defend-core"}


def _code(modules: Iterable[str]) -> tuple[set[str], dict[str, str], dict[str, dict[str, str]]]:
    roots, names = _roots(modules), _distributions()
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
    """Return the top-level modules that those packages import and that somebody may be editing, see `is_edited`.

    Their source counts, as no version tells of a change in it.
    """
    found: set[str] = set()
    looked_at: set[str] = set()  # thousands of values are of a few modules
    waiting = [root for root in roots if root != "defend" and is_edited(root)]
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
                if other in looked_at or other in (root, "defend"):  # core is hashed as a whole
                    continue
                looked_at.add(other)
                if is_edited(other):
                    found.add(other)
                    waiting.append(other)
    return found


def _imports_of(file: object, name: str) -> set[str] | frozenset[str]:
    """Return the names that a module's file imports; nothing of what has no source."""
    if not isinstance(file, str) or not file.endswith(".py"):
        return set()
    with contextlib.suppress(OSError, ValueError, SyntaxError):
        state = os.stat(file)
        return _parse_imports(file, name, (state.st_mtime_ns, state.st_size))
    return set()


@functools.lru_cache(4096)
def _parse_imports(file: str, name: str, _: object) -> frozenset[str]:
    path = Path(file)
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    return frozenset(_imports(ast.parse(path.read_bytes()), package))


def _stamp_edited() -> tuple[tuple[str, int], ...]:
    """Return when the files of the modules that somebody may be editing were last written."""
    roots = {name.partition(".")[0] for name in list(sys.modules)}
    edited = {root for root in roots if root != "defend" and is_edited(root)}
    stamps = []
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] in edited and isinstance(file := getattr(module, "__file__", None), str):
            with contextlib.suppress(OSError):
                stamps.append((file, os.stat(file).st_mtime_ns))
    return tuple(sorted(stamps))


def _versions(distribution: str, used: set[str] | None = None) -> dict[str, str]:
    """Return the versions of an installed distribution and of those that it asks for, by name.

    `used`: the packages that must be in use for those of its extras to count; None counts all that are installed.
    """
    found = {}
    try:
        asked = importlib.metadata.requires(distribution) or []
    except importlib.metadata.PackageNotFoundError:
        return {}
    for requirement in (distribution, *asked):
        name = re.split(r"[^\w.-]", requirement, maxsplit=1)[0]
        if used is not None and re.search(r"\bextra\s*==", requirement) and name.replace("-", "_").lower() not in used:
            continue
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
        return {"": make_unique() if spec is None or spec.origin is None else hash_as_imported(Path(spec.origin))}
    paths = [(folder, path) for folder in folders for path in folder.rglob("*.py")]
    return {path.relative_to(folder).as_posix(): hash_as_imported(path) for folder, path in paths}
