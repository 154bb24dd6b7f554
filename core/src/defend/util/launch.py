"""What a launcher (torchrun, accelerate, a cluster's own) says of this process in its environment. Without torch."""

from __future__ import annotations

import os

from defend.errors import ConfigError

MPI = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE")
"""How many processes mpirun started, as Open MPI, MPICH and MVAPICH say it."""


def place() -> tuple[int, int]:
    """Return which of how many processes this is: (0, 1) where no launcher started it.

    Raises:
        ConfigError: the variables contradict each other. A process might then take itself for one of several, of which
            only the first speaks, and run without a word.
    """
    given = {name: os.environ[name] for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK") if os.environ.get(name)}
    said = " ".join(f"{name}={value}" for name, value in given.items())
    try:
        numbers = {name: int(value) for name, value in given.items()}
    except ValueError:
        raise ConfigError(f"the environment says {said}: expected whole numbers, as torchrun sets them") from None
    world, rank = numbers.get("WORLD_SIZE"), numbers.get("RANK")
    hint = "unset them for a run in one process, or start it with torchrun, which sets all of them"
    # a LOCAL_RANK of 0 alone fits a single process
    if world is None and (rank is not None or numbers.get("LOCAL_RANK")):
        raise ConfigError(f"the environment says {said} and no WORLD_SIZE: {hint}")
    if rank is None and (world or 1) > 1:
        raise ConfigError(f"the environment says {said} and no RANK: {hint}")
    started = next((f"{name}={os.environ[name]}" for name in MPI if os.environ.get(name, "1") != "1"), None)
    if world is None and started:  # each would take itself for the only one
        raise ConfigError(f"the environment says {started} and no WORLD_SIZE, so mpirun started this: use torchrun")
    where, count = rank or 0, 1 if world is None else world
    if not 0 <= where < count:
        raise ConfigError(f"the environment says {said}: expected RANK from 0 to WORLD_SIZE - 1; {hint}")
    return where, count
