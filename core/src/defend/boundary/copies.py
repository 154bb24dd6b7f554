"""Copies of a module, of whatever kind."""

from __future__ import annotations

import copy
import io
import warnings
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from defend.boundary.calls import Calling
from defend.boundary.given import name_of
from defend.boundary.scripted import python_attributes
from defend.boundary.trial import complete_modes

M = TypeVar("M", bound=nn.Module)


def copy_module(module: M, shared: Iterable[nn.Module] = ()) -> M:
    """Return a deep copy of a module; tensors that it computed from parameters, and keeps, are copied as values.

    Such are the weights of `torch.nn.utils.weight_norm`, which are computed anew before every pass. Modules of
    TorchScript are copied as their files are, with what was set on them from Python, which a deep copy loses. Those
    `shared` and what is in them are not copied: the copy holds them themselves.

    Raises:
        StageError: it cannot be copied.
    """
    memo: dict[int, object] = {id(part): part for whole in shared for part in whole.modules()}
    reloaded: list[tuple[torch.jit.ScriptModule, torch.jit.ScriptModule]] = []
    scripted: set[nn.Module] = set()
    for part in module.modules():
        if id(part) in memo:
            continue
        if isinstance(part, torch.jit.ScriptModule) and part not in scripted:
            scripted.update(part.modules())  # what is within it is copied with it
            with Calling(f"stage {name_of(module)}", "a copy of it"):
                reloaded.append((part, _reload(part)))
                memo[id(part)] = reloaded[-1][1]
        if part in scripted:
            continue
        for value in vars(part).values():
            if isinstance(value, Tensor) and not value.is_leaf:
                memo[id(value)] = value.detach().clone()
    with Calling(f"stage {name_of(module)}", "a copy of it"):
        for part, loaded in reloaded:
            _set_attributes(loaded, copy.deepcopy(python_attributes(part), memo))
        return copy.deepcopy(module, memo)


def _reload(module: torch.jit.ScriptModule) -> torch.jit.ScriptModule:
    """Return what a file of a TorchScript module would give."""
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that TorchScript is old is no news to who brings such a module
        torch.jit.save(module, file)
        file.seek(0)
        loaded: torch.jit.ScriptModule = torch.jit.load(file)
    complete_modes(loaded)
    return loaded


def _set_attributes(module: nn.Module, attributes: Mapping[str, Mapping[str, Any]]) -> None:
    for name, part in module.named_modules():
        for key, value in attributes.get(name, {}).items():
            setattr(part, key, value)
