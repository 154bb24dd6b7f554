"""What a user has put on a module of TorchScript from Python, which is in none of its files."""

from __future__ import annotations

from typing import Any

import torch


def python_attributes(module: torch.jit.ScriptModule) -> dict[str, dict[str, Any]]:
    """Return what was set on a module and its parts beside their script, such as `random`, by the part's name."""
    found: dict[str, dict[str, Any]] = {}
    for name, part in module.named_modules():
        held = vars(vars(part).get("_actual_script_module", part))  # a traced one hands on what is set on it
        own = {key: value for key, value in held.items() if key[0] != "_" and not isinstance(value, torch.ScriptMethod)}
        found |= {name: own} if own else {}
    return found
