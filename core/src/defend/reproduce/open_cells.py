"""Measures only what a kept result of a table lacks, and joins the two."""

from __future__ import annotations

from collections.abc import Collection

import attrs

from defend.errors import ConfigError
from defend.plugins import Registry
from defend.reproduce.cells import join_versions
from defend.reproduce.jobs import compose_arm, hash_weights
from defend.reproduce.results import Cell, TableResult, find_kept, standing
from defend.tables import Table


def find_current(table: Table, seed: int, gaps: Collection[str], plugins: Registry) -> TableResult | None:
    """Return what came with a table's plugin, less what was measured with other weights than there are now.

    Args:
        table: whose result it is.
        seed: of what is to be measured beside it.
        gaps: the arms whose weights are missing: their figures stay.
        plugins: what is installed.

    Returns:
        None where nothing came.

    Raises:
        ConfigError: it was measured with another seed.
        DataError: it is damaged.
    """
    kept = find_kept(table)
    if kept is None:
        return None
    if kept.seed != seed:
        raise ConfigError(
            f"--seed {seed}: the kept result of {table.name} is of seed {kept.seed}, and what it lacks is measured "
            f"with the same: give --seed {kept.seed}, or measure all of it, without --open"
        )
    stale = {name for name in kept.weights if name not in gaps and _is_stale(table, name, kept, plugins)}
    stale |= {arm.name for arm in table.arms if stale & set(arm.best_of)}
    cells = tuple(_open(table, cell) if cell.arm in stale else cell for cell in kept.cells)
    return attrs.evolve(
        kept,
        cells=cells,
        adaptive=tuple(one for one in kept.adaptive if one.arm not in stale),
        weights={name: then for name, then in kept.weights.items() if name not in stale},
    )


def _is_stale(table: Table, name: str, kept: TableResult, plugins: Registry) -> bool:
    arm = next((arm for arm in table.arms if arm.name == name), None)
    if arm is None:
        return True
    now = hash_weights(compose_arm(table, arm, plugins), filter(None, [arm.source]), table.dataset, plugins)
    return any(now.get(part, value) != value for part, value in kept.weights[name].items())


def _open(table: Table, cell: Cell) -> Cell:
    stands, _ = standing(table, cell.attack, cell.arm, None)
    why = "it was measured with other weights"
    return Cell(attack=cell.attack, arm=cell.arm, paper=cell.paper, standing=stands, why=why)


def join(table: Table, kept: TableResult, new: TableResult) -> TableResult:
    """Return a result with the figures of both: where both have one, that of `new`.

    Devices, versions and times are those of both.
    """
    measured = {(cell.attack, cell.arm) for cell in new.cells if cell.ours is not None}
    there = {one.arm: one for one in (*kept.adaptive, *new.adaptive)}
    return attrs.evolve(
        new,
        dataset=new.dataset if measured or new.adaptive else kept.dataset,
        cells=tuple(
            cell if (cell.attack, cell.arm) in measured else kept.cell(cell.attack, cell.arm) or cell
            for cell in new.cells
        ),
        adaptive=tuple(there[arm.name] for arm in table.arms if arm.name in there),
        versions=join_versions((kept.versions, new.versions)),
        plugins=join_versions((kept.plugins, new.plugins)),
        device="; ".join(dict.fromkeys(device for device in (kept.device, new.device) if device)),
        seconds=kept.seconds + new.seconds,
        weights={**kept.weights, **new.weights},
    )
