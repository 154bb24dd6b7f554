"""Whether all processes of a run judge the same thing: each builds its own, from the files that it sees."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Mapping
from typing import Any

from torch import nn

from defend.errors import ConfigError
from defend.util.processes import Processes
from defend.util.tensors import content_hash


def check_modules(processes: Processes, modules: Mapping[str, nn.Module]) -> None:
    """Refuse modules, by what they are called, whose parameters or buffers differ between processes.

    Raises:
        ConfigError: naming the first one, and a process that has another.
    """
    if processes.world > 1:
        check_alike(processes, {what: hash_state(module) for what, module in modules.items()})


def check_alike(processes: Processes, said: Mapping[str, Any]) -> None:
    """Refuse plain values, by what they are of, that differ between processes.

    Raises:
        ConfigError: naming the first one, and a process that has another.
    """
    if (found := processes.find_difference(said)) is not None:
        raise ConfigError(
            f"process {found[0]} of this run has another {found[1]} than process 0, so they would judge different "
            "things: let all of them see the same files (DEFEND_CACHE_DIR)"
        )


def hash_state(module: nn.Module) -> str:
    """Return a hash of all parameters and buffers; what has no bytes to read (sparse, quantised) is left out."""
    digest = hashlib.sha256()
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        with contextlib.suppress(RuntimeError, NotImplementedError, TypeError):
            digest.update(content_hash({name: tensor}).encode())
    return digest.hexdigest()
