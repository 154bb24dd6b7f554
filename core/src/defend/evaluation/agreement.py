"""Whether all processes of a run judge the same thing: each builds its own, from the files that it sees."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from defend.errors import ConfigError
from defend.util.processes import Processes
from defend.util.tensors import hash_state


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
            "things: let all of them see the same files (DEFEND_CACHE_DIR, the data set's), and draw no split without "
            "a seed"
        )
