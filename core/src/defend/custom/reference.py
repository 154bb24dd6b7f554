"""`my_model.py:load` and `package.module:load` in the place of a stage's name. Imports no torch by itself."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from defend.boundary.calls import Calling
from defend.errors import ConfigError, did_you_mean
from defend.values.references import shorten, split_reference


def load_reference(text: str) -> Any:
    """Import what a reference names.

    Raises:
        ConfigError: there is no such file, or nothing of that name in it; the nearest is offered.
        StageError: importing it fails.
    """
    split = split_reference(text)
    if split is None:
        raise ConfigError(f"{text!r} is no reference: expected FILE.py:NAME or MODULE:NAME")
    where, what = split
    if "," in text:
        raise ConfigError(f"{text!r} holds a comma, which stands between purifiers: expected a path without one")
    if where.endswith(".py") and not os.path.isfile(Path(where).expanduser()):  # of any text
        beside = [path.name for path in Path(where).expanduser().parent.glob("*.py")]
        hint = f": {did_you_mean(Path(where).name, beside)}" if beside else ""
        raise ConfigError(f"{text!r}: file {where!r} does not exist{hint}")
    with Calling(shorten(text), "its import"):
        module = _import_file(Path(where).expanduser().resolve()) if where.endswith(".py") else _import_module(where)
    if not hasattr(module, what):
        own = [name for name, value in vars(module).items() if callable(value) and not name.startswith("_")]
        raise ConfigError(f"{text!r}: there is no {what!r} in it: {did_you_mean(what, own)}")
    return getattr(module, what)


def _import_module(name: str) -> ModuleType:
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))  # as `python -m` does
    return importlib.import_module(name)


def _import_file(path: Path) -> ModuleType:
    """Import a file, once a process; what lies beside it can be imported by it, as of a script."""
    # its own name where nobody else has that, so that its classes say where they come from
    own = path.stem if path.stem.isidentifier() else "custom"
    taken = own in sys.modules or importlib.util.find_spec(own) is not None
    name = f"{own}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}" if taken else own
    for known in (own, name):
        if getattr(sys.modules.get(known), "__file__", None) == str(path):
            return sys.modules[known]
    if str(path.parent) not in sys.path:
        sys.path.insert(0, str(path.parent))
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # before it runs, as dataclasses and their likes look themselves up
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module
